"""Call frames of x86-64 Linux without call-frame information: the ORC tables that objtool writes.

A stock kernel since 4.14 has no frame pointers; its own stack traces go by the sections .orc_unwind_ip
(offsets from where they stand) and .orc_unwind (arch/x86/include/asm/orc_types.h and
arch/x86/kernel/unwind_orc.c of Linux). Linux 6.4 renumbered the types; such a kernel has .orc_header, too.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cached_property
from itertools import pairwise

from domainbuilder.kernel.elf import ElfImage
from domainbuilder.symbols.dwarf import section_data

_CALL, _REGS, _REGS_PARTIAL, _END = range(4)
_TYPES = {  # the number in an entry -> what it means
    False: {0: _CALL, 1: _REGS, 2: _REGS_PARTIAL},
    True: {1: _END, 2: _CALL, 3: _REGS, 4: _REGS_PARTIAL},
}
_PREV_SP, _DX, _DI, _BP, _SP, _R10, _R13, _BP_INDIRECT, _SP_INDIRECT = 1, 2, 3, 4, 5, 6, 7, 8, 9
_PLAIN = {_DX: "rdx", _DI: "rdi", _R10: "r10", _R13: "r13"}
_BASES = {_BP: "rbp", _BP_INDIRECT: "rbp", _SP: "rsp", _SP_INDIRECT: "rsp"}
_ENTRY = 6  # bytes: two 16-bit offsets, and 16 bits of registers and type
_PT_REGS = (
    *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
    *("", "rip", "", "", "rsp"),
)
_IRET_FRAME = ("rip", "", "", "rsp")

Read = Callable[[int], int | None]


class OrcFrames:
    """The ORC tables of an image."""

    def __init__(self, elf: ElfImage) -> None:
        self._elf = elf
        self._types = _TYPES[elf.section_by_name(".orc_header") is not None]

    def caller(self, address: int, registers: Mapping[str, int], read: Read) -> dict[str, int] | None:
        """The caller's registers of a function that stands at `address`; see CallFrames.caller."""
        entry = self._entry(address)
        if entry is None:
            return None
        sp_offset, bp_offset, bits = entry
        kind = self._types.get(bits >> 8 & (7 if self._types is _TYPES[True] else 3))
        stack = _stack(bits & 15, sp_offset, registers, read)
        if kind is None or kind == _END or stack is None:
            return None
        caller = dict(registers)
        if kind == _CALL:
            returns = read(stack - 8)
            if returns is None:
                return None
            caller |= {"rip": returns, "rsp": stack}
        else:
            for i, name in enumerate(_PT_REGS if kind == _REGS else _IRET_FRAME):
                value = read(stack + 8 * i)
                if value is None:
                    return None
                if name:
                    caller[name] = value
        base = {_PREV_SP: stack, _BP: registers["rbp"]}.get(bits >> 4 & 15)
        if base is not None:
            saved = read(base + bp_offset)
            if saved is None:
                return None
            caller["rbp"] = saved
        return caller

    @cached_property
    def _tables(self) -> tuple[array[int], memoryview, list[int] | None]:
        """Where the code of each entry begins, in order; the entries; and their order where that differs."""
        places = self._elf.section_by_name(".orc_unwind_ip")
        data, entries = (section_data(self._elf, name) for name in (".orc_unwind_ip", ".orc_unwind"))
        if places is None or data is None or entries is None:
            return array("Q"), memoryview(b""), None
        offsets = array("i", bytes(data[: len(data) & ~3]))[: len(entries) // _ENTRY]
        mask = (1 << 64) - 1
        starts = [places.addr + 4 * i + offset & mask for i, offset in enumerate(offsets)]
        order = None
        if any(one > two for one, two in pairwise(starts)):
            order = sorted(range(len(starts)), key=starts.__getitem__)  # before 5.6 the kernel sorts at boot
            starts = [starts[i] for i in order]
        return array("Q", starts), entries, order

    def _entry(self, address: int) -> tuple[int, int, int] | None:
        starts, entries, order = self._tables
        at = bisect_right(starts, address) - 1
        if at < 0:
            return None
        place = _ENTRY * (at if order is None else order[at])
        sp_offset, bp_offset = array("h", bytes(entries[place : place + 4]))
        return sp_offset, bp_offset, int.from_bytes(entries[place + 4 : place + 6], "little")


def _stack(register: int, offset: int, registers: Mapping[str, int], read: Read) -> int | None:
    """The stack pointer of the caller; None where the entry does not say."""
    if register in _PLAIN:
        return registers.get(_PLAIN[register])
    if register not in _BASES:
        return None
    base = registers[_BASES[register]]
    if register == _SP_INDIRECT:
        inner = read(base)
        return None if inner is None else inner + offset
    return read(base + offset) if register == _BP_INDIRECT else base + offset
