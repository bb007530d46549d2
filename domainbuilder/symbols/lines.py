"""Source lines for addresses, from DWARF's line tables, by pyelftools."""

from __future__ import annotations

import posixpath
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any

from domainbuilder.kernel.elf import ElfImage
from domainbuilder.symbols.dwarf import dwarf_info, section_data

_PATH_LIMIT = 120  # characters of a file's name
_MAX_UNITS = 100_000
_Row = tuple[int, int, int]  # address, file, line; file -1: nothing from here on


class SourceLines:
    """The line tables of an image: units are found by their address ranges, and read when asked for."""

    def __init__(self, elf: ElfImage) -> None:
        self._elf = elf
        self._tables: dict[int, tuple[list[int], list[_Row], Any, str]] = {}

    def at(self, address: int) -> str:
        """As "file.c:34", the file as the compiler was told; "" where that is not known.

        What is broken in the tables is as if it were not there.
        """
        try:
            unit = self._unit_of(address)
            if unit is None:
                return ""
            starts, rows, program, directory = self._table(unit)
            at = bisect_right(starts, address) - 1
            if at < 0 or rows[at][1] < 0:
                return ""
            return f"{_file_name(program, rows[at][1], directory)}:{rows[at][2]}"
        except Exception:  # pyelftools raises all kinds on broken input
            return ""

    def around(self, addresses: Iterable[int]) -> Iterator[tuple[int, int, str, int]]:
        """(start, end, file, line) of all code in the units that have one of the addresses, unit by unit.

        A unit whose tables are broken is as if it were not there.
        """
        units = dict.fromkeys(unit for address in addresses if (unit := self._unit_of(address)) is not None)
        for unit in units:
            try:
                _, rows, program, directory = self._table(unit)
                files = {file: _file_name(program, file, directory) for _, file, _ in rows if file >= 0}
            except Exception:  # pyelftools raises all kinds on broken input
                continue
            for (start, file, line), (end, _, _) in pairwise(rows):
                if file >= 0 and line > 0 and end > start:
                    yield start, end, files[file], line

    @cached_property
    def _dwarf(self) -> Any:
        return dwarf_info(self._elf)

    @cached_property
    def _listed(self) -> list[tuple[int, int, int]]:
        """(start, end, offset of its unit) of the address ranges in .debug_aranges, in order."""
        return sorted(self._aranges())

    @cached_property
    def _unlisted(self) -> list[tuple[int, int, int]]:
        """The same of units that are not in .debug_aranges: clang lists those of assembly alone."""
        return sorted(self._unit_ranges({unit for _, _, unit in self._listed}))

    def _unit_of(self, address: int) -> int | None:
        unit = _holding(self._listed, address)
        return _holding(self._unlisted, address) if unit is None else unit

    def _aranges(self) -> list[tuple[int, int, int]]:
        """.debug_aranges (DWARF 5, 6.1.2), read by hand: a kernel has a hundred thousand entries."""
        data = section_data(self._elf, ".debug_aranges")
        found: list[tuple[int, int, int]] = []
        at = 0
        while data is not None and at + 12 <= len(data):
            length, version, unit, size, _ = struct.unpack_from(f"{self._elf.endian}IHIBB", data, at)
            end = at + 4 + length
            if version != 2 or size not in {4, 8} or end > len(data):
                break
            first = at + 12 + -12 % (2 * size)
            pair = struct.Struct(self._elf.endian + ("II" if size == 4 else "QQ"))
            body = data[first : first + (end - first) // pair.size * pair.size]
            found += [(start, start + count, unit) for start, count in pair.iter_unpack(body) if count]
            at = end
        return found

    def _unit_ranges(self, listed: set[int]) -> Iterator[tuple[int, int, int]]:
        if self._dwarf is None:
            return
        for count, unit in enumerate(self._dwarf.iter_CUs()):
            if count == _MAX_UNITS:
                return
            if unit.cu_offset in listed:
                continue
            for start, end in _unit_span(self._dwarf, unit):
                yield start, end, unit.cu_offset

    def _table(self, unit: int) -> tuple[list[int], list[_Row], Any, str]:
        if unit not in self._tables:
            compiled = self._dwarf.get_CU_at(unit)
            program = self._dwarf.line_program_for_CU(compiled)
            rows: list[_Row] = []
            for entry in program.get_entries():
                state = entry.state
                if state is not None:
                    rows.append((state.address, -1 if state.end_sequence else state.file, state.line))
            rows.sort(key=lambda row: row[0])
            directory = compiled.get_top_DIE().attributes.get("DW_AT_comp_dir")
            where = directory.value.decode("utf-8", "replace") if directory is not None else ""
            self._tables[unit] = [row[0] for row in rows], rows, program, where
        return self._tables[unit]


def _holding(ranges: list[tuple[int, int, int]], address: int) -> int | None:
    at = bisect_right(ranges, (address, 1 << 64, 0)) - 1
    return ranges[at][2] if at >= 0 and address < ranges[at][1] else None


def _unit_span(dwarf: Any, unit: Any) -> Iterator[tuple[int, int]]:
    from elftools.dwarf.descriptions import describe_form_class

    attributes = unit.get_top_DIE().attributes
    low = attributes.get("DW_AT_low_pc")
    high = attributes.get("DW_AT_high_pc")
    base = low.value if low is not None else 0
    if high is not None:
        yield base, high.value + (0 if describe_form_class(high.form) == "address" else base)
    elif "DW_AT_ranges" in attributes:
        lists = dwarf.range_lists()
        for entry in lists.get_range_list_at_offset(attributes["DW_AT_ranges"].value, cu=unit):
            if hasattr(entry, "base_address"):
                base = entry.base_address
            elif getattr(entry, "is_absolute", False):
                yield entry.begin_offset, entry.end_offset
            else:
                yield base + entry.begin_offset, base + entry.end_offset


def _file_name(program: Any, file: int, directory: str) -> str:
    """File `file` of a line table: counted from 0 in DWARF 5, from 1 before."""
    header = program.header
    modern = header.version >= 5
    entry = header.file_entry[file if modern else file - 1]
    directories = header.include_directory
    place = entry.dir_index if modern else entry.dir_index - 1
    folder = directories[place].decode("utf-8", "replace") if 0 <= place < len(directories) else ""
    path = posixpath.join(folder, entry.name.decode("utf-8", "replace"))
    path = posixpath.normpath(path)
    if directory and path.startswith(directory.rstrip("/") + "/"):
        path = path[len(directory.rstrip("/")) + 1 :]
    shown = "".join(c if c.isprintable() else "?" for c in path)
    return shown if len(shown) <= _PATH_LIMIT else "..." + shown[-_PATH_LIMIT:]
