"""audit(): recount every reference from nothing and compare with the counts kept along the way.

A clean audit means that the invariants at the head of pv/mm.py hold. It walks all of memory, so it is for
tests and for the end of hostile runs, not for the run itself.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hvcore.page_info import (
    NO_OWNER,
    PGT_NAMES,
    PGC_allocated,
    PGC_xen_heap,
    PGT_l4_page_table,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_validated,
    PGT_writable_page,
)
from hvcore.x86 import PAGE_PRESENT, PAGE_RW

if TYPE_CHECKING:
    from hvcore.domain import Domain
    from hvcore.page_info import FrameTable
    from hvcore.pv.mm import PageTables
    from hvcore.vcpu import Vcpu


class _Recount:
    """Uses and holds of every frame, found by looking at what is there."""

    def __init__(self, frames: FrameTable) -> None:
        self.frames = frames
        self.count = array("I", bytes(4 * frames.nr))
        self.tcount = array("I", bytes(4 * frames.nr))
        self.entries = array("I", bytes(4 * frames.nr))  # of a table, that name others of its level
        self.uses = array("I", bytes(4 * frames.nr))  # of a table, by such entries
        self.problems: list[str] = []

    def hold(self, mfn: int, why: str) -> int:
        """One reference to `mfn`; its index, or -1 if there is no such frame."""
        pg = mfn - self.frames.base_mfn
        if not 0 <= pg < self.frames.nr:
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
        is_type = self.frames.ptype[pg]
        if is_type != ptype:
            self.problems.append(f"{why}: frame {mfn:#x} is {PGT_NAMES[is_type]}, used as {PGT_NAMES[ptype]}")

    def map(self, mfn: int, why: str, *, writable: bool) -> None:
        """One mapping of `mfn` by another domain."""
        if writable:
            self.use(mfn, PGT_writable_page, why)
        else:
            self.hold(mfn, why)

    def link(self, mfn: int, ptype: int, target: int, why: str) -> None:
        """An entry of the table `mfn` that names the table `target` of its own level."""
        if target == mfn:
            return
        self.use(target, ptype, why)
        self.entries[mfn - self.frames.base_mfn] += 1
        self.uses[target - self.frames.base_mfn] += 1


def audit(d: Domain) -> list[str]:
    """What is wrong with the reference counts on the machine of `d`, a line each; nothing if all is well."""
    seen = _Recount(d.frames)
    domains = d.domain_list.values()
    tables = {e.domain_id: e.mm for e in domains if e.vcpus and e.nr_pages}
    for pg in range(d.frames.nr):
        _count_frame(seen, pg, tables.get(d.frames.owner[pg]))
    for e in domains:
        for v in e.vcpus:
            _count_vcpu(seen, v, f"domain {e.domain_id} vCPU {v.vcpu_id}")
        for mfn in e.evtchn.held_frames():
            seen.use(mfn, PGT_writable_page, "event channels")
        for mfn, writable in e.grant_table.held_frames():
            seen.map(mfn, "grant mapping", writable=writable)
        for (mfn, writable), times in e.foreign_maps.items():
            for _ in range(times):
                seen.map(mfn, "foreign mapping", writable=writable)
    return seen.problems + _differences(seen)


def _count_vcpu(seen: _Recount, v: Vcpu, name: str) -> None:
    root_type = v.domain.abi.pt_levels
    if v.cr3_mfn:
        seen.use(v.cr3_mfn, root_type, f"{name} CR3")
    if v.user_cr3_mfn:
        seen.use(v.user_cr3_mfn, root_type, f"{name} user CR3")
    for mfn in (*v.gdt_frames, *v.ldt_shadow.values()):
        if mfn:
            seen.use(mfn, PGT_seg_desc_page, f"{name} descriptor table")
    if v.info_mfn is not None:
        seen.use(v.info_mfn, PGT_writable_page, f"{name} vcpu_info")


def _count_frame(seen: _Recount, pg: int, mm: PageTables | None) -> None:
    """What a frame holds; `mm`, its owner's, knows the layout of tables."""
    frames = seen.frames
    flags, ptype = frames.flags[pg], frames.ptype[pg]
    mfn = pg + frames.base_mfn
    if flags & PGC_allocated:
        seen.count[pg] += 1
    if flags & PGC_xen_heap:
        seen.tcount[pg] += 1
    if flags & PGT_pinned:
        seen.use(mfn, ptype, "pin")
    if mm is not None and frames.tcount[pg] and 0 < ptype <= PGT_l4_page_table:
        if not flags & PGT_validated:
            seen.problems.append(f"frame {mfn:#x} is in use as {PGT_NAMES[ptype]} but not validated")
        _count_table(seen, pg, ptype, mm)


def _count_table(seen: _Recount, pg: int, ptype: int, mm: PageTables) -> None:
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
    frames = seen.frames
    out = []
    for pg in range(frames.nr):
        mfn, ptype = pg + frames.base_mfn, frames.ptype[pg]
        if frames.owner[pg] == NO_OWNER:
            if seen.count[pg]:
                out.append(f"frame {mfn:#x} is nobody's but is referenced {seen.count[pg]} times")
            continue
        if frames.count[pg] != seen.count[pg]:
            out.append(f"frame {mfn:#x}: count {frames.count[pg]}, recounted {seen.count[pg]}")
        if frames.tcount[pg] != seen.tcount[pg]:
            kind = PGT_NAMES[ptype]
            out.append(
                f"frame {mfn:#x} ({kind}): type count {frames.tcount[pg]}, recounted {seen.tcount[pg]}"
            )
        out += _linear_differences(seen, pg)
    return out


def _linear_differences(seen: _Recount, pg: int) -> list[str]:
    frames = seen.frames
    mfn, entries, uses = pg + frames.base_mfn, seen.entries[pg], seen.uses[pg]
    out = []
    if entries and uses:
        out.append(f"frame {mfn:#x}: {entries} linear entries and {uses} linear uses, XSA-240")
    counted = frames.linear_pt_count[pg]
    if 0 < frames.ptype[pg] <= PGT_l4_page_table and frames.tcount[pg] and counted != entries - uses:
        out.append(f"frame {mfn:#x}: linear_pt_count {counted}, recounted {entries - uses}")
    return out
