"""arch_set_info_guest(): start a vCPU from a `struct vcpu_guest_context`.

The boot vCPU's comes from the domain builder, the others' from VCPUOP_initialise; both are the same bytes
and pass the same checks. Source: xen/arch/x86/domain.c; layouts: xen/include/public/arch-x86/xen.h.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.cpu.processor import DS, ES, FS, GS, RIP
from hvcore.errors import GuestFault
from hvcore.public.errno import EINVAL
from hvcore.public.vcpu_guest_context import (
    FXSAVE_SIZE,
    TRAP_INFO,
    VCPU_GUEST_CONTEXT,
    VGCF_failsafe_disables_events,
    VGCF_i387_valid,
    VGCF_in_kernel,
    VGCF_syscall_disables_events,
    xen_cr3_to_pfn,
)
from hvcore.pv.callback import fixup_guest_selector, is_canonical
from hvcore.pv.descriptor_tables import pv_set_gdt
from hvcore.pv.i387 import fpu_fxrstor
from hvcore.pv.misc_hypercalls import set_debugreg
from hvcore.pv.segments import load_cs_ss, load_data
from hvcore.x86 import X86_CR0_TS, X86_EFLAGS_IF, X86_EFLAGS_IOPL

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

_CALLBACK_event, _CALLBACK_failsafe, _CALLBACK_syscall = 0, 1, 2

_ARRAYS = ("trap_ctxt", "gdt_frames", "ctrlreg", "debugreg", "callbacks")
# The general registers in the engine's order.
_GPRS = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di", *(f"r{i}" for i in range(8, 16)))


def arch_set_info_guest(v: Vcpu, raw: bytes) -> int:
    """Check the context and make it the vCPU's; 0 or a negative errno. Registers land in `v.saved_state`."""
    d, abi = v.domain, v.domain.abi
    table = VCPU_GUEST_CONTEXT[abi.word]
    values = {name: struct.unpack_from("<" + code, raw, offset) for name, (offset, code) in table.items()}
    field = {name: value[0] for name, value in values.items() if name not in _ARRAYS}
    traps = list(TRAP_INFO[abi.word].iter_unpack(values["trap_ctxt"][0]))
    gdt_frames, ctrlreg, callbacks = values["gdt_frames"], values["ctrlreg"], values["callbacks"]
    if not _acceptable(v, field, [*callbacks, *(row[-1] for row in traps)]):
        return -EINVAL
    if v.vcpu_id == 0:
        d.vm_assist = field["vm_assist"]
    _take_callbacks(v, field["vgcf"], callbacks)
    v.trap_ctxt.fill([(row[1], fixup_guest_selector(v, row[2]), row[-1]) for row in traps])
    v.iopl = field["flags"] & X86_EFLAGS_IOPL
    v.ldt_ents, v.ldt_base = field["ldt_ents"], field["ldt_base"] if field["ldt_ents"] else 0
    v.kernel_ss, v.kernel_sp = fixup_guest_selector(v, field["kernel_ss"]), field["kernel_sp"]
    v.ctrlreg[:] = array("Q", ctrlreg)
    v.ts_set = bool(ctrlreg[0] & X86_CR0_TS)
    v.kernel_mode = abi.is_32bit or bool(field["vgcf"] & VGCF_in_kernel)
    rc = _take_tables(v, gdt_frames, field["gdt_ents"], ctrlreg, field["vgcf"])
    if rc:
        return rc
    for number, value in enumerate(values["debugreg"]):
        if number not in (4, 5):
            set_debugreg(v, number, value)
    _load_registers(v, field, raw)
    v.is_initialised = True
    return 0


def _acceptable(v: Vcpu, field: dict[str, int], handlers: list[int]) -> bool:
    """Whether addresses are the guest's to have, and the descriptor tables no larger than they can be."""
    addresses = [field[name] for name in ("ip", "sp", "kernel_sp")]
    addresses += [field.get(name, 0) for name in ("fs_base", "gs_base_kernel", "gs_base_user")]
    return (
        all(is_canonical(v, address) for address in addresses + handlers)
        and (v.domain.abi.is_32bit or array_access_ok(v.domain, field["ldt_base"], 1, 1))
        and not field["ldt_base"] & 0xFFF
        and field["ldt_ents"] <= 8192
        and field["gdt_ents"] <= 16 * 512
    )


