"""Rules about what goes where, told from the script: missing patterns, KEEP, the location counter, INSERT."""

from __future__ import annotations

from collections.abc import Iterator

from linker import ast
from linker.evaluate import Known, Value
from linker.findings import ERROR, NOTE, OFF, WARNING, Context, Example, Hit, Rule, script_place
from linker.match import any_match, matches
from linker.outline import Outline, inputs_of, is_at_zero, is_dot, walk
from linker.section_kinds import RESERVED
from linker.trial import kinds_in, section_of

from .coverage import end_after
from .given import outline_of


def _bss_spec(section: ast.OutputSection) -> ast.InputSpec | None:
    for spec in inputs_of(section):
        if any(pattern.name in {".bss", ".bss*"} for pattern in spec.sections or ()):
            return spec
    return None


def common_missing(context: Context) -> Iterator[Hit]:
    """The script places .bss and not COMMON."""
    outline = outline_of(context)
    if outline.inserts or any(matches(pattern, "COMMON") for pattern in outline.patterns):
        return
    if any(spec.sections is None for _, spec in outline.inputs()):
        return
    # Relocatable links (ld -r) place everything at 0 and leave common symbols alone.
    at_zero = sum(is_at_zero(placed.section) for placed in outline.kept_sections)
    if at_zero * 2 > len(outline.kept_sections):
        return
    for placed in outline.kept_sections:
        spec = _bss_spec(placed.section)
        if spec is not None and end_after(outline, placed, spec):
            yield Hit(
                f"{placed.section.name} takes .bss but no pattern takes COMMON",
                script_place(spec.span, placed.section.name),
            )
            return


def dot_backwards(context: Context) -> Iterator[Hit]:
    """The location counter is set to less than it must be already, and a section is placed there."""
    outline = outline_of(context)
    floor = 0
    lowered: Hit | None = None
    for command in outline.sequence:
        if isinstance(command, ast.Assign) and command.target == ".":
            lowered, value = None, outline.fold(command.value)
            if command.op == "=" and value is not None and value < floor:
                lowered = Hit(
                    f"'.' goes back to {value:#x}; it is at least {floor:#x} here",
                    script_place(command.span, "."),
                )
            floor = _floor_behind(command, value, floor)
        elif isinstance(command, ast.OutputSection):
            yield from _backwards_inside(command, outline)
            if lowered is not None and command.address is None and not command.region:
                yield lowered
            lowered = None
            floor = _floor_of(command, floor, outline) + _fixed_size(command, outline)


def _floor_behind(assign: ast.Assign, value: int | None, floor: int) -> int:
    """Return what `.` is at least behind an assignment of `value` to it; 0 where nobody knows."""
    if assign.op == "=" and value is not None:
        return value
    if assign.op == "+=":
        return floor + (value or 0)
    return floor if _raises_dot(assign.value) else 0


def _floor_of(section: ast.OutputSection, floor: int, outline: Outline) -> int:
    """Return what the section's address is at least; 0 where nobody knows."""
    if section.region:
        return 0
    if section.address is None:
        return floor
    address = outline.fold(section.address)
    return 0 if address is None else address or floor


def _raises_dot(value: ast.Expr) -> bool:
    """Tell whether the value cannot be less than `.`: ALIGN(n), or a sum with `.`."""
    if isinstance(value, ast.Call) and value.function in {"ALIGN", "BLOCK"}:
        return len(value.arguments) == 1 or is_dot(value.arguments[0])
    return isinstance(value, ast.Binary) and value.op == "+" and (is_dot(value.left) or is_dot(value.right))


def _constant(value: ast.Expr, outline: Outline) -> int | None:
    """Return the value where it is one of numbers; ALIGN(n) asks for `.` and is none."""
    return None if isinstance(value, ast.Call) and len(value.arguments) == 1 else outline.fold(value)


