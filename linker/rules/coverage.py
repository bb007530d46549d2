"""Rules about inputs that the script does not name: variants of a name, and what comes before the entry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from linker import ast
from linker.bounds import bounds_of, marks_dot
from linker.elffile import SHF_WRITE, SHT_NOBITS
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
from linker.section_kinds import CODE, CONSTANT, DATA, LINKER, RESERVED, UNLOADED, ZERO, kind_of
from linker.settings import DEFAULTS
from linker.trial import is_coff, kinds_in

from .given import elf_of, map_of, outline_of

_END = re.compile(r"end|stop|limit|(?:\A|_)e(?:bss|data)", re.IGNORECASE)
_OF = re.compile(r"bss|data|image|ram|kernel|\A_*end_*\Z", re.IGNORECASE)
_VARIED = (".bss", ".data")


def pattern_variants(context: Context) -> Iterator[Hit]:
    """Only the plain name has a pattern, and a symbol ends the section."""
    outline = outline_of(context)
    if outline.inserts or any(spec.sections is None for _, spec in outline.inputs()):
        return
    covered = {name for name in (*_VARIED, ".text") if outline.catches(f"{name}.x")}
    if not covered or is_coff(outline) or outline.catches(".text$x"):
        return  # made for objects without -ffunction-sections and -fdata-sections
    for name in _VARIED:
        taken = _taker(outline, name) if name not in covered else None
        if taken is None:
            continue
        placed, spec, pattern = taken
        end = end_after(outline, placed, spec)
        if end:
            behind = ast.Span(pattern.span.end, pattern.span.end)
            yield Hit(
                f"'{name}' has a pattern and '{name}.*' has none: what compilers call so lands outside "
                f"of {placed.section.name}, behind {end}",
                script_place(pattern.span, name),
                (Edit(behind, f" {name}.*", f"take {name}.* as well"),) if not pattern.sorts else (),
            )


def _taker(outline: Outline, name: str) -> tuple[Placed, ast.InputSpec, ast.Pattern] | None:
    """Return the first pattern that is just this name, with where it is."""
    return next(
        (
            (Placed(section, position, False), spec, pattern)
            for position, section in enumerate(outline.sequence)
            if isinstance(section, ast.OutputSection) and section.name != "/DISCARD/"
            for spec in section.body
            if isinstance(spec, ast.InputSpec)
            for pattern in spec.sections or ()
            if pattern.name == name
        ),
        None,
    )


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


class _Range(NamedTuple):
    """What start-up code handles between two symbols, and what sections of it are called."""

    start: int
    stop: int
    verb: str
    names: str


def _ranges(context: Context, outline: Outline) -> dict[str, list[_Range]]:
    """Return what is cleared (ZERO) and what is copied from elsewhere (DATA), by the symbols in the link."""
    values = _symbol_values(context)
    out: dict[str, list[_Range]] = {}
    for bounds in bounds_of(outline):
        start, stop = values.get(bounds.start.target), values.get(bounds.stop.target)
        kinds = {kind_of(pattern.name) for _, spec in bounds.inputs for pattern in spec.sections or ()}
        if start is None or stop is None or start > stop:
            continue
        words = f"{bounds.start.target} to {bounds.stop.target}"
        copied = any(
            section.at is not None or section.lma_region not in {"", section.region}
            for section, _ in bounds.inputs
        )
        if ZERO in kinds and kinds <= {ZERO, RESERVED}:
            out.setdefault(ZERO, []).append(_Range(start, stop, "cleared", words))
        elif DATA in kinds and copied:
            out.setdefault(DATA, []).append(_Range(start, stop, "copied", words))
    return out


def _symbol_values(context: Context) -> dict[str, int]:
    names = {assign.target for assign in outline_of(context).assignments}
    if context.elf is not None:
        return {name: symbol.address for name, symbol in context.elf.find(names).items()}
    out: dict[str, int] = {}
    if context.map is not None:
        symbols = [*context.map.symbols, *(s for output in context.map.outputs for s in output.symbols)]
        for symbol in symbols:
            text = re.sub(r"^(?:PROVIDE|PROVIDE_HIDDEN|HIDDEN)\s*\(", "", symbol.text)
            out[text.split("=", 1)[0].strip()] = symbol.address
    return out


def _writable_orphans(context: Context, outline: Outline) -> Iterator[tuple[str, int, int, str, Place]]:
    """Yield name, address, end, DATA or ZERO, and place of the orphans that a program writes to."""
    if context.elf is not None:
        for section in context.elf.sections:
            if section.occupies and section.flags & SHF_WRITE and section.name not in outline.names:
                kind = ZERO if section.type == SHT_NOBITS else DATA
                place = elf_place(section.name, section.address)
                yield section.name, section.address, section.end, kind, place
    elif context.map is not None:
        for output in context.map.outputs:
            kind = {ZERO: ZERO, DATA: DATA, LINKER: DATA}.get(kind_of(output.name), "")
            if output.size and output.address and kind and output.name not in outline.names:
                place = map_place(output.line, output.name, output.address)
                yield output.name, output.address, output.address + output.size, kind, place


def orphan_outside_range(context: Context) -> Iterator[Hit]:
    """An orphan is outside of the symbols between which start-up code clears, or copies."""
    outline = outline_of(context)
    if outline.inserts or not outline.sections:
        return
    ranges = _ranges(context, outline)
    for name, address, end, kind, place in _writable_orphans(context, outline):
        handled = ranges.get(kind, [])
        if kind_of(name) == RESERVED or not handled:
            continue
        if not any(one.start <= address and end <= one.stop for one in handled):
            one = handled[0]
            yield Hit(
                f"{name} at {address:#x} is no part of what is {one.verb}, {one.names} ({one.start:#x} to "
                f"{one.stop:#x})",
                place,
            )


_PRIORITY = re.compile(r"\.init_array\.(\d+)\Z")


def init_array_order(context: Context) -> Iterator[Hit]:
    """Constructors lie in the map in another order than that of their priorities."""
    for output in map_of(context).outputs:
        before = -1
        for item in sorted(output.inputs, key=lambda item: item.address):
            if not item.size or not item.name.startswith(".init_array"):
                continue
            match = _PRIORITY.match(item.name)
            priority = int(match[1]) if match else 1 << 16
            if priority < before:
                yield Hit(
                    f"'{item.name}' of {item.file} runs after constructors of a later priority",
                    map_place(item.line, item.name, item.address),
                )
            before = max(before, priority)


_RESERVES = (
    ("__StackLimit", "__StackTop"), ("_sstack", "_estack"), ("__stack_bottom", "__stack_top"),
    ("stack_bottom", "stack_top"), ("_stack_bottom", "_stack_top"), ("_stack_start", "_stack_end"),
    ("__stack_start", "__stack_end"), ("__stack_start__", "__stack_end__"), ("__HeapBase", "__HeapLimit"),
    ("__heap_start", "__heap_end"), ("__heap_start__", "__heap_end__"), ("_heap_start", "_heap_end"),
    ("_sheap", "_eheap"), ("__stack_limit", "__stack"), ("_heap_bottom", "_heap_top"),
)  # fmt: skip


def reserve_overlaps(context: Context) -> Iterator[Hit]:
    """A section lies between the symbols that bound the stack, or the heap."""
    elf = elf_of(context)
    symbols = elf.find({name for pair in _RESERVES for name in pair})
    for one, two in _RESERVES:
        if one not in symbols or two not in symbols:
            continue
        low, high = sorted((symbols[one].address, symbols[two].address))
        for section in elf.sections:
            inside = section.occupies and section.address < high and low < section.end
            if inside and kind_of(section.name) != RESERVED:
                yield Hit(
                    f"{section.name} ({section.address:#x} to {section.end:#x}) lies in what {one} and {two} "
                    f"reserve ({low:#x} to {high:#x})",
                    elf_place(section.name, section.address),
                )


_RAW = (
    "ENTRY(_start)\nSECTIONS\n{{\n  . = 0x80200000;\n  .start : {{ *(.start) }}\n"
    "  .text : {{ *(.text*) }}\n{}}}\n"
)
_VARIANTS = (
    "SECTIONS\n{{\n  .text : {{ *(.text .text.*) }}\n  .bss : {{ *({}) *(COMMON) }}\n  _end = .;\n}}\n"
)
_CLEARED = "SECTIONS\n{\n  .bss : { _sbss = .; *(.bss) *(COMMON) _ebss = .; }\n}\n"
_ZEROS = (
    "elf32 entry=0x1000\nload 0x20000000 0x100 rw nofile\nsection .bss 0x20000000 0x10 aw nobits\n"
    "symbol _sbss 0x20000000\nsymbol _ebss 0x20000010\n"
)
_MAP = """Memory Configuration

