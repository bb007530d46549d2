"""Call gates of 32-bit guests: xen/arch/x86/pv/emul-gate-op.c.

Under a 64-bit Xen no 32-bit call gate works by itself. check_descriptor() takes a gate's DPL away, so that a
far call or jmp through it raises #GP with the gate's selector; this does then what the processor would have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from hvcore.cpu.processor import CS, RIP, RSP, SS
from hvcore.errors import GuestFault
from hvcore.pv.descriptor_tables import (
    DPL_SHIFT,
    SEGMENT_CODE,
    SEGMENT_DPL,
    SEGMENT_EC,
    SEGMENT_P,
    SEGMENT_S,
    SEGMENT_TYPE,
    SEGMENT_WR,
    TYPE_CALL_GATE,
)
from hvcore.pv.emul_priv_op import code_segment
from hvcore.pv.emulate import Segment, instruction_done, read_descriptor, read_guest, write_guest
from hvcore.pv.segments import gdt_ldt_desc, load_cs_ss
from hvcore.pv.x86_decode import MAX_INST_LEN, Fetcher, Instruction, decode
from hvcore.x86 import M32, TRAP_gp_fault, TRAP_invalid_tss, TRAP_no_segment, TRAP_stack_error

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

_KERNEL_RPL = 1
_CALL_FAR, _JMP_FAR, _GROUP5 = 0x9A, 0xEA, 0xFF
_GATE16 = 0x0400


class _Gate(NamedTuple):
    """A call gate: where it leads, and its rights with the DPL that the guest had given it."""

    selector: int
    offset: int
    ar: int

    @property
    def dpl(self) -> int:
        return self.ar >> DPL_SHIFT & 3

    @property
    def nr_parameters(self) -> int:
        return self.ar & 0x1F


def _read_gate(v: Vcpu, gate_sel: int) -> _Gate | None:
    """read_gate_descriptor(): the gate that `gate_sel` names, or None."""
    limit = v.ldt_ents if gate_sel & 4 else v.gdt_ents
    if gate_sel < 4 or gate_sel >> 3 >= limit:
        return None
    words = gdt_ldt_desc(v, gate_sel)
    if words is None:
        return None
    a, b = words
    ar = b & 0xFFFF
    if ar & SEGMENT_DPL:
        return None
    ar |= a >> (16 - DPL_SHIFT) & SEGMENT_DPL
    offset = a & 0xFFFF | b & 0xFFFF0000
    kind = ar & 0x1F00
    if kind == _GATE16:
        offset &= 0xFFFF
    elif kind != TYPE_CALL_GATE:
        return None
    return _Gate(a >> 16 & 0xFFFC, offset, ar)


def _fetch(v: Vcpu, cs: Segment, bits: int, error_code: int) -> Instruction | None:
    base, limit, _ar = cs
    q = v.domain.engine.q

    def read(offset: int) -> bytes:
        if offset > limit:
            raise GuestFault(TRAP_gp_fault, error_code)
        address = base + offset & M32
        return read_guest(v, address, min(MAX_INST_LEN, 0x1000 - (address & 0xFFF), limit - offset + 1))

    return decode(Fetcher(q[RIP] & M32, read), bits, lambda number: q[number] & M32)


def _read_operand_selector(v: Vcpu, cs: Segment, insn: Instruction) -> int | None:
    """The selector half of a far pointer in memory; None where Xen does not go on."""
    if insn.ea_segment == CS:
        segment: Segment | None = cs
    else:
        selector = v.domain.engine.selector(insn.ea_segment)
        segment = read_descriptor(v, selector, insn_fetch=False) if selector else None
        if segment is None or segment[2] & (SEGMENT_S | SEGMENT_P) != SEGMENT_S | SEGMENT_P:
            return None
        if segment[2] & (SEGMENT_CODE | SEGMENT_WR) == SEGMENT_CODE:
            return None
    if segment is None:
        return None
    base, limit, _ar = segment
    offset = insn.ea + insn.op_bytes
    if limit < 1 or offset > limit - 1:
        return None
    return int.from_bytes(read_guest(v, base + offset & M32, 2), "little")


def _operand(v: Vcpu, cs: Segment, insn: Instruction) -> tuple[int, bool] | None:
    """The selector that the instruction uses, and whether it is a jmp; None if it is no far transfer."""
    if insn.opcode in (_CALL_FAR, _JMP_FAR):
        return insn.imm2, insn.opcode == _JMP_FAR
    if insn.opcode != _GROUP5 or insn.mod == 3 or insn.reg & 7 not in (3, 5):
        return None
    selector = _read_operand_selector(v, cs, insn)
    return None if selector is None else (selector, insn.reg & 7 == 5)


def _target(v: Vcpu, gate: _Gate, jump: bool) -> int:
    """The target code segment's DPL. Raises what the processor would for a segment that will not do."""
    cpl = v.domain.engine.selector(CS) & 3
    segment = read_descriptor(v, gate.selector, insn_fetch=False)
    if segment is None or segment[2] & (SEGMENT_S | SEGMENT_CODE) != SEGMENT_S | SEGMENT_CODE:
        raise GuestFault(TRAP_gp_fault, gate.selector)
    _base, limit, ar = segment
    dpl = ar >> DPL_SHIFT & 3
    if dpl > cpl if not jump or ar & SEGMENT_EC else dpl != cpl:
        raise GuestFault(TRAP_gp_fault, gate.selector)
    if not ar & SEGMENT_P:
        raise GuestFault(TRAP_no_segment, gate.selector)
    if gate.offset > limit:
        raise GuestFault(TRAP_gp_fault, 0)
    return dpl


