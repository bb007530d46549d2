"""What the emulators of privileged operations share: xen/arch/x86/pv/emulate.c."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.cpu import state_window as sw
from hvcore.cpu.engine import RIP
from hvcore.errors import GuestError, GuestFault
from hvcore.pv.descriptor_tables import (
    SEGMENT_G,
    SEGMENT_L,
)
from hvcore.pv.misc_hypercalls import DR_STATUS_RESERVED_ONE, DR_STEP
from hvcore.pv.segments import gdt_ldt_desc

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

TRAP_debug, TRAP_invalid_op, TRAP_invalid_tss, TRAP_no_segment = 1, 6, 10, 11
TRAP_stack_error, TRAP_gp_fault, TRAP_page_fault = 12, 13, 14
PFEC_write_access = 2

X86_EFLAGS_TF, X86_EFLAGS_RF = 0x100, 0x10000

M32 = 0xFFFFFFFF
M64 = 0xFFFFFFFFFFFFFFFF
_EFLAGS = sw.EFLAGS // 8
_DF = sw.DF // 4

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


def trap_flag(v: Vcpu) -> bool:
    """EFLAGS.TF."""
    return bool(v.domain.engine.q[_EFLAGS] & X86_EFLAGS_TF)


def direction_flag(v: Vcpu) -> bool:
    """EFLAGS.DF, which the engine keeps apart as +1 or -1."""
    return v.domain.engine.d[_DF] != 1


def instruction_done(v: Vcpu, rip: int, dr6: int = 0) -> None:
    """Go on at `rip`. Raises GuestFault(#DB) for a single step or the breakpoints in `dr6`."""
    engine = v.domain.engine
    stepping = engine.q[_EFLAGS] & X86_EFLAGS_TF
    engine.q[RIP] = rip
    engine.q[_EFLAGS] &= M64 ^ X86_EFLAGS_RF
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
    try:
        guest.copy_to(address, data)
        return
    except GuestError:
        pass
    try:
        guest.probe_write(address, 1)
    except GuestError:
        raise GuestFault(TRAP_page_fault, PFEC_write_access, address) from None
    next_page = ((address | 0xFFF) + 1) & v.domain.abi.word_mask
    raise GuestFault(TRAP_page_fault, PFEC_write_access, next_page)