Name             Origin             Length             Attributes
*default*        0x00000000         0xffffffff

Linker script and memory map

.init_array     0x00001000       0x10
 *(.init_array .init_array.*)
 .init_array{0}
                0x00001000        0x8 a.o
 .init_array{1}
                0x00001008        0x8 b.o
"""
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
    Rule(
        "orphan-outside-range",
        ERROR,
        "an orphan is neither cleared nor copied",
        "Start-up code clears from one symbol to another and copies from one to another. An orphan that the "
        "linker places beside them - .bss.name, .got, .tm_clone_table, common symbols - starts with what the "
        "memory held (cortex-m-rt issue 287).",
        "give the section a pattern between the two symbols.",
        ("SM", "SE"),
        orphan_outside_range,
        Example(script=_CLEARED, elf=_ZEROS + "section .bss.cache 0x20000010 0x10 aw nobits\n"),
        Example(script=_CLEARED, elf=_ZEROS),
    ),
    Rule(
        "init-array-order",
        ERROR,
        "constructors are not in the order of their priorities",
        "The number in .init_array.00101 is the priority, those without one come last. The map has them in "
        "the order in which start-up code calls them.",
        "write KEEP(*(SORT_BY_INIT_PRIORITY(.init_array.*))) KEEP(*(.init_array)).",
        ("M",),
        init_array_order,
        Example(map=_MAP.format("", ".00101")),
        Example(map=_MAP.format(".00101", "")),
    ),
    Rule(
        "reserve-overlaps",
        ERROR,
        "a section lies in the stack or the heap",
        "The symbols that bound a stack or heap reserve nothing by themselves: what is linked into it is "
        "overwritten by the first deep call, or the first large allocation.",
        "reserve the room in an output section of its own, in the region where the symbols are.",
        ("E",),
        reserve_overlaps,
        Example(elf=_ZEROS + "symbol __StackLimit 0x20000008\nsymbol __StackTop 0x20000408\n"),
        Example(elf=_ZEROS + "symbol __StackLimit 0x20000010\nsymbol __StackTop 0x20000410\n"),
    ),
)
