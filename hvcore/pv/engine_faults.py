"""Exceptions that the engine raises otherwise than a processor would: which one the guest gets.

The engine knows one exception for an address that is not canonical, #GP(0). A processor has #SS(0) where the
stack segment is meant: by pushes, pops, calls and returns, and for operands with RSP or RBP as their base.
Other rows: calls to such an address, which fault as calls; what is privileged but not invalid; what traps
instead of faulting; and the selector of a far pointer with REX.W, which AMD's processors read as 16:32.
Source: AMD64 Architecture Programmer's Manual, volume 2, 8.2.13 (#SS), and the exception tables of volume 3,
compared with an EPYC; Intel's SDM, volume 3, 6.15, agrees but for the far pointers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.cpu.processor import CS, FS, GS, RBP, RIP, RSP, SS
from hvcore.errors import GuestError, GuestFault
from hvcore.pv.misc_hypercalls import is_canonical_address
from hvcore.pv.x86_decode import MAX_INST_LEN, TWO_BYTE, Fetcher, Instruction, decode_any
from hvcore.x86 import TRAP_debug, TRAP_gp_fault, TRAP_invalid_op, TRAP_stack_error

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

_LARGEST_OPERAND = 512  # fxsave's
_POP_MEMORY, _LEAVE, _ICEBP, _GROUP_5 = 0x8F, 0xC9, 0xF1, 0xFF

# What is at the stack pointer: so many bytes at most, above it or below it.
_POPS = {
    **dict.fromkeys(range(0x58, 0x60), 8), **dict.fromkeys((0x8F, 0x9D, 0xC2, 0xC3), 8),
    **dict.fromkeys((0xCA, 0xCB), 16), 0xCF: 40, **dict.fromkeys((TWO_BYTE | 0xA1, TWO_BYTE | 0xA9), 8),
}  # fmt: skip
_PUSHES = frozenset((*range(0x50, 0x58), 0x68, 0x6A, 0x9C, 0xC8, 0xE8, TWO_BYTE | 0xA0, TWO_BYTE | 0xA8))
_NEAR_CALL, _LONGEST_CALL = 2, 9  # of group 5; segment, REX, opcode, ModRM, SIB and four bytes
_PUSHES_OF_GROUP_5, _FAR_OF_GROUP_5 = (2, 3, 6), (3, 5)  # call, far call, push; far call, far jmp
# #GP whatever the operand: lldt, ltr, lgdt, lidt, lmsw, invlpg, by ModRM.reg.
_PRIVILEGED = frozenset(
    (*((TWO_BYTE, reg) for reg in (2, 3)), *((TWO_BYTE | 1, reg) for reg in (2, 3, 6, 7)))
)
_BIT_OFFSETS = frozenset(TWO_BYTE | second for second in (0xA3, 0xAB, 0xB3, 0xBB))

# Invalid to the engine; the processor asks for the privilege first: sysret, rdpmc, sysexit.
_GP_NOT_UD = frozenset(TWO_BYTE | second for second in (0x07, 0x33, 0x35))


def _instruction(v: Vcpu, at: int, rsp: int) -> Instruction | None:
    """The instruction at `at` with its memory operand, if it has one; None if it cannot be read."""
    engine, guest = v.domain.engine, v.domain.guest
    q, word_mask = engine.q, v.domain.abi.word_mask
    base = 0 if engine.code_is_64bit else engine.segment_base(CS)
    bits = 64 if engine.code_is_64bit else 32

    def read(offset: int) -> bytes:
        address = base + offset & word_mask
        return guest.copy_from(address, min(MAX_INST_LEN, 0x1000 - (address & 0xFFF)))

    try:
        return decode_any(Fetcher(at, read), bits, lambda number: rsp if number == RSP else q[number])
    except (GuestError, GuestFault):
        return None


def general_protection(v: Vcpu, error_code: int) -> tuple[int, int]:
    """The vector and error code of what the engine raised as #GP(`error_code`) in 64-bit code."""
    q = v.domain.engine.q
    insn = _instruction(v, q[RIP], q[RSP])
    if insn is None:
        return TRAP_gp_fault, error_code
    if error_code:
        return TRAP_gp_fault, _far_pointer_selector(v, insn, error_code)
    return (TRAP_stack_error if _by_the_stack(v, insn) else TRAP_gp_fault), 0


