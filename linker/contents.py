"""What output sections hold and how their layout comes out, from a link map, an ELF and object files."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from . import ast
from .elffile import SHF_TLS, SHF_WRITE, SHT_NOBITS, Elf, Segment
from .evaluate import align_up
from .layout import Contents, Layout, Piece, Target, simulate
from .mapfile import LinkMap, MapInput, MapOutput
from .outline import Outline


def _alignments(files: Mapping[str, Elf], file: str, name: str) -> int | None:
    elf = files.get(file)
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
) -> tuple[dict[str, Contents], list[tuple[str, str]]]:
    """Return what each output section holds by a GNU map, and the orphans with the sections before them.

    `files` are the object files by the names the map has for them; they say how inputs are aligned.
    """
    known = files or {}
    out: dict[str, Contents] = {}
    orphans: list[tuple[str, str]] = []
    specs = {placed.section.name: _specs(placed.section) for placed in outline.sections}
    before = ""
    for output in link_map.outputs:
        if not output.size and (output.name not in specs or output.name in out):
            # What linkers make for themselves and drop again when it stays empty.
            continue
        section = elf.by_name.get(output.name) if elf is not None else None
        groups, rest = _groups(output, specs.get(output.name, 0), known)
        thread_zero = section is not None and section.type == SHT_NOBITS and bool(section.flags & SHF_TLS)
        out[output.name] = Contents(
            groups,
            rest,
            dropped=elf is not None and section is None,
            thread_zero=thread_zero,
            allocated=section.allocated if section is not None else True,
            loaded=section.type != SHT_NOBITS if section is not None else True,
            writable=section is not None and bool(section.flags & SHF_WRITE),
            alignment=1 if files or section is None else max(section.alignment, 1),
        )
        if output.name not in specs:
            orphans.append((output.name, before))
        before = output.name
    return out, orphans


def _specs(section: ast.OutputSection) -> int:
    return sum(isinstance(statement, ast.InputSpec) for statement in section.body)


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
    output: MapOutput, count: int, files: Mapping[str, Elf]
) -> tuple[tuple[tuple[Piece, ...], ...], tuple[Piece, ...]]:
    end = output.address
    output = output._replace(inputs=_occupied(output))

    def piece(item: MapInput) -> Piece:
        nonlocal end
        known = _alignments(files, item.file, item.name)
        alignment = _guess(end, item.address) if known is None else known
        end = item.address + item.size
        return Piece(item.name, item.file, item.size, alignment)

    if not count:
        return (tuple(piece(item) for item in output.inputs if item.size),), ()
    groups: list[list[Piece]] = [[] for _ in range(count)]
    rest: list[Piece] = []
    inputs = iter(output.inputs)
    for number, pattern in enumerate(output.patterns):
        for _ in range(pattern.taken):
            item = next(inputs)
            if item.size:
                (groups[number] if number < count else rest).append(piece(item))
    rest += [piece(item) for item in inputs if item.size]
    return tuple(tuple(group) for group in groups), tuple(rest)


# Default page sizes of GNU ld 2.40 as Debian builds it (ld --verbose shows CONSTANT, the values are in bfd).
_PAGES = {3: (4096, 4096), 62: (4096, 4096)}


def target_of(elf: Elf) -> Target:
    """Return the size of the headers, and the default page sizes where they are known (x86)."""
    header, entry = (64, 56) if elf.bits == 64 else (52, 32)
    max_page, common_page = _PAGES.get(elf.machine, (None, None))
    return Target(header + entry * len(elf.segments), max_page, common_page)


class Model(NamedTuple):
    """Everything known of a layout: computed, from the map, from the ELF; each may be missing."""

    computed: Layout | None
    outputs: tuple[MapOutput, ...]
    segments: tuple[Segment, ...]
    orphans: tuple[str, ...]
    matched: Mapping[str, int]


def model(outline: Outline | None, link_map: LinkMap | None, elf: Elf | None) -> Model:
    """Join what was given. `matched` counts the input sections each pattern of the map took."""
    computed = None
    orphans: list[tuple[str, str]] = []
    if outline is not None and link_map is not None and link_map.flavor == "gnu":
        contents, orphans = contents_of(link_map, outline, elf)
        target = target_of(elf) if elf is not None else Target()
        computed = simulate(outline, contents, target, orphans)
    elif outline is not None and elf is not None:
        orphans = [
            (section.name, "")
            for section in elf.sections
            if section.allocated and section.name not in outline.names
        ]
    matched: dict[str, int] = {}
    for output in link_map.outputs if link_map is not None else ():
        for pattern in output.patterns:
            matched[pattern.text] = matched.get(pattern.text, 0) + pattern.taken
    return Model(
        computed,
        link_map.outputs if link_map is not None else (),
        elf.segments if elf is not None else (),
        tuple(name for name, _ in orphans),
        matched,
    )
