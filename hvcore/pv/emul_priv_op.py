"""Privileged instructions of the guest kernel, which arrive as #GP: xen/arch/x86/pv/emul-priv-op.c.

What is not in Xen's list is not emulated and stays the guest's #GP: hlt, lmsw, invlpg, invd, lgdt, rdpmc and
the rest. smsw, sgdt, sidt, sldt, str, pushf and popf never fault. cli and sti are let pass without effect
where the virtual IOPL allows them; a guest masks events through shared memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.clock import NS_PER_EXIT, TSC_PER_NS
from hvcore.cpu import state_window as sw
from hvcore.cpu.engine import CS, DS, ES, FS, GS, RAX, RBX, RCX, RDI, RDX, RIP, RSI, SS
from hvcore.errors import GuestError, GuestFault
from hvcore.pv.cpuid import pv_cpuid
from hvcore.pv.descriptor_tables import (
    DPL_SHIFT,
    SEGMENT_CODE,
    SEGMENT_DB,
    SEGMENT_L,
    SEGMENT_P,
    SEGMENT_S,
    SEGMENT_WR,
)
from hvcore.pv.emulate import (
    M32,
    M64,
    Segment,
    TRAP_gp_fault,
    TRAP_invalid_op,
    TRAP_stack_error,
    direction_flag,
    guest_kernel_mode,
    instruction_done,
    read_descriptor,
    read_guest,
    trap_flag,
    write_guest,
)
from hvcore.pv.io_port import check_guest_io_breakpoint, guest_io_okay, guest_io_read, guest_io_write, iopl_ok
from hvcore.pv.misc_hypercalls import DR7_EMUL, addr_ok, do_fpu_taskswitch, get_debugreg, set_debugreg
from hvcore.pv.msr import rdmsr, wrmsr
from hvcore.pv.x86_decode import MAX_INST_LEN, Fetcher, Instruction, decode

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

X86_CR0_TS = 1 << 3
X86_CR4_TSD, X86_CR4_DE = 1 << 2, 1 << 3
# Of CR4 a guest controls the first, as far as the cpuid policy has them, and is shown the second.
PV_CR4_GUEST_MASK = X86_CR4_TSD | X86_CR4_DE
PV_CR4_GUEST_VISIBLE = 0x660  # PAE, MCE, OSFXSR, OSXMMEXCPT

_MAX_REPS = 4096  # `ins` and `outs` go on after so many, so that events and the clock come to their right
_ENODEV = -19
_TF = 0x100


class _Context:
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


def _require_ring0(c: _Context) -> bool:
    """Raise #GP unless in the guest's ring 0 (mode_ring0()); False where the stack segment cannot be read."""
    v = c.v
    if guest_kernel_mode(v):
        return c.bits == 64 or read_segment(v, SS, c.bits) is not None
    stack = read_segment(v, SS, c.bits)
    if stack is None:
        return False
    if stack[2] >> DPL_SHIFT & 3:
        raise GuestFault(TRAP_gp_fault, 0)
    return True


# --- control and debug registers ----------------------------------------------------------------------------


def read_cr0(v: Vcpu) -> int:
    """CR0 as the guest sees it: Xen's, with a TS of its own."""
    return v.domain.engine.control(0) & ~X86_CR0_TS | (X86_CR0_TS if v.ts_set else 0)


def pv_fixup_guest_cr4(cr4: int) -> int:
    """The guest-visible CR4 for what the guest asked for."""
    return cr4 & PV_CR4_GUEST_MASK | PV_CR4_GUEST_VISIBLE


def read_cr3(v: Vcpu) -> int:
    """CR3 as the guest wrote it: for PAE guests the frame number's high bits are folded into the low ones."""
    pfn = v.cr3_mfn
    return (pfn << 12 | pfn >> 20) & M32 if v.domain.abi.is_32bit else pfn << 12


def read_cr(v: Vcpu, reg: int) -> int | None:
    """CR`reg` as the guest sees it, or None for one that is not emulated."""
    if reg == 0:
        return read_cr0(v)
    if reg == 2:
        return v.ctrlreg[2]
    if reg == 3:
        return read_cr3(v)
    return pv_fixup_guest_cr4(v.ctrlreg[4]) if reg == 4 else None


def _write_cr3(v: Vcpu, value: int) -> bool:
    mm = v.domain.mm
    mfn = (value >> 12 | value << 20) & M32 if v.domain.abi.is_32bit else value >> 12
    if not mm.get_page(mfn):
        return False
    rc = mm.new_guest_cr3(mfn)
    mm.put_page(mfn)
    return rc == 0


def write_cr(v: Vcpu, reg: int, value: int) -> bool:
    """Set CR`reg`; False where Xen refuses the value."""
    if reg == 0:
        if (value ^ v.domain.engine.control(0)) & ~X86_CR0_TS:
            return False
        do_fpu_taskswitch(v, value & X86_CR0_TS)
    elif reg == 2:
        v.ctrlreg[2] = value
        struct.pack_into("<" + v.domain.abi.word_format, v.info, v.arch_cr2_off, value)
    elif reg == 3:
        return _write_cr3(v, value)
    elif reg == 4:
        v.ctrlreg[4] = pv_fixup_guest_cr4(value)
        v.domain.engine.set_cr4_tsd(bool(value & X86_CR4_TSD))
    else:
        return False
    return True