def undo_call(v: Vcpu) -> None:
    """Go back to the call that brought RIP to where no address is: it faults before it has done anything.

    The engine calls, and then cannot fetch. Its return address is on the stack, and what ends there is the
    call if it calls this RIP. Where a jump or a return came from cannot be told.
    """
    q, guest = v.domain.engine.q, v.domain.guest
    if is_canonical_address(q[RIP]):
        return
    try:
        behind = int.from_bytes(guest.copy_from(q[RSP], 8), "little")
    except GuestError:
        return
    rsp = q[RSP] + 8
    for size in range(2, _LONGEST_CALL + 1):
        insn = _instruction(v, behind - size, rsp)
        if insn is None or insn.opcode != _GROUP_5 or insn.reg & 7 != _NEAR_CALL or insn.next_ip != behind:
            continue
        if _target(v, insn, rsp) == q[RIP]:
            q[RIP], q[RSP] = behind - size, rsp
            return


def _target(v: Vcpu, insn: Instruction, rsp: int) -> int | None:
    """Where an indirect call goes."""
    if not insn.has_memory:
        return rsp if insn.rm == RSP else v.domain.engine.q[insn.rm]
    base = v.domain.engine.segment_base(insn.ea_segment) if insn.ea_segment in (FS, GS) else 0
    try:
        return int.from_bytes(v.domain.guest.copy_from(base + insn.ea & (1 << 64) - 1, 8), "little")
    except GuestError:
        return None


def _by_the_stack(v: Vcpu, insn: Instruction) -> bool:
    """Whether it is through the stack segment that the instruction meets an address that is not canonical."""
    q = v.domain.engine.q
    at_stack = not _canonical(*_stack_access(insn, q[RSP], q[RBP]))
    if insn.has_memory and insn.ad_bytes == 8:
        ea = insn.ea
        if insn.opcode in _BIT_OFFSETS:
            offset = q[insn.reg] - ((q[insn.reg] >> 63) << 64)
            ea += offset >> 6 << 3
        if not _canonical(ea, _LARGEST_OPERAND) and not (insn.opcode == _POP_MEMORY and at_stack):
            return insn.ea_segment == SS and (insn.opcode, insn.reg & 7) not in _PRIVILEGED
    return at_stack


def _stack_access(insn: Instruction, rsp: int, rbp: int) -> tuple[int, int]:
    """Where the instruction accesses the stack by itself, and how many bytes; none for most."""
    if insn.opcode in _POPS:
        return rsp, _POPS[insn.opcode]
    if insn.opcode in _PUSHES or (insn.opcode == _GROUP_5 and insn.reg & 7 in _PUSHES_OF_GROUP_5):
        return rsp - 8, 8
    return (rbp, 8) if insn.opcode == _LEAVE else (0, 0)


def _canonical(address: int, size: int) -> bool:
    ends = (address, address + max(size - 1, 0))
    return all(is_canonical_address(end & (1 << 64) - 1) for end in ends)


def _far_pointer_selector(v: Vcpu, insn: Instruction, error_code: int) -> int:
    """The error code for a far pointer with REX.W: the selector stands behind 32 bits of offset."""
    if insn.opcode != _GROUP_5 or insn.reg & 7 not in _FAR_OF_GROUP_5 or insn.op_bytes != 8:
        return error_code
    base = v.domain.engine.segment_base(insn.ea_segment) if insn.ea_segment in (FS, GS) else 0
    try:
        selector = v.domain.guest.copy_from(base + insn.ea + 4 & (1 << 64) - 1, 2)
    except GuestError:
        return error_code
    return int.from_bytes(selector, "little") & ~3


def invalid_opcode(v: Vcpu) -> tuple[int, int | None]:
    """The vector and error code of what the engine raised as #UD. RIP goes behind what traps."""
    q = v.domain.engine.q
    insn = _instruction(v, q[RIP], q[RSP])
    if insn is not None and insn.opcode in _GP_NOT_UD:
        return TRAP_gp_fault, 0
    if insn is not None and insn.opcode == _ICEBP and not insn.lock:
        q[RIP] = insn.next_ip
        return TRAP_debug, None
    return TRAP_invalid_op, None
