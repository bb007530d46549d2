"""audit(): recount every reference from nothing and compare with the counts kept along the way.

A clean audit means that the invariants at the head of pv/mm.py hold. It walks all of memory, so it is for
tests and for the end of hostile runs, not for the run itself.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hvcore.page_info import (
    PGT_NAMES,
    PGC_allocated,
    PGC_xen_heap,
    PGT_l4_page_table,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_validated,
    PGT_writable_page,
)
from hvcore.pv.mm import PAGE_PRESENT, PAGE_RW

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.pv.mm import PageTables


class _Recount:
    """Uses and holds of every frame, found by looking at what is there."""

    def __init__(self, mm: PageTables) -> None:
        self.mm = mm
        self.count = array("I", bytes(4 * mm.nr))
        self.tcount = array("I", bytes(4 * mm.nr))
        self.entries = array("I", bytes(4 * mm.nr))  # of a table, that name others of its level
        self.uses = array("I", bytes(4 * mm.nr))  # of a table, by such entries
        self.problems: list[str] = []

    def hold(self, mfn: int, why: str) -> int:
        """One reference to `mfn`; its index, or -1 if there is no such frame."""
        pg = mfn - self.mm.base
        if not 0 <= pg < self.mm.nr:
            self.problems.append(f"{why}: frame {mfn:#x} does not exist")
            return -1
        self.count[pg] += 1
        return pg

    def use(self, mfn: int, ptype: int, why: str) -> None:
        """One reference to `mfn` as `ptype`."""
        pg = self.hold(mfn, why)
        if pg < 0:
            return
        self.tcount[pg] += 1
        if self.mm.ptype[pg] != ptype:
            self.problems.append(
                f"{why}: frame {mfn:#x} is {PGT_NAMES[self.mm.ptype[pg]]}, used as {PGT_NAMES[ptype]}"
            )

    def link(self, mfn: int, ptype: int, target: int, why: str) -> None:
        """An entry of the table `mfn` that names the table `target` of its own level."""
        if target == mfn:
            return
        self.use(target, ptype, why)
        self.entries[mfn - self.mm.base] += 1
        self.uses[target - self.mm.base] += 1


def audit(d: Domain) -> list[str]:
    """What is wrong with the domain's reference counts, a line each; nothing if all is well."""
    mm = d.mm
    seen = _Recount(mm)
    for pg in range(mm.nr):
        _count_frame(seen, pg)
    for v in d.vcpus:
        name = f"vCPU {v.vcpu_id}"
        if v.cr3_mfn:
            seen.use(v.cr3_mfn, mm.root_type, f"{name} CR3")
        if v.user_cr3_mfn:
            seen.use(v.user_cr3_mfn, mm.root_type, f"{name} user CR3")
        for mfn in (*v.gdt_frames, *v.ldt_shadow.values()):
            if mfn:
                seen.use(mfn, PGT_seg_desc_page, f"{name} descriptor table")
        if v.info_mfn is not None:
            seen.use(v.info_mfn, PGT_writable_page, f"{name} vcpu_info")
    for mfn in d.evtchn.held_frames():
        seen.use(mfn, PGT_writable_page, "event channels")
    for mfn, writable in d.grant_table.held_frames():
        if writable:
            seen.use(mfn, PGT_writable_page, "grant mapping")
        else:
            seen.hold(mfn, "grant mapping")
    return seen.problems + _differences(seen)


def _count_frame(seen: _Recount, pg: int) -> None:
    mm = seen.mm
    flags = mm.pflags[pg]
    mfn = pg + mm.base
    if flags & PGC_allocated:
        seen.count[pg] += 1
    if flags & PGC_xen_heap:
        seen.tcount[pg] += 1
    ptype = mm.ptype[pg]
    if flags & PGT_pinned:
        seen.use(mfn, ptype, "pin")
    if mm.tcount[pg] and 0 < ptype <= PGT_l4_page_table:
        if not flags & PGT_validated:
            seen.problems.append(f"frame {mfn:#x} is in use as {PGT_NAMES[ptype]} but not validated")
        _count_table(seen, pg, ptype)


def _count_table(seen: _Recount, pg: int, ptype: int) -> None:
    mm = seen.mm
    mfn = pg + mm.base
    for slot, entry in mm.guest_entries(pg, ptype):
        if not entry & PAGE_PRESENT:
            continue
        target = (entry >> 12) & mm.mfn_mask
        why = f"{PGT_NAMES[ptype]} table {mfn:#x} slot {slot:#x}"
        if ptype > 1:
            if 0 <= target - mm.base < mm.nr and mm.ptype[target - mm.base] == ptype:
                seen.link(mfn, ptype, target, why)
                if entry & PAGE_RW:
                    seen.problems.append(f"{why}: a linear page table with write permission")
            else:
                seen.use(target, ptype - 1, why)
        elif entry & PAGE_RW:
            seen.use(target, PGT_writable_page, why)
        else:
            seen.hold(target, why)


def _differences(seen: _Recount) -> list[str]:
    mm = seen.mm
    out = []
    for pg in range(mm.nr):
        mfn = pg + mm.base
        if mm.count[pg] != seen.count[pg] and mm.owner[pg] == mm.domid:
            out.append(f"frame {mfn:#x}: count {mm.count[pg]}, recounted {seen.count[pg]}")
        if mm.tcount[pg] != seen.tcount[pg] and mm.owner[pg] == mm.domid:
            kind = PGT_NAMES[mm.ptype[pg]]
            out.append(f"frame {mfn:#x} ({kind}): type count {mm.tcount[pg]}, recounted {seen.tcount[pg]}")
        entries, uses = seen.entries[pg], seen.uses[pg]
        if entries and uses:
            out.append(f"frame {mfn:#x}: {entries} linear entries and {uses} linear uses, XSA-240")
        counted = mm.linear_pt_count[pg]
        if 0 < mm.ptype[pg] <= PGT_l4_page_table and mm.tcount[pg] and counted != entries - uses:
            out.append(f"frame {mfn:#x}: linear_pt_count {counted}, recounted {entries - uses}")
        if mm.owner[pg] != mm.domid and seen.count[pg]:
            out.append(f"frame {mfn:#x} is not the guest's but is referenced {seen.count[pg]} times")
    return out
