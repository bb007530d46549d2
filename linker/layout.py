"""The layout a script gives to known contents: addresses, load addresses, symbols, computed as ld does.

`simulate` follows lang_size_sections_1 and lang_do_assignments_1 of binutils 2.40 (ld/ldlang.c): the same
passes over the statements until nothing moves any more. What cannot be computed is `Unknown` and says why.
`contents.py` finds the contents in a link map and joins the computed layout with map and ELF.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from . import ast
from .data_segment import DataSegment
from .evaluate import Known, align_up
from .layout_pass import Pass
from .layout_values import NOTHING, Contents, Layout, Piece, Target, applies
from .match import any_match, matches
from .orphan_places import Orphan, with_orphans
from .outline import Outline, walk

_PASSES = 8


def _facts_of(walk: Pass) -> tuple[object, ...]:
    return tuple(walk.facts.items()), tuple(walk.symbols.items())


def _allocated(walk: Pass, contents: Mapping[str, Contents]) -> Iterable[tuple[int, int, int]]:
    for section in reversed(walk.sections):
        made = contents.get(section.name)
        if made is not None and made.allocated and isinstance(section.address, Known):
            size = 0 if made.thread_zero else section.size or 0
            yield section.address.value, size, section.alignment


def _only_common(contents: Contents) -> bool:
    pieces = [piece for group in contents.by_spec for piece in group]
    return bool(pieces) and all(piece.name == "COMMON" for piece in pieces)


def wants(spec: ast.InputSpec, piece: Piece) -> bool:
    """Tell whether an input description is for this section, whoever has taken it."""
    if not matches(spec.file.name, piece.file) or any_match(spec.file.excludes, piece.file):
        return False
    return spec.sections is None or any(
        matches(pattern.name, piece.name) and not any_match(pattern.excludes, piece.file)
        for pattern in spec.sections
    )


def _has_relro(outline: Outline, contents: Mapping[str, Contents]) -> bool | None:
    """Tell whether the relro part has anything, by lang_find_relro_sections; None when that is in doubt."""
    specs: list[ast.InputSpec] = []
    inside = ended = False
    written = True
    for command in outline.sequence:
        if isinstance(command, ast.Assign):
            calls = {part.function for part in walk(command.value) if isinstance(part, ast.Call)}
            if "DATA_SEGMENT_RELRO_END" in calls:
                ended = True
                break
            inside = inside or "DATA_SEGMENT_ALIGN" in calls
        elif inside and isinstance(command, ast.OutputSection):
            made = contents.get(command.name)
            if command.constraint and (made is None or not applies(command, made)):
                continue
            specs += [statement for statement in command.body if isinstance(statement, ast.InputSpec)]
            written = written and (made is None or made.dropped or made.writable)
    pieces = (
        piece for made in contents.values() for group in (*made.by_spec, made.orphans) for piece in group
    )
    if not any(wants(spec, piece) for piece in pieces for spec in specs):
        return False
    return True if written and ended else None


def simulate(
    outline: Outline,
    contents: Mapping[str, Contents],
    target: Target = Target(),  # noqa: B008 (immutable)
    orphans: Sequence[Orphan] = (),
) -> Layout:
    """Return the layout of `contents` (by output section).

    `orphans` are the output sections that the script does not name, in their order.
    """
    expanded = with_orphans(outline, orphans, lambda name: _only_common(contents.get(name, NOTHING)))
    has_relro = _has_relro(expanded, contents) if target.relro else False
    segment = DataSegment(relro=bool(has_relro), doubtful=has_relro is None)

    followed = frozenset(orphan.after for orphan in orphans)

    def settled() -> Pass:
        before: Pass | None = None
        for _ in range(_PASSES):
            walk = Pass(expanded, contents, target, before, segment, followed)
            walk.run()
            if before is not None and _facts_of(walk) == _facts_of(before):
                break
            before = walk
        return walk

    walk = settled()
    if segment.page:
        if segment.relro and segment.relro_end:
            before_it = (segment.base, segment.relro_end)
            segment.move(_allocated(walk, contents))
            walk = settled()
            if segment.relro_end > align_up(before_it[1], segment.page):
                # Alignment in the script makes more of it than ld foresaw: it stays as it was.
                segment.base = before_it[0]
                walk = settled()
        else:
            segment.settle()
            walk = settled()
    names = {orphan.name for orphan in orphans}
    sections = tuple(section._replace(orphan=section.name in names) for section in walk.sections)
    used = {name: region.used for name, region in walk.regions.items()}
    return Layout(sections, walk.symbols, used)
