"""`struct vcpu_guest_context` in both widths: xen/include/public/arch-x86/xen.h and the headers it includes.

A register has the name that both widths share: `ip` is eip or rip, `flags` is eflags or rflags. `vgcf` is the
structure's own `flags`; `cr3`, `dr6` and `dr7` stand inside `ctrlreg` and `debugreg`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from types import MappingProxyType

VGCF_i387_valid = 1 << 0
VGCF_in_kernel = 1 << 2
VGCF_failsafe_disables_events = 1 << 3
VGCF_syscall_disables_events = 1 << 4
VGCF_online = 1 << 5
VGCF_in_syscall = 1 << 8

# field -> (byte offset, struct format)
_X86_32 = {
    "vgcf": (512, "I"),
    "bx": (516, "I"),
    "cx": (520, "I"),
    "dx": (524, "I"),
    "si": (528, "I"),
    "di": (532, "I"),
    "bp": (536, "I"),
    "ax": (540, "I"),
    "ip": (548, "I"),
    "cs": (552, "H"),
    "flags": (556, "I"),
    "sp": (560, "I"),
    "ss": (564, "H"),
    "es": (568, "H"),
    "ds": (572, "H"),
    "fs": (576, "H"),
    "gs": (580, "H"),
    "trap_ctxt": (584, "2048s"),
    "ldt_base": (2632, "I"),
    "ldt_ents": (2636, "I"),
    "gdt_frames": (2640, "16I"),
    "gdt_ents": (2704, "I"),
    "kernel_ss": (2708, "I"),
    "kernel_sp": (2712, "I"),
    "ctrlreg": (2716, "8I"),
    "cr3": (2728, "I"),
    "debugreg": (2748, "8I"),
    "dr6": (2772, "I"),
    "dr7": (2776, "I"),
    "callbacks": (2780, "4I"),  # event cs and eip, failsafe cs and eip
    "vm_assist": (2796, "I"),
}
_X86_64 = {
    "vgcf": (512, "Q"),
    "r15": (520, "Q"),
    "r14": (528, "Q"),
    "r13": (536, "Q"),
    "r12": (544, "Q"),
    "bp": (552, "Q"),
    "bx": (560, "Q"),
    "r11": (568, "Q"),
    "r10": (576, "Q"),
    "r9": (584, "Q"),
    "r8": (592, "Q"),
    "ax": (600, "Q"),
    "cx": (608, "Q"),
    "dx": (616, "Q"),
    "si": (624, "Q"),
    "di": (632, "Q"),
    "ip": (648, "Q"),
    "cs": (656, "H"),
    "flags": (664, "Q"),
    "sp": (672, "Q"),
    "ss": (680, "H"),
    "es": (688, "H"),
    "ds": (696, "H"),
    "fs": (704, "H"),
    "gs": (712, "H"),
    "trap_ctxt": (720, "4096s"),
    "ldt_base": (4816, "Q"),
    "ldt_ents": (4824, "Q"),
    "gdt_frames": (4832, "16Q"),
    "gdt_ents": (4960, "Q"),
    "kernel_ss": (4968, "Q"),
    "kernel_sp": (4976, "Q"),
    "ctrlreg": (4984, "8Q"),
    "cr3": (5008, "Q"),
    "debugreg": (5048, "8Q"),
    "dr6": (5096, "Q"),
    "dr7": (5104, "Q"),
    "callbacks": (5112, "3Q"),  # event, failsafe and syscall rip
    "vm_assist": (5136, "Q"),
    "fs_base": (5144, "Q"),
    "gs_base_kernel": (5152, "Q"),
    "gs_base_user": (5160, "Q"),
}
_Table = Mapping[str, tuple[int, str]]
VCPU_GUEST_CONTEXT: Mapping[int, _Table] = MappingProxyType({4: _X86_32, 8: _X86_64})  # by sizeof(long)
VCPU_GUEST_CONTEXT_SIZE: Mapping[int, int] = MappingProxyType({4: 2800, 8: 5168})
TRAP_INFO: Mapping[int, struct.Struct] = MappingProxyType(
    {4: struct.Struct("<BBHI"), 8: struct.Struct("<BBHIQ")}
)  # vector; flags; cs; (padding;) address
FXSAVE_SIZE = 512  # fpu_ctxt, at the structure's beginning


def xen_pfn_to_cr3(pfn: int, width: int) -> int:
    """The value of CR3 for a top-level table in machine frame `pfn`."""
    return pfn << 12 if width == 8 else (pfn << 12 | pfn >> 20) & 0xFFFFFFFF


def xen_cr3_to_pfn(cr3: int, width: int) -> int:
    """The frame that a value of CR3 names; a 32-bit guest's low twelve bits are the frame number's top."""
    return cr3 >> 12 if width == 8 else cr3 >> 12 | (cr3 & 0xFFF) << 20
