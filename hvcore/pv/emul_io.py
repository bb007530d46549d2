"""`in`, `out`, `ins` and `outs`: read_io() .. rep_outs() of xen/arch/x86/pv/emul-priv-op.c.

What the ports themselves are is in io_port.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.clock import NS_PER_EXIT
from hvcore.cpu.processor import DS, ES, RAX, RCX, RDI, RDX, RIP, RSI, SS
from hvcore.errors import GuestFault
from hvcore.pv.descriptor_tables import SEGMENT_CODE, SEGMENT_P, SEGMENT_S, SEGMENT_WR
from hvcore.pv.emulate import (
    EmulContext,
    Segment,
    direction_flag,
    read_guest,
    read_segment,
    trap_flag,
    virt_to_linear,
    write_guest,
)
from hvcore.pv.io_port import check_guest_io_breakpoint, guest_io_okay, guest_io_read, guest_io_write, iopl_ok
from hvcore.pv.misc_hypercalls import DR7_EMUL
from hvcore.x86 import M32, M64, TRAP_gp_fault, TRAP_stack_error

if TYPE_CHECKING:
    from hvcore.pv.x86_decode import Instruction
    from hvcore.vcpu import Vcpu

_MAX_REPS = 4096  # `ins` and `outs` pause after so many, so that events are delivered and time passes


def _operand_size(insn: Instruction) -> int:
    return 1 if not insn.opcode & 1 else min(insn.op_bytes, 4)


def in_out(c: EmulContext) -> bool:
    v, insn = c.v, c.insn
    q = v.domain.engine.q
    size = _operand_size(insn)
    port = insn.imm if insn.opcode < 0xE8 else q[RDX] & 0xFFFF
    if not guest_io_okay(v, port, size):
        return False
    c.bpmatch = check_guest_io_breakpoint(v, port, size)
    if insn.opcode & 2:
        guest_io_write(v.domain, port, size, q[RAX] & (1 << 8 * size) - 1)
    else:
        read_port(v, port, size)
    open_ports(v)
    return True


def read_port(v: Vcpu, port: int, size: int) -> None:
    """`in` to AL, AX or EAX, whose write alone clears what is above it."""
    q = v.domain.engine.q
    value = guest_io_read(v.domain, port, size)
    q[RAX] = value if size == 4 else q[RAX] & ~((1 << 8 * size) - 1) & M64 | value


def open_ports(v: Vcpu) -> None:
    """Let the engine do what port I/O follows by itself, unless Xen has to look at each access."""
    if iopl_ok(v) and not v.debugreg[DR7_EMUL]:
        v.domain.engine.open_ports(NS_PER_EXIT)


def _address_mask(insn: Instruction) -> int:
    return (1 << 8 * insn.ad_bytes) - 1


def _adjust(c: EmulContext, register: int, value: int) -> None:
    """Set SI, DI or CX to `value` in the address size: 16 bits leave the rest, 32 bits clear it."""
    q = c.v.domain.engine.q
    mask = _address_mask(c.insn)
    kept = q[register] & ~mask & M64 if c.insn.ad_bytes == 2 else 0
    q[register] = kept | value & mask


def _clip_reps(ea: int, reps: int, size: int, mask: int, backwards: bool) -> int:
    """truncate_ea_and_reps(): so many that the index register at most just wraps."""
    if not backwards:
        todo = (-ea & mask) // size
    elif ea + size - 1 & mask < ea:
        todo = 1
    else:
        todo = ea // size + 1
    return min(reps, todo) if todo else 1


def _string_segment(c: EmulContext) -> tuple[Segment, int] | None:
    """The memory operand's segment and the vector of its faults; None where Xen does not emulate."""
    v, outs = c.v, c.insn.opcode & 2
    register = (DS if c.insn.segment is None else c.insn.segment) if outs else ES
    segment = read_segment(v, register, c.bits)
    if segment is None or not segment[2] & SEGMENT_P:
        return None
    vector = TRAP_stack_error if register == SS else TRAP_gp_fault
    kind = segment[2] & (SEGMENT_S | SEGMENT_CODE | SEGMENT_WR)
    unreadable = not kind & SEGMENT_S or kind & (SEGMENT_CODE | SEGMENT_WR) == SEGMENT_CODE
    if unreadable if outs else kind != SEGMENT_S | SEGMENT_WR:
        raise GuestFault(vector, 0)
    return segment, vector


def ins_outs(c: EmulContext) -> bool:
    """String I/O with and without rep: one port access and one memory access a time."""
    v, insn = c.v, c.insn
    q = v.domain.engine.q
    size, port, mask = _operand_size(insn), q[RDX] & 0xFFFF, _address_mask(insn)
    outs = bool(insn.opcode & 2)
    index = RSI if outs else RDI
    reps = q[RCX] & mask if insn.rep else 1
    if not reps:
        if c.bits == 64 and insn.ad_bytes == 4:
            q[RCX] = 0
            q[index] &= M32
        return True
    if trap_flag(v):
        reps = 1
    if not guest_io_okay(v, port, size):
        return False
    found = _string_segment(c)
    if found is None:
        return False
    c.bpmatch = check_guest_io_breakpoint(v, port, size)
    backwards = direction_flag(v)
    reps = min(_clip_reps(q[index] & mask, reps, size, mask, backwards), _MAX_REPS)
    _string_loop(c, found, index, reps, -size if backwards else size)
    return True


def _string_loop(c: EmulContext, found: tuple[Segment, int], index: int, reps: int, step: int) -> None:
    """Move up to `reps` elements. What was done before a fault or an event stays done."""
    v, insn = c.v, c.insn
    d = v.domain
    q = d.engine.q
    segment, vector = found
    size, port, mask = abs(step), q[RDX] & 0xFFFF, _address_mask(insn)
    offset = q[index] & mask
    done = 0
    try:
        while done < reps:
            address = virt_to_linear(v, segment, offset, size, c.bits, vector)
            if insn.opcode & 2:
                guest_io_write(d, port, size, int.from_bytes(read_guest(v, address, size), "little"))
            else:
                write_guest(v, address, guest_io_read(d, port, size).to_bytes(size, "little"))
            done += 1
            if c.bpmatch or v.event_needs_delivery():
                break
            offset += step
    finally:
        _adjust(c, index, q[index] + done * step)
        if insn.rep:
            left = (q[RCX] & mask) - done
            _adjust(c, RCX, left)
            if left:
                c.rip = q[RIP]
