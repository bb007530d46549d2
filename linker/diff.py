"""What changed in the layout between two linked ELF files: what moved, grew, lost alignment, symbols too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from .elffile import SHN_ABS, Elf, ElfSection, ElfSymbol

PAGE = 4096
_MOST_SYMBOLS = 20
_CHECKED_ALIGNMENT = 64


class Change(NamedTuple):
    """One difference; `lost`: something lost its alignment.

    `kind` is added, removed, moved, size or alignment of a section; symbol for one that is no longer on a
    page; symbols-moved for `several` symbols from `name` to `last` that moved together inside of `section`;
    symbol-size, symbol-section, symbol-added, symbol-removed. `old` and `new` are addresses, sizes or
    alignments in bytes, by kind.
    """

    kind: str
    name: str
    old: int | None
    new: int | None
    lost: bool = False
    section: str = ""
    last: str = ""
    several: int = 1


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


class _Named(NamedTuple):
    symbol: ElfSymbol
    section: str
    start: int  # of the section


_STT_SECTION, _STT_FILE = 3, 4


def _named(elf: Elf) -> dict[str, _Named]:
    """Return the symbols that one name stands for: those of allocated sections, and absolute ones."""
    out: dict[str, _Named] = {}
    twice: set[str] = set()
    for symbol in elf.symbols():
        if symbol.info & 15 in {_STT_SECTION, _STT_FILE}:
            continue
        section = elf.section_index(symbol.section)
        if section is None and symbol.section != SHN_ABS:
            continue
        if section is not None and not section.allocated:
            continue
        if symbol.name in out:
            twice.add(symbol.name)
        named = ("", 0) if section is None else (section.name, section.address)
        out[symbol.name] = _Named(symbol, *named)
    for name in twice:
        del out[name]
    return out


def moved_symbols(old: Elf, new: Elf) -> Iterator[Change]:
    """Yield what happened to symbols. One that moved with all of its section has not moved: the section has.

    Symbols that moved together, because something before them grew, are one change.
    """
    before, after = _named(old), _named(new)
    run: list[tuple[_Named, _Named]] = []
    for now in sorted(after.values(), key=lambda one: (one.section, one.symbol.address, one.symbol.name)):
        was = before.get(now.symbol.name)
        if was is None:
            continue
        if run and (now.section != run[0][1].section or _shift(was, now) != _shift(*run[0])):
            yield from _together(run)
            run = []
        if was.section != now.section:
            yield Change(
                "symbol-section", now.symbol.name, was.symbol.address, now.symbol.address,
                section=f"{was.section or 'absolute'} -> {now.section or 'absolute'}",
            )  # fmt: skip
        elif _shift(was, now):
            run.append((was, now))
        if was.symbol.size != now.symbol.size:
            yield Change(
                "symbol-size", now.symbol.name, was.symbol.size, now.symbol.size, section=now.section
            )
    yield from _together(run)
    for kind, here, there in (("symbol-added", after, before), ("symbol-removed", before, after)):
        for name in sorted(here.keys() - there.keys(), key=lambda name: (-here[name].symbol.size, name)):
            size = here[name].symbol.size
            added = kind == "symbol-added"
            yield Change(
                kind, name, None if added else size, size if added else None, section=here[name].section
            )


def _shift(was: _Named, now: _Named) -> int:
    """Return by how much a symbol moved inside of its section."""
    return (now.symbol.address - now.start) - (was.symbol.address - was.start)


def _together(run: list[tuple[_Named, _Named]]) -> Iterator[Change]:
    if run:
        (was, now), last = run[0], run[-1][1].symbol.name
        yield Change(
            "symbols-moved", now.symbol.name, was.symbol.address, now.symbol.address, section=now.section,
            last=last, several=len(run),
        )  # fmt: skip


def compare(old: Elf, new: Elf) -> list[Change]:
    """Return all changes."""
    return [*section_changes(old, new), *symbol_changes(old, new), *moved_symbols(old, new)]


def _sized(change: Change) -> str:
    delta = (change.new or 0) - (change.old or 0)
    return f"{change.name}: {change.old} -> {change.new} bytes ({delta:+})"


def _text(change: Change) -> str:
    where = f" in {change.section}" if change.section else ""
    match change.kind:
        case "added" | "symbol-added":
            return f"added    {change.name}: {change.new} bytes{where}"
        case "removed" | "symbol-removed":
            return f"removed  {change.name}: {change.old} bytes{where}"
        case "size" | "symbol-size":
            verb = "grew" if (change.new or 0) > (change.old or 0) else "shrank"
            return f"{verb:8} {_sized(change)}{where}"
        case "moved":
            return f"moved    {change.name}: {change.old:#x} -> {change.new:#x}"
        case "symbols-moved":
            names = (
                change.name
                if change.several == 1
                else f"{change.several} symbols, {change.name} to {change.last}"
            )
            return f"moved    {names}: {change.old:#x} -> {change.new:#x}{where}"
        case "symbol-section":
            return f"moved    {change.name}: {change.section}, {change.old:#x} -> {change.new:#x}"
        case "alignment":
            return f"aligned  {change.name}: {change.old} -> {change.new}"
    return f"symbol   {change.name}: {change.old:#x} -> {change.new:#x}"


_MORE = {
    "symbol": "symbols that lost their alignment",
    "symbols-moved": "places where symbols moved",
    "symbol-size": "symbols that grew or shrank",
    "symbol-section": "symbols that moved to another section",
    "symbol-added": "new symbols",
    "symbol-removed": "symbols that are gone",
}


def render(changes: list[Change], *, everything: bool = False) -> str:
    """Return the changes as text, a line each; of each kind about symbols the first ones, or all."""
    lines = []
    seen: Counter[str] = Counter()
    for change in changes:
        seen[change.kind] += 1
        if everything or change.kind not in _MORE or seen[change.kind] <= _MOST_SYMBOLS:
            lines.append(_text(change) + ("  LOST ALIGNMENT" if change.lost else ""))
    if not everything:
        for kind, what in _MORE.items():
            if seen[kind] > _MOST_SYMBOLS:
                lines.append(f"and {seen[kind] - _MOST_SYMBOLS} more {what}")
    return "\n".join(lines or ["the layouts are the same"]) + "\n"


def as_json(changes: list[Change]) -> str:
    """Return the changes as JSON."""
    import json

    return json.dumps({"version": 1, "changes": [change._asdict() for change in changes]}, indent=2) + "\n"
