"""Rules about inputs that the script does not name: variants of a name, and what comes before the entry."""

from __future__ import annotations

import re
from collections.abc import Iterator

from linker import ast
from linker.bounds import marks_dot
from linker.findings import (
    ERROR,
    WARNING,
    Context,
    Edit,
    Example,
    Hit,
    Place,
    Rule,
    elf_place,
    map_place,
    script_place,
)
from linker.outline import Outline, Placed
from linker.section_kinds import CODE, CONSTANT, UNLOADED
from linker.settings import DEFAULTS
from linker.trial import kinds_in

from .given import outline_of

_END = re.compile(r"end|stop|limit|(?:\A|_)e(?:bss|data)", re.IGNORECASE)
_OF = re.compile(r"bss|data|image|ram|kernel|\A_*end_*\Z", re.IGNORECASE)
_VARIED = (".bss", ".data")


def pattern_variants(context: Context) -> Iterator[Hit]:
    """Only the plain name has a pattern, and a symbol ends the section."""
    outline = outline_of(context)
    if outline.inserts or any(spec.sections is None for _, spec in outline.inputs()):
        return
    covered = {name for name in (*_VARIED, ".text") if outline.catches(f"{name}.x")}
    if not covered or outline.catches(".text$x"):
        return  # made for objects without -ffunction-sections and -fdata-sections, or for PE
    for name in _VARIED:
        if name in covered:
            continue
        for position, command in enumerate(outline.sequence):
            if not isinstance(command, ast.OutputSection) or command.name == "/DISCARD/":
                continue
            taken = next(
                (
                    (statement, pattern)
                    for statement in command.body
                    if isinstance(statement, ast.InputSpec)
                    for pattern in statement.sections or ()
                    if pattern.name == name
                ),
                None,
            )
            if taken is None:
                continue
            end = end_after(outline, Placed(command, position, False), taken[0])
            if end:
                at = taken[1].span.end
                yield Hit(
                    f"'{name}' has a pattern and '{name}.*' has none: what compilers call so lands outside "
                    "of "
                    f"{command.name}, behind {end}",
                    script_place(taken[1].span, name),
                    (Edit(ast.Span(at, at), f" {name}.*", f"take {name}.* as well"),)
                    if not taken[1].sorts
                    else (),
                )
            break


def end_after(outline: Outline, placed: Placed, spec: ast.InputSpec) -> str:
    """Return the symbol that ends the section: inside of it behind the description, or right after it."""
    body, position = placed.section.body, placed.position
    for statement in body[body.index(spec) + 1 :]:
        if marks_dot(statement) and isinstance(statement, ast.Assign) and _ends(statement.target):
            return statement.target
    for command in outline.sequence[position + 1 :]:
        if not isinstance(command, ast.Assign):
            return ""
        if marks_dot(command) and _ends(command.target):
            return command.target
    return ""


def _ends(symbol: str) -> bool:
    return symbol in DEFAULTS.end_symbols or (bool(_END.search(symbol)) and bool(_OF.search(symbol)))


_BOOT = re.compile(r"start|boot|head|entry|init|reset|crt0|vec", re.IGNORECASE)


def before_entry_script(context: Context) -> Iterator[Hit]:
    """The image starts with the entry's code, and read-only data without a pattern can come before it."""
    outline = outline_of(context)
    if outline.inserts or outline.catches(".rodata.x") or outline.catches(".rodata"):
        return
    if any(spec.sections is None for _, spec in outline.inputs()):
        return
    first = _first(outline)
    if first is None or first.address is not None or not outline.entry or not _BOOT.search(first.name):
        return
    if not kinds_in(first) & {CONSTANT} and any(CODE in kinds_in(p.section) for p in outline.kept_sections):
        yield Hit(
            f"the image has to start with {first.name}, and no pattern takes .rodata: lld puts such orphans "
            "before it",
            script_place(first.name_span, first.name),
        )


