"""Grants in the guest's own page tables: the L1 entries that map and unmap them.

Neither function takes or drops the references of the granted frame: grant_table.py does, and the entry owns
them in between. What an entry held before is given back here. Results are GNTST_*.
Source: xen/arch/x86/pv/grant_table.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.page_info import PGT_l1_page_table
from hvcore.refusal import Reason
from hvcore.x86 import PAGE_ACCESSED, PAGE_DIRTY, PAGE_NX, PAGE_PRESENT, PAGE_RW, PAGE_USER

if TYPE_CHECKING:
    from hvcore.pv.mm import PageTables

GNTMAP_readonly, GNTMAP_application_map, GNTMAP_contains_pte = 1 << 2, 1 << 3, 1 << 4
_GNTMAP_guest_avail0 = 16
GNTST_okay, GNTST_general_error = 0, -1

_AVAIL_SHIFT, _AVAIL_BITS = 9, 7


def _grant_to_pte(mm: PageTables, mfn: int, flags: int) -> int:
    """grant_to_pte_flags(): never executable, accessed and dirty from the start."""
    pte = mfn << 12 | PAGE_PRESENT | PAGE_ACCESSED | PAGE_DIRTY | (PAGE_NX if mm.shift == 9 else 0)
    if flags & GNTMAP_application_map:
        pte |= PAGE_USER
    if not flags & GNTMAP_readonly:
        pte |= PAGE_RW
    return pte | (flags >> _GNTMAP_guest_avail0 & _AVAIL_BITS) << _AVAIL_SHIFT


def _l1_entry(mm: PageTables, addr: int, flags: int) -> int:
    """The index of the L1 entry that `addr` names, by machine address or as a linear address; -1 if none."""
    if flags & GNTMAP_contains_pte:
        if addr & mm.e.itemsize - 1:
            mm.refuse(Reason.GRANT_MISALIGNED, addr)
            return -1
        pg = (addr >> 12) - mm.base
        at = (pg << mm.shift) + ((addr & 4095) >> 12 - mm.shift)
    else:
        if mm.pv32 and addr >> 32:
            return -1
        at = mm.l1_entry_of(mm.xen.domain.current_root(), addr)
        pg = at >> mm.shift
    if at < 0 and not flags & GNTMAP_contains_pte:
        mm.refuse(Reason.GRANT_NO_PTE, addr)
        return -1
    usable = 0 <= pg < mm.nr and mm.owner[pg] == mm.domid and mm.tcount[pg]
    if not usable or mm.ptype[pg] != PGT_l1_page_table:
        mm.refuse(Reason.GRANT_NO_TABLE, pg + mm.base)
        return -1
    return at


def create_grant_host_mapping(mm: PageTables, addr: int, mfn: int, flags: int) -> int:
    """Map the granted frame at `addr`."""
    at = _l1_entry(mm, addr, flags)
    if at < 0:
        return GNTST_general_error
    old = mm.e[at]
    mm.write_entry(at, mm.adjust_guest_l1e(_grant_to_pte(mm, mfn, flags)))
    mm.put_page_from_l1e(old)
    return GNTST_okay


def replace_grant_host_mapping(mm: PageTables, addr: int, mfn: int, new_addr: int, flags: int) -> int:
    """Unmap the granted frame from `addr`; the entry of `new_addr`, if given, moves there."""
    if new_addr and (flags & GNTMAP_contains_pte or (mm.pv32 and new_addr >> 32)):
        return GNTST_general_error
    new = 0
    if new_addr:
        stolen = _l1_entry(mm, new_addr, 0)
        if stolen < 0:
            return GNTST_general_error
        new = mm.e[stolen]
        mm.write_entry(stolen, 0)
    at = _l1_entry(mm, addr, flags)
    wanted = _grant_to_pte(mm, mfn, flags)
    old = mm.e[at] if at >= 0 else 0
    if at < 0 or (old >> 12) & mm.mfn_mask != mfn or (old ^ wanted) & (PAGE_PRESENT | PAGE_RW):
        if at >= 0:
            mm.refuse(Reason.GRANT_OTHER_PTE, old, addr, wanted)
        mm.put_page_from_l1e(new)
        return GNTST_general_error
    mm.write_entry(at, new)
    return GNTST_okay
