"""Symbol tables, System.map, and which of them a kernel's names are from."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from domainbuilder.errors import SymbolsError
from domainbuilder.kernel.elf import ElfImage, parse_elf
from domainbuilder.symbols.read import kernel_symbols, read_symbols
from domainbuilder.symbols.symtab import symtab_symbols
from domainbuilder.symbols.system_map import system_map_symbols
from domainbuilder.symbols.table import Symbols
from tests.domainbuilder.elfwriter import SHT_PROGBITS, ElfWriter, note, xen_kernel

from .kallsyms_tables import LAYOUTS, kernel
from .test_kallsyms import rows

ROWS = [("start", 0xC0100000, 16, 2), ("_start", 0xC0100000, 0, 0), ("data", 0xC0100800, 8, 1)]


def with_symbols(*, elf_class: int = 32, build_id: bytes = b"", shndx: int = 1) -> ElfWriter:
    writer = xen_kernel(elf_class=elf_class).section(
        ".text", SHT_PROGBITS, b"", addr=0xC0100000, inside=(0, 0)
    )
    if build_id:
        writer.note_segment(note(3, build_id, owner=b"GNU"))
    return writer.symbols(ROWS, shndx)


def parsed(writer: ElfWriter) -> ElfImage:
    return parse_elf(writer.build(), "kernel")


def table_of(writer: ElfWriter) -> Symbols:
    symbols = symtab_symbols(parsed(writer))
    assert symbols is not None
    return symbols


@pytest.mark.parametrize("elf_class", [32, 64])
def test_a_symbol_table(elf_class: int) -> None:
    table = table_of(with_symbols(elf_class=elf_class))
    assert len(table) == 3
    start = table.lookup("start")
    assert start is not None
    assert (start.value, start.size, start.kind, start.section) == (0xC0100000, 16, "function", 1)
    assert table.lookup("tart") is None
    assert table.lookup("absent") is None
    # of two names at one address the function's; nothing behind what states its size
    names = {0xC0100008: "start+0x8", 0xC0100010: "", 0xC0100807: "data+0x7", 1: "", 0xC0100808: ""}
    assert {address: table.name(address) for address in names} == names
    assert [symbol.name for symbol in table.overlapping(0xC010000F, 0xC0100801)] == ["start", "data"]
    assert table.overlapping(0xC0100010, 0xC0100800) == []


def test_absolute_symbols_name_no_address() -> None:
    table = table_of(with_symbols(shndx=0xFFF1))
    assert {symbol.kind for symbol in table} == {"absolute"}
    assert table.name(0xC0100000) == ""


def test_shared_tails_of_names_are_found() -> None:
    writer = (
        xen_kernel().section(".text", SHT_PROGBITS, b"").symbols([("my_start", 1, 0, 2), ("other", 2, 0, 2)])
    )
    image = bytearray(writer.build())
    elf = parse_elf(bytes(image), "kernel")
    assert elf.symtab is not None
    # the second symbol takes the tail of the first one's name
    struct.pack_into("<I", image, elf.symtab.offset + 32, 1 + len("my_"))
    symbols = symtab_symbols(parse_elf(bytes(image), "kernel"))
    assert symbols is not None
    found = symbols.lookup("start")
    assert found is not None
    assert found.value == 2


def test_no_symbols() -> None:
    table = kernel_symbols(parsed(xen_kernel()))
    assert (len(table), table.lookup("x"), table.at(5), table.name(5), table.line(5)) == (
        0,
        None,
        None,
        "",
        "",
    )
    assert table.overlapping(0, 1 << 64) == []


MAP = b"""0000000000000000 A percpu
ffffffff81000000 T _text
ffffffff81000000 t startup
ffffffff81000040 T start_kernel
ffffffff81000100 t helper\t[module]
ffffffff82000000 D data
"""


def test_a_system_map() -> None:
    table = system_map_symbols(MAP, "System.map")
    assert len(table) == 6
    names = {
        0xFFFFFFFF81000003: "startup+0x3",
        0xFFFFFFFF81000052: "start_kernel+0x12",
        0xFFFFFFFF810001FF: "helper+0xff",
        0x10: "",
    }
    assert {address: table.name(address) for address in names} == names
    data = table.overlapping(0xFFFFFFFF81000050, 0xFFFFFFFF81000060)
    assert [(symbol.name, symbol.size) for symbol in data] == [("start_kernel", 0xC0)]
    assert [symbol.kind for symbol in table] == ["absolute", *["function"] * 4, "object"]


def test_what_nm_prints() -> None:
    text = b"                 U undefined\n00000000c0100000 0000000000000010 T start\n0000001c T low\n"
    assert [(s.value, s.name) for s in system_map_symbols(text, "nm")] == [
        (0xC0100000, "start"),
        (0x1C, "low"),
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "no symbols"),
        (b"ffffffff81000000 T _text\nwhat is this?\n", r"line 2 is no symbol; found 'what is this\?'"),
        (b"zz T x\n", "line 1 is no symbol"),
        (bytes(100), "line 1 is no symbol"),
    ],
)
def test_what_is_no_system_map(text: bytes, match: str) -> None:
    with pytest.raises(SymbolsError, match=match):
        system_map_symbols(text, "System.map")


# --symbols FILE


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_any_file_with_symbols_will_do(tmp_path: Path) -> None:
    image = with_symbols().build()
    for data in (image, gzip.compress(image)):
        symbols = read_symbols(write(tmp_path / "vmlinux", data))
        assert symbols.name(0xC0100008) == "start+0x8"
        assert symbols.origin == f"symbol table of {tmp_path / 'vmlinux'}"
    assert read_symbols(write(tmp_path / "System.map", MAP)).name(0xFFFFFFFF81000052) == "start_kernel+0x12"
    linux = kernel(rows(300, 8, percpu=False, long_names=False), LAYOUTS[-1], 8).build()
    assert read_symbols(write(tmp_path / "vmlinuz", linux)).origin.startswith("kallsyms tables of ")


def test_a_symbol_table_comes_before_kallsyms() -> None:
    writer = kernel(rows(300, 8, percpu=False, long_names=False), LAYOUTS[-1], 8)
    assert kernel_symbols(parsed(writer)).origin == "kallsyms tables"
    assert (
        kernel_symbols(parsed(writer.section(".text", SHT_PROGBITS, b"").symbols(ROWS))).origin
        == "symbol table"
    )


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x7fELF", "ELF: not an ELF binary"),
        (xen_kernel().build(), "no symbols and no debug information"),
        (b"\x1f\x8bgarbage", "inflate failed"),
        (b"\0" * 64, "line 1 is no symbol"),
    ],
)
def test_files_without_symbols(data: bytes, match: str, tmp_path: Path) -> None:
    with pytest.raises(SymbolsError, match=match) as caught:
        read_symbols(write(tmp_path / "file", data))
    assert str(tmp_path / "file") in str(caught.value)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(SymbolsError, match="cannot be read"):
            read_symbols(path)


def test_another_kernels_symbols_are_refused(tmp_path: Path) -> None:
    """By build id, where both have one; a System.map by the addresses of the kernel's own tables."""
    ours, theirs = (with_symbols(build_id=bytes([value]) * 20) for value in (1, 2))
    path = write(tmp_path / "vmlinux", theirs.build())
    with pytest.raises(SymbolsError, match=f"the build ids differ; found {'02' * 20}; expected {'01' * 20}"):
        read_symbols(path, parsed(ours))
    assert len(read_symbols(path, parsed(theirs))) == 3
    given = rows(600, 8, percpu=False, long_names=False)
    elf = parsed(kernel(given, LAYOUTS[-1], 8))
    right = "".join(f"{address:x} {letter} {name}\n" for address, letter, name in given)
    moved = "".join(f"{address + 64:x} {letter} {name}\n" for address, letter, name in given)
    assert len(read_symbols(write(tmp_path / "right", right.encode()), elf)) == len(given)
    with pytest.raises(SymbolsError, match=r"the symbols are another kernel's: .* is elsewhere"):
        read_symbols(write(tmp_path / "moved", moved.encode()), elf)
