"""Small hypercalls on the processor's own state: xen/arch/x86/pv/misc-hypercalls.c.

Breakpoints on code are the engine's to watch (those on data it accepts and never hits). Those on I/O ports
Xen emulates; their enable bits are kept in debugreg[5], as Xen once did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.cpu.processor import FS, GS
from hvcore.public.arch_x86_64 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL
from hvcore.public.errno import EINVAL, ENODEV, ENOSYS, EPERM
from hvcore.pv.callback import fixup_guest_selector
from hvcore.pv.segments import load_data
from hvcore.x86 import M32

if TYPE_CHECKING:
    from hvcore.abi import Abi
    from hvcore.vcpu import Vcpu

X86_CR4_DE = 1 << 3

DR_STEP = 0x4000
DR_STATUS_RESERVED_ONE = 0xFFFF0FF0
_DR_STATUS_RESERVED_ZERO = 0x1000
_DR_CONTROL_RESERVED_ONE = 0x400
_DR_CONTROL_RESERVED_ZERO = 0xD800
_DR_GENERAL_DETECT = 0x2000
DR7_ACTIVE_MASK = 0xFF
_DR_IO = 2
DR7_EMUL = 5  # where in debugreg the enable bits of I/O breakpoints are kept


def is_canonical_address(address: int) -> bool:
    """Whether bits 63 to 47 of a 64-bit address agree."""
    return address >> 47 in (0, 0x1FFFF)


def addr_ok(abi: Abi, address: int) -> bool:
    """__addr_ok(): outside of Xen's range and of the hole below it. Every 32-bit address is."""
    return abi.is_32bit or address < 1 << 47 or address >= abi.hypervisor_virt_end


# --- the FPU ------------------------------------------------------------------------------------------------


def do_fpu_taskswitch(v: Vcpu, set_: int) -> int:
    """HYPERVISOR_fpu_taskswitch: set or clear CR0.TS. The FPU is the vCPU's own: TS is the guest's alone."""
    v.ts_set = bool(set_ & M32)
    v.domain.engine.set_cr0_ts(v.ts_set)
    return 0


# --- debug registers ----------------------------------------------------------------------------------------


def get_debugreg(v: Vcpu, reg: int) -> int | None:
    """x86emul_read_dr(): the guest's view of DR`reg`; None where #UD is due."""
    if reg in (4, 5):
        if v.ctrlreg[4] & X86_CR4_DE:
            return None
        reg += 2
    if reg > 7:
        return None
    return v.debugreg[7] | v.debugreg[DR7_EMUL] if reg == 7 else v.debugreg[reg]


def set_debugreg(v: Vcpu, reg: int, value: int) -> int:
    """Set DR`reg`: 0, -EPERM for what the guest may not watch, -EINVAL for reserved bits, -ENODEV."""
    if reg in (4, 5):
        if v.ctrlreg[4] & X86_CR4_DE:
            return -ENODEV
        reg += 2
    if reg < 4:
        if not addr_ok(v.domain.abi, value):
            return -EPERM
    elif reg == 6:
        if value > M32:
            return -EINVAL
        value = value & ~_DR_STATUS_RESERVED_ZERO | DR_STATUS_RESERVED_ONE
    elif reg == 7:
        return _set_dr7(v, value)
    else:
        return -ENODEV
    v.debugreg[reg] = value
    if v is v.domain.current:
        v.domain.engine.set_debug(reg, value)
    return 0


def _set_dr7(v: Vcpu, value: int) -> int:
    if value > M32:
        return -EINVAL
    value = value & ~_DR_CONTROL_RESERVED_ZERO | _DR_CONTROL_RESERVED_ONE
    if value & _DR_GENERAL_DETECT:
        return -EPERM
    io_enable = 0
    if value & DR7_ACTIVE_MASK:
        for i in range(4):
            if value >> (16 + 4 * i) & 3 == _DR_IO:
                if not v.ctrlreg[4] & X86_CR4_DE:
                    return -EPERM
                io_enable |= value & 3 << (2 * i)
        value &= ~io_enable
    v.debugreg[DR7_EMUL] = io_enable
    v.debugreg[7] = value
    if v is v.domain.current:
        v.domain.engine.set_debug(7, value)
        v.domain.close_ports()
    return 0


def do_set_debugreg(v: Vcpu, reg: int, value: int) -> int:
    """HYPERVISOR_set_debugreg."""
    return set_debugreg(v, reg & M32, value)


def do_get_debugreg(v: Vcpu, reg: int) -> int:
    """HYPERVISOR_get_debugreg: the register's value, or -ENODEV."""
    value = get_debugreg(v, reg & M32)
    return -ENODEV if value is None else value


# --- stacks and segment bases -------------------------------------------------------------------------------


def do_stack_switch(v: Vcpu, ss: int, esp: int) -> int:
    """HYPERVISOR_stack_switch: the kernel stack for entries from user mode, the TSS's ss1 and esp1 of old."""
    v.kernel_ss = fixup_guest_selector(v, ss)
    v.kernel_sp = esp
    return 0


def do_set_segment_base(v: Vcpu, which: int, base: int) -> int:
    """HYPERVISOR_set_segment_base, 64-bit guests only. It comes from the kernel, whose GS base is loaded."""
    if v.domain.abi.is_32bit:
        return -ENOSYS
    which &= M32
    if which == SEGBASE_GS_USER_SEL:
        _load_user_gs(v, base & 0xFFFF)
        return 0
    if which > SEGBASE_GS_USER_SEL or not is_canonical_address(base):
        return -EINVAL
    if which == SEGBASE_FS:
        v.domain.engine.set_segment_base(FS, base)
    elif which == SEGBASE_GS_USER:
        v.gs_base_user = base
    elif which == SEGBASE_GS_KERNEL:
        v.domain.engine.set_segment_base(GS, base)
    return 0


def _load_user_gs(v: Vcpu, selector: int) -> None:
    """Load GS for user mode: the selector and the user's base, but not the kernel's. A bad one gives null."""
    engine = v.domain.engine
    kernel_base = engine.segment_base(GS)
    if selector > 3:
        selector |= 3
    if not load_data(v, GS, selector):
        load_data(v, GS, 0)
    v.gs_base_user = engine.segment_base(GS)
    engine.set_segment_base(GS, kernel_base)
