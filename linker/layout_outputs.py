"""The output sections of a script as ld keeps them: what is known before, and what a pass over them finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import NamedTuple, Protocol, TypeAlias

from . import ast
from .evaluate import Unknown, Value
from .layout_values import NOTHING, Contents, Layout, Piece, Section, applies
from .outline import Outline
from .section_kinds import ZERO, kind_of

_NOT_YET = Unknown("it has no address yet")
# The kinds of an output section statement that sizing asks for (enum section_type, ld/ldlang.h).
NORMAL, FIRST_OVERLAY, OVERLAY = "", "first overlay", "overlay"
NO_REGION = "*none*"  # no region of a script is called so


class Output:
    """One output section statement (lang_output_section_statement_type of binutils 2.40, ld/ldlang.h).

    `region` and `load_region` are names of MEMORY, aliases resolved; "" is ld's default region. `exists`
    tells that ld makes the section at all, `ignored` that it drops it as empty. `allocated` tells that it
    takes room in memory, `loaded` that there are bytes for it (SEC_ALLOC, SEC_LOAD): what holds nothing is
    allocated when the script moves `.` in it. `doubt` says why nothing is known. `members` are the sections
    of the overlay that ends here, `previous` the one before in the overlay, whose address `overlay` is.
    `explicit` is the alignment of ALIGN(), `alignment` what the section has
    with its inputs, `forced` what SUBALIGN() makes of theirs, `lowered` what it makes of the section's to
    some versions of ld. What a pass finds: `address`, `load`, `size` in
    bytes (None: not known), and `pass_number`, the last that placed it. `orphan` tells that the script
    does not name it.
    """

    __slots__ = (
        "address", "alignment", "allocated", "contents", "doubt", "exists", "explicit", "forced", "ignored",
        "kind", "load", "load_region", "loaded", "lowered", "members", "name", "node", "orphan", "overlay",
        "pass_number", "pieces", "previous", "region", "size",
    )  # fmt: skip

    def __init__(
        self, node: ast.OutputSection, contents: Contents, kind: str = NORMAL, *, orphan: bool = False
    ) -> None:
        self.node, self.contents, self.kind, self.orphan = node, contents, kind, orphan
        self.name = node.name
        self.region = self.load_region = ""
        self.exists = self.ignored = self.allocated = self.loaded = False
        self.doubt = ""
        self.members: tuple[Output, ...] = ()
        self.previous: Output | None = None
        self.overlay: ast.Expr | None = None
        self.explicit = self.alignment = self.lowered = 1
        self.forced: int | None = None
        self.address: Value = _NOT_YET
        self.load: Value = _NOT_YET
        self.size: int | None = 0
        self.pass_number = 0
        self.pieces: list[tuple[Piece, int]] = []


def largest(members: Iterable[Output]) -> int | None:
    """Return the size of the largest member of an overlay in bytes, None when one is not known."""
    sizes = [member.size for member in members]
    known = [size for size in sizes if size is not None]
    return max(known) if len(known) == len(sizes) else None


class Memories(NamedTuple):
    """The MEMORY of a script: its regions in order, and what each alias stands for."""

    regions: tuple[ast.Region, ...]
    names: Mapping[str, str]


Step: TypeAlias = ast.Assign | ast.Assert | Output


class Filled(Protocol):
    """A memory region of either linker's passes: how far it is filled, in bytes."""

    @property
    def used(self) -> Value: ...


class Program(NamedTuple):
    """What a pass walks over: assignments, assertions and output sections in order.

    `assigned` are the symbols the script assigns, `plain` those without PROVIDE; `phdrs` tells that the
    script makes the segments.
    """

    steps: tuple[Step, ...]
    outputs: Mapping[str, Output]
    memories: Memories
    assigned: frozenset[str]
    plain: frozenset[str]
    phdrs: bool


