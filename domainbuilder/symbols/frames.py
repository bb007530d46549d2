"""Call frames: what the registers of a caller were, from call-frame information (.debug_frame, .eh_frame).

The sections are indexed here, by header; a kernel has sixty thousand entries. What one says is pyelftools' to
decode (DWARF 5, 6.4).
"""

from __future__ import annotations

import io
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from domainbuilder.kernel.elf import ElfImage
from domainbuilder.symbols.dwarf import section_data

# DWARF's numbers of the registers (the psABIs' tables), stack pointer and return address among them
_NUMBERS = {
    8: {"rax": 0, "rdx": 1, "rcx": 2, "rbx": 3, "rsi": 4, "rdi": 5, "rbp": 6, "rsp": 7}
    | {f"r{n}": n for n in range(8, 16)},
    4: {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rsp": 4, "rbp": 5, "rsi": 6, "rdi": 7},
}
_MAX_ENTRIES = 2_000_000
_PCREL, _SDATA4, _UDATA4, _SDATA8, _UDATA8, _ABSPTR = 0x10, 0x0B, 0x03, 0x0C, 0x04, 0x00
_FORMS = {_SDATA4: "i", _UDATA4: "I", _SDATA8: "q", _UDATA8: "Q"}

Read = Callable[[int], int | None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A frame description entry: where it is, where its common information is, how long both are."""

    end: int  # address
    offset: int
    size: int
    common: int
    common_size: int


@dataclass(frozen=True, slots=True)
class _Section:
    data: memoryview
    address: int
    eh: bool
    starts: list[int]
    entries: list[_Entry]


class CallFrames:
    """The call-frame information of an image."""

    def __init__(self, elf: ElfImage) -> None:
        self._elf = elf
        self._word = elf.elf_class // 8
        self.numbers = _NUMBERS[self._word]

    def __bool__(self) -> bool:
        return any(section.entries for section in self._sections)

    def caller(self, address: int, registers: Mapping[str, int], read: Read) -> dict[str, int] | None:
        """The caller's registers, "rip" among them, of a function that stands at `address`.

        `read(address)` is a word of the guest's memory. None where nothing is known of the function, or what
        is known cannot be followed.
        """
        try:
            for section in self._sections:
                at = bisect_right(section.starts, address) - 1
                if at >= 0 and address < section.entries[at].end:
                    return self._unwound(section, section.entries[at], address, registers, read)
        except Exception:  # pyelftools raises all kinds on broken input
            return None
        return None

    @cached_property
    def _sections(self) -> tuple[_Section, ...]:
        found = []
        for name in (".debug_frame", ".eh_frame"):
            try:
                data = section_data(self._elf, name)
            except ValueError:
                data = None
            if data is not None:
                header = self._elf.section_by_name(name)
                found.append(self._indexed(data, header.addr if header else 0, eh=name == ".eh_frame"))
        return tuple(found)

    def _indexed(self, data: memoryview, address: int, *, eh: bool) -> _Section:
        rows: list[tuple[int, _Entry]] = []
        commons: dict[int, tuple[int, int]] = {}  # offset -> (size, pointer encoding)
        at = 0
        while at + 8 <= len(data) and len(rows) < _MAX_ENTRIES:
            length, identity = struct.unpack_from(self._elf.endian + "II", data, at)
            end = at + 4 + length
            if length < 4 or end > len(data):  # a terminator, or the 64-bit format, which no kernel uses
                if length:
                    break
                at += 4
                continue
            if identity == (0 if eh else 0xFFFFFFFF):
                commons[at] = (end - at, self._encoding(data, at + 8, end) if eh else _ABSPTR)
            else:
                common = at + 4 - identity if eh else identity
                size, encoding = commons.get(common, (0, _ABSPTR))
                place = self._place(data, at + 8, address, encoding)
                if size and place is not None:
                    rows.append((place[0], _Entry(sum(place), at, end - at, common, size)))
            at = end
        rows.sort(key=lambda row: row[0])
        return _Section(data, address, eh, [row[0] for row in rows], [row[1] for row in rows])

    def _place(self, data: memoryview, at: int, address: int, encoding: int) -> tuple[int, int] | None:
        """(start, size) of the code that an entry is about."""
        form = _FORMS.get(encoding & 0x0F, "Q" if self._word == 8 else "I")
        size = struct.calcsize(form)
        if at + 2 * size > len(data) or encoding & 0x70 not in {0, _PCREL}:
            return None
        start, count = struct.unpack_from(f"{self._elf.endian}2{form}", data, at)
        if encoding & _PCREL:
            start += address + at
        mask = (1 << 8 * self._word) - 1
        return start & mask, count & mask

    def _encoding(self, data: memoryview, at: int, end: int) -> int:
        """The pointer encoding in a CIE of .eh_frame: the "R" of its augmentation."""
        raw = bytes(data[at:end])
        text, _, rest = raw[1:].partition(b"\0")
        if not text.startswith(b"z"):
            return _ABSPTR
        skip = 0
        for _ in range(4):  # code and data alignment, return address register, length: each LEB128
            while skip < len(rest) and rest[skip] & 0x80:
                skip += 1
            skip += 1
        for letter in text[1:]:
            if skip >= len(rest):
                break
            if letter == ord("R"):
                return rest[skip]
            if letter == ord("P"):
                skip += 1 + struct.calcsize(_FORMS.get(rest[skip] & 0x0F, "Q" if self._word == 8 else "I"))
            else:
                skip += letter == ord("L")
        return _ABSPTR

    def _unwound(
        self, section: _Section, entry: _Entry, address: int, registers: Mapping[str, int], read: Read
    ) -> dict[str, int] | None:
        row, returns = self._row(section, entry, address)
        numbered = {number: registers[name] for name, number in self.numbers.items() if name in registers}
        rule = row["cfa"]
        if rule.expr is not None or rule.reg not in numbered:
            return None
        mask = (1 << 8 * self._word) - 1
        cfa = numbered[rule.reg] + rule.offset & mask
        names = {number: name for name, number in self.numbers.items()} | {returns: "rip"}
        caller = dict(registers) | {"rsp": cfa}
        for number, name in names.items():
            rule = row.get(number)
            if rule is None or rule.type in {"SAME_VALUE", "UNDEFINED"}:
                if name == "rip":
                    return None  # the outermost function
            elif rule.type == "OFFSET":
                value = read(cfa + rule.arg & mask)
                if value is None:
                    return None
                caller[name] = value
            elif rule.type == "VAL_OFFSET":
                caller[name] = cfa + rule.arg & mask
            elif rule.type == "REGISTER" and rule.arg in numbered:
                caller[name] = numbered[rule.arg]
            else:
                return None
        return caller

    def _row(self, section: _Section, entry: _Entry, address: int) -> tuple[dict[Any, Any], int]:
        """The row of the table for `address`, and the number of the return address.

        pyelftools gets a section of this one entry behind its common information, with addresses moved so
        that what is relative stays right.
        """
        from elftools.dwarf.callframe import FDE, CallFrameInfo
        from elftools.dwarf.structs import DWARFStructs

        data = bytes(section.data[entry.common : entry.common + entry.common_size])
        place = len(data)
        raw = bytearray(section.data[entry.offset : entry.offset + entry.size])
        struct.pack_into(self._elf.endian + "I", raw, 4, place + 4 if section.eh else 0)
        structs = DWARFStructs(
            little_endian=self._elf.endian == "<", dwarf_format=32, address_size=self._word
        )
        both = data + bytes(raw)
        info = CallFrameInfo(
            stream=io.BytesIO(both),
            size=len(both),
            address=section.address + entry.offset - place,
            base_structs=structs,
            for_eh_frame=section.eh,
        )
        found = next(one for one in info.get_entries() if isinstance(one, FDE))
        rows = found.get_decoded().table
        row = [one for one in rows if one["pc"] <= address][-1]
        common = found.cie
        assert common is not None
        return row, common["return_address_register"]
