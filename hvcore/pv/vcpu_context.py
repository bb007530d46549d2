"""A vCPU from a `struct vcpu_guest_context`, and back: arch_set_info_guest(), arch_get_info_guest().

The boot vCPU's comes from the domain builder, the others' from VCPUOP_initialise; both are the same bytes
and pass the same checks. Source: xen/arch/x86/domain.c; layouts: xen/include/public/arch-x86/xen.h.
"""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.cpu.processor import CS, DS, ES, FS, GS, RIP, SS, SavedState
from hvcore.errors import GuestFault
from hvcore.public.callback import CALLBACKTYPE_syscall32, CALLBACKTYPE_sysenter
from hvcore.public.errno import EINVAL
from hvcore.public.vcpu_guest_context import (
    FXSAVE_SIZE,
    TRAP_INFO,
    VCPU_GUEST_CONTEXT,
    VCPU_GUEST_CONTEXT_SIZE,
    VGCF_failsafe_disables_events,
    VGCF_i387_valid,
    VGCF_in_kernel,
    VGCF_online,
    VGCF_syscall_disables_events,
    xen_cr3_to_pfn,
    xen_pfn_to_cr3,
)
from hvcore.pv.callback import fixup_guest_selector, is_canonical
from hvcore.pv.descriptor_tables import pv_set_gdt
from hvcore.pv.i387 import fpu_fxrstor
from hvcore.pv.misc_hypercalls import DR7_EMUL, set_debugreg
from hvcore.pv.segments import load_cs_ss, load_data
from hvcore.vcpu import VPF_down
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


def arch_get_info_guest(v: Vcpu, state: bytes) -> bytes:
    """The `struct vcpu_guest_context` of a vCPU whose processor state is `state`; see arch_set_info_guest().

    Source: arch_get_info_guest() in xen/arch/x86/domctl.c.
    """
    d, abi, saved = v.domain, v.domain.abi, SavedState(state)
    table = VCPU_GUEST_CONTEXT[abi.word]
    raw = bytearray(VCPU_GUEST_CONTEXT_SIZE[abi.word])
    raw[:FXSAVE_SIZE] = saved.fxsave()
    cr1 = xen_pfn_to_cr3(v.user_cr3_mfn, 8) if v.user_cr3_mfn else 0
    ctrlreg = v.ctrlreg.tolist()
    ctrlreg[3] = xen_pfn_to_cr3(v.cr3_mfn, abi.word)
    if not abi.is_32bit:
        ctrlreg[1] = cr1
    gs_here, kernel = saved.segment_base(GS), v.kernel_mode
    debugreg = [*v.debugreg[:4], 0, 0, v.debugreg[6], v.debugreg[7] | v.debugreg[DR7_EMUL]]
    frames = [*v.gdt_frames, *(0,) * (16 - len(v.gdt_frames))]
    fields: dict[str, int | list[int] | bytes] = {
        "vgcf": _vgcf(v, saved),
        **{name: saved.q[register] for register, name in enumerate(_GPRS) if name in table},
        "ip": saved.q[RIP], "flags": saved.eflags & ~X86_EFLAGS_IOPL | v.iopl,
        "cs": saved.selector(CS), "ss": saved.selector(SS), "ds": saved.selector(DS),
        "es": saved.selector(ES), "fs": saved.selector(FS), "gs": saved.selector(GS),
        "trap_ctxt": _trap_ctxt(v),
        "ldt_base": v.ldt_base if v.ldt_ents else 0, "ldt_ents": v.ldt_ents,
        "gdt_frames": frames, "gdt_ents": v.gdt_ents,
        "kernel_ss": v.kernel_ss, "kernel_sp": v.kernel_sp,
        "ctrlreg": ctrlreg, "debugreg": debugreg, "callbacks": _callback_words(v), "vm_assist": d.vm_assist,
        "fs_base": saved.segment_base(FS),
        "gs_base_kernel": gs_here if kernel else v.gs_base_kernel,
        "gs_base_user": v.gs_base_user if kernel else gs_here,
    }  # fmt: skip
    for name, value in fields.items():
        if name in table:
            offset, code = table[name]
            mask = (1 << 8 * struct.calcsize(code.lstrip("0123456789"))) - 1
            items = [value] if isinstance(value, bytes) else value if isinstance(value, list) else [value]
            words = [item & mask if isinstance(item, int) else item for item in items]
            struct.pack_into("<" + code, raw, offset, *words)
    return bytes(raw)


def _vgcf(v: Vcpu, saved: SavedState) -> int:
    callbacks = v.callbacks
    kernel = saved.selector(CS) & 3 != 3 if v.domain.abi.is_32bit else v.kernel_mode
    none = (0, 0, 0)
    return sum(
        flag
        for flag, holds in (
            (VGCF_i387_valid, True),
            (VGCF_in_kernel, kernel),
            (VGCF_failsafe_disables_events, callbacks.get(_CALLBACK_failsafe, none)[2]),
            (VGCF_syscall_disables_events, callbacks.get(_CALLBACK_syscall, none)[2]),
            (VGCF_online, not v.pause_flags & VPF_down),
        )
        if holds
    )


def _callback_words(v: Vcpu) -> list[int]:
    none = (0, 0, 0)
    if v.domain.abi.is_32bit:
        pairs = (v.callbacks.get(kind, none)[:2] for kind in (_CALLBACK_event, _CALLBACK_failsafe))
        return [word for pair in pairs for word in pair]
    return [
        v.callbacks.get(kind, none)[1] for kind in (_CALLBACK_event, _CALLBACK_failsafe, _CALLBACK_syscall)
    ]


def _trap_ctxt(v: Vcpu) -> bytes:
    layout, pad = TRAP_INFO[v.domain.abi.word], () if v.domain.abi.is_32bit else (0,)
    return b"".join(
        layout.pack(vector if address else 0, flags, cs, *pad, address)
        for vector, (flags, cs, address) in enumerate(v.trap_ctxt)
    )


def set_ext_vcpucontext(
    v: Vcpu, syscall32_eip: int, sysenter_eip: int, syscall32_cs: int, sysenter_cs: int, *masks: int
) -> int:
    """XEN_DOMCTL_set_ext_vcpucontext: where 32-bit `syscall` and `sysenter` enter the guest; 0 or -errno.

    `masks` say whether they mask events, in that order.
    """
    if not is_canonical(v, syscall32_eip) or not is_canonical(v, sysenter_eip):
        return -EINVAL
    entries = (
        (CALLBACKTYPE_syscall32, syscall32_cs, syscall32_eip),
        (CALLBACKTYPE_sysenter, sysenter_cs, sysenter_eip),
    )
    for (kind, cs, address), mask in zip(entries, masks, strict=True):
        if address:
            v.callbacks[kind] = (fixup_guest_selector(v, cs), address, int(bool(mask)))
    return 0


def get_ext_vcpucontext(v: Vcpu) -> tuple[int, int, int, int, int, int]:
    """XEN_DOMCTL_get_ext_vcpucontext: what set_ext_vcpucontext() takes."""
    none = (0, 0, 0)
    cs32, eip32, mask32 = v.callbacks.get(CALLBACKTYPE_syscall32, none)
    cs, eip, mask = v.callbacks.get(CALLBACKTYPE_sysenter, none)
    return eip32, eip, cs32, cs, mask32, mask
