"""The hypercall table: number -> handler and argument count, for each guest width. Nothing registers itself.

A handler is `do_x(v, a1, ...) -> int` on unsigned arguments of the guest's word; it returns the result or a
negated errno, or raises GuestError. Where the widths pass a 64-bit value differently, the 32-bit column has
an adapter that puts the halves together, so that handlers are written once.
Source: xen/include/hypercall-defs.c, xen/arch/x86/pv/hypercall.c of Xen 4.17.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.common.console import do_console_io
from hvcore.common.domctl import do_domctl, do_paging_domctl_cont
from hvcore.common.event_channel import do_event_channel_op, do_event_channel_op_compat
from hvcore.common.grant_table import do_grant_table_op
from hvcore.common.kernel import do_nmi_op, do_vm_assist, do_xen_version
from hvcore.common.memory import do_memory_op
from hvcore.common.multicall import do_multicall
from hvcore.common.physdev import do_physdev_op, do_physdev_op_compat
from hvcore.common.refused import (
    do_argo_op,
    do_dm_op,
    do_hvm_op,
    do_hypfs_op,
    do_kexec_op,
    do_mca,
    do_platform_op,
    do_sysctl,
    do_xenoprof_op,
    do_xenpmu_op,
    do_xsm_op,
)
from hvcore.common.schedule import do_sched_op, do_sched_op_compat, do_set_timer_op
from hvcore.common.vcpu_op import do_vcpu_op
from hvcore.cpu.processor import RAX, RBP, RBX, RCX, RDI, RDX, RIP, RSI
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.public.errno import ENOSYS
from hvcore.public.xen import NR_HYPERCALLS, Hypercall
from hvcore.pv.callback import do_callback_op, do_set_callbacks, do_set_trap_table
from hvcore.pv.descriptor_tables import do_set_gdt, do_update_descriptor
from hvcore.pv.misc_hypercalls import (
    do_fpu_taskswitch,
    do_get_debugreg,
    do_set_debugreg,
    do_set_segment_base,
    do_stack_switch,
)
from hvcore.pv.mmu_update import do_mmu_update, do_update_va_mapping, do_update_va_mapping_otherdomain
from hvcore.pv.mmuext_op import do_mmuext_op
from hvcore.x86 import M32, M64

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.pv.frames import Frames
    from hvcore.vcpu import Vcpu

Handler = Callable[..., int]


def _va_mapping32(v: Vcpu, va: int, lo: int, hi: int, flags: int) -> int:
    return do_update_va_mapping(v, va, lo | hi << 32, flags)


def _va_mapping_other32(v: Vcpu, va: int, lo: int, hi: int, flags: int, domid: int) -> int:
    return do_update_va_mapping_otherdomain(v, va, lo | hi << 32, flags, domid)


def _set_timer32(v: Vcpu, lo: int, hi: int) -> int:
    return do_set_timer_op(v, lo | hi << 32)


def _update_descriptor32(v: Vcpu, pa_lo: int, pa_hi: int, lo: int, hi: int) -> int:
    return do_update_descriptor(v, pa_lo | pa_hi << 32, lo | hi << 32)


_H = Hypercall

# number: (handler, arguments) of 64-bit guests; 32-bit ones differ in _PV32.
_PV64: dict[int, tuple[Handler, int]] = {
    _H.set_trap_table: (do_set_trap_table, 1),
    _H.mmu_update: (do_mmu_update, 4),
    _H.set_gdt: (do_set_gdt, 2),
    _H.stack_switch: (do_stack_switch, 2),
    _H.set_callbacks: (do_set_callbacks, 3),
    _H.fpu_taskswitch: (do_fpu_taskswitch, 1),
    _H.sched_op_compat: (do_sched_op_compat, 2),
    _H.platform_op: (do_platform_op, 1),
    _H.set_debugreg: (do_set_debugreg, 2),
    _H.get_debugreg: (do_get_debugreg, 1),
    _H.update_descriptor: (do_update_descriptor, 2),
    _H.memory_op: (do_memory_op, 2),
    _H.update_va_mapping: (do_update_va_mapping, 3),
    _H.set_timer_op: (do_set_timer_op, 1),
    _H.event_channel_op_compat: (do_event_channel_op_compat, 1),
    _H.xen_version: (do_xen_version, 2),
    _H.console_io: (do_console_io, 3),
    _H.physdev_op_compat: (do_physdev_op_compat, 1),
    _H.grant_table_op: (do_grant_table_op, 3),
    _H.vm_assist: (do_vm_assist, 2),
    _H.update_va_mapping_otherdomain: (do_update_va_mapping_otherdomain, 4),
    _H.vcpu_op: (do_vcpu_op, 3),
    _H.set_segment_base: (do_set_segment_base, 2),
    _H.mmuext_op: (do_mmuext_op, 4),
    _H.xsm_op: (do_xsm_op, 1),
    _H.nmi_op: (do_nmi_op, 2),
    _H.sched_op: (do_sched_op, 2),
    _H.callback_op: (do_callback_op, 2),
    _H.xenoprof_op: (do_xenoprof_op, 2),
    _H.event_channel_op: (do_event_channel_op, 2),
    _H.physdev_op: (do_physdev_op, 2),
    _H.hvm_op: (do_hvm_op, 2),
    _H.sysctl: (do_sysctl, 1),
    _H.domctl: (do_domctl, 1),
    _H.kexec_op: (do_kexec_op, 2),
    _H.argo_op: (do_argo_op, 5),
    _H.xenpmu_op: (do_xenpmu_op, 2),
    _H.dm_op: (do_dm_op, 3),
    _H.hypfs_op: (do_hypfs_op, 5),
    _H.mca: (do_mca, 1),
    _H.paging_domctl_cont: (do_paging_domctl_cont, 1),
}

_PV32: dict[int, tuple[Handler, int]] = _PV64 | {
    _H.set_callbacks: (do_set_callbacks, 4),
    _H.update_descriptor: (_update_descriptor32, 4),
    _H.update_va_mapping: (_va_mapping32, 4),
    _H.set_timer_op: (_set_timer32, 2),
    _H.update_va_mapping_otherdomain: (_va_mapping_other32, 5),
}

_ARGUMENTS32 = (RBX, RCX, RDX, RSI, RDI, RBP)
_REGISTERS32 = struct.Struct("<I4xI4xI4xI4x8xI4xI4xI")  # EAX ECX EDX EBX (ESP) EBP ESI EDI of the window
_ARGUMENTS64 = (RDI, RSI, RDX, 10, 8, 9)
_REGISTERS64 = struct.Struct("<Q8xQ24x5Q")  # RAX (RCX) RDX (RBX RSP RBP) RSI RDI R8 R9 R10


class HypercallTable:
    """Dispatch for one domain: from the engine's registers, and from multicall entries."""

    def __init__(self, domain: Domain, frames: Frames) -> None:
        self.d = domain
        self.frames = frames
        rows = _PV32 if domain.abi.is_32bit else _PV64
        self.handlers: list[Handler | None] = [None] * NR_HYPERCALLS
        self.arity = [0] * NR_HYPERCALLS
        self._window = domain.engine.registers
        self._q = domain.engine.q
        self._counts = domain.trace.hypercalls
        self._trace = domain.trace
        self._pending = domain.trace.pending
        self.registers = _ARGUMENTS32 if domain.abi.is_32bit else _ARGUMENTS64
        for number, (handler, count) in rows.items():
            self.handlers[number] = handler
            self.arity[number] = count
        self.handlers[_H.multicall] = self._multicall
        self.arity[_H.multicall] = 2

    def _multicall(self, v: Vcpu, call_list: int, nr_calls: int) -> int:
        words = self.d.engine.words
        done, words.multicall_done = words.multicall_done, 0  # which the compiled core has made already
        return do_multicall(v, call_list, nr_calls, self.dispatch, self._continue_multicall, done)

    def _continue_multicall(self, call_list: int, nr_calls: int) -> int:
        self._continue((call_list, nr_calls))
        return int(_H.multicall)

    def _continue(self, arguments: tuple[int, ...]) -> None:
        """hypercall_create_continuation(): let the guest make the call again, with what is left of it."""
        q = self.d.engine.q
        self.d.engine.advance(-2)
        for register, value in zip(self.registers, arguments, strict=False):
            q[register] = value
        self.d.reschedule()

    def dispatch(self, v: Vcpu, number: int, args: tuple[int, ...]) -> int:
        """Call by number with explicit arguments (a multicall entry). Never raises GuestError."""
        handler = self.handlers[number] if number < NR_HYPERCALLS else None
        if handler is None:
            if number == _H.iret:
                self.frames.do_iret(v)
                return self.d.engine.q[RAX]
            self.d.trace.unknown_hypercall(number)
            return -ENOSYS
        self._counts[number] += 1
        try:
            return handler(v, *args[: self.arity[number]])
        except GuestError as error:
            return -error.errno

    def entry32(self) -> None:
        """`int 0x82` from ring 1: number in EAX, arguments in EBX ECX EDX ESI EDI EBP, result in EAX."""
        number, ecx, edx, ebx, ebp, esi, edi = _REGISTERS32.unpack_from(self._window)
        self._enter(number, (ebx, ecx, edx, esi, edi, ebp), M32)

    def entry64(self) -> None:
        """`syscall` from the 64-bit kernel: number in RAX, arguments in RDI RSI RDX R10 R8 R9, result RAX."""
        number, rdx, rsi, rdi, r8, r9, r10 = _REGISTERS64.unpack_from(self._window)
        q = self._q
        q[RIP] = q[RIP] + 2 & M64
        self._enter(number, (rdi, rsi, rdx, r10, r8, r9), M64)

    def _enter(self, number: int, registers: tuple[int, ...], mask: int) -> None:
        d = self.d
        v = d.vcpus[d.current_id]
        handler = self.handlers[number] if number < NR_HYPERCALLS else None
        if handler is None:
            if number == _H.iret:
                self._counts[number] += 1
                self.frames.do_iret(v)
                return
            args: tuple[int, ...] = ()
            result = self.dispatch(v, number, args)
        else:
            args = registers[: self.arity[number]]
            self._counts[number] += 1
            try:
                result = handler(v, *args)
            except GuestError as error:
                result = -error.errno
            except HypercallPreempted as rest:
                self._continue(rest.arguments)
                return
        self._trace.note(number, args, result)
        if self._pending:
            d.trace.close_call()
        self._q[RAX] = result & mask


def init_hypercall_page(page: memoryview, *, ring1: bool) -> None:
    """Fill the guest's hypercall page: 128 stubs of 32 bytes, iret being one that is jumped to."""
    page[:] = b"\xcc" * len(page)
    for number in range(len(page) // 32):
        nr = number.to_bytes(4, "little")
        iret = number == _H.iret
        if ring1:
            stub = b"\x50\xb8" + nr + b"\xcd\x82" if iret else b"\xb8" + nr + b"\xcd\x82\xc3"
        elif iret:
            stub = b"\x51\x41\x53\x50\xb8" + nr + b"\x0f\x05"
        else:
            stub = b"\x51\x41\x53\xb8" + nr + b"\x0f\x05\x41\x5b\x59\xc3"
        page[32 * number : 32 * number + len(stub)] = stub
