"""Rules about where things ended up: page-aligned data, symbols, the end of the image."""

from __future__ import annotations

import re
from collections.abc import Iterator

from linker import ast
from linker.elffile import SHT_NOBITS, Elf, ElfSymbol
from linker.findings import ERROR, WARNING, Context, Example, Hit, Rule, elf_place, map_place
from linker.mapfile import LinkMap
from linker.match import any_match
from linker.outline import Outline
from linker.section_kinds import RESERVED, ZERO, kind_of
from linker.settings import ArrayRule

# A section further than this behind the end symbol is in another memory, not past the end of this one.
_NEAR = 1 << 20


def page_aligned_address(context: Context) -> Iterator[Hit]:
    """Page-aligned input lies at an address that is not a multiple of a page."""
    page, names = context.settings.page_size, context.settings.page_aligned
    if context.map is not None:
        for placed, item in ((output.name, item) for output in context.map.outputs for item in output.inputs):
            if item.size and item.address % page and any_match(names, item.name):
                yield Hit(
                    f"'{item.name}' of {item.file} lies at {item.address:#x} in {placed}, not on a "
                    f"{page}-byte page",
                    map_place(item.line, item.name, item.address),
                )
    elif context.elf is not None:
        for section in context.elf.sections:
            if section.occupies and section.address % page and any_match(names, section.name):
                yield Hit(
                    f"'{section.name}' lies at {section.address:#x}, not on a {page}-byte page",
                    elf_place(section.name, section.address),
                )


def _end_in_map(link_map: LinkMap, names: tuple[str, ...]) -> tuple[str, int] | None:
    best: tuple[str, int] | None = None
    symbols = [*link_map.symbols, *(symbol for output in link_map.outputs for symbol in output.symbols)]
    for symbol in symbols:
        text = re.sub(r"^(?:PROVIDE|PROVIDE_HIDDEN|HIDDEN)\s*\(", "", symbol.text)
        name = text.split("=", 1)[0].strip()
        if name in names and (best is None or symbol.address > best[1]):
            best = name, symbol.address
    return best


def _end_in_elf(elf: Elf, names: tuple[str, ...]) -> ElfSymbol | None:
    found = elf.find(names).values()
    return max(found, key=lambda symbol: symbol.address, default=None)


def _room(name: str) -> bool:
    """Tell whether a section is the heap or the stack, which newlib's end symbol stands before on purpose."""
    return kind_of(name) == RESERVED


def allocated_after_end(context: Context) -> Iterator[Hit]:
    """An allocated section reaches past the symbol that is meant to end the image."""
    names = context.settings.end_symbols
    if context.elf is not None:
        end = _end_in_elf(context.elf, names)
        if end is None:
            return
        for section in context.elf.sections:
            if _room(section.name) or (section.type == SHT_NOBITS and kind_of(section.name) != ZERO):
                continue
            if section.occupies and end.address < section.end and section.address < end.address + _NEAR:
                yield Hit(
                    f"{section.name} ends at {section.end:#x}, after {end.name} at {end.address:#x}",
                    elf_place(section.name, section.address),
                )
        return
    assert context.map is not None
    found = _end_in_map(context.map, names)
    if found is None:
        return
    for output in context.map.outputs:
        if _room(output.name) or not any(item.size for item in output.inputs):
            continue
        if output.size and found[1] < output.address + output.size and output.address < found[1] + _NEAR:
            yield Hit(
                f"{output.name} ends at {output.address + output.size:#x}, after {found[0]} at {found[1]:#x}",
                map_place(output.line, output.name, output.address),
            )


def symbol_alignment(context: Context) -> Iterator[Hit]:
    """A symbol whose alignment matters is misaligned."""
    assert context.elf is not None
    wanted = dict.fromkeys(context.settings.page_symbols, context.settings.page_size)
    wanted.update((rule.name, rule.align) for rule in context.settings.symbols if rule.align)
    for name, symbol in sorted(context.elf.find(wanted).items()):
        if symbol.address % wanted[name]:
            yield Hit(
                f"{name} is at {symbol.address:#x}, not a multiple of {wanted[name]:#x}",
                elf_place(name, symbol.address),
            )


