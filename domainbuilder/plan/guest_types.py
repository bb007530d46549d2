"""The kinds of PV guest: `struct xc_dom_arch` of tools/libs/guest/xg_dom_x86.c, as a table."""

from __future__ import annotations

from typing import NamedTuple

from domainbuilder.errors import LayoutError
from domainbuilder.plan.pgtables import FOUR_LEVEL, PAE, TWO_LEVEL, Paging
from hvcore.abi import PV32_2LEVEL, PV32_PAE, PV64, Abi
from hvcore.public.xen import MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE


class GuestType(NamedTuple):
    """One kind of guest: what its ABI is, and what the builder has to know beside that."""

    abi: Abi
    paging: Paging
    pin_cmd: int  # MMUEXT_PIN_Ln_TABLE of the top-level table (bootlate_pv)
    p2m_base_supported: bool = False
    in_xen_4_17: bool = True

    @property
    def name(self) -> str:
        """As libxenguest names it: "xen-3.0-x86_32p"."""
        return self.abi.name

    @property
    def width(self) -> int:
        """`sizeof_pfn`: bytes in a frame number, and in the guest's `long`."""
        return self.abi.word

    @property
    def hypervisor_virt(self) -> range:
        """Addresses that Xen keeps for itself, xen/include/public/arch-x86/xen-x86_*.h."""
        return range(self.abi.hypervisor_virt_start, self.abi.hypervisor_virt_end)


GUEST_TYPES = {
    guest.name: guest
    for guest in (
        GuestType(PV32_2LEVEL, TWO_LEVEL, MMUEXT_PIN_L2_TABLE, in_xen_4_17=False),
        GuestType(PV32_PAE, PAE, MMUEXT_PIN_L3_TABLE),
        GuestType(PV64, FOUR_LEVEL, MMUEXT_PIN_L4_TABLE, p2m_base_supported=True),
    )
}


def guest_type(name: str) -> GuestType:
    """xc_dom_set_arch_hooks: the guest type of that name; LayoutError when there is none."""
    try:
        return GUEST_TYPES[name]
    except KeyError:
        known = ", ".join(GUEST_TYPES)
        raise LayoutError(f"xc_dom_set_arch_hooks: not found (type {name})", expected=known) from None
