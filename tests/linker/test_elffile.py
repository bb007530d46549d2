"""The ELF reader against pyelftools, on files of this machine and on what the linkers make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from linker.elffile import Elf, read_elf
from linker.errors import LayoutInputError
from tests.linker.linking import MAIN, assemble, link
from tests.needs import Tool


@pytest.fixture(params=["gnu32", "gnu64", "lld64", "bash"])
def path(request: pytest.FixtureRequest, tool: Tool, tmp_path: Path) -> Path:
    if request.param == "bash":
        return Path(shutil.which("bash") or "/bin/sh")
    bits = int(request.param[-2:])
    linker = tool("ld.lld", "ld.lld-14") if "lld" in request.param else tool("ld.bfd", "ld")
    objects = [assemble(tmp_path, "main", MAIN, bits, tool("as"))]
    script = "ENTRY(_start) SECTIONS { . = 0x100000; .text : { *(.text*) } .data : { *(.data*) } }"
    return link(linker, tmp_path, "k", script, objects, bits)[2]


def test_headers_and_symbols_as_pyelftools_reads_them(path: Path) -> None:
    ours = read_elf(str(path))
    with path.open("rb") as stream:
        theirs = ELFFile(stream)
        assert ours.entry == theirs.header.e_entry
        assert [
            (s.name, s.address, s.offset, s.size, s.alignment, s.flags, s.link) for s in ours.sections
        ] == [
            (
                s.name,
                s["sh_addr"],
                s["sh_offset"],
                s["sh_size"],
                s["sh_addralign"],
                s["sh_flags"],
                s["sh_link"],
            )
            for s in list(theirs.iter_sections())[1:]
        ]
        assert [
            (s.offset, s.address, s.load_address, s.file_size, s.size, s.flags, s.alignment)
            for s in ours.segments
        ] == [
            (
                s["p_offset"],
                s["p_vaddr"],
                s["p_paddr"],
                s["p_filesz"],
                s["p_memsz"],
                s["p_flags"],
                s["p_align"],
            )
            for s in theirs.iter_segments()
        ]
        expected = {
            (symbol.name, symbol["st_value"], symbol["st_size"])
            for table in theirs.iter_sections()
            if isinstance(table, SymbolTableSection) and table.name == ".symtab"
            for symbol in table.iter_symbols()
            if symbol.name
            and symbol["st_shndx"] != "SHN_UNDEF"
            and symbol["st_info"]["type"] != "STT_SECTION"
        }
    named = {(s.name, s.address, s.size) for s in ours.symbols() if s.info & 15 != 3}
    assert named == expected
    wanted = {name for name, _, _ in expected}
    assert set(ours.find(wanted)) == wanted


@pytest.mark.parametrize("size", [0, 3, 15, 19, 40])
def test_cut_files_are_refused(path: Path, size: int) -> None:
    with pytest.raises(LayoutInputError):
        Elf("cut", path.read_bytes()[:size])


def test_tables_outside_of_the_file_are_refused(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at, width = (40, 8) if data[4] == 2 else (32, 4)
    data[at : at + width] = (len(data) + 5).to_bytes(width, "little")
    with pytest.raises(LayoutInputError, match="outside"):
        _ = Elf("cut", bytes(data)).sections