def _fixed_size(section: ast.OutputSection, outline: Outline) -> int:
    """Return what the section is at least long, from data statements and `. = offset`."""
    size = 0
    for statement in section.body:
        if isinstance(statement, ast.Data):
            size += ast.DATA_SIZES.get(statement.kind, 0)
        elif isinstance(statement, ast.Assign) and statement.target == ".":
            value = _constant(statement.value, outline)
            if value is not None and statement.op in {"=", "+="} and value < 1 << 40:
                size = max(size, value) if statement.op == "=" else size + value
    return size


def _backwards_inside(section: ast.OutputSection, outline: Outline) -> Iterator[Hit]:
    floor = 0
    for statement in section.body:
        if isinstance(statement, ast.Data):
            floor += ast.DATA_SIZES.get(statement.kind, 0)
        if not isinstance(statement, ast.Assign) or statement.target != ".":
            continue
        value = _constant(statement.value, outline)
        lowered = statement.op == "-=" and value != 0
        if statement.op == "=" and isinstance(statement.value, ast.Binary):
            lowered = statement.value.op == "-" and is_dot(statement.value.left)
        if lowered or (statement.op == "=" and value is not None and value < floor):
            yield Hit(
                f"'.' moves backwards inside {section.name}", script_place(statement.span, section.name)
            )
        elif statement.op == "=" and value is not None:
            floor = max(floor, value)


def insert_past_end(context: Context) -> Iterator[Hit]:
    """INSERT AFTER .bss: the symbol that ends .bss does not cover what is inserted."""
    outline = outline_of(context)
    for insert in outline.inserts:
        if insert.where == "AFTER" and insert.section == ".bss" and not _all_reserved(outline):
            names = ", ".join(placed.section.name for placed in outline.kept_sections) or "what is inserted"
            yield Hit(
                f"{names} after {insert.section} lies outside of the symbols that start and end "
                f"{insert.section}",
                script_place(insert.span, insert.section),
            )


def _all_reserved(outline: Outline) -> bool:
    """Tell whether all that is inserted is not to be cleared: .noinit, heaps, stacks."""
    kinds = [kinds_in(placed.section) for placed in outline.kept_sections]
    return bool(kinds) and all(kind == {RESERVED} for kind in kinds)


def missing_pattern(context: Context) -> Iterator[Hit]:
    """A section that the configuration expects is taken by no pattern."""
    outline = outline_of(context)
    for expected in context.settings.expected_inputs:
        name = expected.replace("*", "x")
        if expected not in outline.patterns and not outline.catches(name):
            where = _likely_home(outline, expected)
            yield Hit(f"no pattern of the script takes '{expected}'", script_place(where, expected))


def _likely_home(outline: Outline, name: str) -> ast.Span:
    """Return the output section that a reader would add the pattern to: the longest name it begins with."""
    sections = [placed.section for placed in outline.kept_sections]
    named = [section for section in sections if name.startswith(section.name)]
    home = max(named, key=lambda section: len(section.name), default=sections[-1] if sections else None)
    return home.name_span if home is not None else ast.NOWHERE


def page_aligned_missing(context: Context) -> Iterator[Hit]:
    """Page-aligned .bss has a pattern, page-aligned .data has none although .data is placed."""
    outline = outline_of(context)
    if ".bss" not in outline.words or "page" not in outline.words:
        return
    for _, spec in outline.inputs():
        for pattern in spec.sections or ():
            name = pattern.name.rstrip("*")
            tail = name.removeprefix(".bss").lstrip(".")
            if not name.startswith(".bss") or not tail.startswith("page"):
                continue
            sibling = name.replace(".bss", ".data", 1)
            wanted = any_match(context.settings.page_aligned, name) and ".data" in outline.patterns
            if wanted and not outline.catches(sibling):
                yield Hit(
                    f"'{pattern.name}' has a pattern and '{sibling}' has none",
                    script_place(pattern.span, sibling),
                )


