"""What output sections hold by a map of lld, and the layout that lld makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from . import ast
from .contents import Order, as_linked
from .elffile import Elf
from .layout import wants
from .layout_outputs import layout_of, program, steps_of
from .layout_values import Contents, Layout, Piece, Target
from .lld_pass import LldSizing
from .mapfile import LinkMap, MapOutput
from .orphan_places import Orphan, with_orphans
from .outline import Outline, inputs_of

_NO_FLAGS = "what the section may do (write, execute) is not known without an ELF"


def as_lld_reads(spec: ast.InputSpec) -> ast.InputSpec:
    """Return the description as lld reads it: EXCLUDE_FILE holds up to the next one, or to a sort."""
    if spec.sections is None:
        return spec
    out: list[ast.Pattern] = []
    excludes: tuple[str, ...] = ()
    for pattern in spec.sections:
        excludes = pattern.excludes or (() if pattern.sorts else excludes)
        out.append(pattern._replace(excludes=excludes))
    return spec._replace(sections=tuple(out))


def lld_contents_of(
    link_map: LinkMap, outline: Outline, elf: Elf | None = None
) -> tuple[dict[str, Contents], list[Orphan]]:
    """Return what each output section holds by a map of lld, and the orphans with what is before them."""
    specs: dict[str, list[ast.InputSpec]] = {}
    for placed in outline.sections:
        specs.setdefault(placed.section.name, []).extend(map(as_lld_reads, inputs_of(placed.section)))
    counts = Counter(output.name for output in link_map.outputs)
    order = Order(link_map, outline)
    out: dict[str, Contents] = {}
    orphans: list[Orphan] = []
    before = ""
    for output in link_map.outputs:
        if output.name in out:
            continue
        made = _contents(output, specs.get(output.name), elf)
        out[output.name] = made._replace(twice=counts[output.name] > 1)
        if output.name not in specs:
            orphans.append(Orphan(output.name, before, order.assigned(output)))
        before = output.name
    return out, orphans


def _contents(output: MapOutput, specs: Sequence[ast.InputSpec] | None, elf: Elf | None) -> Contents:
    pieces = [Piece(item.name, item.file, item.size, max(item.alignment, 1)) for item in output.inputs]
    groups: list[list[Piece]] = [[] for _ in specs or ("",)]
    rest: list[Piece] = []
    for piece in pieces:
        number = 0
        if specs is not None:
            number = next((at for at, spec in enumerate(specs) if wants(spec, piece)), -1)
        (rest if number < 0 else groups[number]).append(piece)
    made = as_linked(output.name, tuple(map(tuple, groups)), tuple(rest), elf, aligned=True)
    # Inputs that lld drops as empty leave their alignment behind.
    return made._replace(dropped=False, alignment=1 if pieces else max(output.alignment, 1))


def simulate_lld(
    outline: Outline, contents: Mapping[str, Contents], target: Target, orphans: Sequence[Orphan] = ()
) -> Layout:
    """Return the layout lld gives to `contents` (by output section); sections not in there it has dropped."""
    made = program(outline, with_orphans(steps_of(outline, contents), orphans, contents))
    for output in made.outputs.values():
        output.ignored = output.contents.dropped
        output.exists = not output.ignored
        if output.contents.code is None and not output.ignored:
            output.doubt = output.doubt or _NO_FLAGS
    sizing = LldSizing(made, target)
    sizing.run()
    sizing.finish()
    return layout_of(made, sizing.symbols, sizing.regions)
