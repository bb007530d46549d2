"""Symbols as an ELF file, held to pyelftools and to nm's idea of them."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from domainbuilder.symbols.symbol_file import symbol_file
from domainbuilder.symbols.table import FUNCTION, OBJECT, NameList, Symbols
from tests.needs import find_tool

ROWS = (
    ("start", 0xC0100000, FUNCTION, 16),
    ("data", 0xC0200000, OBJECT, 4),
    ("end", 0xC0100010, FUNCTION, 0),
)


def symbols() -> Symbols:
    return Symbols(
        [row[1] for row in ROWS],
        [row[2] for row in ROWS],
        NameList([row[0] for row in ROWS]),
        origin="here",
        sizes=[row[3] for row in ROWS],
    )


@pytest.mark.parametrize("is_64bit", [False, True])
def test_an_independent_reader_finds_them(is_64bit: bool) -> None:
    elf = ELFFile(io.BytesIO(symbol_file(symbols(), is_64bit=is_64bit)))
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    found = table.iter_symbols()
    assert [(s.name, s["st_value"], s["st_size"]) for s in found][1:] == [
        (n, v, size) for n, v, _k, size in ROWS
    ]
    assert elf.elfclass == (64 if is_64bit else 32)


@pytest.mark.parametrize("is_64bit", [False, True])
def test_nm_finds_them(is_64bit: bool, tmp_path: Path) -> None:
    path = tmp_path / "symbols.elf"
    path.write_bytes(symbol_file(symbols(), is_64bit=is_64bit))
    listed = subprocess.run([find_tool("nm"), path], capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    rows = [(int(value, 16), kind, name) for value, kind, name in (line.split() for line in listed if line)]
    assert sorted(rows) == [(0xC0100000, "T", "start"), (0xC0100010, "T", "end"), (0xC0200000, "A", "data")]
