"""Where Xen enters the guest: set_callbacks, callback_op, set_trap_table.

Source: xen/arch/x86/pv/callback.c, pv/misc-hypercalls.c, fixup_guest_code_selector() in asm/desc.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.errors import HypercallPreempted
from hvcore.public.callback import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
)
from hvcore.public.errno import EFAULT, EINVAL, ENOSYS

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu


_ROW_NS = 100  # what a row of the trap table takes of the vCPU's turn
_TRAP_NMI = 2
_TI_IF = 4
FIRST_RESERVED_GDT_ENTRY = 0xE000 >> 3

# type, flags, then the address: cs and eip words for 32-bit guests, one pointer for 64-bit ones.
_REGISTER = {4: struct.Struct("<HHII"), 8: struct.Struct("<HH4xQ")}
_UNREGISTER = struct.Struct("<HH")
# vector, flags, cs, address
_TRAP_INFO = {4: struct.Struct("<BBHI"), 8: struct.Struct("<BBH4xQ")}


def fixup_guest_selector(v: Vcpu, selector: int) -> int:
    """A selector that Xen loads for the guest: its RPL is not below the guest kernel's ring."""
    if selector & 3 < v.domain.abi.kernel_cpl:
        selector = selector & ~3 | v.domain.abi.kernel_cpl
    return selector & 0xFFFF


def is_canonical(v: Vcpu, address: int) -> bool:
    """is_canonical_address(); every 32-bit address is."""
    return v.domain.abi.is_32bit or (address >> 47) in (0, 0x1FFFF)


_KNOWN = {
    4: {CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_sysenter, CALLBACKTYPE_syscall32},
    8: {
        CALLBACKTYPE_event,
        CALLBACKTYPE_failsafe,
        CALLBACKTYPE_syscall,
        CALLBACKTYPE_sysenter,
        CALLBACKTYPE_syscall32,
    },
}


def _register(v: Vcpu, kind: int, flags: int, cs: int, address: int) -> int:
    if not is_canonical(v, address):
        return -EINVAL
    if kind == CALLBACKTYPE_nmi:
        v.trap_ctxt[_TRAP_NMI] = (_TI_IF, v.domain.abi.flat_kernel_cs, address)
        return 0
    if kind not in _KNOWN[v.domain.abi.word]:
        return -ENOSYS
    v.callbacks[kind] = (cs, address, flags & CALLBACKF_mask_events)
    return 0


def _unregister(v: Vcpu, kind: int) -> int:
    if kind == CALLBACKTYPE_nmi:
        v.trap_ctxt[_TRAP_NMI] = (0, 0, 0)
        return 0
    return -EINVAL if kind in _KNOWN[v.domain.abi.word] else -ENOSYS


def do_callback_op(v: Vcpu, cmd: int, arg: int) -> int:
    """Register or unregister one callback."""
    guest, word = v.domain.guest, v.domain.abi.word
    if cmd == CALLBACKOP_register:
        fields = guest.unpack(_REGISTER[word], arg)
        if word == 4:
            kind, flags, cs, address = fields
            return _register(v, kind, flags, fixup_guest_selector(v, cs & 0xFFFF), address)
        kind, flags, address = fields
        return _register(v, kind, flags, v.domain.abi.flat_kernel_cs, address)
    if cmd == CALLBACKOP_unregister:
        return _unregister(v, guest.unpack(_UNREGISTER, arg)[0])
    return -EINVAL if word == 4 else -ENOSYS


def do_set_callbacks(v: Vcpu, *args: int) -> int:
    """Event and failsafe callbacks (cs and eip each), or event, failsafe and syscall addresses."""
    if v.domain.abi.is_32bit:
        event_cs, event, failsafe_cs, failsafe = args
        _register(v, CALLBACKTYPE_event, 0, fixup_guest_selector(v, event_cs & 0xFFFF), event)
        _register(v, CALLBACKTYPE_failsafe, 0, fixup_guest_selector(v, failsafe_cs & 0xFFFF), failsafe)
        return 0
    for kind, address in zip(
        (CALLBACKTYPE_event, CALLBACKTYPE_failsafe, CALLBACKTYPE_syscall), args, strict=False
    ):
        _register(v, kind, 0, v.domain.abi.flat_kernel_cs, address)
    return 0


def do_set_trap_table(v: Vcpu, traps: int) -> int:
    """Set the handlers that the array at `traps` names, to an address of zero; no array clears all."""
    if not traps:
        v.trap_ctxt.fill([])
        return 0
    layout = _TRAP_INFO[v.domain.abi.word]
    guest = v.domain.guest
    if not guest.okay(traps, layout.size):
        return -EFAULT
    clock = v.domain.clock
    while True:
        vector, flags, cs, address = guest.unpack(layout, traps)
        if not address:
            return 0
        if not is_canonical(v, address):
            return -EINVAL
        v.trap_ctxt[vector] = (flags, fixup_guest_selector(v, cs), address)
        traps += layout.size
        clock.spend(_ROW_NS)
        if clock.turn_is_over():
            raise HypercallPreempted(traps & v.domain.abi.word_mask)
