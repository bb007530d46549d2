"""Rules about alignment that the script alone can break."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from linker import ast
from linker.findings import ERROR, WARNING, Context, Edit, Example, Hit, Place, Rule, script_place
from linker.match import any_match, may_match
from linker.outline import Outline, dot_alignment, is_dot, walk
from linker.section_kinds import CODE
from linker.trial import kinds_in

from .given import outline_of


def _page_aligned(spec: ast.InputSpec, context: Context) -> ast.Pattern | None:
    """Return the pattern of the description that names page-aligned sections."""
    for pattern in spec.sections or ():
        if _is_page_aligned(pattern.name, context.settings.page_aligned):
            return pattern
    return None


@lru_cache(maxsize=1 << 18)
def _is_page_aligned(name: str, wanted: tuple[str, ...]) -> bool:
    return any_match(wanted, name.rstrip("*.")) or any_match(wanted, name)


def page_aligned_order(context: Context) -> Iterator[Hit]:
    """Other input stands between the last alignment and the page-aligned input."""
    outline = outline_of(context)
    if not may_match(context.settings.page_aligned, outline.words):
        return
    for placed in outline.kept_sections:
        if CODE not in kinds_in(placed.section):  # page-aligned code is written by hand, alignment beside it
            yield from _out_of_order(placed.section, outline, context)


def _out_of_order(section: ast.OutputSection, outline: Outline, context: Context) -> Iterator[Hit]:
    page = context.settings.page_size
    before: str | None = None  # what stands between here and the last alignment
    for statement in section.body:
        alignment = dot_alignment(statement, outline)
        if alignment is not None:
            # An alignment that cannot be folded gets the benefit of the doubt.
            before = None if alignment == 0 or alignment >= page else before
        elif isinstance(statement, ast.Data | ast.StringData):
            before = "data" if not isinstance(statement, ast.Data) else statement.kind
        elif isinstance(statement, ast.InputSpec):
            names = [other.name for other in statement.sections or ()]
            pattern = _page_aligned(statement, context)
            if pattern is None:
                before = names[-1] if names else "*"
                continue
            in_front = names[: (statement.sections or ()).index(pattern)]
            before = in_front[-1] if in_front else before
            if before is not None:
                yield Hit(
                    f"'{pattern.name}' comes after '{before}' in {section.name} and nothing "
                    f"aligns '.' to {page} in between",
                    script_place(pattern.span, pattern.name),
                )
            before = None  # after page-aligned input the place is as aligned as its size: page-aligned-tail


def page_aligned_tail(context: Context) -> Iterator[Hit]:
    """Other input follows page-aligned input in a section that cares for pages, without a page's end."""
    outline = outline_of(context)
    if not may_match(context.settings.page_aligned, outline.words):
        return
    page = context.settings.page_size
    # One such pattern comes along with a copied script; two are of a project that has page-aligned objects.
    wanted = {
        name for name in outline.patterns if any_match(context.settings.page_aligned, name.rstrip("*."))
    }
    several = len(wanted) > 1
    for placed in outline.kept_sections:
        if "percpu" in placed.section.name:
            continue  # DEFINE_PER_CPU_PAGE_ALIGNED makes whole pages
        cares = several and (outline.fold(placed.section.align) or 0) >= page
        yield from _open_tails(placed.section, outline, context, cares=cares)


def _open_tails(
    section: ast.OutputSection, outline: Outline, context: Context, *, cares: bool
) -> Iterator[Hit]:
    """Where other input follows; `cares`: also where nobody has begun to align behind the pages."""
    page = context.settings.page_size
    open_pattern: ast.Pattern | None = None
    small: ast.Assign | None = None
    for statement in section.body:
        alignment = dot_alignment(statement, outline)
        if alignment is not None:
            enough = alignment == 0 or alignment >= page
            small = None if enough or not isinstance(statement, ast.Assign) else statement
            open_pattern = None if enough else open_pattern
        elif isinstance(statement, ast.InputSpec):
            pattern = _page_aligned(statement, context)
            if pattern is not None and "stack_aligned" in pattern.name:
                continue  # stacks are whole pages
            follower = pattern is None and bool(statement.sections)
            if pattern is not None and statement.sections and statement.sections[-1] is not pattern:
                follower, open_pattern = True, pattern
            if follower and open_pattern is not None:
                if cares or small is not None:
                    yield _tail(section, open_pattern, small, page, statement)
                open_pattern = None
            elif pattern is not None:
                open_pattern, small = pattern, None


