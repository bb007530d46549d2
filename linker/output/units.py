"""Bytes and shares as people write them, by whole numbers: a script's may be too large for a float."""

from __future__ import annotations


def in_units(size: int) -> str:
    """Return a size in the largest unit that is not more than it, exact where that is short."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(size) >= 1 << shift:
            whole, rest = divmod(abs(size), 1 << shift)
            sign = "-" if size < 0 else ""
            return (
                f"{sign}{whole} {unit}" if not rest else f"{sign}{_rounded(abs(size), 1 << shift, 1)} {unit}"
            )
    return f"{size} B"


def percent(part: int, whole: int, digits: int = 2) -> str:
    """Return a share in per cent; of nothing, a dash."""
    return f"{_rounded(100 * part, whole, digits)}%" if whole > 0 and part >= 0 else "-"


def _rounded(number: int, unit: int, digits: int) -> str:
    scale: int = 10**digits
    parts = (2 * number * scale + unit) // (2 * unit)
    return f"{parts // scale}.{parts % scale:0{digits}}"
