"""The computed layout against what GNU ld did, address by address; maps against ELF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from linker.contents import PT_GNU_RELRO, contents_of, target_of
from linker.elffile import read_elf
from linker.evaluate import Known, Unknown
from linker.layout import simulate
from linker.layout_values import Contents, Piece
from linker.mapfile import read_map
from linker.model import model
from linker.outline import Outline
from linker.parser import parse
from tests.linker.linking import MAIN, OTHER, Linked, assemble, link, run
from tests.needs import Tool

KERNEL = """
ENTRY(_start)
SECTIONS {
  . = 0x100000;
  _text = .;
  .text : { *(.text) *(.text.hot) . = ALIGN(16); _etext = .; }
  .rodata : { *(.rodata .rodata.*) }
  . = ALIGN(4096);
  .data : { *(.data.page_aligned) . = ALIGN(4096); *(.data) _edata = .; }
  .table : { tab_start = .; KEEP(*(.table)) tab_stop = .; }
  .bss : { *(.bss) *(COMMON) . = ALIGN(8); _ebss = .; }
  _end = .;
  tab_count = (tab_stop - tab_start) / 4;
  half = tab_count >= 3 ? SIZEOF(.data) / 2 : 1;
}
"""
REGIONS = """
MEMORY { ROM (rx) : ORIGIN = 0x8000, LENGTH = 64K  RAM (rwx) : ORIGIN = 0x200000, LENGTH = 1M }
REGION_ALIAS("DATA", RAM);
stack = ORIGIN(RAM) + LENGTH(RAM);
SECTIONS {
  .text : { LONG(stack) BYTE(1) *(.text .text.*) } >ROM
  .rodata : SUBALIGN(16) { *(.rodata*) *(.table) } >ROM
  .data : ALIGN(64) { d_start = .; *(.data*) d_end = .; } >DATA AT>ROM
  d_load = LOADADDR(.data);
  .extra : ALIGN_WITH_INPUT { *(.extra) } >RAM AT>ROM
  .noinit (NOLOAD) : { *(.noinit) } >RAM
  .bss : { . = . + 16; *(.bss COMMON) . += 4; } >RAM
  heap = ALIGN(., 4096);
  room = LENGTH(RAM) - (heap - ORIGIN(RAM));
}
"""
FORWARD = """
SECTIONS {
  late = ADDR(.data) + SIZEOF(.data);
  .text 0x400000 : AT(0x1000) { *(.text) . = 0x80; after = .; inner = . - ADDR(.text); *(.text.*) }
  .table : { *(.table) *(.rodata*) *(.extra) *(.noinit) . = ALIGN(8); }
  .data MAX(ADDR(.table) + SIZEOF(.table), 0x400200) : AT(LOADADDR(.table) + SIZEOF(.table))
  { *(.data*) . = ALIGN(64); }
  .none : { }
  none_here = .;
  .bss (ADDR(.data) + 0x2000) : { *(.bss) *(COMMON) }
  log = LOG2CEIL(SIZEOF(.bss));
  small = MIN(log, 3);
  has = DEFINED(late) ? ABSOLUTE(late) : 0;
  align_of = ALIGNOF(.bss);
}
"""
ORPHANS = """
SECTIONS {
  . = 0x10000 + SIZEOF_HEADERS;
  .text : { *(.text*) }
  .data : { *(.data) }
  .bss : { *(.bss COMMON) }
  PROVIDE(_end = .);
  HIDDEN(secret = . + 1);
}
"""
CORPUS = {"kernel": KERNEL, "regions": REGIONS, "forward": FORWARD, "orphans": ORPHANS}


# Of a script's name, the width and a linker: the objects and what came of them.
Make = Callable[..., tuple[list[Path], Linked]]


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Make:
    directory = tmp_path_factory.mktemp("layout")
    assembler, linker = tool("as"), tool("ld.bfd", "ld")

    def make(name: str, bits: int, which: str = linker) -> tuple[list[Path], Linked]:
        objects = [
            assemble(directory, "main", MAIN, bits, assembler),
            assemble(directory, "other", OTHER, bits, assembler),
        ]
        stem = f"{name}{bits}{'lld' if 'lld' in which else ''}"
        return objects, link(which, directory, stem, CORPUS[name], objects, bits)

    return make


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", CORPUS)
def test_computed_layout_is_what_ld_did(linked: Make, name: str, bits: int) -> None:
    objects, (_, link_map, elf_path, _) = linked(name, bits)
    elf = read_elf(str(elf_path))
    outline = Outline(parse(CORPUS[name]))
    files = {str(path): read_elf(str(path)) for path in objects}
    contents, orphans = contents_of(read_map(str(link_map)), outline, elf, files)
    layout = simulate(outline, contents, target_of(elf), orphans)
    compared = 0
    for section in layout.sections:
        real = elf.by_name[section.name]
        if not real.allocated:
            continue
        assert section.address == Known(real.address), section.name
        assert section.size == real.size, section.name
        load = elf.load_address(real)
        if load is not None and real.size:
            assert isinstance(section.load_address, Known), section.name
            assert section.load_address.value == load, section.name
        compared += 1
    assert compared >= 4
    real_symbols = elf.find(layout.symbols)
    for symbol, value in layout.symbols.items():
        if symbol in real_symbols:
            assert isinstance(value, Known), (symbol, value)
            assert hex(value.value) == hex(real_symbols[symbol].address), symbol
    assert len(real_symbols) >= len(layout.symbols) - 1 >= 0


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", CORPUS)
@pytest.mark.parametrize("linker", ["ld.bfd", "ld.lld"])
def test_map_agrees_with_elf(linked: Make, tool: Tool, name: str, bits: int, linker: str) -> None:
    which = tool("ld.bfd", "ld") if linker == "ld.bfd" else tool("ld.lld", "ld.lld-14")
    if linker == "ld.lld" and name in {"forward", "regions"}:
        # lld 14 has no LOG2CEIL and no ALIGN_WITH_INPUT: two scripts of GNU ld's dialect only.
        return
    _, (_, link_map, elf_path, _) = linked(name, bits, which)
    elf, read = read_elf(str(elf_path)), read_map(str(link_map))
    assert read.flavor == ("gnu" if linker == "ld.bfd" else "lld")
    outputs = {output.name: output for output in read.outputs}
    for section in elf.sections:
        if section.allocated and section.size:
            output = outputs[section.name]
            assert (output.address, output.size) == (section.address, section.size)
            load = elf.load_address(section)
            assert load is None or output.load_address == load
            for item in output.inputs:
                assert section.address <= item.address
                assert item.address + item.size <= section.end
    named = {symbol.name: symbol.address for symbol in elf.symbols()}
    assigned = [symbol for output in read.outputs for symbol in output.symbols] + list(read.symbols)
    # lld prints the location counter for every assignment, so only `x = .` can be compared.
    pairs = [(s.text.split("=")[0].strip(), s) for s in assigned if s.text.endswith("= .")]
    checked = [(name, symbol) for name, symbol in pairs if name in named]
    assert all(named[name] == symbol.address for name, symbol in checked)
    assert checked or name == "orphans"


def test_patterns_take_what_the_map_says(linked: Make) -> None:
    _, (_, link_map, elf_path, _) = linked("kernel", 32)
    read = read_map(str(link_map))
    data = next(output for output in read.outputs if output.name == ".data")
    assert [(pattern.text, pattern.taken) for pattern in data.patterns] == [
        ("*(.data.page_aligned)", 1),
        ("*(.data)", 2),
    ]
    joined = model(Outline(parse(KERNEL)), read, read_elf(str(elf_path)))
    assert joined.matched["*(.data)"] == 2
    assert ".extra" in joined.orphans
    assert [segment.type for segment in joined.segments].count(1) >= 1


def test_hosted_program_with_the_default_script(tool: Tool, tmp_path: Path) -> None:
    """libc's objects by ld's own script, relro included: every section is where ld has put it."""
    compiler = tool("gcc", "cc")
    (tmp_path / "m.c").write_text("int main(void) { return 0; }\n")
    elf_path, map_path = tmp_path / "m.elf", tmp_path / "m.map"
    linked = ("-static", "-no-pie", "-o", elf_path, tmp_path / "m.c", f"-Wl,-Map,{map_path}")
    script = run(compiler, *linked, "-Wl,--verbose")
    outline = Outline(parse(script.split("=" * 50)[1]))
    elf = read_elf(str(elf_path))
    contents, orphans = contents_of(read_map(str(map_path)), outline, elf)
    layout = simulate(outline, contents, target_of(elf), orphans)
    compared = 0
    for section in layout.sections:
        real = elf.by_name.get(section.name)
        if real is None or not real.allocated:
            continue
        assert section.address == Known(real.address), section.name
        assert section.size == real.size, section.name
        compared += 1
    # Relro moves the start of the data so that what is made read-only ends on a page.
    assert any(segment.type == PT_GNU_RELRO for segment in elf.segments)
    assert compared >= 20


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", ["kernel", "orphans"])
def test_computed_layout_is_what_lld_did(linked: Make, tool: Tool, name: str, bits: int) -> None:
    _, (_, link_map, elf_path, _) = linked(name, bits, tool("ld.lld", "ld.lld-14"))
    elf, read = read_elf(str(elf_path)), read_map(str(link_map))
    layout = model(Outline(parse(CORPUS[name])), read, elf).computed
    assert layout is not None
    loads = {output.name: output.load_address for output in read.outputs}
    compared = 0
    for section in layout.sections:
        real = elf.by_name[section.name]
        if real.allocated:
            assert section.address == Known(real.address), section.name
            assert section.size == real.size, section.name
            assert section.load_address == Known(loads[section.name]), section.name
            compared += 1
    assert compared >= 4
    real_symbols = elf.find(layout.symbols)
    for symbol, value in layout.symbols.items():
        if symbol in real_symbols:
            assert isinstance(value, Known), (symbol, value)
            assert hex(value.value) == hex(real_symbols[symbol].address), symbol


NEXT = """
SECTIONS {
  . = 0x1003;
  first = ALIGNOF(NEXT_SECTION);
  .text : { *(.text) }
  .empty : { *(.nothing) }
  second = ALIGNOF(NEXT_SECTION);
  .a : ALIGN(256) { *(.a) }
  . = ALIGN(ALIGNOF(NEXT_SECTION));
  .c : { *(.c) }
}
"""


def test_the_section_that_comes_next() -> None:
    """What ld 2.44 of Debian trixie makes of it: it counts sections that it makes, in the script's order."""
    contents = {
        name: Contents(((Piece(name, "o", size, alignment),),))
        for name, size, alignment in ((".text", 1, 32), (".a", 1, 64), (".c", 1, 16))
    }
    layout = simulate(Outline(parse(NEXT)), contents)
    symbols = {name: value.value for name, value in layout.symbols.items() if isinstance(value, Known)}
    assert symbols == {"first": 32, "second": 256}
    assert [section.address for section in layout.sections] == [Known(0x1020), Known(0x1100), Known(0x1110)]


def test_what_cannot_be_computed_says_why() -> None:
    outline = Outline(parse("SECTIONS { x = symbol_of_an_object + 1; . = CONSTANT(MAXPAGESIZE); y = .; }"))
    layout = simulate(outline, {})
    assert layout.symbols["x"] == Unknown("'symbol_of_an_object' is defined in an object file")
    assert layout.symbols["y"] == Unknown("MAXPAGESIZE depends on the target")
