"""How full each memory region is: what is used and free, and who takes the most, from a map or an ELF.

`used` is what `ld --print-memory-usage` prints: up to the end of the last thing in the region, with the gaps.
A section counts where it runs and, when the file has bytes for it, where it is loaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .elffile import SHF_EXECINSTR, SHF_WRITE, SHN_ABS, SHT_NOBITS, Elf
from .mapfile import LinkMap, MapOutput
from .match import any_match
from .outline import Outline
from .settings import Settings

CODE, CONSTANT, DATA, ZERO = "code", "constant", "data", "zero"
RUNS, LOADS = "runs", "loads"

_NOT_IN_MEMORY = (
    ".debug*", ".zdebug*", ".stab*", ".comment", ".symtab*", ".strtab", ".shstrtab", ".*.attributes",
    ".gnu.attributes", ".note.GNU-stack", ".gnu.build.attributes*", ".gnu.lto_*",
)  # fmt: skip
_ZEROED = (
    ".bss*",
    ".sbss*",
    ".tbss*",
    ".noinit*",
    ".dynbss",
    "COMMON",
    "._user_heap_stack",
    ".stack*",
    ".heap*",
)
_SHARES = 10


class Part(NamedTuple):
    """A section in memory: addresses and size in bytes, `kind` one of CODE, CONSTANT, DATA, ZERO."""

    name: str
    address: int
    size: int
    kind: str
    load_address: int
    line: int = 0

    @property
    def loaded_elsewhere(self) -> bool:
        """Tell whether the file has bytes for it that are loaded to another address."""
        return self.kind != ZERO and self.load_address != self.address


class Place(NamedTuple):
    """A part in a region, where it RUNS or where it LOADS."""

    part: Part
    verb: str
    address: int

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.address + self.part.size


class Fill(NamedTuple):
    """One region: bytes. `used` goes to the end of the last place, `gaps` are the holes before that.

    `shares` are the largest contributors with their bytes, `budget` is what the project allows.
    """

    name: str
    origin: int
    length: int
    used: int
    gaps: int
    places: tuple[Place, ...]
    shares: tuple[tuple[str, int], ...]
    budget: int | None = None

    @property
    def free(self) -> int:
        """What is left; negative when the region overflows."""
        return self.length - self.used

    @property
    def over(self) -> bool:
        """Tell whether it overflows, or uses more than its budget."""
        return self.used > min(self.length, self.length if self.budget is None else self.budget)


def parts_of_elf(elf: Elf) -> list[Part]:
    """Return the sections of an ELF that take memory."""
    out = []
    for section in elf.sections:
        if not section.occupies:
            continue
        if section.flags & SHF_EXECINSTR:
            kind = CODE
        elif section.type == SHT_NOBITS:
            kind = ZERO
        else:
            kind = DATA if section.flags & SHF_WRITE else CONSTANT
        load = elf.load_address(section)
        out.append(
            Part(section.name, section.address, section.size, kind, section.address if load is None else load)
        )
    return out


_KINDS = (
    ((".text*", ".init", ".fini", ".plt*", ".vectors", ".isr_vector*"), CODE),
    (
        (".ro*", ".note*", ".eh_frame*", ".gcc_except_table*", ".ARM.ex*", ".*init_array*", ".fini_array*"),
        CONSTANT,
    ),
)


def _kind_in_map(output: MapOutput) -> str:
    """Guess from names: a map does not tell what has bytes in the file."""
    names = [item.name for item in output.inputs if item.size]
    if any_match(_ZEROED, output.name) or (names and all(any_match(_ZEROED, name) for name in names)):
        return ZERO
    return next((kind for patterns, kind in _KINDS if any_match(patterns, output.name)), DATA)


def parts_of_map(link_map: LinkMap) -> list[Part]:
    """Return the output sections of a map that take memory, as far as their names tell."""
    return [
        Part(output.name, output.address, output.size, _kind_in_map(output), output.load_address, output.line)
        for output in link_map.outputs
        if output.size and not any_match(_NOT_IN_MEMORY, output.name)
    ]


def regions_of(
    outline: Outline | None, link_map: LinkMap | None, settings: Settings
) -> dict[str, tuple[int, int]]:
    """Return origin and length of each region that is known; of aliases the first name."""
    found: dict[str, tuple[int, int]] = {}
    for region in link_map.regions if link_map is not None else ():
        if region.name != "*default*":
            found[region.name] = (region.origin, region.length)
    for name, (origin, length) in outline.regions.items() if outline is not None else ():
        if origin is not None and length is not None:
            found.setdefault(name, (origin, length))
    for rule in settings.regions:
        if rule.origin is not None and rule.length is not None:
            found[rule.name] = (rule.origin, rule.length)
    unique: dict[tuple[int, int], str] = {}
    for name, extent in found.items():
        unique.setdefault(extent, name)
    return {name: extent for extent, name in unique.items()}


def symbols_of(
    outline: Outline | None, elf: Elf | None, extents: Iterable[tuple[int, int]]
) -> dict[str, int]:
    """Return the addresses of the symbols that the script assigns; numbers, such as sizes, are left out.

    A symbol that lies in no section is an address when it is an end of one of the regions of `extents`.
    """
    if outline is None or elf is None:
        return {}
    ends = {end for origin, length in extents for end in (origin, origin + length)}
    found = elf.find(statement.target for statement in outline.assignments)
    return {
        name: found[name].address
        for name in (statement.target for statement in outline.assignments)
        if name in found and (found[name].section != SHN_ABS or found[name].address in ends)
    }


def fill(
    outline: Outline | None, link_map: LinkMap | None, elf: Elf | None, settings: Settings
) -> list[Fill]:
    """Return how full each region is, in the order of their addresses."""
    if elf is not None:
        parts = parts_of_elf(elf)
    else:
        parts = parts_of_map(link_map) if link_map is not None else []
    budgets = {rule.name: rule.budget for rule in settings.regions}
    regions = regions_of(outline, link_map, settings)
    out = []
    for name, (origin, length) in sorted(regions.items(), key=lambda item: item[1]):
        places = tuple(sorted(_inside(parts, origin, length), key=lambda place: (place.address, place.end)))
        used = max((place.end for place in places), default=origin) - origin
        shares = _shares(places, link_map, elf)
        out.append(
            Fill(name, origin, length, used, used - _covered(places), places, shares, budgets.get(name))
        )
    return out


def _inside(parts: Iterable[Part], origin: int, length: int) -> Iterator[Place]:
    for part in parts:
        places = [Place(part, RUNS, part.address)]
        if part.loaded_elsewhere:
            places.append(Place(part, LOADS, part.load_address))
        for place in places:
            if origin <= place.address < origin + length:
                yield place


def _covered(places: Iterable[Place]) -> int:
    covered = end = 0
    for place in places:
        covered += max(0, place.end - max(end, place.address))
        end = max(end, place.end)
    return covered


def _shares(
    places: Iterable[Place], link_map: LinkMap | None, elf: Elf | None
) -> tuple[tuple[str, int], ...]:
    """Return who takes the most: object files when there is a map, else symbols, else sections."""
    counted: Counter[str] = Counter()
    inside = list(places)
    if link_map is not None:
        outputs = {output.name: output for output in link_map.outputs}
        for place in inside:
            output = outputs.get(place.part.name)
            for item in output.inputs if output is not None else ():
                counted[_object(item.file)] += item.size
    elif elf is not None:
        spans = [(place.part.address, place.part.address + place.part.size) for place in inside]
        for symbol in elf.symbols():
            if symbol.size and any(start <= symbol.address < end for start, end in spans):
                counted[symbol.name] = max(counted[symbol.name], symbol.size)
    if not counted:
        counted.update({place.part.name: place.part.size for place in inside})
    largest = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return tuple((name, size) for name, size in largest[:_SHARES] if size)


def _object(file: str) -> str:
    """Return `libc.a(printf.o)` of a path to it."""
    archive, bracket, member = file.partition("(")
    return os.path.basename(archive) + bracket + member  # noqa: PTH119
