"""The kinds of PV guest: `struct xc_dom_arch` of tools/libs/guest/xg_dom_x86.c, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from domainbuilder.errors import LayoutError
from domainbuilder.plan.pgtables import FOUR_LEVEL, PAE, TWO_LEVEL, Paging
from hvcore.public.xen import MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE


@dataclass(frozen=True, slots=True)
class GuestType:
    """One kind of guest. `width` is `sizeof_pfn`: bytes in a frame number, and in the guest's `long`."""

    name: str
    width: int
    paging: Paging
    pin_cmd: int  # MMUEXT_PIN_Ln_TABLE of the top-level table (bootlate_pv)
    hypervisor_virt: range  # addresses Xen keeps for itself, xen/include/public/arch-x86/xen-x86_*.h
    p2m_base_supported: bool = False
    in_xen_4_17: bool = True


GUEST_TYPES = {
    guest.name: guest
    for guest in (
        GuestType(
            "xen-3.0-x86_32", 4, TWO_LEVEL, MMUEXT_PIN_L2_TABLE, range(0xFC000000, 1 << 32), in_xen_4_17=False
        ),
        GuestType("xen-3.0-x86_32p", 4, PAE, MMUEXT_PIN_L3_TABLE, range(0xF5800000, 1 << 32)),
        GuestType(
            "xen-3.0-x86_64",
            8,
            FOUR_LEVEL,
            MMUEXT_PIN_L4_TABLE,
            range(0xFFFF800000000000, 0xFFFF880000000000),
            p2m_base_supported=True,
        ),
    )
}


def guest_type(name: str) -> GuestType:
    """xc_dom_set_arch_hooks: the guest type of that name; LayoutError when there is none."""
    try:
        return GUEST_TYPES[name]
    except KeyError:
        known = ", ".join(GUEST_TYPES)
        raise LayoutError(f"xc_dom_set_arch_hooks: not found (type {name})", expected=known) from None
