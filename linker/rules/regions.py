"""Rules about memory regions, and the stacks and heaps that scripts reserve in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from linker import ast
from linker.evaluate import Known
from linker.findings import ERROR, WARNING, Context, Example, Hit, Rule, script_place
from linker.outline import Outline, is_dot, walk
from linker.section_kinds import CODE, CONSTANT, DATA, RESERVED, TABLE, UNKNOWN, UNLOADED, ZERO
from linker.trial import kinds_in, section_of, trial

from .given import outline_of

_PLACED = {CODE, CONSTANT, DATA, TABLE, ZERO}


def _declared(outline: Outline) -> Iterator[ast.Region]:
    for command in outline.script.commands:
        if isinstance(command, ast.Memory):
            yield from (region for region in command.regions if isinstance(region, ast.Region))


def _complete(outline: Outline) -> bool:
    """Tell whether all of the script's regions can be seen: nothing is included."""
    included = any(isinstance(statement, ast.Include) for statement in outline.statements())
    return not included and not any(
        isinstance(region, ast.Include)
        for command in outline.script.commands
        if isinstance(command, ast.Memory)
        for region in command.regions
    )


def region_undeclared(context: Context) -> Iterator[Hit]:
    """A section goes to a region that no MEMORY declares."""
    outline = outline_of(context)
    if not _complete(outline) or outline.inserts:
        return
    known = set(outline.regions)
    if not known and not outline.catches(".text"):
        return  # a part of another script, which has the program's code and its regions
    missing: dict[str, ast.OutputSection] = {}
    for placed in outline.sections:
        for name in (placed.section.region, placed.section.lma_region):
            if name and name not in known:
                missing.setdefault(name, placed.section)
    # What most of the script goes to is declared by another one, given with -T before this one.
    uses = Counter(placed.section.region for placed in outline.sections if placed.section.region)
    if sum(uses[name] for name in missing) > max(1, sum(uses[name] for name in known)):
        return
    for name, section in missing.items():
        yield Hit(
            f"{section.name} goes to >{name}, which no MEMORY declares: ld makes a region without limits "
            "of it",
            script_place(section.name_span, name),
        )


def region_twice(context: Context) -> Iterator[Hit]:
    """A region is declared twice."""
    seen: set[str] = set()
    for region in _declared(outline_of(context)):
        if region.name in seen:
            yield Hit(
                f"the memory region '{region.name}' is declared already: ld keeps the first",
                script_place(region.span, region.name),
            )
        seen.add(region.name)


def region_overlap(context: Context) -> Iterator[Hit]:
    """Two regions that sections are placed in share addresses."""
    outline = outline_of(context)
    used = {
        name
        for placed in outline.kept_sections
        for name in (placed.section.region, placed.section.lma_region)
        if name
    }
    ranges: list[tuple[int, int, ast.Region]] = []
    for region in _declared(outline):
        origin, length = outline.fold(region.origin), outline.fold(region.length)
        if region.name in used and origin is not None and length:
            ranges.append((origin, origin + length, region))
    furthest: tuple[int, int, ast.Region] | None = None
    for start, end, region in sorted(ranges, key=lambda entry: entry[:2]):
        # Two of one origin are two address spaces, or two names for one: sections that meet, ld sees.
        inside = furthest is not None and furthest[0] < start < furthest[1]
        if furthest is not None and inside and end == furthest[1] and _by_name_alone(outline, region.name):
            continue  # a name for the last part of a memory, for those who ask for it
        if furthest is not None and inside and region.name != furthest[2].name:
            yield Hit(
                f"{region.name} from {start:#x} lies inside of {furthest[2].name} ({furthest[0]:#x} to "
                f"{furthest[1]:#x}): ld fills both and does not see that they meet",
                script_place(region.span, region.name),
            )
        if furthest is None or end > furthest[1]:
            furthest = (start, end, region)


def _by_name_alone(outline: Outline, region: str) -> bool:
    """Tell whether nothing goes to the region but sections of names that no compiler makes."""
    return all(
        kinds_in(placed.section) <= {UNKNOWN, RESERVED}
        for placed in outline.kept_sections
        if region in {placed.section.region, placed.section.lma_region}
    )


