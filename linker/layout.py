"""The layout a script gives to known contents: addresses, load addresses, symbols, computed as ld does.

`simulate` follows lang_size_sections and lang_relax_sections of binutils 2.40 (ld/ldlang.c): the same rounds
of passes over the statements, until nothing moves any more. What cannot be computed is `Unknown` and says
why.
`contents.py` finds the contents in a link map and joins the computed layout with map and ELF.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from . import ast
from .data_segment import DONE, END_SEEN, NONE, DataSegment
from .evaluate import Known
from .layout_outputs import Output, Program, layout_of, program, steps_of
from .layout_pass import Sizing
from .layout_values import Contents, Layout, Piece, Target
from .match import any_match, matches
from .orphan_places import Orphan, with_orphans
from .outline import Outline, inputs_of, walk

_ROUNDS = 8


def wants(spec: ast.InputSpec, piece: Piece) -> bool:
    """Tell whether an input description is for this section, whoever has taken it."""
    if not matches(spec.file.name, piece.file) or any_match(spec.file.excludes, piece.file):
        return False
    return spec.sections is None or any(
        matches(pattern.name, piece.name) and not any_match(pattern.excludes, piece.file)
        for pattern in spec.sections
    )


def _relro_specs(outline: Outline) -> Iterator[ast.InputSpec]:
    """Yield the input descriptions between DATA_SEGMENT_ALIGN and DATA_SEGMENT_RELRO_END."""
    inside = False
    for command in outline.sequence:
        if isinstance(command, ast.Assign):
            calls = {part.function for part in walk(command.value) if isinstance(part, ast.Call)}
            if "DATA_SEGMENT_RELRO_END" in calls:
                return
            inside = inside or "DATA_SEGMENT_ALIGN" in calls
        elif inside:
            sections = command.sections if isinstance(command, ast.Overlay) else (command,)
            for section in sections:
                if isinstance(section, ast.OutputSection | ast.OverlaySection):
                    yield from inputs_of(section)


def _has_relro(outline: Outline, contents: Mapping[str, Contents]) -> bool:
    """Tell whether a description of the relro part matches anything, by lang_find_relro_sections."""
    specs = tuple(_relro_specs(outline))
    return any(
        piece.size and wants(spec, piece)
        for name, made in contents.items()
        if name != "/DISCARD/" and not made.dropped and made.allocated and not made.thread_zero
        for group in (*made.by_spec, made.orphans)
        for piece in group
        for spec in specs
    )


def _allocated(outputs: Mapping[str, Output]) -> Iterable[tuple[int, int, int]]:
    for output in reversed(list(outputs.values())):
        made = output.contents
        if output.allocated and not made.dropped and isinstance(output.address, Known):
            size = 0 if made.thread_zero else output.size or 0
            yield output.address.value, size, output.alignment


def _round(sizing: Sizing, outputs: Mapping[str, Output]) -> None:
    """Place the sections, a second and a third time for a data segment: lang_size_sections."""
    segment = sizing.segment
    segment.phase = NONE
    segment.doubtful = False
    sizing.size()
    unsure = any(output.size is None or output.lowered != output.alignment for output in outputs.values())
    if segment.phase != NONE and unsure:
        segment.doubtful = True
        sizing.size()
        return
    if segment.phase != END_SEEN:
        segment.phase = DONE
        return
    if segment.relro and segment.relro_end:
        base = segment.base
        end = segment.move(_allocated(outputs))
        sizing.size()
        if segment.relro_end > end:
            # Alignment in the script makes more of it than ld foresaw: it starts where it did.
            segment.base = base
            sizing.size()
    elif segment.saves_a_page():
        sizing.size()


def _found(sizing: Sizing, outputs: Mapping[str, Output]) -> tuple[object, ...]:
    places = tuple((output.address, output.load, output.size) for output in outputs.values())
    return places, tuple(sizing.symbols.items())


def _settled(made: Program, target: Target, segment: DataSegment) -> Sizing:
    sizing = Sizing(made, target, segment)
    before: tuple[object, ...] = ()
    for _ in range(_ROUNDS):
        _round(sizing, made.outputs)
        if not sizing.ahead:
            break
        sizing.assign()
        found = _found(sizing, made.outputs)
        if found == before:
            break
        before = found
    return sizing


def simulate(
    outline: Outline,
    contents: Mapping[str, Contents],
    target: Target = Target(),  # noqa: B008 (immutable)
    orphans: Sequence[Orphan] = (),
) -> Layout:
    """Return the layout of `contents` (by output section).

    `orphans` are the output sections that the script does not name, in their order.
    """
    made = program(outline, with_orphans(steps_of(outline, contents), orphans, contents))
    segment = DataSegment(relro=bool(target.relro) and _has_relro(outline, contents))
    sizing = _settled(made, target, segment)
    return layout_of(made, sizing.symbols, sizing.regions)