def _check_stack_limit(segment: Segment, esp: int, size: int) -> bool:
    """Whether `size` bytes below `esp` lie within the segment."""
    _base, limit, ar = segment
    low, last = esp - size & M32, esp - 1 & M32
    return low < last and (low > limit if ar & SEGMENT_EC else last <= limit)


class _Stack:
    """The stack that the return frame goes to."""

    def __init__(self, v: Vcpu, segment: Segment, ss: int, esp: int) -> None:
        self.v = v
        self.ss = ss
        self.esp = esp
        self.linear = segment[0] + esp & M32

    def access_ok(self, size: int) -> bool:
        """compat_access_ok() for `size` bytes below the stack pointer."""
        return self.linear >= size and self.linear - 1 < self.v.domain.abi.hypervisor_virt_start

    def push(self, word: int) -> None:
        self.linear -= 4
        self.esp = self.esp - 4 & M32
        write_guest(self.v, self.linear, (word & M32).to_bytes(4, "little"))


def _writable_data(ar: int) -> bool:
    return ar & (SEGMENT_S | SEGMENT_CODE | SEGMENT_WR) == SEGMENT_S | SEGMENT_WR


class _Refused(Exception):
    """The #GP with the gate's selector stays as it is."""


def _refuse() -> NoReturn:
    raise _Refused


def _inner_stack(v: Vcpu, gate: _Gate, rpl: int) -> _Stack:
    """A call to an inner ring: the kernel's stack, with SS:ESP and the parameters of the outer one on it."""
    engine = v.domain.engine
    if rpl != _KERNEL_RPL:
        _refuse()
    ss, esp, count = v.kernel_ss, v.kernel_sp, gate.nr_parameters
    segment = read_descriptor(v, ss, insn_fetch=False) if ss & 3 == rpl else None
    if segment is None or segment[2] >> DPL_SHIFT & 3 != rpl or not _writable_data(segment[2]):
        raise GuestFault(TRAP_invalid_tss, ss & ~3)
    if not segment[2] & SEGMENT_P or not _check_stack_limit(segment, esp, (4 + count) * 4):
        raise GuestFault(TRAP_stack_error, ss & ~3)
    stack = _Stack(v, segment, ss, esp)
    if not stack.access_ok(16 + count * 4):
        _refuse()
    outer_esp = engine.q[RSP] & M32
    stack.push(engine.selector(SS))
    stack.push(outer_esp)
    if count:
        _copy_parameters(v, stack, outer_esp, count)
    return stack


def _copy_parameters(v: Vcpu, stack: _Stack, outer_esp: int, count: int) -> None:
    engine = v.domain.engine
    outer = read_descriptor(v, engine.selector(SS), insn_fetch=False)
    if (
        outer is None
        or outer[2] >> DPL_SHIFT & 3 != engine.selector(CS) & 3
        or not _writable_data(outer[2])
        # As Xen has it, with the inner stack's pointer.
        or not _check_stack_limit(outer, stack.esp + count * 4, count * 4)
    ):
        _refuse()
    top = _Stack(v, outer, 0, outer_esp + count * 4)
    if not top.access_ok(count * 4):
        _refuse()
    for i in range(1, count + 1):
        stack.push(int.from_bytes(read_guest(v, top.linear - 4 * i, 4), "little"))


def _same_stack(v: Vcpu, rpl: int) -> _Stack:
    """A call within the ring."""
    engine = v.domain.engine
    ss, esp = engine.selector(SS), engine.q[RSP] & M32
    segment = read_descriptor(v, ss, insn_fetch=False)
    if segment is None or segment[2] >> DPL_SHIFT & 3 != rpl:
        _refuse()
    if not _check_stack_limit(segment, esp, 8):
        raise GuestFault(TRAP_stack_error, 0)
    stack = _Stack(v, segment, ss, esp)
    if not stack.access_ok(8):
        _refuse()
    return stack


def _transfer(v: Vcpu, gate: _Gate, insn: Instruction, jump: bool) -> None:
    """Make the call or jmp."""
    engine = v.domain.engine
    cs = engine.selector(CS)
    cpl, dpl = cs & 3, _target(v, gate, jump)
    ss = engine.selector(SS)
    if jump:
        selector = gate.selector | cpl
    else:
        inner = dpl < cpl
        selector = gate.selector | (dpl if inner else cpl)
        stack = _inner_stack(v, gate, dpl) if inner else _same_stack(v, cpl)
        stack.push(cs)
        stack.push(insn.next_ip)
        engine.q[RSP] = stack.esp
        ss = stack.ss
    load_cs_ss(v, selector, ss)
    instruction_done(v, gate.offset)


def pv_emulate_gate_op(v: Vcpu) -> bool:
    """Do the far call or jmp through a call gate that raised #GP(selector).

    True when it was done; False when the #GP is the guest's. Raises GuestFault for what it raises instead.
    """
    error_code = v.domain.engine.error_code
    gate = _read_gate(v, error_code)
    if gate is None or gate.dpl < v.domain.engine.selector(CS) & 3:
        return False
    if gate.ar & SEGMENT_TYPE != TYPE_CALL_GATE:
        return False
    if not gate.ar & SEGMENT_P:
        raise GuestFault(TRAP_no_segment, error_code)
    found = code_segment(v, insn_fetch=False)
    insn = _fetch(v, *found, error_code) if found is not None else None
    operand = _operand(v, found[0], insn) if found is not None and insn is not None else None
    if insn is None or operand is None:
        return False
    selector, jump = operand
    if selector & ~3 != error_code or gate.dpl < selector & 3:
        return False
    try:
        _transfer(v, gate, insn, jump)
    except _Refused:
        return False
    v.domain.trace.emulate("call gate")
    return True
