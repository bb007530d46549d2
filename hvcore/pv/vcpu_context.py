"""arch_set_info_guest(): start a vCPU from a `struct vcpu_guest_context`.

The boot vCPU's comes from the domain builder, the others' from VCPUOP_initialise; both are the same bytes
and pass the same checks. Source: xen/arch/x86/domain.c; layouts: xen/include/public/arch-x86/xen.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.cpu.engine import DS, ES, FS, GS, RIP, RSP
from hvcore.errors import GuestFault
from hvcore.public.errno import EINVAL
from hvcore.pv.callback import fixup_guest_selector, is_canonical
from hvcore.pv.descriptor_tables import pv_set_gdt
from hvcore.pv.i387 import FXSAVE_SIZE, fpu_fxrstor
from hvcore.pv.misc_hypercalls import set_debugreg
from hvcore.pv.segments import load_cs_ss, load_data

if TYPE_CHECKING:
    from hvcore.abi import Abi
    from hvcore.vcpu import Vcpu

VGCF_i387_valid, VGCF_in_kernel = 1, 4
VGCF_failsafe_disables_events, VGCF_syscall_disables_events = 8, 16
X86_EFLAGS_IF, X86_EFLAGS_IOPL = 0x200, 0x3000
_CR0_TS = 8
_CALLBACK_event, _CALLBACK_failsafe, _CALLBACK_syscall = 0, 1, 2

CONTEXT_SIZE = {4: 2800, 8: 5168}

# Offsets in the structure: field -> (offset, format). General registers follow by the engine's numbers.
_FIELDS: dict[int, dict[str, tuple[int, str]]] = {
    4: {
        "flags": (512, "I"), "eip": (548, "I"), "cs": (552, "H"), "eflags": (556, "I"), "esp": (560, "I"),
        "ss": (564, "H"), "es": (568, "H"), "ds": (572, "H"), "fs": (576, "H"), "gs": (580, "H"),
        "ldt_base": (2632, "I"), "ldt_ents": (2636, "I"), "gdt_ents": (2704, "I"), "kernel_ss": (2708, "I"),
        "kernel_sp": (2712, "I"), "vm_assist": (2796, "I"),
    },
    8: {
        "flags": (512, "Q"), "eip": (648, "Q"), "cs": (656, "H"), "eflags": (664, "Q"), "esp": (672, "Q"),
        "ss": (680, "H"), "es": (688, "H"), "ds": (696, "H"), "fs": (704, "H"), "gs": (712, "H"),
        "ldt_base": (4816, "Q"), "ldt_ents": (4824, "Q"), "gdt_ents": (4960, "Q"), "kernel_ss": (4968, "Q"),
        "kernel_sp": (4976, "Q"), "vm_assist": (5136, "Q"), "fs_base": (5144, "Q"),
        "gs_base_kernel": (5152, "Q"), "gs_base_user": (5160, "Q"),
    },
}  # fmt: skip
# Offsets of the general registers, in the engine's order: AX CX DX BX SP BP SI DI (R8..R15).
_GPRS: dict[int, tuple[int, ...]] = {
    4: (540, 520, 524, 516, 560, 536, 528, 532),
    8: (600, 608, 616, 560, 672, 552, 624, 632, 592, 584, 576, 568, 544, 536, 528, 520),
}
# Offsets of trap_ctxt, gdt_frames, ctrlreg, debugreg and the callbacks.
_ARRAYS = {4: (584, 2640, 2716, 2748, 2780), 8: (720, 4832, 4984, 5048, 5112)}
_TRAP_INFO = {4: struct.Struct("<BBHI"), 8: struct.Struct("<BBHIQ")}


def compat_cr3_to_pfn(cr3: int) -> int:
    """The frame that a 32-bit guest's CR3 value names: its low twelve bits are the frame number's top."""
    return cr3 >> 12 | (cr3 & 0xFFF) << 20


def _words(raw: bytes, abi: Abi, offset: int, count: int) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}{abi.word_format}", raw, offset)


def arch_set_info_guest(v: Vcpu, raw: bytes) -> int:
    """Check the context and make it the vCPU's; 0 or a negative errno. Registers land in `v.saved_state`."""
    d, abi = v.domain, v.domain.abi
    field = {
        name: struct.unpack_from("<" + code, raw, offset)[0]
        for name, (offset, code) in _FIELDS[abi.word].items()
    }
    traps_at, gdt_at, ctrl_at, debug_at, callback_at = _ARRAYS[abi.word]
    traps = list(_TRAP_INFO[abi.word].iter_unpack(raw[traps_at : traps_at + 256 * 2 * abi.word]))
    gdt_frames = _words(raw, abi, gdt_at, 16)
    ctrlreg = _words(raw, abi, ctrl_at, 8)
    callbacks = _words(raw, abi, callback_at, 4 if abi.is_32bit else 3)
    if not _acceptable(v, field, [*callbacks, *(row[-1] for row in traps)]):
        return -EINVAL
    if v.vcpu_id == 0:
        d.vm_assist = field["vm_assist"]
    _take_callbacks(v, field["flags"], callbacks)
    v.trap_ctxt = [(row[1], fixup_guest_selector(v, row[2]), row[-1]) for row in traps]
    v.iopl = field["eflags"] & X86_EFLAGS_IOPL
    v.ldt_ents, v.ldt_base = field["ldt_ents"], field["ldt_base"] if field["ldt_ents"] else 0
    v.kernel_ss, v.kernel_sp = fixup_guest_selector(v, field["kernel_ss"]), field["kernel_sp"]
    v.ctrlreg = list(ctrlreg)
    v.ts_set = bool(ctrlreg[0] & _CR0_TS)
    v.kernel_mode = abi.is_32bit or bool(field["flags"] & VGCF_in_kernel)
    rc = _take_tables(v, gdt_frames, field["gdt_ents"], ctrlreg, field["flags"])
    if rc:
        return rc
    for number, value in enumerate(_words(raw, abi, debug_at, 8)):
        if number not in (4, 5):
            set_debugreg(v, number, value)
    _load_registers(v, field, raw)
    v.is_initialised = True
    return 0


def _acceptable(v: Vcpu, field: dict[str, int], handlers: list[int]) -> bool:
    """Whether addresses are the guest's to have, and the descriptor tables no larger than they can be."""
    addresses = [field[name] for name in ("eip", "esp", "kernel_sp")]
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
    mfn = compat_cr3_to_pfn(ctrlreg[3]) if abi.is_32bit else ctrlreg[3] >> 12
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
    if field["flags"] & VGCF_i387_valid:
        fpu_fxrstor(engine, raw[:FXSAVE_SIZE])
    d.mm.xen.load_descriptor_tables(v)
    for register, offset in enumerate(_GPRS[abi.word]):
        engine.q[register] = int.from_bytes(raw[offset : offset + abi.word], "little")
    engine.q[RIP], engine.q[RSP] = field["eip"], field["esp"]
    engine.write_eflags(field["eflags"] & ~X86_EFLAGS_IOPL & 0x3F7FD7 | X86_EFLAGS_IF)
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