def _tail(
    section: ast.OutputSection,
    pattern: ast.Pattern,
    small: ast.Assign | None,
    page: int,
    after: ast.InputSpec,
) -> Hit:
    what = "nothing aligns '.'" if small is None else "what aligns '.' is less than a page"
    fix: tuple[Edit, ...]
    if small is not None:
        fix = (Edit(small.value.span, f"ALIGN({page})", "align to the next page"),)
    else:
        before = ast.Span(after.span.start, after.span.start)
        fix = (Edit(before, f". = ALIGN({page}); ", "align to the next page"),)
    if pattern in (after.sections or ()):
        fix = ()  # both stand in one list: it has to be taken apart
    return Hit(
        f"{what} after '{pattern.name}' in {section.name}: what follows may share its last page",
        script_place(pattern.span, pattern.name),
        fix,
    )


_FUNCTIONS = {"ALIGN": -1, "BLOCK": -1, "DATA_SEGMENT_ALIGN": 0}


def align_not_power_of_two(context: Context) -> Iterator[Hit]:
    """An ALIGN, SUBALIGN or the alignment of a section is no power of two."""
    outline = outline_of(context)
    for keyword, of, node, place in _alignments(outline):
        value = outline.fold(node)
        if value and value & (value - 1):
            yield Hit(f"{keyword}({value:#x}){of}: {value} is no power of two", place)


def _alignments(outline: Outline) -> Iterator[tuple[str, str, ast.Expr, Place]]:
    """Every alignment that the script asks for: by which word, of what, the expression and its place."""
    for _, call in outline.nodes(ast.Call):
        if call.function in _FUNCTIONS:
            argument = call.arguments[_FUNCTIONS[call.function]]
            yield call.function, "", argument, script_place(call.span, call.function)
    for section in outline.statements():
        if isinstance(section, ast.OutputSection):
            for keyword, node in (("ALIGN", section.align), ("SUBALIGN", section.subalign)):
                if node is not None:
                    yield keyword, f" of {section.name}", node, script_place(node.span, section.name)


_WORD = 4


class _Counters:
    """What the counters of memory regions are sure to be aligned to, statement by statement."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self._known: dict[object, int] = {}  # by extent: an alias counts as its region does

    def before(self, section: ast.OutputSection) -> int:
        """Return the alignment that the section's contents start with."""
        extent = self.outline.regions.get(section.region)
        origin = extent[0] if extent is not None else None
        at_first = 1 if origin is None else origin & -origin or 1 << 63
        first = dot_alignment(section.body[0], self.outline) if section.body else None
        return max(self._known.get(extent, at_first), first or 1, self.outline.fold(section.align) or 1)

    def pass_by(self, section: ast.OutputSection) -> None:
        """Note where the section leaves the counters of its regions."""
        self._known[self.outline.regions.get(section.lma_region)] = 1
        self._known[self.outline.regions.get(section.region)] = self._end_of(section)

    def _end_of(self, section: ast.OutputSection) -> int:
        for statement in reversed(section.body):
            if not isinstance(statement, ast.Assign | ast.Assert):
                break
            if isinstance(statement, ast.Assign) and statement.target == ".":
                return dot_alignment(statement, self.outline) or 1
        return 1


def top_align_ignored(context: Context) -> Iterator[Hit]:
    """`. = ALIGN(n)` between output sections, and the next one goes to a region's own counter."""
    outline = outline_of(context)
    counters = _Counters(outline)
    pending: ast.Assign | None = None
    wanted = 0
    for command in outline.sequence:
        if isinstance(command, ast.Assign):
            alignment = dot_alignment(command, outline)
            if alignment is not None and not _segment(command.value):
                # Up to a word the inputs bring the alignment themselves; many scripts add it out of habit.
                pending, wanted = (command if not 0 < alignment <= _WORD else None), alignment
            elif any(is_dot(part) for part in walk(command.value)):
                # A symbol takes the aligned value: that is what the statement is for.
                pending = None
        elif isinstance(command, ast.OutputSection):
            lost = not 0 < wanted <= counters.before(command)
            if pending is not None and lost and command.region and command.address is None:
                yield Hit(
                    f"this alignment is lost: {command.name} goes to >{command.region}, whose own counter "
                    "ld takes",
                    script_place(pending.span, command.name),
                )
            pending = None
            counters.pass_by(command)


def _segment(value: ast.Expr) -> bool:
    return any(
        isinstance(part, ast.Call) and part.function.startswith("DATA_SEGMENT") for part in walk(value)
    )


def align_with_input(context: Context) -> Iterator[Hit]:
    """ALIGN and ALIGN_WITH_INPUT on the same output section."""
    for placed in outline_of(context).kept_sections:
        section = placed.section
        aligned = section.align is not None and outline_of(context).fold(section.align) != 1
        if section.align_with_input and section.align is not None and aligned:
            yield Hit(
                f"{section.name} has ALIGN and ALIGN_WITH_INPUT: they contradict each other",
                script_place(section.align.span, section.name),
            )


