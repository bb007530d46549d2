"""Bytes as people write them."""

from __future__ import annotations


def in_units(size: int) -> str:
    """Return a size in the largest unit that is not more than it, exact where that is short."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if abs(size) >= 1 << shift:
            value = size / (1 << shift)
            return f"{value:.0f} {unit}" if size % (1 << shift) == 0 else f"{value:.1f} {unit}"
    return f"{size} B"
