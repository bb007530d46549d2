"""The registers a new domain starts with: `struct vcpu_guest_context`, in both widths.

Layout: hvcore/public/vcpu_guest_context.py; values: vcpu_x86_32 and vcpu_x86_64 of
tools/libs/guest/xg_dom_x86.c.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from domainbuilder.kernel.parms import XenPaeType
from hvcore.abi import FLAT_RING1_CS, FLAT_RING1_DS, FLAT_RING3_CS64, FLAT_RING3_DS
from hvcore.public.vcpu_guest_context import (
    VCPU_GUEST_CONTEXT,
    VCPU_GUEST_CONTEXT_SIZE,
    VGCF_in_kernel,
    VGCF_online,
)
from hvcore.public.xen import VMASST_TYPE_pae_extended_cr3
from hvcore.x86 import X86_EFLAGS_IF

X86_DR6_DEFAULT = 0xFFFF0FF0
X86_DR7_DEFAULT = 0x00000400


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
    vgcf: int = VGCF_in_kernel | VGCF_online
    vm_assist: int = 0
    kernel_ss: int
    kernel_sp: int

    def pack(self, width: int) -> bytes:
        """The C structure, zero where this says nothing; `width` is the guest's sizeof(long), 4 or 8."""
        context = bytearray(VCPU_GUEST_CONTEXT_SIZE[width])
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


VCPU_CONTEXT_FIELDS: Mapping[int, Mapping[str, tuple[int, str]]] = MappingProxyType(
    {
        width: {name: place for name, place in table.items() if name in VcpuContext.__dataclass_fields__}
        for width, table in VCPU_GUEST_CONTEXT.items()
    }
)  # what VcpuContext says of the structure, in its order; by sizeof(long)


def vcpu_x86_32(*, entry: int, stack: int, start_info: int, pae: XenPaeType) -> VcpuContext:
    """vcpu_x86_32 (xg_dom_x86.c): `stack` is the address just above the boot stack page."""
    extended_cr3 = pae in (XenPaeType.EXTCR3, XenPaeType.BIMODAL)
    return VcpuContext(
        ip=entry,
        sp=stack,
        si=start_info,
        cs=FLAT_RING1_CS,
        ss=FLAT_RING1_DS,
        ds=FLAT_RING1_DS,
        es=FLAT_RING1_DS,
        fs=FLAT_RING1_DS,
        gs=FLAT_RING1_DS,
        vm_assist=1 << VMASST_TYPE_pae_extended_cr3 if extended_cr3 else 0,
        kernel_ss=FLAT_RING1_DS,
        kernel_sp=stack,
    )


def vcpu_x86_64(*, entry: int, stack: int, start_info: int) -> VcpuContext:
    """vcpu_x86_64 (xg_dom_x86.c): `stack` is the address just above the boot stack page."""
    return VcpuContext(
        ip=entry,
        sp=stack,
        si=start_info,
        cs=FLAT_RING3_CS64,
        ss=FLAT_RING3_DS,
        ds=0,
        es=0,
        fs=0,
        gs=0,
        kernel_ss=FLAT_RING3_DS,
        kernel_sp=stack,
    )
