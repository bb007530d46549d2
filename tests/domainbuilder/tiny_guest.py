"""Guests of a few instructions, written as bytes, to make the hypervisor see one thing at a time."""

from __future__ import annotations

import struct

from tests.domainbuilder.elfwriter import EM_386, RWX, ElfWriter, xen_notes

CODE = 0xC0100000  # where the code is, virtually
STACK_TOP = CODE + 0x3000  # within the segment's .bss

HYPERCALL = b"\xcd\x82"


def mov(register: str, value: int) -> bytes:
    """mov register, imm32"""
    index = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi").index(register)
    return bytes([0xB8 + index]) + value.to_bytes(4, "little")


def hypercall(number: int, *arguments: int) -> bytes:
    """A hypercall by int 0x82, without the hypercall page."""
    code = mov("eax", number)
    for register, value in zip(("ebx", "ecx", "edx", "esi", "edi"), arguments, strict=False):
        code += mov(register, value)
    return code + HYPERCALL


def kernel(code: bytes, symbols: list[tuple[str, int, int, int]] | None = None) -> bytes:
    """A 32-bit PAE kernel that runs `code` at CODE. `symbols` are (name, address, size, type)."""
    writer = ElfWriter(32, EM_386, entry=CODE)
    writer.load(code.ljust(0x1000, b"\xcc"), paddr=0x100000, vaddr=CODE, memsz=0x3000, flags=RWX, align=4096)
    writer.note_segment(b"".join(xen_notes(4)))
    if symbols:
        writer.symbols(symbols)
    return writer.build()


SPIN = b"\xeb\xfe"
IDLE = hypercall(29, 1, 0) + b"\xeb\xec"  # SCHEDOP_block, again and again
# SCHEDOP_poll, again and again, for the store's port, which is quiet: struct sched_poll is behind the code.
ASLEEP = (hypercall(29, 3, CODE + 0x20) + b"\xeb\xed").ljust(0x20) + struct.pack(
    "<IIQI", CODE + 0x30, 1, 0, 1
)
UD2 = b"\x0f\x0b"