def program(outline: Outline, steps: Iterable[Step]) -> Program:
    """Return the statements of the script with what is known of its output sections before a pass."""
    memories = _memories(outline)
    names = _Names(outline)
    counts = Counter(placed.section.name for placed in outline.sections if not placed.section.constraint)
    outputs: dict[str, Output] = {}
    before: Output | None = None
    kept: list[Step] = []
    for step in steps:
        if isinstance(step, Output):
            _regions_of(step, memories, before)
            before = step
            if step.name == "/DISCARD/":
                continue
            _settle(step, names)
            if counts[step.name] > 1:
                # GNU ld keeps two statements for one section, whose contents meet in ways of their own.
                step.doubt = f"the script gives section '{step.name}' twice"
            elif step.contents.twice:
                step.doubt = f"the link has two sections '{step.name}'"
            outputs.setdefault(step.name, step)
        kept.append(step)
    _doubt_zeroed(outputs)
    targets = [node for node in outline.assignments if node.target != "."]
    return Program(
        tuple(kept),
        outputs,
        memories,
        frozenset(node.target for node in targets),
        frozenset(node.target for node in targets if not node.wrapper.startswith("PROVIDE")),
        any(isinstance(command, ast.Phdrs) for command in outline.script.commands),
    )


def layout_of(made: Program, symbols: Mapping[str, Value], regions: Mapping[str, Filled]) -> Layout:
    """Return what the passes have found: the sections that there are, symbols, how full the regions are."""
    sections = tuple(
        Section(
            output.name, output.address, output.load, output.size, output.alignment, output.orphan,
            tuple(output.pieces),
        )
        for output in made.outputs.values()
        if output.exists and not output.contents.dropped
    )  # fmt: skip
    used = {name: regions[region].used for name, region in made.memories.names.items()}
    return Layout(sections, symbols, used)


def _doubt_zeroed(outputs: Mapping[str, Output]) -> None:
    """Where ld makes a .bss for common symbols, zeroed orphans may go to its region and not to their own."""
    orphans = [output for output in outputs.values() if output.orphan]
    if not any(output.region == NO_REGION for output in orphans):
        return
    for output in orphans:
        zeroed = not output.contents.loaded and not output.contents.thread_zero
        if zeroed and output.region not in {"", NO_REGION}:
            output.doubt = "ld may place zeroed orphans by the .bss that it makes for common symbols"


def _memories(outline: Outline) -> Memories:
    regions: list[ast.Region] = []
    names: dict[str, str] = {}
    for command in outline.script.commands:
        if isinstance(command, ast.Memory):
            for region in command.regions:
                if isinstance(region, ast.Region):
                    regions.append(region)
                    names[region.name] = region.name
        elif isinstance(command, ast.Command) and command.name == "REGION_ALIAS":
            alias, name = command.arguments
            if name in names:
                names[alias] = names[name]
    return Memories(tuple(regions), names)


def steps_of(outline: Outline, contents: Mapping[str, Contents]) -> Iterator[Step]:
    """Yield assignments and output sections, those of overlays one by one, in the order of the script."""
    for command in outline.script.commands:
        if isinstance(command, ast.Assign | ast.Assert):
            yield command
        elif isinstance(command, ast.Sections):
            yield from _of_sections(command.commands, contents)


def _of_sections(
    commands: tuple[ast.SectionCommand, ...], contents: Mapping[str, Contents]
) -> Iterator[Step]:
    for command in commands:
        match command:
            case ast.Assign() | ast.Assert():
                yield command
            case ast.OutputSection():
                made = contents.get(command.name, NOTHING)
                # Of two sections of one name the one that does not apply is as if it were not there.
                if made.dropped or applies(command, made):
                    yield Output(command, made)
            case ast.Group():
                yield from _of_sections(command.body, contents)
            case ast.Overlay():
                yield from _of_overlay(command, contents)