def align_to_symbol(context: Context) -> Iterator[Hit]:
    """`_ = ALIGN(n)`: the location counter is written `.`."""
    for assign in outline_of(context).assignments:
        aligned = isinstance(assign.value, ast.Call) and assign.value.function == "ALIGN"
        if aligned and not assign.target.strip("_"):
            yield Hit(
                f"'{assign.target} = ALIGN(...)' defines a symbol and aligns nothing",
                script_place(assign.span, assign.target),
            )


_PAGE_BAD = """SECTIONS
{
  . = 0x100000;
  .data : {
    *(.data)
    *(.data.page_aligned)
  }
}
"""
_PAGE_GOOD = """SECTIONS
{
  . = 0x100000;
  .data : {
    *(.data.page_aligned)
    . = ALIGN(4096);
    *(.data)
  }
}
"""

RULES = (
    Rule(
        "page-aligned-order",
        ERROR,
        "page-aligned input must come first, or right after an alignment",
        "ld puts input sections one after the other, each at the alignment of its own object file. A page "
        "directory written without .balign has alignment 1: behind *(.data) it lands wherever .data ends, "
        "and ld says nothing.",
        "put the pattern of the page-aligned sections first in the output section, or write "
        "`. = ALIGN(4096);` before it.",
        ("S",),
        page_aligned_order,
        Example(script=_PAGE_BAD),
        Example(script=_PAGE_GOOD),
    ),
    Rule(
        "page-aligned-tail",
        WARNING,
        "page-aligned data must be followed by an alignment",
        "When the last page-aligned object is not a whole number of pages long, what follows shares its "
        "page, and is protected or remapped together with it (Linux commit 65a9bde6ed48).",
        "write `. = ALIGN(4096);` after the pattern of the page-aligned sections.",
        ("S",),
        page_aligned_tail,
        Example(script=_PAGE_GOOD.replace("ALIGN(4096)", "ALIGN(8)")),
        Example(script=_PAGE_GOOD),
    ),
    Rule(
        "align-not-power-of-two",
        ERROR,
        "an alignment must be a power of two",
        "ALIGN(6) was meant as 2**6: ld rounds to a multiple of six and the section's header cannot "
        "express it (ClangBuiltLinux issue 218).",
        "write the alignment in bytes: ALIGN(64), or ALIGN(1 << 6).",
        ("S",),
        align_not_power_of_two,
        Example(script="SECTIONS\n{\n  .text : { . = ALIGN(6); *(.text) }\n}\n"),
        Example(script="SECTIONS\n{\n  .text : { . = ALIGN(1 << 6); *(.text) }\n}\n"),
    ),
    Rule(
        "top-align-ignored",
        WARNING,
        "`. = ALIGN()` outside of an output section does not move a memory region",
        "An output section with >REGION starts at the region's own counter. An alignment of `.` before it "
        "has no effect (elf2flt issue 31).",
        "put the alignment on the section: `.data : ALIGN(8) { ... } >RAM`.",
        ("S",),
        top_align_ignored,
        Example(
            script="MEMORY { RAM : ORIGIN = 0, LENGTH = 64K }\nSECTIONS\n{\n  .text : { *(.text) } >RAM\n"
            "  . = ALIGN(64);\n  .data : { *(.data) } >RAM\n}\n"
        ),
        Example(
            script="MEMORY { RAM : ORIGIN = 0, LENGTH = 64K }\nSECTIONS\n{\n  .text : { *(.text) } >RAM\n"
            "  .data : ALIGN(64) { *(.data) } >RAM\n}\n"
        ),
    ),
    Rule(
        "align-with-input",
        ERROR,
        "ALIGN and ALIGN_WITH_INPUT contradict each other",
        "ALIGN_WITH_INPUT keeps the distance between load and run address, ALIGN moves one of them "
        "(zephyr issue 75053). Newer GNU ld refuses the pair.",
        "keep one of the two.",
        ("S",),
        align_with_input,
        Example(script="SECTIONS\n{\n  .data : ALIGN(8) ALIGN_WITH_INPUT { *(.data) }\n}\n"),
        Example(script="SECTIONS\n{\n  .data : ALIGN_WITH_INPUT { *(.data) }\n}\n"),
    ),
    Rule(
        "align-to-symbol",
        WARNING,
        "`_ = ALIGN()` where `.` was meant",
        "The statement defines a symbol called `_` and leaves the location counter where it is "
        "(splat issue 385).",
        "write `. = ALIGN(16);`.",
        ("S",),
        align_to_symbol,
        Example(script="SECTIONS\n{\n  .text : { *(.text) _ = ALIGN(16); }\n}\n"),
        Example(script="SECTIONS\n{\n  .text : { *(.text) . = ALIGN(16); }\n}\n"),
    ),
)