def section_without_region(context: Context) -> Iterator[Hit]:
    """A section has neither region nor address in a script that places the others in regions."""
    outline = outline_of(context)
    regions = [region for region in _declared(outline) if outline.fold(region.length)]
    if not regions or not _complete(outline):
        return
    kept = outline.kept_sections
    with_region = sum(bool(placed.section.region) for placed in kept)
    if with_region * 2 < len(kept):
        return
    for placed in kept:
        section = placed.section
        if section.region or placed.overlay or not kinds_in(section) & _PLACED:
            continue
        if section.type in {"INFO", "COPY", "DSECT", "OVERLAY"} or kinds_in(section) <= {UNLOADED}:
            continue
        place = script_place(section.name_span, section.name)
        at = outline.fold(section.address)
        # Without an address ld goes by the attributes of the regions; where they have none, it stops.
        if section.address is None and not any(region.attributes for region in regions):
            yield Hit(
                f"{section.name} goes to no memory region: the linkers stop as soon as it has contents", place
            )
        elif at and not any(_holds(outline, region, at) for region in regions):
            yield Hit(f"{section.name} at {at:#x} lies outside of every memory region", place)


def _holds(outline: Outline, region: ast.Region, address: int) -> bool:
    origin = outline.fold(region.origin) or 0
    return origin <= address < origin + (outline.fold(region.length) or 0)


_STACK = re.compile(r"stack|(?:^|_)sp(?:_|$)|heap", re.IGNORECASE)
_TOP = re.compile(r"top|end|estack|init(?:ial)?_?sp|__stack\b|_stack\b|stack_?start", re.IGNORECASE)


def reserved_in_use(context: Context) -> Iterator[Hit]:
    """A stack or heap is reserved where the script places sections."""
    outline = outline_of(context)
    names = [assign for assign in outline.assignments if _STACK.search(assign.target)]
    if not names:
        return
    yield from _not_reserved(outline)
    yield from _grows_into_data(outline, names)
    yield from _elsewhere(outline, names)


def _not_reserved(outline: Outline) -> Iterator[Hit]:
    """Yield the tops that are `. + size` while '.' itself stays, so that the next section lies there too."""
    waiting: list[ast.Assign] = []
    for command in outline.sequence:
        if isinstance(command, ast.Assign):
            if command.target == ".":
                waiting = []
            elif _STACK.search(command.target) and _beyond_dot(command.value):
                waiting.append(command)
        elif isinstance(command, ast.OutputSection) and command.name != "/DISCARD/":
            if waiting and command.address is None and kinds_in(command) & _PLACED and not command.region:
                for assign in waiting:
                    yield Hit(
                        f"{assign.target} lies beyond '.', which stays where it is: {command.name} is placed "
                        "into what was meant to be reserved",
                        script_place(assign.span, assign.target),
                    )
            waiting = []


def _beyond_dot(value: ast.Expr) -> bool:
    if not isinstance(value, ast.Binary) or value.op != "+":
        return False
    return is_dot(value.left) or is_dot(value.right)


def _region_of(value: ast.Expr) -> str:
    """Return the region whose ORIGIN the value starts from."""
    for part in walk(value):
        if (
            isinstance(part, ast.Call)
            and part.function == "ORIGIN"
            and isinstance(part.arguments[0], ast.Symbol)
        ):
            return part.arguments[0].name
    return ""


def _grows_into_data(outline: Outline, names: list[ast.Assign]) -> Iterator[Hit]:
    """Yield the tops of stacks that grow down to where the first section of their region lies."""
    for assign in names:
        region = _region_of(assign.value)
        limits = outline.regions.get(region)
        top = trial(outline).symbols.get(assign.target)
        if limits is None or not isinstance(top, Known) or not _TOP.search(assign.target):
            continue
        origin, length = limits
        if origin is None or length is None or not origin < top.value < origin + length:
            continue
        if "heap" in assign.target.lower() or "limit" in assign.target.lower():
            continue
        bottom = next(
            (
                placed.section
                for placed in outline.kept_sections
                if placed.section.region == region and placed.section.address is None
            ),
            None,
        )
        there = section_of(outline, bottom.name) if bottom is not None else None
        if bottom is None or there is None or not isinstance(there.address, Known):
            continue
        if there.address.value == origin and kinds_in(bottom) & {DATA, ZERO}:
            yield Hit(
                f"{assign.target} is {top.value - origin:#x} bytes into {region}, and {bottom.name} starts "
                "at its beginning: the stack grows down into it",
                script_place(assign.span, assign.target),
            )


_RESERVE = re.compile(r"stack|heap", re.IGNORECASE)


