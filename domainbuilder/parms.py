"""What a kernel asks of Xen, decoded: `struct elf_dom_parms` of Xen's libelf, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

UNSET_ADDR = (1 << 64) - 1  # UNSET_ADDR, xen/include/xen/libelf.h
UNSET_ADDR32 = (1 << 32) - 1  # UNSET_ADDR32


class XenPaeType(IntEnum):
    """enum xen_pae_type, xen/include/xen/libelf.h."""

    NO = 0
    YES = 1
    EXTCR3 = 2
    BIMODAL = 3


@dataclass(frozen=True, slots=True)
class ElfDomParms:
    """`struct elf_dom_parms`, xen/include/xen/libelf.h; addresses are bytes, UNSET_ADDR where not given."""

    guest_type: str  # "xen-3.0-x86_32p", "xen-3.0-x86_32" (two-level), "xen-3.0-x86_64"
    guest_os: str
    guest_ver: str
    xen_ver: str
    loader: str
    pae: XenPaeType
    bsd_symtab: bool
    unmapped_initrd: bool
    f_supported: int
    f_required: int
    virt_base: int
    virt_entry: int
    virt_hypercall: int
    virt_hv_start_low: int
    p2m_base: int
    elf_paddr_offset: int
    phys_entry: int
    virt_offset: int
    virt_kstart: int
    virt_kend: int
