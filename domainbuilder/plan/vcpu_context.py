"""The registers a new domain starts with: `struct vcpu_guest_context`, in both widths.

Layout: xen/include/public/arch-x86/{xen.h,xen-x86_32.h,xen-x86_64.h}; values: vcpu_x86_32 and vcpu_x86_64 of
tools/libs/guest/xg_dom_x86.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from domainbuilder.kernel.parms import XenPaeType
from hvcore.public.xen import VMASST_TYPE_pae_extended_cr3

VGCF_IN_KERNEL = 1 << 2
VGCF_ONLINE = 1 << 5
X86_EFLAGS_IF = 1 << 9
X86_DR6_DEFAULT = 0xFFFF0FF0
X86_DR7_DEFAULT = 0x00000400

FLAT_RING1_CS = 0xE019  # xen-x86_32.h: FLAT_KERNEL_CS of a 32-bit guest
FLAT_RING1_DS = 0xE021
FLAT_RING1_SS = 0xE021
FLAT_RING3_CS64 = 0xE033  # xen-x86_64.h: FLAT_KERNEL_CS of a 64-bit guest
FLAT_RING3_DS64 = 0x0000
FLAT_RING3_SS64 = 0xE02B

# field of VcpuContext -> (byte offset, struct format).
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
    "kernel_ss": (2708, "I"),
    "kernel_sp": (2712, "I"),
    "cr3": (2728, "I"),
    "dr6": (2772, "I"),
    "dr7": (2776, "I"),
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
    "kernel_ss": (4968, "Q"),
    "kernel_sp": (4976, "Q"),
    "cr3": (5008, "Q"),
    "dr6": (5096, "Q"),
    "dr7": (5104, "Q"),
    "vm_assist": (5136, "Q"),
}
_Table = Mapping[str, tuple[int, str]]
VCPU_CONTEXT_FIELDS: Mapping[int, _Table] = MappingProxyType({4: _X86_32, 8: _X86_64})  # by sizeof(long)
VCPU_CONTEXT_SIZE: Mapping[int, int] = MappingProxyType({4: 2800, 8: 5168})


@dataclass(frozen=True, slots=True, kw_only=True)
class VcpuContext:
    """What xc_vcpu_setcontext is given for vcpu 0, without the parts that are zero for every new domain.

    Registers have the names both widths share. `cr3` is the register's value, the machine address of the
    top-level table (for a 32-bit guest in xen_pfn_to_cr3 form); 0 in a plan, which has no machine frames yet.
    """

    ip: int
    sp: int
    si: int
    flags: int = X86_EFLAGS_IF
    ax: int = 0
    bx: int = 0
    cx: int = 0
    dx: int = 0
    di: int = 0
    bp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    cs: int
    ss: int
    ds: int
    es: int
    fs: int
    gs: int
    cr3: int = 0
    dr6: int = X86_DR6_DEFAULT
    dr7: int = X86_DR7_DEFAULT
    vgcf: int = VGCF_IN_KERNEL | VGCF_ONLINE
    vm_assist: int = 0
    kernel_ss: int
    kernel_sp: int

    def pack(self, width: int) -> bytes:
        """The C structure, zero where this says nothing; `width` is the guest's sizeof(long), 4 or 8."""
        context = bytearray(VCPU_CONTEXT_SIZE[width])
        for name, (offset, fmt) in VCPU_CONTEXT_FIELDS[width].items():
            struct.pack_into(f"<{fmt}", context, offset, getattr(self, name))
        return bytes(context)

    @classmethod
    def unpack(cls, data: bytes | memoryview, width: int) -> VcpuContext:
        """Read the C structure; registers a 32-bit guest has not got are 0."""
        values = {
            name: int(struct.unpack_from(f"<{fmt}", data, offset)[0])
            for name, (offset, fmt) in VCPU_CONTEXT_FIELDS[width].items()
        }
        absent = {field.name: 0 for field in fields(cls) if field.name not in values}
        return cls(**values, **absent)


def vcpu_x86_32(*, entry: int, stack: int, start_info: int, pae: XenPaeType) -> VcpuContext:
    """vcpu_x86_32 (xg_dom_x86.c): `stack` is the address just above the boot stack page."""
    extended_cr3 = pae in (XenPaeType.EXTCR3, XenPaeType.BIMODAL)
    return VcpuContext(
        ip=entry,
        sp=stack,
        si=start_info,
        cs=FLAT_RING1_CS,
        ss=FLAT_RING1_SS,
        ds=FLAT_RING1_DS,
        es=FLAT_RING1_DS,
        fs=FLAT_RING1_DS,
        gs=FLAT_RING1_DS,
        vm_assist=1 << VMASST_TYPE_pae_extended_cr3 if extended_cr3 else 0,
        kernel_ss=FLAT_RING1_SS,
        kernel_sp=stack,
    )


def vcpu_x86_64(*, entry: int, stack: int, start_info: int) -> VcpuContext:
    """vcpu_x86_64 (xg_dom_x86.c): `stack` is the address just above the boot stack page."""
    return VcpuContext(
        ip=entry,
        sp=stack,
        si=start_info,
        cs=FLAT_RING3_CS64,
        ss=FLAT_RING3_SS64,
        ds=FLAT_RING3_DS64,
        es=FLAT_RING3_DS64,
        fs=FLAT_RING3_DS64,
        gs=FLAT_RING3_DS64,
        kernel_ss=FLAT_RING3_SS64,
        kernel_sp=stack,
    )


def xen_pfn_to_cr3(mfn: int, width: int) -> int:
    """xen_pfn_to_cr3 (xen-x86_32.h, xen-x86_64.h): cr3 of a top-level table in machine frame `mfn`."""
    if width == 8:
        return mfn << 12
    return (mfn << 12 | mfn >> 20) & 0xFFFFFFFF