def _of_overlay(overlay: ast.Overlay, contents: Mapping[str, Contents]) -> Iterator[Step]:
    """Yield the members of an overlay: lang_enter_overlay_section and lang_leave_overlay.

    All but the first lie where the first lies. Every member PROVIDEs __load_start_ and __load_stop_ symbols;
    the last one moves `.` behind the largest.
    """
    first: ast.Expr | None = overlay.address
    members: list[Output] = []
    for number, member in enumerate(overlay.sections):
        node = ast.OutputSection(
            member.name, first, "", None, overlay.at if number == 0 else None, None, False,
            overlay.subalign, "", member.body, overlay.region, overlay.lma_region, member.phdrs, member.fill,
            member.span,
        )  # fmt: skip
        output = Output(node, contents.get(member.name, NOTHING), OVERLAY if number else FIRST_OVERLAY)
        output.overlay, output.previous = overlay.address, members[-1] if members else None
        members.append(output)
        if number + 1 == len(overlay.sections):
            output.members = tuple(members)
        yield output
        name = ast.Symbol(member.name)
        load = ast.Call("LOADADDR", (name,))
        stem = "".join(char for char in member.name if char.isalnum() or char == "_")
        yield ast.Assign(f"__load_start_{stem}", "=", load, "PROVIDE")
        end = ast.Binary("+", load, ast.Call("SIZEOF", (name,)))
        yield ast.Assign(f"__load_stop_{stem}", "=", end, "PROVIDE")
        if number == 0:
            first = ast.Call("ADDR", (name,))


class _Names:
    """The names that expressions refer to."""

    def __init__(self, outline: Outline) -> None:
        self._outline = outline

    @cached_property
    def referenced(self) -> frozenset[str]:
        """The symbols: what a PROVIDE asks for counts when somebody refers to its own."""
        names: set[str] = set()
        pending: dict[str, set[str]] = {}
        for statement, symbol in self._outline.nodes(ast.Symbol):
            provided = isinstance(statement, ast.Assign) and statement.wrapper.startswith("PROVIDE")
            target = statement.target if isinstance(statement, ast.Assign) and provided else ""
            (pending.setdefault(target, set()) if provided else names).add(symbol.name)
        while ready := names & pending.keys():
            for target in ready:
                names |= pending.pop(target)
        return frozenset(names)

    @cached_property
    def asked_for(self) -> frozenset[str]:
        """The sections that exp_init_os makes, because ADDR or LOADADDR asks for them."""
        names = {placed.section.name for placed in self._outline.sections if placed.overlay}
        for _, call in self._outline.nodes(ast.Call):
            if call.function in {"ADDR", "LOADADDR"} and isinstance(call.arguments[0], ast.Symbol):
                names.add(call.arguments[0].name)
        return frozenset(names)


def _regions_of(output: Output, memories: Memories, before: Output | None) -> None:
    """Find the regions of a section as lang_get_regions and lang_propagate_lma_regions do."""
    node = output.node
    load = memories.names.get(node.lma_region, "")
    region = memories.names.get(node.region, "")
    if node.region == NO_REGION:
        region = NO_REGION
    elif node.lma_region and not node.region and (node.address is None or output.kind != NORMAL):
        region = load
    if (
        not load and node.at is None and node.address is None
        and before is not None and region == before.region
    ):  # fmt: skip
        load = before.load_region
    output.region, output.load_region = region, load


def _settle(output: Output, names: _Names) -> None:
    """Decide whether ld makes the section, and whether it drops it: strip_excluded_output_sections."""
    contents, body = output.contents, output.node.body
    pieces = [piece for group in (*contents.by_spec, contents.orphans) for piece in group]
    output.alignment = output.lowered = max([contents.alignment, *[piece.alignment for piece in pieces]])
    holds = bool(pieces) or any(isinstance(statement, ast.Data | ast.StringData) for statement in body)
    output.allocated = contents.allocated and (holds or contents.kept)
    output.loaded = contents.loaded and holds
    output.exists = not contents.dropped or holds
    if contents.dropped:
        # The file does not tell: only what compilers call zeroed, or NOLOAD, has no bytes.
        zeroed = all(kind_of(piece.name) == ZERO for piece in pieces)
        output.loaded = output.loaded and output.node.type != "NOLOAD" and not (pieces and zeroed)
        assigns = [statement for statement in body if isinstance(statement, ast.Assign)]
        output.exists = holds or bool(assigns) or output.name in names.asked_for
        # What is PROVIDEd counts when somebody refers to it.
        symbols = any(
            node.target != "." and (not node.wrapper.startswith("PROVIDE") or node.target in names.referenced)
            for node in assigns
        )
        output.ignored = not symbols and not output.members
