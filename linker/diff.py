"""What changed in the layout between two linked ELF files: moved, grew, lost alignment."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .elffile import Elf, ElfSection

PAGE = 4096
_MOST_SYMBOLS = 20
_CHECKED_ALIGNMENT = 64


class Change(NamedTuple):
    """One difference; `kind` is added, removed, moved, size, alignment or symbol; `lost`: lost alignment.

    `old` and `new` are addresses, sizes or alignments in bytes, by kind.
    """

    kind: str
    name: str
    old: int | None
    new: int | None
    lost: bool = False


def _power(value: int) -> int:
    """Return the largest power of two that divides an address, at most a page."""
    return min(value & -value, PAGE) if value else PAGE


def _allocated(elf: Elf) -> dict[str, ElfSection]:
    out: dict[str, ElfSection] = {}
    for section in elf.sections:
        if section.allocated:
            out.setdefault(section.name, section)
    return out


def section_changes(old: Elf, new: Elf) -> Iterator[Change]:
    """Yield what changed in the allocated sections, in the order of the new file."""
    before, after = _allocated(old), _allocated(new)
    for name, section in after.items():
        if name not in before:
            yield Change("added", name, None, section.size)
            continue
        was = before[name]
        if was.address != section.address:
            lost = _power(section.address) < min(_power(was.address), max(was.alignment, 1))
            yield Change("moved", name, was.address, section.address, lost)
        if was.size != section.size:
            yield Change("size", name, was.size, section.size)
        if was.alignment > section.alignment:
            yield Change("alignment", name, was.alignment, section.alignment, lost=True)
    for name, section in before.items():
        if name not in after:
            yield Change("removed", name, section.size, None)


def symbol_changes(old: Elf, new: Elf) -> Iterator[Change]:
    """Yield the symbols that were on a page or a 64-byte line and no longer are.

    That a symbol moved is no news when something before it grew; that it lost its alignment is.
    """
    before = {symbol.name: symbol.address for symbol in old.symbols() if symbol.address % PAGE == 0}
    if not before:
        return
    for symbol in new.symbols():
        was = before.pop(symbol.name, None)
        if was is not None and symbol.address % _CHECKED_ALIGNMENT:
            yield Change("symbol", symbol.name, was, symbol.address, lost=True)


def compare(old: Elf, new: Elf) -> list[Change]:
    """Return all changes."""
    return [*section_changes(old, new), *symbol_changes(old, new)]


def _text(change: Change) -> str:
    match change.kind:
        case "added":
            return f"added    {change.name}: {change.new} bytes"
        case "removed":
            return f"removed  {change.name}: {change.old} bytes"
        case "size":
            delta = (change.new or 0) - (change.old or 0)
            verb = "grew" if delta > 0 else "shrank"
            return f"{verb:8} {change.name}: {change.old} -> {change.new} bytes ({delta:+})"
        case "moved":
            return f"moved    {change.name}: {change.old:#x} -> {change.new:#x}"
        case "alignment":
            return f"aligned  {change.name}: {change.old} -> {change.new}"
    return f"symbol   {change.name}: {change.old:#x} -> {change.new:#x}"


def render(changes: list[Change]) -> str:
    """Return the changes as text, a line each; those that lost alignment say so."""
    lines = []
    symbols = 0
    for change in changes:
        if change.kind == "symbol":
            symbols += 1
            if symbols > _MOST_SYMBOLS:
                continue
        lines.append(_text(change) + ("  LOST ALIGNMENT" if change.lost else ""))
    if symbols > _MOST_SYMBOLS:
        lines.append(f"and {symbols - _MOST_SYMBOLS} more symbols that lost their alignment")
    return "\n".join(lines or ["the layouts are the same"]) + "\n"


def as_json(changes: list[Change]) -> str:
    """Return the changes as JSON."""
    import json

    return json.dumps({"version": 1, "changes": [change._asdict() for change in changes]}, indent=2) + "\n"
