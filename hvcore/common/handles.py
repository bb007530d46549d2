"""guest_handle_okay(): the address-range checks that Xen makes before it touches an array of the guest's.

Source: xen/arch/x86/include/asm/guest_access.h, array_access_ok() in asm/x86_64/uaccess.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.domain import Domain

_LOW_HALF = 1 << 47


def guest_handle_okay(d: Domain, va: int, count: int, size: int) -> bool:
    """array_access_ok() where the widths share a handler: to a 64-bit Xen any 32-bit address is good."""
    if not d.abi.is_32bit or d.abi.pt_levels == 2:
        return array_access_ok(d, va, count, size)
    return True


def array_access_ok(d: Domain, va: int, count: int, size: int) -> bool:
    """`count` objects of `size` bytes at `va` lie where a guest's memory may be; says nothing of mappings.

    A 64-bit guest's array need only start outside the non-canonical hole and Xen's own range (what is inside
    faults when touched); a 32-bit guest's has to end below Xen's.
    """
    if count >= d.abi.word_mask // size:
        return False
    if d.abi.is_32bit:
        return va + max(count * size - 1, 0) < d.abi.hypervisor_virt_start
    return va < _LOW_HALF or va >= d.abi.hypervisor_virt_end