# Control registers that no processor has: #UD there, whatever the ring.
_NO_CR = frozenset((1, 5, 6, 7, *range(9, 16)))


def _mov_from_cr(c: _Context) -> bool:
    if c.insn.reg in _NO_CR:
        raise GuestFault(TRAP_invalid_op)
    if not _require_ring0(c):
        return False
    value = read_cr(c.v, c.insn.reg)
    if value is None:
        return False
    c.set_gpr(c.insn.rm, value)
    return True


def _mov_to_cr(c: _Context) -> bool:
    if c.insn.reg in _NO_CR:
        raise GuestFault(TRAP_invalid_op)
    return _require_ring0(c) and write_cr(c.v, c.insn.reg, c.gpr(c.insn.rm))


def _mov_from_dr(c: _Context) -> bool:
    if not _require_ring0(c):
        return False
    value = get_debugreg(c.v, c.insn.reg)
    if value is None:
        raise GuestFault(TRAP_invalid_op)
    c.set_gpr(c.insn.rm, value)
    return True


def _mov_to_dr(c: _Context) -> bool:
    if not _require_ring0(c):
        return False
    rc = set_debugreg(c.v, c.insn.reg, c.gpr(c.insn.rm))
    if rc == _ENODEV:
        raise GuestFault(TRAP_invalid_op)
    if rc:
        raise GuestFault(TRAP_gp_fault, 0)
    return True


def _clts(c: _Context) -> bool:
    return _require_ring0(c) and do_fpu_taskswitch(c.v, 0) == 0


# --- without operands ---------------------------------------------------------------------------------------


def _cli_sti(c: _Context) -> bool:
    return iopl_ok(c.v)


def _rdmsr(c: _Context) -> bool:
    if not _require_ring0(c):
        return False
    rdmsr(c.v)
    return True


def _wrmsr(c: _Context) -> bool:
    if not _require_ring0(c):
        return False
    wrmsr(c.v)
    return True


def _rdtsc(c: _Context) -> bool:
    v = c.v
    if not guest_kernel_mode(v) and v.ctrlreg[4] & X86_CR4_TSD:
        raise GuestFault(TRAP_gp_fault, 0)
    q = v.domain.engine.q
    tsc = v.domain.clock.now() * TSC_PER_NS
    q[RAX], q[RDX] = tsc & M32, tsc >> 32
    return True


def _cpuid(c: _Context) -> bool:
    q = c.v.domain.engine.q
    q[RAX], q[RBX], q[RCX], q[RDX] = pv_cpuid(c.v, q[RAX] & M32, q[RCX] & M32)
    return True


def _group7(c: _Context) -> bool:
    """0f 01: xsetbv and rdtscp, which the cpuid policy has neither of."""
    insn = c.insn
    if insn.mod == 3 and insn.rm & 7 == 1:
        if insn.reg & 7 == 2:
            raise GuestFault(TRAP_invalid_op)
        if insn.reg & 7 == 7:
            raise GuestFault(TRAP_gp_fault, 0)
    return False


# --- ports --------------------------------------------------------------------------------------------------


def _operand_size(insn: Instruction) -> int:
    return 1 if not insn.opcode & 1 else min(insn.op_bytes, 4)


def _in_out(c: _Context) -> bool:
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
        _read_port(v, port, size)
    _open_ports(v)
    return True


def _read_port(v: Vcpu, port: int, size: int) -> None:
    """`in` to AL, AX or EAX, whose write alone clears what is above it."""
    q = v.domain.engine.q
    value = guest_io_read(v.domain, port, size)
    q[RAX] = value if size == 4 else q[RAX] & ~((1 << 8 * size) - 1) & M64 | value


def _open_ports(v: Vcpu) -> None:
    """Let the engine do what port I/O follows by itself, unless Xen has to look at each access."""
    if iopl_ok(v) and not v.debugreg[DR7_EMUL]:
        v.domain.engine.open_ports(NS_PER_EXIT)


def _address_mask(insn: Instruction) -> int:
    return (1 << 8 * insn.ad_bytes) - 1


def _adjust(c: _Context, register: int, value: int) -> None:
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


def _string_segment(c: _Context) -> tuple[Segment, int] | None:
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


def _ins_outs(c: _Context) -> bool:
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


def _string_loop(c: _Context, found: tuple[Segment, int], index: int, reps: int, step: int) -> None:
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


_Handler = Callable[[_Context], bool]

