"""Privileged instructions of the guest kernel, which arrive as #GP: xen/arch/x86/pv/emul-priv-op.c.

What is not in Xen's list is not emulated and stays the guest's #GP: hlt, lmsw, invlpg, invd, lgdt, rdpmc and
the rest. smsw, sgdt, sidt, sldt, str, pushf and popf never fault. cli and sti are let pass without effect
where the virtual IOPL allows them; a guest masks events through shared memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.clock import TSC_PER_NS
from hvcore.cpu.processor import CS, EFLAGS, RAX, RBX, RCX, RDX, RIP, SS
from hvcore.errors import GuestError, GuestFault
from hvcore.pv.cpuid import pv_cpuid
from hvcore.pv.descriptor_tables import (
    DPL_SHIFT,
    SEGMENT_CODE,
    SEGMENT_DB,
    SEGMENT_L,
    SEGMENT_P,
    SEGMENT_S,
)
from hvcore.pv.emul_io import in_out, ins_outs, open_ports, read_port
from hvcore.pv.emulate import (
    EmulContext,
    Segment,
    guest_kernel_mode,
    instruction_done,
    read_descriptor,
    read_guest,
    read_segment,
    virt_to_linear,
)
from hvcore.pv.io_port import guest_io_okay, guest_io_write, iopl_ok
from hvcore.pv.misc_hypercalls import DR7_EMUL, do_fpu_taskswitch, get_debugreg, set_debugreg
from hvcore.pv.msr import rdmsr, wrmsr
from hvcore.pv.x86_decode import MAX_INST_LEN, Fetcher, Instruction, decode
from hvcore.x86 import M32, X86_CR0_TS, X86_EFLAGS_TF, TRAP_gp_fault, TRAP_invalid_op

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

X86_CR4_TSD, X86_CR4_DE = 1 << 2, 1 << 3
# Of CR4 a guest controls the first, as far as the cpuid policy has them, and is shown the second.
PV_CR4_GUEST_MASK = X86_CR4_TSD | X86_CR4_DE
PV_CR4_GUEST_VISIBLE = 0x660  # PAE, MCE, OSFXSR, OSXMMEXCPT

_ENODEV = -19


def _require_ring0(c: EmulContext) -> bool:
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


def _mov_from_cr(c: EmulContext) -> bool:
    if c.insn.reg in _NO_CR:
        raise GuestFault(TRAP_invalid_op)
    if not _require_ring0(c):
        return False
    value = read_cr(c.v, c.insn.reg)
    if value is None:
        return False
    c.set_gpr(c.insn.rm, value)
    return True


def _mov_to_cr(c: EmulContext) -> bool:
    if c.insn.reg in _NO_CR:
        raise GuestFault(TRAP_invalid_op)
    return _require_ring0(c) and write_cr(c.v, c.insn.reg, c.gpr(c.insn.rm))


def _mov_from_dr(c: EmulContext) -> bool:
    if not _require_ring0(c):
        return False
    value = get_debugreg(c.v, c.insn.reg)
    if value is None:
        raise GuestFault(TRAP_invalid_op)
    c.set_gpr(c.insn.rm, value)
    return True


def _mov_to_dr(c: EmulContext) -> bool:
    if not _require_ring0(c):
        return False
    rc = set_debugreg(c.v, c.insn.reg, c.gpr(c.insn.rm))
    if rc == _ENODEV:
        raise GuestFault(TRAP_invalid_op)
    if rc:
        raise GuestFault(TRAP_gp_fault, 0)
    return True


def _clts(c: EmulContext) -> bool:
    return _require_ring0(c) and do_fpu_taskswitch(c.v, 0) == 0


# --- without operands ---------------------------------------------------------------------------------------


def _cli_sti(c: EmulContext) -> bool:
    return iopl_ok(c.v)


def _rdmsr(c: EmulContext) -> bool:
    if not _require_ring0(c):
        return False
    rdmsr(c.v)
    return True


def _wrmsr(c: EmulContext) -> bool:
    if not _require_ring0(c):
        return False
    wrmsr(c.v)
    return True


def _rdtsc(c: EmulContext) -> bool:
    v = c.v
    if not guest_kernel_mode(v) and v.ctrlreg[4] & X86_CR4_TSD:
        raise GuestFault(TRAP_gp_fault, 0)
    q = v.domain.engine.q
    tsc = v.domain.clock.now() * TSC_PER_NS
    q[RAX], q[RDX] = tsc & M32, tsc >> 32
    return True


def _cpuid(c: EmulContext) -> bool:
    q = c.v.domain.engine.q
    q[RAX], q[RBX], q[RCX], q[RDX] = pv_cpuid(c.v, q[RAX] & M32, q[RCX] & M32)
    return True


def _group7(c: EmulContext) -> bool:
    """0f 01: xsetbv and rdtscp, which the cpuid policy has neither of."""
    insn = c.insn
    if insn.mod == 3 and insn.rm & 7 == 1:
        if insn.reg & 7 == 2:
            raise GuestFault(TRAP_invalid_op)
        if insn.reg & 7 == 7:
            raise GuestFault(TRAP_gp_fault, 0)
    return False


_Handler = Callable[[EmulContext], bool]

# validate(): what Xen emulates, and nothing else.
_OPS: dict[int, _Handler] = {
    **dict.fromkeys(range(0x6C, 0x70), ins_outs),
    **dict.fromkeys((*range(0xE4, 0xE8), *range(0xEC, 0xF0)), in_out),
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
        if opcode not in _BARE or q[EFLAGS] & X86_EFLAGS_TF:
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
        read_port(v, port, size)
    d.trace.emulate(_NAMES[opcode])
    engine.advance(length)
    open_ports(v)
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
    c = EmulContext(v, bits, insn)
    if not handler(c):
        return False
    v.domain.trace.emulate(_NAMES[insn.opcode])
    instruction_done(v, c.rip, c.bpmatch)
    return True
