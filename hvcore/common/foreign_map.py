"""Frames of a guest that domain 0 maps by their number: what privcmd has Xen do for a backend there.

A mapping holds its frame, as an entry of domain 0's page tables would: whatever the guest does with it, it
stays the guest's until the last mapping is gone, and one that is mapped writable stays a writable page.
Source: get_page_from_l1e() in xen/arch/x86/mm.c with the guest as `pg_owner`, by do_mmu_update() there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.domain import Domain


def map_foreign(ld: Domain, rd: Domain, mfn: int, *, writable: bool) -> bool:
    """Map a frame of `rd`'s for a backend in `ld`, which has no page tables: whether it can be had."""
    noted = len(rd.trace.pending)
    held = rd.mm.get_page_writable(mfn) if writable else rd.mm.get_page(mfn)
    del rd.trace.pending[noted:]  # a refusal is of no act of the guest's
    if held:
        key = mfn, writable
        ld.foreign_maps[key] = ld.foreign_maps.get(key, 0) + 1
    return held


def unmap_foreign(ld: Domain, rd: Domain, mfn: int, *, writable: bool) -> None:
    """Let go of what map_foreign() mapped; of what is not mapped nothing happens."""
    key = mfn, writable
    left = ld.foreign_maps.pop(key, 0) - 1
    if left < 0:
        return
    if left:
        ld.foreign_maps[key] = left
    if writable:
        rd.mm.put_page_and_type(mfn)
    else:
        rd.mm.put_page(mfn)