def lma_not_charged(context: Context) -> Iterator[Hit]:
    """AT(address) into a region: ld does not check that the image fits there."""
    outline = outline_of(context)
    regions = outline.regions
    if len(regions) < 2:
        return
    for placed in outline.kept_sections:
        section = placed.section
        if section.at is None or section.region not in regions or section.lma_region or placed.overlay:
            continue
        if any(isinstance(part, ast.Call) and part.function == "ADDR" for part in walk(section.at)):
            continue
        # A constant was chosen by someone who knows the memory; an address equal to the own one is charged.
        there = section_of(outline, section.name)
        if section.address is not None and ast.shape(section.at) == ast.shape(section.address):
            continue
        load = there.load_address if there is not None else None
        if (
            outline.fold(section.at) is not None
            or _is_alias(section.at)
            or _inside(load, regions[section.region])
        ):
            continue
        yield Hit(
            f"AT() of {section.name} loads outside of >{section.region}, and ld counts it in no region",
            script_place(section.at.span, section.name),
        )


def _is_alias(at: ast.Expr) -> bool:
    """Tell whether the load address is another view of a memory: its origin, or one with a bit set."""
    return any(
        (isinstance(part, ast.Call) and part.function == "ORIGIN")
        or (isinstance(part, ast.Binary) and part.op in {"|", "&"})
        for part in walk(at)
    )


def _inside(load: Value | None, region: tuple[int | None, int | None]) -> bool:
    """Tell whether the load address lies in the region that the section is charged to anyway."""
    origin, length = region
    if not isinstance(load, Known) or origin is None or length is None:
        return False
    return origin <= load.value < origin + length


def noload_lma(context: Context) -> Iterator[Hit]:
    """A NOLOAD section after one with AT> inherits the distance between run and load address."""
    shifted: dict[str, str] = {}
    for placed in outline_of(context).kept_sections:
        section = placed.section
        if not section.region:
            continue
        if section.lma_region or section.at is not None:
            if section.lma_region != section.region:
                shifted[section.region] = section.name
            else:
                shifted.pop(section.region, None)
        elif section.type == "NOLOAD" and section.region in shifted:
            yield Hit(
                f"{section.name} (NOLOAD) takes the load offset of {shifted[section.region]} before it in "
                f">{section.region}",
                script_place(section.name_span, section.name),
            )


_TWO = "MEMORY { ROM : ORIGIN = 0, LENGTH = 64K RAM : ORIGIN = 0x20000000, LENGTH = 16K }\nSECTIONS\n{\n"

