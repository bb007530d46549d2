"""What the emulators of privileged operations share: xen/arch/x86/pv/emulate.c."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from hvcore.cpu.processor import EFLAGS, FS, GS, RIP
from hvcore.errors import GuestError, GuestFault
from hvcore.pv.descriptor_tables import (
    DPL_SHIFT,
    SEGMENT_G,
    SEGMENT_L,
    SEGMENT_P,
    SEGMENT_S,
    SEGMENT_WR,
)
from hvcore.pv.misc_hypercalls import DR_STATUS_RESERVED_ONE, DR_STEP, addr_ok
from hvcore.pv.segments import gdt_ldt_desc
from hvcore.x86 import M32, M64, X86_EFLAGS_RF, X86_EFLAGS_TF, TRAP_debug, TRAP_page_fault

if TYPE_CHECKING:
    from hvcore.pv.x86_decode import Instruction
    from hvcore.vcpu import Vcpu

PFEC_write_access = 2


Segment = tuple[int, int, int]  # base, limit, access rights where a descriptor's high word has them


def guest_kernel_mode(v: Vcpu) -> bool:
    """Whether `v`, which is in the engine, runs its kernel."""
    d = v.domain
    if d.abi.is_32bit:
        return d.engine.cpl == 1
    return v.kernel_mode


def read_descriptor(v: Vcpu, sel: int, insn_fetch: bool) -> Segment | None:
    """pv_emul_read_descriptor(): base, limit and rights of a segment; all zero for one that is null."""
    if sel < 4 or (sel & 4 and sel >> 3 >= v.ldt_ents):
        a = b = 0
    else:
        words = gdt_ldt_desc(v, sel)
        if words is None:
            return None
        a, b = words
    if not insn_fetch:
        b &= ~SEGMENT_L
    if b & SEGMENT_L:
        return 0, M64, b & 0xF0FF00
    limit = a & 0xFFFF | b & 0xF0000
    if b & SEGMENT_G:
        limit = limit << 12 | 0xFFF
    return a >> 16 | (b & 0xFF) << 16 | b & 0xFF000000, limit, b & 0xF0FF00


class EmulContext:
    """One instruction being emulated. `rip` is where to go on, `bpmatch` what it adds to DR6."""

    __slots__ = ("bits", "bpmatch", "insn", "rip", "v")

    def __init__(self, v: Vcpu, bits: int, insn: Instruction) -> None:
        self.v = v
        self.bits = bits
        self.insn = insn
        self.rip = insn.next_ip if bits == 64 else insn.next_ip & M32
        self.bpmatch = 0

    def gpr(self, number: int) -> int:
        """A general register in the operand size of moves to and from CRn and DRn."""
        return self.v.domain.engine.q[number] & (M64 if self.bits == 64 else M32)

    def set_gpr(self, number: int, value: int) -> None:
        """Set a general register, 32-bit code leaving no upper half."""
        self.v.domain.engine.q[number] = value & (M64 if self.bits == 64 else M32)


def read_segment(v: Vcpu, register: int, bits: int) -> Segment | None:
    """Base, limit and rights of a segment register; flat but for FS and GS in 64-bit code."""
    engine = v.domain.engine
    if bits != 64:
        return read_descriptor(v, engine.selector(register), insn_fetch=False)
    base = engine.segment_base(register) if register in (FS, GS) else 0
    return base, M64, SEGMENT_S | SEGMENT_P | SEGMENT_WR | 3 << DPL_SHIFT


def virt_to_linear(v: Vcpu, segment: Segment, offset: int, size: int, bits: int, vector: int) -> int:
    """The linear address. Raises GuestFault(vector, 0) beyond the limit or in Xen's range."""
    base, limit, _ar = segment
    address = base + offset & M64
    if bits == 64:
        okay = addr_ok(v.domain.abi, address)
    else:
        okay = limit >= size - 1 and offset <= limit - size + 1
        address &= M32
    if not okay:
        raise GuestFault(vector, 0)
    return address


def trap_flag(v: Vcpu) -> bool:
    """EFLAGS.TF."""
    return bool(v.domain.engine.q[EFLAGS] & X86_EFLAGS_TF)


def direction_flag(v: Vcpu) -> bool:
    """EFLAGS.DF, which the engine keeps apart as +1 or -1."""
    return v.domain.engine.goes_down


def instruction_done(v: Vcpu, rip: int, dr6: int = 0) -> None:
    """Go on at `rip`. Raises GuestFault(#DB) for a single step or the breakpoints in `dr6`."""
    engine = v.domain.engine
    stepping = engine.q[EFLAGS] & X86_EFLAGS_TF
    engine.q[RIP] = rip
    engine.q[EFLAGS] &= M64 ^ X86_EFLAGS_RF
    if stepping:
        dr6 |= DR_STEP
    if dr6:
        v.debugreg[6] |= dr6 | DR_STATUS_RESERVED_ONE
        raise GuestFault(TRAP_debug)


def read_guest(v: Vcpu, address: int, size: int) -> bytes:
    """`size` bytes at a linear address. Raises GuestFault(#PF) with the address of the first lacking byte."""
    guest = v.domain.guest
    try:
        return guest.copy_from(address, size)
    except GuestError:
        pass
    try:
        guest.copy_from(address, 1)
    except GuestError:
        raise GuestFault(TRAP_page_fault, 0, address) from None
    raise GuestFault(TRAP_page_fault, 0, ((address | 0xFFF) + 1) & v.domain.abi.word_mask)


def write_guest(v: Vcpu, address: int, data: bytes) -> None:
    """Store bytes at a linear address. Raises GuestFault(#PF) as `read_guest()` does."""
    guest = v.domain.guest
    with suppress(GuestError):
        guest.copy_to(address, data)
        return
    try:
        guest.probe_write(address, 1)
    except GuestError:
        raise GuestFault(TRAP_page_fault, PFEC_write_access, address) from None
    next_page = ((address | 0xFFF) + 1) & v.domain.abi.word_mask
    raise GuestFault(TRAP_page_fault, PFEC_write_access, next_page)