def _take_callbacks(v: Vcpu, flags: int, words: tuple[int, ...]) -> None:
    masks = (
        (_CALLBACK_event, 0),
        (_CALLBACK_failsafe, int(bool(flags & VGCF_failsafe_disables_events))),
        (_CALLBACK_syscall, int(bool(flags & VGCF_syscall_disables_events))),
    )
    if v.domain.abi.is_32bit:
        for i in range(2):
            cs = fixup_guest_selector(v, words[2 * i] & 0xFFFF)
            v.callbacks[i] = (cs, words[2 * i + 1], masks[i][1])
        return
    for kind, mask in masks:
        v.callbacks[kind] = (v.domain.abi.flat_kernel_cs, words[kind], mask)


def _take_tables(
    v: Vcpu, gdt_frames: tuple[int, ...], gdt_ents: int, ctrlreg: tuple[int, ...], flags: int
) -> int:
    mm, abi = v.domain.mm, v.domain.abi
    rc = pv_set_gdt(v, list(gdt_frames[: -(-gdt_ents // 512)]), gdt_ents)
    if rc:
        return rc
    mfn = xen_cr3_to_pfn(ctrlreg[3], abi.word)
    rc = mm.get_page_and_type(mfn, mm.root_type)
    if rc:
        return rc
    v.cr3_mfn = mfn
    rc = 0 if abi.is_32bit else _take_user_table(v, ctrlreg[1], flags)
    if rc:  # the guest may try again, with another table
        v.cr3_mfn = 0
        mm.put_page_and_type(mfn)
    return rc


def _take_user_table(v: Vcpu, cr3: int, flags: int) -> int:
    mm = v.domain.mm
    if not cr3:
        return 0 if flags & VGCF_in_kernel else -EINVAL
    rc = mm.get_page_and_type(cr3 >> 12, mm.root_type)
    if not rc:
        v.user_cr3_mfn = cr3 >> 12
    return rc


def _load_registers(v: Vcpu, field: dict[str, int], raw: bytes) -> None:
    """Lay the registers out in the engine as they will be when the vCPU first runs, and keep that state.

    The engine is borrowed for it: what it holds of another vCPU is put back.
    """
    d, abi, engine = v.domain, v.domain.abi, v.domain.engine
    before = engine.save_state()
    engine.load_state(d.mm.xen.initial_state)
    engine.init_fpu()
    if field["vgcf"] & VGCF_i387_valid:
        fpu_fxrstor(engine, raw[:FXSAVE_SIZE])
    d.mm.xen.load_descriptor_tables(v)
    for register, name in enumerate(_GPRS):
        engine.q[register] = field.get(name, 0)
    engine.q[RIP] = field["ip"]
    engine.write_eflags(field["flags"] & ~X86_EFLAGS_IOPL & 0x3F7FD7 | X86_EFLAGS_IF)
    try:
        load_cs_ss(v, fixup_guest_selector(v, field["cs"]), fixup_guest_selector(v, field["ss"]))
    except GuestFault:
        # Xen finds out on the way to the guest; the vCPU starts with the flat segments and no code there.
        load_cs_ss(v, abi.flat_kernel_cs, abi.flat_kernel_ss)
    for register, name in ((DS, "ds"), (ES, "es"), (FS, "fs"), (GS, "gs")):
        if not load_data(v, register, field[name]):
            engine.set_segment(register, 0, 0, 0, 0)
    v.fs_base = field.get("fs_base", 0)
    v.gs_base_kernel, v.gs_base_user = field.get("gs_base_kernel", 0), field.get("gs_base_user", 0)
    if not abi.is_32bit:
        engine.set_segment_base(FS, v.fs_base)
        engine.set_segment_base(GS, v.gs_base_kernel if v.kernel_mode else v.gs_base_user)
    v.saved_state = engine.save_state()
    engine.load_state(before)
