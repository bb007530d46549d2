"""What output sections hold, from a map of GNU ld, an ELF and object files."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from . import ast
from .elffile import SHF_EXECINSTR, SHF_TLS, SHF_WRITE, SHT_NOBITS, Elf
from .evaluate import align_up
from .layout import wants
from .layout_values import Contents, Piece, Target
from .mapfile import LinkMap, MapInput, MapOutput
from .orphan_places import Orphan, is_plain
from .outline import Outline, inputs_of

_COMMON = "COMMON"
_SHN_COMMON = 0xFFF2


def _alignments(files: Mapping[str, Elf], file: str, name: str) -> int | None:
    elf = files.get(file)
    if elf is not None and name == _COMMON:
        return max((symbol.address for symbol in elf.symbols() if symbol.section == _SHN_COMMON), default=1)
    section = elf.by_name.get(name) if elf is not None else None
    return max(section.alignment, 1) if section is not None else None


def _guess(end: int, address: int) -> int:
    """Return the least alignment that leads from `end` to `address`, for files that are not at hand."""
    alignment = 1
    while alignment < 1 << 24 and align_up(end, alignment) < address:
        alignment <<= 1
    return alignment if align_up(end, alignment) == address else 1


def contents_of(
    link_map: LinkMap, outline: Outline, elf: Elf | None = None, files: Mapping[str, Elf] | None = None
) -> tuple[dict[str, Contents], list[Orphan]]:
    """Return what each output section holds by a GNU map, and the orphans with the sections before them.

    `files` are the object files by the names the map has for them; they say how inputs are aligned.
    """
    known = files or {}
    out: dict[str, Contents] = {}
    orphans: list[Orphan] = []
    order = Order(link_map, outline)
    specs: dict[str, list[ast.InputSpec]] = {}
    for placed in outline.sections:
        specs.setdefault(placed.section.name, []).extend(inputs_of(placed.section))
    before = ""
    counts = Counter(section.name for section in elf.sections) if elf is not None else Counter[str]()
    for output in link_map.outputs:
        if not output.size and output.name not in specs and (elf is None or output.name in out):
            # What linkers make for themselves and drop again when it stays empty.
            continue
        if output.name in out:
            if output.size or counts[output.name] > 1:
                out[output.name] = out[output.name]._replace(twice=True)
            continue
        # An orphan's section takes it by one description of its own.
        groups, rest = _groups(output, specs.get(output.name), known)
        out[output.name] = as_linked(output.name, groups, rest, elf, aligned=bool(files))
        if out[output.name].dropped:
            # ld lays empty sections out before it drops them, those that it made itself (.got) at 8 bytes.
            both = output.address | output.load_address
            own = min(8, both & -both or 8) if output.name not in specs else 1
            out[output.name] = out[output.name]._replace(allocated=bool(output.inputs), alignment=own)
        if output.name not in specs:
            orphans.append(Orphan(output.name, before, order.assigned(output)))
        before = output.name
    return out, orphans


def as_linked(
    name: str,
    groups: tuple[tuple[Piece, ...], ...],
    rest: tuple[Piece, ...],
    elf: Elf | None,
    *,
    aligned: bool,
) -> Contents:
    """Return the contents with what the linked file says of the section; `aligned` tells that pieces know."""
    section = elf.by_name.get(name) if elf is not None else None
    return Contents(
        groups,
        rest,
        dropped=elf is not None and section is None,
        thread_zero=section is not None and section.type == SHT_NOBITS and bool(section.flags & SHF_TLS),
        thread=section is not None and bool(section.flags & SHF_TLS),
        allocated=section.allocated if section is not None else True,
        kept=section is not None and section.allocated and section.type == SHT_NOBITS and _by_flags(name),
        loaded=section.type != SHT_NOBITS if section is not None else True,
        writable=section is not None and bool(section.flags & SHF_WRITE),
        code=bool(section.flags & SHF_EXECINSTR) if section is not None else None,
        # ld gives the first of the thread-local sections the largest alignment of all.
        alignment=1
        if section is None or (aligned and not section.flags & SHF_TLS)
        else max(section.alignment, 1),
    )


def _by_flags(name: str) -> bool:
    """Tell whether ld makes a section NOBITS by its flags alone, and not by its name (special_sections)."""
    return not name.startswith((".tbss", ".sbss", ".dynbss", ".gnu.linkonce")) and f"{name}."[:5] != ".bss."


class Order:
    """The order of things in a map: how many assignments between output sections come before one of them."""

    def __init__(self, link_map: LinkMap, outline: Outline) -> None:
        symbols = [*link_map.symbols, *(symbol for output in link_map.outputs for symbol in output.symbols)]
        self._lines = sorted(
            symbol.line for symbol in symbols if not symbol.text.startswith(("PROVIDE", "HIDDEN", "ASSERT"))
        )
        inside = {
            placed.section.name: sum(is_plain(statement) for statement in placed.section.body)
            for placed in outline.sections
        }
        # Of two output sections of one name the first is the script's.
        self._sections = [(output.line, inside.pop(output.name, 0)) for output in link_map.outputs]

    def assigned(self, output: MapOutput) -> int:
        """Return how many assignments outside of output sections stand before this one."""
        within = sum(count for line, count in self._sections if line < output.line)
        return bisect_left(self._lines, output.line) - within


class Taking(NamedTuple):
    """Which input description takes what, by output section; `orphans` are what none takes."""

    by_output: Mapping[str, tuple[tuple[Piece, ...], ...]]
    orphans: tuple[Piece, ...]


def input_files(outline: Outline) -> tuple[str, ...]:
    """Return the files that INPUT and GROUP add to the link, in order, those of AS_NEEDED included.

    A script that is given by -T stands for them where the option stands among the objects.
    """
    return tuple(
        file.name
        for command in outline.script.commands
        if isinstance(command, ast.Inputs)
        for file in command.files
    )


def _pieces_of(file: str, elf: Elf) -> Iterator[Piece]:
    """Yield the sections of an object file that a linker places, common symbols as one section."""
    for section in elf.sections:
        if section.allocated:
            yield Piece(section.name, file, section.size, max(section.alignment, 1))
    size, alignment = 0, 1
    for symbol in elf.symbols():
        if symbol.section == _SHN_COMMON:
            # A common symbol's value is its alignment (gABI, chapter 4).
            size = align_up(size, symbol.address) + symbol.size
            alignment = max(alignment, symbol.address)
    if size:
        yield Piece(_COMMON, file, size, alignment)


_NUMBER = re.compile(r"\d+\Z")


def _priority(piece: Piece) -> int:
    number = _NUMBER.search(piece.name)
    return int(number[0]) if number else 1 << 16


_ORDERS: Mapping[str, Callable[[Piece], Any]] = {
    "SORT": lambda piece: piece.name,
    "SORT_BY_NAME": lambda piece: piece.name,
    "SORT_BY_ALIGNMENT": lambda piece: -piece.alignment,
    "SORT_BY_INIT_PRIORITY": _priority,
}


def _sorted(spec: ast.InputSpec, pieces: list[Piece]) -> list[Piece]:
    """Return the pieces as the sorts of the description order them, the outermost first."""
    patterns = spec.sections or ()
    if len(patterns) == 1:
        for sort in reversed(patterns[0].sorts):
            if sort in _ORDERS:
                pieces = sorted(pieces, key=_ORDERS[sort])
    return pieces


def take(outline: Outline, files: Mapping[str, Elf]) -> Taking:
    """Return which description of the script takes which section of the object files, in their order.

    `files` are in the order of the link; those that the script adds (input_files) come first when -T does.
    As lang_process and walk_wild do (binutils 2.40, ld/ldlang.c): descriptions in the order of the script,
    and a section goes to the first that matches. Order inside of a description with several sorted patterns,
    and INPUT_SECTION_FLAGS, are not modelled.
    """
    free = [piece for file, elf in files.items() for piece in _pieces_of(file, elf)]
    out: dict[str, list[tuple[Piece, ...]]] = {}
    for section, spec in outline.inputs():
        groups = out.setdefault(section.name, [])
        taken: list[Piece] = []
        left: list[Piece] = []
        for piece in free:
            (taken if wants(spec, piece) else left).append(piece)
        free = left
        groups.append(tuple(_sorted(spec, taken)))
    return Taking({name: tuple(groups) for name, groups in out.items()}, tuple(free))


def _occupied(output: MapOutput) -> tuple[MapInput, ...]:
    """Return the inputs with the room they take: merged strings have sizes and share their places."""
    starts = [(item.line, item.address) for item in output.inputs]
    starts = sorted(starts + [(fill.line, fill.address) for fill in output.fills])
    upcoming = {line: after for (line, _), (_, after) in pairwise(starts)}
    end = output.address + output.size
    return tuple(
        item._replace(size=max(0, min(item.size, upcoming.get(item.line, end) - item.address)))
        for item in output.inputs
    )


def _groups(
    output: MapOutput, specs: list[ast.InputSpec] | None, files: Mapping[str, Elf]
) -> tuple[tuple[tuple[Piece, ...], ...], tuple[Piece, ...]]:
    end = output.address
    output = output._replace(inputs=_occupied(output))

    def piece(item: MapInput) -> Piece:
        nonlocal end
        known = _alignments(files, item.file, item.name)
        alignment = _guess(end, item.address) if known is None else known
        end = item.address + item.size
        return Piece(item.name, item.file, item.size, alignment)

    if specs is None:
        return (tuple(piece(item) for item in output.inputs),), ()
    groups: list[list[Piece]] = [[] for _ in specs]
    rest: list[Piece] = []
    inputs = iter(output.inputs)
    for number, pattern in enumerate(output.patterns):
        taken = [next(inputs) for _ in range(pattern.taken)]
        # Orphans of this name follow the last pattern's sections, and the map has no line between them.
        own = len(taken)
        if number + 1 == len(output.patterns) == len(specs):
            own = _own(specs[number], taken)
        for at, item in enumerate(taken):
            (groups[number] if number < len(specs) and at < own else rest).append(piece(item))
    rest += [piece(item) for item in inputs]
    return tuple(tuple(group) for group in groups), tuple(rest)


def _own(spec: ast.InputSpec, items: list[MapInput]) -> int:
    """Return how many of the sections behind the last description are its own; the rest are orphans."""
    for number in range(len(items), 0, -1):
        if wants(spec, Piece(items[number - 1].name, items[number - 1].file, 0, 1)):
            return number
    return 0


PT_GNU_RELRO = 0x6474E552

# Default page sizes of GNU ld 2.40 as Debian builds it (ld --verbose shows CONSTANT, the values are in bfd).
_PAGES = {3: (4096, 4096), 62: (4096, 4096)}


def target_of(elf: Elf) -> Target:
    """Return the size of the headers, and the default page sizes where they are known (x86)."""
    header, entry = (64, 56) if elf.bits == 64 else (52, 32)
    max_page, common_page = _PAGES.get(elf.machine, (None, None))
    # Without the segment it is not known whether relro was off or had nothing to protect.
    relro = True if any(segment.type == PT_GNU_RELRO for segment in elf.segments) else None
    return Target(header + entry * len(elf.segments), max_page, common_page, relro)
