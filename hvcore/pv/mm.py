"""Page tables that the guest owns and only Xen may change: types, counts, validation.

A PV guest's page tables are used by the processor as they are. Xen keeps them harmless with reference counts
on every frame (hvcore/page_info.py). These are the invariants; `audit()` recounts all of them from nothing.

1. A frame has one type at a time: L1, L2, L3 or L4 table, segment descriptor page, writable, or none. It may
   change only while its type count is zero.
2. A type count says how often the frame is used as that type: each writable mapping is a use as `writable`,
   each entry of a validated table that points to another table is a use as that table, and so are a pin, a
   base pointer (CR3) and a place in a vCPU's GDT or LDT. An entry that points to its own table is none.
3. The general count says how often the frame is held at all: every use in 2 also holds it, every read-only
   mapping does, and so does the allocation itself (PGC_allocated).
4. A table is validated when its first use begins: each present entry takes its references, and an entry that
   may not be there refuses the whole table. It is devalidated, and gives all of them back, when its last use
   ends. Between the two its entries change only through mod_l1_entry() .. mod_l4_entry().
5. From 1 and 2: while a frame is a page table or descriptor page, no writable mapping of it exists. A stale
   TLB entry might still write, so a frame that changes its type flushes the TLB unless a flush came in
   between (`tlbflush_timestamp`).
6. Slots that map Xen itself are filled by Xen when a table that holds them is validated, and belong to
   nobody: they are neither counted nor changeable.
7. An entry points to a table of the level below, or read-only to one of the same level: a linear page table.
   Of two tables joined so the one that is pointed to points to no third, nor the reverse (pv/linear_pt.py).

An index `at` below is an entry's place in `self.e`, the machine's memory as page-table entries; `pg` is a
frame's index in the frame table (mfn - base_mfn). Nothing here is preempted, so no table is ever left half
validated: where Xen would return -ERESTART and go on, this goes on at once.
Source: xen/arch/x86/mm.c and arch/x86/pv/mm.h of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hvcore.page_info import (
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_pae_xen_l2,
    PGT_validated,
    PGT_writable_page,
)
from hvcore.public.errno import EINVAL
from hvcore.pv import grant_mappings
from hvcore.pv.linear_pt import get_linear_pagetable, put_linear_pagetable
from hvcore.pv.page_walk import PageWalk
from hvcore.refusal import Reason
from hvcore.x86 import (
    PAGE_ACCESSED,
    PAGE_AVAIL,
    PAGE_DIRTY,
    PAGE_GLOBAL,
    PAGE_NX,
    PAGE_PCD,
    PAGE_PRESENT,
    PAGE_PSE,
    PAGE_PWT,
    PAGE_RW,
    PAGE_USER,
)

if TYPE_CHECKING:
    from hvcore.cpu.engine import Engine
    from hvcore.domain import Domain
    from hvcore.pv.xen_mappings import XenMappings

PAGE_AVAIL_HIGH = 0x7FF << 52
PAGE_GUEST_KERNEL = 1 << 52  # a kernel mapping of a 64-bit guest, whose kernel runs at CPL 3

L1_DISALLOW_MASK = PAGE_PWT | PAGE_PCD | PAGE_PSE
L2_DISALLOW_MASK = L1_DISALLOW_MASK | PAGE_GLOBAL
L3_DISALLOW_MASK_PV32 = 0xFFF << 52 | 0x198

# What may change in a present entry without validating it anew.
_FASTPATH = PAGE_NX | PAGE_AVAIL_HIGH | PAGE_AVAIL | PAGE_GLOBAL | PAGE_DIRTY | PAGE_ACCESSED | PAGE_USER
_ALL = (1 << 64) - 1
_CHANGED = _ALL & ~_FASTPATH
_AD = PAGE_ACCESSED | PAGE_DIRTY

INVALID_MFN = (1 << 40) - 1
GUEST_L4_SLOTS = (*range(256), *range(272, 512))  # is_guest_l4_slot() of 64-bit guests


class PageTables(PageWalk):
    """The page tables of the domain. Results are 0 or a negative errno."""

    WIRING = frozenset(
        (
            "abi", "base", "count", "domid", "e", "engine", "entries", "frames", "guest", "levels",
            "linear_pt_count", "mem", "mfn_mask", "nr", "owner", "pflags", "ptype", "pv32", "readable",
            "root_type", "shift", "stamp", "tcount", "trace", "validate_segdesc_page", "xen",
        )
    )  # fmt: skip

    def __init__(self, d: Domain, engine: Engine, xen: XenMappings) -> None:
        super().__init__(d, engine, xen)
        self.root_type = d.abi.pt_levels  # PGT_root_page_table of this guest
        self.l3_disallow = L3_DISALLOW_MASK_PV32 if self.pv32 else L2_DISALLOW_MASK
        # Whether an entry of an upper table was replaced: a linear page table may still show the old one.
        self.flush_linear_pt = False

    # -- L1 entries

    def get_page_from_l1e(self, l1e: int) -> int:
        """Take the references of a present L1 entry."""
        if l1e & L1_DISALLOW_MASK:
            return self.refuse(Reason.BAD_FLAGS, 1, l1e & L1_DISALLOW_MASK)
        mfn = (l1e >> 12) & self.mfn_mask
        pg = mfn - self.base
        if not 0 <= pg < self.nr:  # not RAM: the guest may map no device
            return self._no_ram(l1e, mfn)
        held = self.count[pg]
        if self.owner[pg] != self.domid or not held:
            return self._could_not_pin(l1e, mfn)
        if l1e & PAGE_RW:
            uses = self.tcount[pg]
            if self.ptype[pg] != PGT_writable_page:
                if uses:
                    return self._could_not_pin(l1e, mfn)
                if self.stamp[pg] >= self.engine.tlb_flushes:
                    self.flush_tlb()
                self.ptype[pg] = PGT_writable_page
                self.pflags[pg] |= PGT_validated
            self.tcount[pg] = uses + 1
        self.count[pg] = held + 1
        return 0

    def _no_ram(self, l1e: int, mfn: int) -> int:
        if mfn == INVALID_MFN:
            return self.refuse(Reason.INVALID_MFN, l1e)
        return self.refuse(Reason.MMIO, self.domid, mfn)

    def _could_not_pin(self, l1e: int, mfn: int) -> int:
        """get_page_from_l1e()'s label of that name: the frame is another's, or in use as something else."""
        pg, domid = mfn - self.base, self.domid
        if self.owner[pg] != self.domid or not self.count[pg]:
            self.refuse(Reason.OTHER_OWNER, domid, domid, mfn)
        else:
            self._bad_type(mfn, PGT_writable_page)
            self.refuse(Reason.NOT_WRITABLE)
        return self.refuse(Reason.L1_ENTRY, mfn, self.gpfn(mfn), l1e, domid, domid)

    def put_page_from_l1e(self, l1e: int) -> None:
        """Give back the references of an L1 entry that was present (others hold none)."""
        if not l1e & PAGE_PRESENT:
            return
        pg = ((l1e >> 12) & self.mfn_mask) - self.base
        if not 0 <= pg < self.nr:
            return
        if l1e & PAGE_RW:
            left = self.tcount[pg] - 1
            self.tcount[pg] = left
            if not left:
                self.stamp[pg] = self.engine.tlb_flushes
        held = self.count[pg] - 1
        self.count[pg] = held
        if not held:
            self.frames.free_domheap_page(pg)

    def adjust_guest_l1e(self, l1e: int) -> int:
        """What Xen adds to a present entry: USER for 64-bit guests, whose kernel runs at CPL 3."""
        if self.pv32 or not l1e & PAGE_PRESENT:
            return l1e
        if not l1e & PAGE_USER:
            l1e |= PAGE_GUEST_KERNEL | PAGE_USER
        if not l1e & PAGE_GUEST_KERNEL:
            l1e |= PAGE_GLOBAL | PAGE_USER
        return l1e

    def _adjust_upper(self, entry: int, level: int) -> int:
        """adjust_guest_l2e(), adjust_guest_l3e(), adjust_guest_l4e()."""
        if not entry & PAGE_PRESENT:
            return entry
        if self.pv32:
            return entry | PAGE_USER | PAGE_RW if level == 3 else entry
        return entry | PAGE_USER

    # -- validation of whole tables

    def _promote(self, pg: int, ptype: int) -> int:
        if ptype == PGT_l1_page_table:
            return self._promote_l1_table(pg)
        if ptype == PGT_l2_page_table:
            return self._promote_l2_table(pg)
        return self._promote_l3_table(pg) if ptype == PGT_l3_page_table else self._promote_l4_table(pg)

    def _promote_l1_table(self, pg: int) -> int:
        e = self.e
        start = pg << self.shift
        adjust = not self.pv32
        get = self.get_page_from_l1e
        taken: list[int] = []
        for at, l1e in enumerate(e[start : start + self.entries].tolist(), start):
            if not l1e & PAGE_PRESENT:
                continue
            rc = get(l1e)
            if rc:
                self.refuse(Reason.PROMOTE, rc, 1, at - start)
                for good in taken:
                    self.put_page_from_l1e(e[good])
                return rc
            taken.append(at)
            if adjust:
                e[at] = self.adjust_guest_l1e(l1e)
        return 0

    def _promote_upper(self, pg: int, level: int, slots: Iterable[int]) -> int:
        """Validate the guest's slots of an L2, L3 or L4 table, all or nothing."""
        e = self.e
        start = pg << self.shift
        values = e[start : start + self.entries].tolist()
        taken: list[int] = []
        for i in slots:
            entry = values[i]
            if not entry & PAGE_PRESENT:
                continue
            rc = self._get_page_from_upper(entry, level, i, pg)
            if rc:
                self.refuse(Reason.PROMOTE, rc, level, i)
                self._demote_slots(pg, level, taken)
                return rc
            taken.append(i)
            adjusted = self._adjust_upper(entry, level)
            if adjusted != entry:
                e[start + i] = adjusted
        return 0

    def _promote_l2_table(self, pg: int) -> int:
        holds_xen = self.levels == 2 or self.pflags[pg] & PGT_pae_xen_l2
        rc = self._promote_upper(pg, 2, self.guest_l2_slots(pg))
        if not rc and holds_xen:
            self.xen.init_xen_l2_slots(pg << self.shift, pg + self.base)
        return rc

    def guest_l2_slots(self, pg: int) -> range:
        """is_guest_l2_slot(): the slots of this L2 that are the guest's."""
        if self.levels == 2 or self.pflags[pg] & PGT_pae_xen_l2:
            return range(self.xen.first_xen_l2_slot)
        return range(self.entries)

    def _promote_l3_table(self, pg: int) -> int:
        if not self.pv32:
            return self._promote_upper(pg, 3, range(512))
        # A PAE guest fills four slots, but the processor sees the whole frame.
        start = pg << 9
        self.e[start + 4 : start + 512] = memoryview(bytes(8 * 508)).cast("Q")
        if not self.e[start + 3] & PAGE_PRESENT:
            return self.refuse(Reason.PAE_L3_SLOT_3, pg + self.base, self.e[start + 3])
        return self._promote_upper(pg, 3, range(4))

    def _promote_l4_table(self, pg: int) -> int:
        if self.pv32:
            return self.refuse(Reason.NO_L4)
        rc = self._promote_upper(pg, 4, GUEST_L4_SLOTS)
        if not rc:
            self.xen.init_xen_l4_slots(pg << 9)
        return rc

    def _get_page_from_upper(self, entry: int, level: int, slot: int, pg: int) -> int:
        """get_page_from_l2e() .. get_page_from_l4e(): a use of the table below, or of one beside it."""
        disallow = L2_DISALLOW_MASK if level != 3 else self.l3_disallow
        if entry & disallow:
            return self.refuse(Reason.BAD_FLAGS, level, entry & disallow)
        mfn = (entry >> 12) & self.mfn_mask
        if self.pv32 and level == 3:
            return self._get_pae_xen_l2(mfn) if slot == 3 else self.get_page_and_type(mfn, PGT_l2_page_table)
        noted = len(self.trace.pending)
        rc = self.get_page_and_type(mfn, level - 1)
        if rc == -EINVAL and get_linear_pagetable(self, entry, mfn, pg, level):
            del self.trace.pending[noted:]
            return 0
        return rc

    def _get_pae_xen_l2(self, mfn: int) -> int:
        """The L2 of slot 3 carries Xen's slots, so no other L3 may share it (pae_xen_mappings_check())."""
        rc = self.get_page_and_type(mfn, PGT_l2_page_table, PGT_pae_xen_l2)
        if not rc and self.tcount[mfn - self.base] != 1:
            self.put_page_and_type(mfn)
            return self.refuse(Reason.PAE_L3_SHARED)
        return rc

    def _put_page_from_upper(self, entry: int, level: int, pg: int) -> None:
        """put_page_from_l2e() .. put_page_from_l4e(): what a present entry of the table `pg` holds."""
        mfn = (entry >> 12) & self.mfn_mask
        if self.ptype[mfn - self.base] == level:
            put_linear_pagetable(self, mfn, pg)
        else:
            self.put_page_and_type(mfn)

    def _demote(self, pg: int, ptype: int) -> None:
        if ptype == PGT_l1_page_table:
            start = pg << self.shift
            put = self.put_page_from_l1e
            for l1e in self.e[start : start + self.entries].tolist():
                if l1e & PAGE_PRESENT:
                    put(l1e)
        else:
            self._demote_slots(pg, ptype, self._guest_slots(pg, ptype))
            if ptype == PGT_l2_page_table:
                self.pflags[pg] &= ~PGT_pae_xen_l2

    def _guest_slots(self, pg: int, ptype: int) -> Iterable[int]:
        """The slots of an upper table that are the guest's."""
        if ptype == PGT_l2_page_table:
            return self.guest_l2_slots(pg)
        if ptype == PGT_l3_page_table:
            return range(4) if self.pv32 else range(512)
        return GUEST_L4_SLOTS

    def _demote_slots(self, pg: int, level: int, slots: Iterable[int]) -> None:
        start = pg << self.shift
        values = self.e[start : start + self.entries].tolist()
        for i in slots:
            entry = values[i]
            if not entry & PAGE_PRESENT:
                continue
            if level == 3 and self.pv32:  # unadjust_guest_l3e()
                self.e[start + i] = entry & ~(PAGE_USER | PAGE_RW | PAGE_ACCESSED)
            self._put_page_from_upper(entry, level, pg)

    def guest_entries(self, pg: int, ptype: int) -> Iterator[tuple[int, int]]:
        """The entries of a validated table that are the guest's, with their slots."""
        start = pg << self.shift
        values = self.e[start : start + self.entries].tolist()
        if ptype == PGT_l1_page_table:
            yield from enumerate(values)
            return
        for slot in self._guest_slots(pg, ptype):
            yield slot, values[slot]

    # -- changing one entry of a live table

    def write_entry(self, at: int, new: int, level: int = 1) -> None:
        """Write an entry of a live table, and drop what is cached of the old one, if it was there.

        So translations are never out of date, and no guest sees which of them are cached, and how long.
        """
        e = self.e
        old = e[at]
        e[at] = new
        if not old & PAGE_PRESENT or old == new:
            return
        if level == 1:
            self.engine.drop_entry((self.base << 12) + (at << 12 - self.shift))
        else:
            self.engine.drop_translations()

    def mod_l1_entry(self, at: int, nl1e: int, preserve_ad: bool = False) -> int:
        """Replace the L1 entry at `at`."""
        e = self.e
        ol1e = e[at]
        if nl1e & PAGE_PRESENT:
            if nl1e & L1_DISALLOW_MASK:
                return self.refuse(Reason.BAD_FLAGS, 1, nl1e & L1_DISALLOW_MASK)
            if not self.pv32:
                nl1e = self.adjust_guest_l1e(nl1e)
            if not (ol1e ^ nl1e) & _CHANGED:
                self.write_entry(at, nl1e | (ol1e & _AD) if preserve_ad else nl1e)
                return 0
            rc = self.get_page_from_l1e(nl1e)
            if rc:
                return rc
        self.write_entry(at, nl1e | (ol1e & _AD) if preserve_ad else nl1e)
        if ol1e & PAGE_PRESENT:
            self.put_page_from_l1e(ol1e)
        return 0

    def is_fast(self, old: int, new: int) -> bool:
        """Whether a change of an L1 entry needs no reference: the same frame is mapped alike."""
        return not (old ^ (new if self.pv32 else self.adjust_guest_l1e(new))) & _CHANGED

    def mod_l2_entry(self, at: int, new: int, preserve_ad: bool = False) -> int:
        """Replace the L2 entry at `at`; -EPERM in Xen's slots."""
        pg, slot = at >> self.shift, at & (self.entries - 1)
        if slot not in self.guest_l2_slots(pg):
            return self.refuse(Reason.XEN_PRIVATE_L2, slot)
        return self._mod_upper(at, new, 2, slot, L2_DISALLOW_MASK, preserve_ad)

    def mod_l3_entry(self, at: int, new: int, preserve_ad: bool = False) -> int:
        """Replace the L3 entry at `at`; a PAE guest cannot change slot 3, nor any that is not there."""
        slot = at & 511
        if self.pv32 and slot >= 3:
            return self.refuse(Reason.PAE_L3_UPDATE, slot)
        return self._mod_upper(at, new, 3, slot, self.l3_disallow, preserve_ad)

    def mod_l4_entry(self, at: int, new: int, preserve_ad: bool = False) -> int:
        """Replace the L4 entry at `at`; -EINVAL in Xen's slots."""
        slot = at & 511
        if 256 <= slot < 272:
            return self.refuse(Reason.XEN_PRIVATE_L4, slot)
        return self._mod_upper(at, new, 4, slot, L2_DISALLOW_MASK, preserve_ad)

    def _mod_upper(self, at: int, new: int, level: int, slot: int, disallow: int, preserve_ad: bool) -> int:
        e = self.e
        pg = at >> self.shift
        old = e[at]
        if new & PAGE_PRESENT:
            if new & disallow:
                return self.refuse(Reason.BAD_FLAGS, level, new & disallow)
            new = self._adjust_upper(new, level)
            if not (old ^ new) & _CHANGED:
                self.write_entry(at, new | (old & _AD) if preserve_ad else new, level)
                return 0
            rc = self._get_page_from_upper(new, level, slot, pg)
            if rc:
                return rc
        self.write_entry(at, new | (old & _AD) if preserve_ad else new, level)
        if old & PAGE_PRESENT:  # of what was not there nothing is cached
            self.flush_linear_pt = True
            self._put_page_from_upper(old, level, pg)
        return 0

    # -- grants

    def create_grant_host_mapping(self, addr: int, mfn: int, flags: int, _cache_flags: int) -> int:
        """Map a granted frame (pv/grant_mappings.py)."""
        return grant_mappings.create_grant_host_mapping(self, addr, mfn, flags)

    def replace_grant_host_mapping(self, addr: int, mfn: int, new_addr: int, flags: int) -> int:
        """Unmap a granted frame, or move another mapping over it (pv/grant_mappings.py)."""
        return grant_mappings.replace_grant_host_mapping(self, addr, mfn, new_addr, flags)

    # -- base pointers

    def new_guest_cr3(self, mfn: int) -> int:
        """Switch the running vCPU to the page table at `mfn` (MMUEXT_NEW_BASEPTR, mov to CR3)."""
        v = self.xen.current()
        old = v.cr3_mfn
        if old != mfn or self.pv32:
            rc = self.get_page_and_type(mfn, self.root_type)
            if rc:
                self.refuse(Reason.BASEPTR, mfn)
                return rc
            v.cr3_mfn = mfn
            if old:
                self.put_page_and_type(old)
        self.xen.write_ptbase(v)
        return 0