_STARTS = re.compile(r"start|begin", re.IGNORECASE)


def start_symbol_drift(context: Context) -> Iterator[Hit]:
    """A start symbol before an output section does not have the section's address."""
    assert context.outline is not None
    assert context.elf is not None
    pairs = list(_start_pairs(context.outline))
    symbols = context.elf.find(assign.target for assign, _ in pairs)
    for assign, section in pairs:
        symbol, found = symbols.get(assign.target), context.elf.by_name.get(section.name)
        if symbol is None or found is None or not found.allocated:
            continue
        if symbol.address != found.address:
            yield Hit(
                f"{assign.target} is {symbol.address:#x} but {section.name} starts at {found.address:#x}",
                elf_place(assign.target, symbol.address),
            )


def _start_pairs(outline: Outline) -> Iterator[tuple[ast.Assign, ast.OutputSection]]:
    """Yield each `start = .` that stands right before an output section."""
    waiting: list[ast.Assign] = []
    for command in outline.sequence:
        if isinstance(command, ast.Assign) and command.target != ".":
            plain = isinstance(command.value, ast.Symbol) and command.value.name == "."
            if plain and _STARTS.search(command.target):
                waiting.append(command)
        elif isinstance(command, ast.OutputSection):
            yield from ((assign, command) for assign in waiting)
            waiting = []
        else:
            waiting = []


def array_stride(context: Context) -> Iterator[Hit]:
    """The bytes between a table's start and stop symbols are no whole number of entries, or have a gap."""
    for array in context.settings.arrays:
        start, stop = _bounds(array, context)
        if start is None or stop is None:
            continue
        outputs = context.map.outputs if context.map is not None else ()
        for fill in (fill for output in outputs for fill in output.fills):
            if start < fill.address < stop:
                yield Hit(
                    f"{fill.size} bytes of padding at {fill.address:#x} between {array.start} and "
                    f"{array.stop}",
                    map_place(fill.line, array.start, fill.address),
                )
        if array.entry and (stop - start) % array.entry:
            yield Hit(
                f"{stop - start} bytes between {array.start} and {array.stop} are no multiple of the entry's "
                f"{array.entry}",
                elf_place(array.start, start) if context.elf else map_place(0, array.start, start),
            )


def _bounds(array: ArrayRule, context: Context) -> tuple[int | None, int | None]:
    """Return where the table starts and stops: by the map, or else by the ELF."""
    start = stop = None
    if context.elf is not None:
        symbols = context.elf.find((array.start, array.stop))
        if len(symbols) == 2:
            start, stop = symbols[array.start].address, symbols[array.stop].address
    if context.map is not None:
        low, high = (_end_in_map(context.map, (name,)) for name in (array.start, array.stop))
        start, stop = (low[1] if low else start), (high[1] if high else stop)
    return start, stop


_MAP = """Memory Configuration

Name             Origin             Length             Attributes
*default*        0x00000000         0xffffffff

Linker script and memory map

.data           0x00100001     0x1001
 *(.data)
 .data          0x00100001        0x1 a.o
 *(.data.page_aligned)
 .data.page_aligned
                0x00100002     0x1000 a.o
"""