RULES = (
    Rule(
        "common-missing",
        NOTE,
        "*(COMMON) is missing",
        "Common symbols (C files compiled with -fcommon, Fortran, assembler .comm) are in no section until "
        "ld puts them where COMMON stands. Without it they land after everything else, behind the "
        "symbol that ends .bss (seL4_tools issue 65). A note only: with -fno-common there are none.",
        "add *(COMMON) after *(.bss).",
        ("S",),
        common_missing,
        Example(script="SECTIONS\n{\n  . = 0x100000;\n  .bss : { *(.bss) }\n  _end = .;\n}\n"),
        Example(script="SECTIONS\n{\n  . = 0x100000;\n  .bss : { *(.bss) *(COMMON) }\n  _end = .;\n}\n"),
    ),
    Rule(
        "dot-backwards",
        NOTE,
        "the location counter moves backwards",
        "Between output sections ld lets `.` go back without a word, and sections overlap or lie out of "
        "order; inside one it is an error only when it happens (esp32c3-direct-boot issue 4).",
        "place the section with the lower address first, or give it an address of its own.",
        ("S",),
        dot_backwards,
        Example(
            script="SECTIONS\n{\n  . = 0x8000;\n  .text : { *(.text) }\n  . = 0x400;\n"
            "  .data : { *(.data) }\n}\n"
        ),
        Example(
            script="SECTIONS\n{\n  . = 0x400;\n  .data : { *(.data) }\n  . = 0x8000;\n"
            "  .text : { *(.text) }\n}\n"
        ),
    ),
    Rule(
        "insert-past-end",
        WARNING,
        "INSERT AFTER escapes the symbols that end the section before",
        "The end symbol of .bss is assigned inside of it or right after it in the main script; a section "
        "inserted behind is not cleared by the start-up code (cortex-m-rt issue 287).",
        "give the inserted section start and end symbols of its own, or insert it before.",
        ("S",),
        insert_past_end,
        Example(script="SECTIONS\n{\n  .mybuffer : { *(.mybuffer) }\n}\nINSERT AFTER .bss\n"),
        Example(script="SECTIONS\n{\n  .mybuffer : { *(.mybuffer) }\n}\nINSERT BEFORE .bss\n"),
    ),
    Rule(
        "missing-pattern",
        ERROR,
        "a section that the project expects has no pattern",
        "An input section that no pattern takes is an orphan: ld places it where it sees fit, with no "
        "alignment but its own, outside of the symbols that bound the output section, and exits with 0.",
        "add the pattern, for page-aligned data as the first of the output section.",
        ("S",),
        missing_pattern,
        Example(
            script="SECTIONS\n{\n  .data : { *(.data) }\n}\n",
            config='expected-inputs = [".data.page_aligned"]\n',
        ),
        Example(
            script="SECTIONS\n{\n  .data : ALIGN(4096) { *(.data.page_aligned) *(.data) }\n}\n",
            config='expected-inputs = [".data.page_aligned"]\nrules = { page-aligned-tail = "off" }\n',
        ),
    ),
    Rule(
        "page-aligned-missing",
        NOTE,
        "page-aligned .bss has a pattern and page-aligned .data has none",
        "Sources that declare page-aligned zeroed objects often declare initialised ones too; without a "
        "pattern those become orphans, misaligned and outside of the section's symbols.",
        "add the missing pattern as the first of its output section.",
        ("S",),
        page_aligned_missing,
        Example(
            script="SECTIONS\n{\n  .data : { *(.data) }\n  .bss : ALIGN(4096) { *(.bss.page_aligned) "
            ". = ALIGN(4096); *(.bss) *(COMMON) }\n}\n"
        ),
        Example(
            script="SECTIONS\n{\n  .data : ALIGN(4096) { *(.data.page_aligned) . = ALIGN(4096); *(.data) }\n"
            "  .bss : ALIGN(4096) { *(.bss.page_aligned) . = ALIGN(4096); *(.bss) *(COMMON) }\n}\n"
        ),
    ),
    Rule(
        "lma-not-charged",
        WARNING,
        "AT(address) is counted in no memory region",
        "ld checks that a region is not overfilled only for `>REGION` and `AT>REGION`. With AT(address) the "
        "image may run over the end of the ROM unnoticed (tock issue 847).",
        "write AT>ROM instead of AT(address).",
        ("S",),
        lma_not_charged,
        Example(
            script=_TWO + "  .text : { *(.text) } >ROM\n  .data : AT(SIZEOF(.text)) { *(.data) } >RAM\n}\n"
        ),
        Example(script=_TWO + "  .text : { *(.text) } >ROM\n  .data : { *(.data) } >RAM AT>ROM\n}\n"),
    ),
    Rule(
        "noload-lma",
        OFF,
        "a NOLOAD section inherits the load offset of the section before it",
        "Without AT> of its own the section keeps the distance between run and load address of the one "
        "before it in the same region: its load address lies in the ROM (pico-sdk issue 1538).",
        "give it a load region of its own: `} >RAM AT>RAM`.",
        ("S",),
        noload_lma,
        Example(
            script=_TWO + "  .data : { *(.data) } >RAM AT>ROM\n  .noinit (NOLOAD) : { *(.noinit) } >RAM\n}\n"
        ),
        Example(
            script=_TWO
            + "  .data : { *(.data) } >RAM AT>ROM\n  .noinit (NOLOAD) : { *(.noinit) } >RAM AT>RAM\n}\n"
        ),
    ),
)