# validate(): what Xen emulates, and nothing else.
_OPS: dict[int, _Handler] = {
    **dict.fromkeys(range(0x6C, 0x70), _ins_outs),
    **dict.fromkeys((*range(0xE4, 0xE8), *range(0xEC, 0xF0)), _in_out),
    **dict.fromkeys((0xFA, 0xFB), _cli_sti),
    0x0F01: _group7,
    0x0F06: _clts,
    0x0F09: _require_ring0,  # wbinvd: ignored
    0x0F20: _mov_from_cr,
    0x0F21: _mov_from_dr,
    0x0F22: _mov_to_cr,
    0x0F23: _mov_to_dr,
    0x0F30: _wrmsr,
    0x0F31: _rdtsc,
    0x0F32: _rdmsr,
    0x0FA2: _cpuid,
}
_NAMES: dict[int, str] = {
    0x6C: "ins", 0x6D: "ins", 0x6E: "outs", 0x6F: "outs", 0xFA: "cli", 0xFB: "sti",
    **dict.fromkeys((0xE4, 0xE5, 0xEC, 0xED), "in"), **dict.fromkeys((0xE6, 0xE7, 0xEE, 0xEF), "out"),
    0x0F01: "grp7", 0x0F06: "clts", 0x0F09: "wbinvd", 0x0F20: "mov from cr", 0x0F21: "mov from dr",
    0x0F22: "mov to cr", 0x0F23: "mov to dr", 0x0F30: "wrmsr", 0x0F31: "rdtsc", 0x0F32: "rdmsr",
    0x0FA2: "cpuid",
}  # fmt: skip


def fetch_instruction(v: Vcpu, cs: Segment, bits: int) -> Instruction | None:
    """Decode at CS:RIP; None for what is none of ours. Raises GuestFault as fetching would."""
    q = v.domain.engine.q

    def read(offset: int) -> bytes:
        """From `offset` to the end of its page or of the segment; its first byte must be there."""
        address = virt_to_linear(v, cs, offset, 1, bits, TRAP_gp_fault)
        room = cs[1] - offset + 1 if bits != 64 else MAX_INST_LEN
        return read_guest(v, address, min(MAX_INST_LEN, 0x1000 - (address & 0xFFF), room))

    return decode(Fetcher(q[RIP], read), bits, lambda number: q[number])


def code_segment(v: Vcpu, insn_fetch: bool) -> tuple[Segment, int] | None:
    """The present code segment and its width in bits, or None if it is no longer one in the tables."""
    cs = read_descriptor(v, v.domain.engine.selector(CS), insn_fetch)
    need = SEGMENT_S | SEGMENT_P | SEGMENT_CODE
    if cs is None or cs[2] & need != need:
        return None
    return cs, 64 if cs[2] & SEGMENT_L else 32 if cs[2] & SEGMENT_DB else 16


_CLI_STI = (0xFA, 0xFB)
_BARE = (*range(0xE4, 0xE8), *range(0xEC, 0xF0), *_CLI_STI)


def _bare_operation(v: Vcpu) -> bool:
    """`cli`, `sti`, `in` or `out` with nothing unusual about it; False leaves it to the decoder.

    Linux executes thousands of each: 2 us each here, 10 us in full.
    """
    d = v.domain
    engine, q = d.engine, d.engine.q
    if engine.segment_base(CS) or not engine.code_is_32_or_64bit or v.debugreg[DR7_EMUL]:
        return False
    length = 1
    try:
        opcode = d.guest.copy_from(q[RIP], 1)[0]
        if opcode not in _BARE or q[sw.EFLAGS // 8] & _TF:
            return False
        port = q[RDX] & 0xFFFF
        if opcode < 0xE8:
            port, length = d.guest.copy_from(q[RIP] + 1, 1)[0], 2
    except GuestError:
        return False
    if opcode in _CLI_STI:  # which change nothing, and need the right to
        if not iopl_ok(v):
            return False
        d.trace.emulate(_NAMES[opcode])
        engine.advance(1)
        return True
    size = 4 if opcode & 1 else 1
    if not guest_io_okay(v, port, size):
        return False
    if opcode & 2:
        guest_io_write(d, port, size, q[RAX] & (1 << 8 * size) - 1)
    else:
        _read_port(v, port, size)
    d.trace.emulate(_NAMES[opcode])
    engine.advance(length)
    _open_ports(v)
    return True


def pv_emulate_privileged_op(v: Vcpu) -> bool:
    """Emulate the instruction at CS:RIP, which raised #GP(0).

    True when it was done and the guest goes on behind it, False when the #GP is the guest's. Raises
    GuestFault for what the instruction raises instead: #PF and #UD, another #GP, #DB after a single step.
    """
    if _bare_operation(v):
        return True
    found = code_segment(v, insn_fetch=True)
    if found is None:
        return False
    cs, bits = found
    insn = fetch_instruction(v, cs, bits)
    handler = _OPS.get(insn.opcode) if insn is not None else None
    if insn is None or handler is None:
        return False
    if insn.lock:
        raise GuestFault(TRAP_invalid_op)
    c = _Context(v, bits, insn)
    if not handler(c):
        return False
    v.domain.trace.emulate(_NAMES[insn.opcode])
    instruction_done(v, c.rip, c.bpmatch)
    return True