def _elsewhere(outline: Outline, names: list[ast.Assign]) -> Iterator[Hit]:
    """Yield the tops that are the end of one region while the stack's section is in another."""
    homes = {
        placed.section.region
        for placed in outline.kept_sections
        if "stack" in placed.section.name.lower() and placed.section.region and placed.section.address is None
    }
    if len(homes) != 1:
        return
    home = homes.pop()
    tops = [
        (assign, _region_of(assign.value))
        for assign in names
        if "stack" in assign.target.lower() and _TOP.search(assign.target)
    ]
    if any(outline.regions.get(region) == outline.regions.get(home) for _, region in tops):
        return  # the section is for that one; another stack has a place of its own
    for assign, region in tops:
        if region in outline.regions:
            yield Hit(
                f"{assign.target} is in {region}, and the section that reserves the stack in {home}",
                script_place(assign.span, assign.target),
            )


_MEMORY = "MEMORY {{ ROM (rx) : ORIGIN = 0, LENGTH = 64K {} }}\n"
_ONE = _MEMORY.format("RAM (rw) : ORIGIN = 0x20000000, LENGTH = 8K")
_BODY = (
    "SECTIONS\n{\n  .text : { *(.text*) } >ROM\n  .data : { *(.data*) } >RAM AT>ROM\n"
    "  .bss : { *(.bss*) *(COMMON) } >RAM\n}\n"
)

RULES = (
    Rule(
        "region-undeclared",
        ERROR,
        "a section goes to a memory region that is not declared",
        "ld only warns and makes a region without limits that starts at 0; lld refuses the script.",
        "declare the region in MEMORY, or correct its name.",
        ("S",),
        region_undeclared,
        Example(script=_ONE + _BODY.replace(">RAM\n}", ">SRAM\n}")),
        Example(script=_ONE + _BODY),
    ),
    Rule(
        "region-twice",
        ERROR,
        "a memory region is declared twice",
        "ld keeps the first declaration and warns, lld refuses the script: a length that was changed in "
        "the second "
        "one has no effect.",
        "remove one of the two.",
        ("S",),
        region_twice,
        Example(
            script=_MEMORY.format("ROM (rx) : ORIGIN = 0, LENGTH = 128K")
            + "SECTIONS { .text : { *(.text*) } >ROM }\n"
        ),
        Example(script=_MEMORY.format("") + "SECTIONS { .text : { *(.text*) } >ROM }\n"),
    ),
    Rule(
        "region-overlap",
        WARNING,
        "two memory regions share addresses",
        "ld fills every region from its origin and compares no region with another: what is placed in both "
        "overlaps as soon as the first one is full enough.",
        "end one region where the other starts.",
        ("S",),
        region_overlap,
        Example(
            script=_MEMORY.format(
                "RAM (rw) : ORIGIN = 0x20000000, LENGTH = 8K DMA (rw) : ORIGIN = 0x20001000, LENGTH = 4K"
            )
            + _BODY.replace(">RAM\n}", ">DMA\n}")
        ),
        Example(
            script=_MEMORY.format(
                "RAM (rw) : ORIGIN = 0x20000000, LENGTH = 4K DMA (rw) : ORIGIN = 0x20001000, LENGTH = 4K"
            )
            + _BODY.replace(">RAM\n}", ">DMA\n}")
        ),
    ),
    Rule(
        "section-without-region",
        WARNING,
        "a section lies in no memory region",
        "ld checks that regions are not overfilled. A section at an address outside of all of them is in no "
        "account; one with neither region nor address cannot be linked once it has contents.",
        "write `>REGION` behind the section, or declare a region where it lies.",
        ("S",),
        section_without_region,
        Example(script=_ONE + _BODY.replace(".bss :", ".bss 0x30000000 :").replace(">RAM\n}", "\n}")),
        Example(script=_ONE + _BODY),
    ),
    Rule(
        "reserved-in-use",
        ERROR,
        "a stack or heap lies where sections are placed",
        "A symbol reserves nothing. When '.' stays where it is, when the stack grows down from the middle "
        "of the "
        "memory that .data begins, or when its top is in another region than the section that makes room "
        "for it, "
        "the first deep call overwrites variables.",
        "reserve by moving '.' inside of an output section, and take the symbols from there.",
        ("S",),
        reserved_in_use,
        Example(
            script="SECTIONS\n{\n  .data : { *(.data*) }\n  stack_top = . + 4096;\n  .bss : { *(.bss*) }\n}\n"
        ),
        Example(
            script="SECTIONS\n{\n  .data : { *(.data*) }\n  .stack : { . += 0x1000; stack_top = .; }\n"
            "  .bss : { *(.bss*) }\n}\n"
        ),
    ),
)