def _first(outline: Outline) -> ast.OutputSection | None:
    """Return the output section that the memory image starts with."""
    for placed in outline.kept_sections:
        kinds = kinds_in(placed.section)
        if kinds and not kinds <= {UNLOADED}:
            return placed.section
    return None


def before_entry(context: Context) -> Iterator[Hit]:
    """An orphan lies before the section that the script puts first."""
    outline = outline_of(context)
    first = _first(outline)
    if first is None or outline.inserts:
        return
    placed = list(_placed(context))
    start = next((address for name, address, _ in placed if name == first.name), None)
    if start is None:
        return
    for name, address, place in placed:
        if name not in outline.names and start - (1 << 20) < address < start:
            yield Hit(
                f"{name}, which the script does not name, lies at {address:#x}, before {first.name} at "
                f"{start:#x}",
                place,
            )


def _placed(context: Context) -> Iterator[tuple[str, int, Place]]:
    if context.elf is not None:
        # With the ELF header in memory before everything, the file is meant for an ELF loader.
        if any(segment.offset == 0 and segment.file_size for segment in context.elf.loads):
            return
        for section in context.elf.sections:
            if section.occupies:
                yield section.name, section.address, elf_place(section.name, section.address)
    elif context.map is not None:
        for output in context.map.outputs:
            if output.size and output.address:
                yield output.name, output.address, map_place(output.line, output.name, output.address)


_RAW = (
    "ENTRY(_start)\nSECTIONS\n{{\n  . = 0x80200000;\n  .start : {{ *(.start) }}\n"
    "  .text : {{ *(.text*) }}\n{}}}\n"
)
_VARIANTS = (
    "SECTIONS\n{{\n  .text : {{ *(.text .text.*) }}\n  .bss : {{ *({}) *(COMMON) }}\n  _end = .;\n}}\n"
)
_ELF = "elf64 entry={0}\nload 0x80200000 0x100 rx\n{1}"

RULES = (
    Rule(
        "pattern-variants",
        WARNING,
        "compilers make sections of more than the plain name",
        "-fdata-sections, C++ templates and inline variables make .bss.name and .data.name. Without a "
        "pattern they "
        "are orphans behind the section, outside of the symbols that bound it: not cleared, not copied, and "
        "overwritten by what starts at the end symbol (rumprun issue 32).",
        "add the variants: *(.bss .bss.*).",
        ("S",),
        pattern_variants,
        Example(script=_VARIANTS.format(".bss")),
        Example(script=_VARIANTS.format(".bss .bss.*")),
    ),
    Rule(
        "rodata-before-entry",
        WARNING,
        "read-only data without a pattern can come before the entry",
        "An image that is copied to memory and entered at its first byte has to start with the code of the "
        "entry. "
        "lld places read-only orphans before everything executable, GNU ld behind it.",
        "give .rodata a pattern: .rodata : { *(.rodata .rodata.*) }.",
        ("S",),
        before_entry_script,
        Example(script=_RAW.format("")),
        Example(script=_RAW.format("  .rodata : { *(.rodata*) }\n")),
    ),
    Rule(
        "orphan-before-entry",
        ERROR,
        "an orphan lies before what the script puts first",
        "Loaders that jump to the first byte of the image run what lies there: a note of the linker, "
        "constants, "
        "unwind tables (riscv-pk issue 88, opentitan issue 966).",
        "give the orphan a pattern behind the code, or discard it.",
        ("SM", "SE"),
        before_entry,
        Example(
            script=_RAW.format(""),
            elf=_ELF.format(
                "0x80200010", "section .rodata.cst8 0x80200000 8 a\nsection .start 0x80200010 8 ax\n"
            ),
        ),
        Example(
            script=_RAW.format(""),
            elf=_ELF.format(
                "0x80200000", "section .start 0x80200000 8 ax\nsection .rodata.cst8 0x80200010 8 a\n"
            ),
        ),
    ),
)