RULES = (
    Rule(
        "page-aligned-address",
        ERROR,
        "page-aligned data is not on a page",
        "A page directory or page table that does not start on a page makes the processor read another one; "
        "nothing fails until paging is switched on (nanvix issue 109).",
        "align it where it is defined (.balign 4096), take it first in its output section, align that one.",
        ("M", "E"),
        page_aligned_address,
        Example(map=_MAP),
        Example(
            map=_MAP.replace("0x00100001     0x1001", "0x00101000     0x1001")
            .replace("0x00100002", "0x00101000")
            .replace("0x00100001", "0x00102000")
        ),
    ),
    Rule(
        "allocated-after-end",
        ERROR,
        "nothing may be allocated after the end symbol",
        "Start-up code clears up to the end symbol and hands out memory from there: an orphan behind it is "
        "not cleared and is overwritten (rumprun issue 32).",
        "give the sections a pattern (*(.bss .bss.*)) or move the end symbol behind them.",
        ("M", "E"),
        allocated_after_end,
        Example(
            elf="elf32 entry=0x1000\nload 0x1000 0x1100 rwx\nsection .text 0x1000 0x100 ax\n"
            "section .bss.cache 0x2000 0x100 aw nobits\nsymbol _end 0x2000\n"
        ),
        Example(
            elf="elf32 entry=0x1000\nload 0x1000 0x1100 rwx\nsection .text 0x1000 0x100 ax\n"
            "section .bss 0x2000 0x100 aw nobits\nsymbol _end 0x2100\n"
        ),
    ),
    Rule(
        "symbol-alignment",
        ERROR,
        "a symbol is misaligned",
        "Page directories, hypercall pages and stacks have an alignment that the hardware or the hypervisor "
        "demands and the linker does not know.",
        "align the object where it is defined and check the order of patterns in its output section.",
        ("E",),
        symbol_alignment,
        Example(
            elf="elf32 entry=0x1000\nload 0x1000 0x2000 rwx\nsection .data 0x1000 0x2000 aw\n"
            "symbol boot_pgd 0x1004\n"
        ),
        Example(
            elf="elf32 entry=0x1000\nload 0x1000 0x2000 rwx\nsection .data 0x1000 0x2000 aw\n"
            "symbol boot_pgd 0x2000\n"
        ),
    ),
    Rule(
        "start-symbol-drift",
        WARNING,
        "a start symbol does not have the address of its section",
        "`start = .;` before an output section takes the value before ld aligns the section: loops from the "
        "start symbol read padding, or an empty section gives start > stop (ClangBuiltLinux issue 1204).",
        "assign the symbol inside of the output section, as its first statement.",
        ("SE",),
        start_symbol_drift,
        Example(
            script="SECTIONS\n{\n  .text : { *(.text) }\n  tab_start = .;\n  .tab : { KEEP(*(.tab)) }\n}\n",
            elf="elf32 entry=0x1000\nload 0x1000 0x200 r\nsection .text 0x1000 0x11 ax\n"
            "section .tab 0x1020 0x20 a\nsymbol tab_start 0x1011\n",
        ),
        Example(
            script="SECTIONS\n{\n  .text : { *(.text) }\n  .tab : { tab_start = .; KEEP(*(.tab)) }\n}\n",
            elf="elf32 entry=0x1000\nload 0x1000 0x200 r\nsection .text 0x1000 0x11 ax\n"
            "section .tab 0x1020 0x20 a\nsymbol tab_start 0x1020\n",
        ),
    ),
    Rule(
        "array-stride",
        ERROR,
        "a table between two symbols is no whole number of entries",
        "Alignment of single entries makes gaps that the loop over the table takes for entries (lk issue "
        "69).",
        "give the entry's type the alignment of its size, or use SUBALIGN.",
        ("M", "E"),
        array_stride,
        Example(
            config='[[array]]\nstart = "tab_start"\nstop = "tab_stop"\nentry = 16\n',
            elf="elf32 entry=0x1000\nload 0x1000 0x100 r\nsection .tab 0x1000 0x28 a\n"
            "symbol tab_start 0x1000\nsymbol tab_stop 0x1028\n",
        ),
        Example(
            config='[[array]]\nstart = "tab_start"\nstop = "tab_stop"\nentry = 16\n',
            elf="elf32 entry=0x1000\nload 0x1000 0x100 r\nsection .tab 0x1000 0x30 a\n"
            "symbol tab_start 0x1000\nsymbol tab_stop 0x1030\n",
        ),
    ),
)
