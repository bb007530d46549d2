"""I/O ports of a domU: who may try (IOPL, permission bitmap), and what there is (nothing but two latches).

A guest that holds the right to a port reads all ones and writes into the void, but for the two registers that
Xen lets every PV guest keep: the PCI configuration address (0xcf8) and the CMOS index (0x70).
Source: guest_io_okay(), guest_io_read(), guest_io_write() and check_guest_io_breakpoint() of
xen/arch/x86/pv/emul-priv-op.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.errors import GuestError
from hvcore.public.xen import VMASST_TYPE_architectural_iopl
from hvcore.pv.emulate import guest_kernel_mode
from hvcore.pv.misc_hypercalls import DR7_EMUL, X86_CR4_DE

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

_IOPL_SHIFT = 12
_RTC_PORT_0 = 0x70
_PCI_CONFIG_ADDRESS = 0xCF8
_BREAKPOINT_WIDTHS = (1, 2, 8, 4)  # by DR7's LEN field


def iopl_ok(v: Vcpu) -> bool:
    """Whether the virtual IOPL lets the present ring do I/O, cli and sti."""
    if guest_kernel_mode(v):
        cpl = 0 if v.domain.vm_assist >> VMASST_TYPE_architectural_iopl & 1 else 1
    else:
        cpl = 3
    return cpl << _IOPL_SHIFT <= v.iopl


def guest_io_okay(v: Vcpu, port: int, size: int) -> bool:
    """Whether IOPL or the guest's own bitmap opens `size` ports from `port` on."""
    if iopl_ok(v):
        return True
    if port + size > v.iobmp_limit:
        return False
    mask = 0
    for i in range(2):
        try:
            byte = v.domain.guest.copy_from(v.iobmp + (port >> 3) + i, 1)[0]
        except GuestError:
            byte = 0xFF
        mask |= byte << (8 * i)
    return not mask & ((1 << size) - 1) << (port & 7)


def guest_io_read(d: Domain, port: int, size: int) -> int:
    """`in`: the value of 1, 2 or 4 bytes."""
    if port == _PCI_CONFIG_ADDRESS and size == 4:
        return d.pci_cf8
    value = (1 << 8 * size) - 1
    if port <= _RTC_PORT_0 < port + size:
        shift = 8 * (_RTC_PORT_0 - port)
        value ^= (d.cmos_idx ^ 0xFF) << shift
    return value


def guest_io_write(d: Domain, port: int, size: int, value: int) -> None:
    """`out` of 1, 2 or 4 bytes."""
    if port == _PCI_CONFIG_ADDRESS and size == 4:
        d.pci_cf8 = value & 0xFFFFFFFF
    elif port <= _RTC_PORT_0 < port + size:
        d.cmos_idx = value >> 8 * (_RTC_PORT_0 - port) & 0xFF


def check_guest_io_breakpoint(v: Vcpu, port: int, size: int) -> int:
    """The I/O breakpoints that an access to `size` ports from `port` on hits, as DR6 bits."""
    emulated = v.debugreg[DR7_EMUL]
    if not emulated or not v.ctrlreg[4] & X86_CR4_DE:
        return 0
    match = 0
    for i in range(4):
        if emulated >> (2 * i) & 3:
            width = _BREAKPOINT_WIDTHS[v.debugreg[7] >> (18 + 4 * i) & 3]
            start = v.debugreg[i] & -width
            if start < port + size and start + width > port:
                match |= 1 << i
    return match
