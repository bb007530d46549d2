"""Page tables that the guest owns and only Xen may change: types, counts, validation.

A PV guest's page tables are used by the processor as they are. Xen keeps them harmless with reference counts
on every frame (hvcore/page_info.py). These are the invariants; `audit()` recounts all of them from nothing.

1. A frame has one type at a time: L1, L2, L3 or L4 table, segment descriptor page, writable, or none. It may
   change only while its type count is zero.
2. A type count says how often the frame is used as that type: each writable mapping is a use as `writable`,
   each entry of a validated table that points to a lower table is a use as that table, and so are a pin, a
   base pointer (CR3) and a place in a vCPU's GDT or LDT.
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

An index `at` below is an entry's place in `self.e`, the machine's memory as page-table entries; `pg` is a
frame's index in the frame table (mfn - base_mfn). Nothing here is preempted, so no table is ever left half
validated: where Xen would return -ERESTART and go on, this goes on at once.
Source: xen/arch/x86/mm.c and arch/x86/pv/mm.h of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from hvcore.page_info import (
    PGC_allocated,
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_pae_xen_l2,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_validated,
    PGT_writable_page,
)
from hvcore.public.errno import EBUSY, EINVAL, EPERM
from hvcore.pv import grant_mappings

if TYPE_CHECKING:
    from hvcore.abi import Abi
    from hvcore.cpu.engine import Engine
    from hvcore.guest_access import GuestAccess
    from hvcore.machine_memory import MachineMemory
    from hvcore.page_info import FrameTable
    from hvcore.pv.xen_mappings import XenMappings

PAGE_PRESENT, PAGE_RW, PAGE_USER, PAGE_PWT, PAGE_PCD = 0x1, 0x2, 0x4, 0x8, 0x10
PAGE_ACCESSED, PAGE_DIRTY, PAGE_PSE, PAGE_GLOBAL = 0x20, 0x40, 0x80, 0x100
PAGE_AVAIL = 0xE00
PAGE_NX = 1 << 63
PAGE_AVAIL_HIGH = 0x7FF << 52
PAGE_GUEST_KERNEL = 1 << 52  # a kernel mapping of a 64-bit guest, whose kernel runs at CPL 3

L1_DISALLOW_MASK = PAGE_PWT | PAGE_PCD | PAGE_PSE
L2_DISALLOW_MASK = L1_DISALLOW_MASK | PAGE_GLOBAL
L3_DISALLOW_MASK_PV32 = 0xFFF << 52 | 0x198
_NOT_MFN = 0xFFF | 0xFFF << 52

# What may change in a present entry without validating it anew.
_FASTPATH = PAGE_NX | PAGE_AVAIL_HIGH | PAGE_AVAIL | PAGE_GLOBAL | PAGE_DIRTY | PAGE_ACCESSED | PAGE_USER
_ALL = (1 << 64) - 1
_L1_CHANGED = _ALL & ~_FASTPATH
_LX_CHANGED = _L1_CHANGED & ~PAGE_RW  # guest-made linear page tables are refused, so RW is harmless there
_AD = PAGE_ACCESSED | PAGE_DIRTY

_TABLE_COST = 2000  # of the budget, in bytes of code
INVALID_MFN = (1 << 40) - 1


class PageTables:
    """The frames and page tables of the domain. Results are 0 or a negative errno."""

    def __init__(
        self,
        abi: Abi,
        mem: MachineMemory,
        frames: FrameTable,
        engine: Engine,
        guest: GuestAccess,
        xen: XenMappings,
    ) -> None:
        self.abi = abi
        self.mem = mem
        self.frames = frames
        self.engine = engine
        self.guest = guest
        self.xen = xen
        self.base = frames.base_mfn
        self.nr = frames.nr
        self.pv32 = abi.is_32bit
        self.levels = abi.pt_levels
        self.root_type = abi.pt_levels  # PGT_root_page_table of this guest
        # Entries: 512 of eight bytes, or 1024 of four for two-level guests.
        self.shift = 9 if abi.pte_size == 8 else 10
        self.entries = 1 << self.shift
        self.e: memoryview = mem.q if abi.pte_size == 8 else mem.d
        self.mfn_mask = (1 << 40) - 1 if abi.pte_size == 8 else (1 << 20) - 1
        self.ptype = frames.ptype
        self.pflags = frames.flags
        self.tcount = frames.tcount
        self.count = frames.count
        self.owner = frames.owner
        self.domid = xen.domain.domain_id
        self.stamp = frames.tlbflush_timestamp
        self.l3_disallow = L3_DISALLOW_MASK_PV32 if self.pv32 else L2_DISALLOW_MASK
        self.validate_segdesc_page: Callable[[int], int] = lambda _mfn: -EINVAL
        self._promote = (
            None,
            self._promote_l1_table,
            self._promote_l2_table,
            self._promote_l3_table,
            self._promote_l4_table,
        )

    # -- TLB

    def flush_tlb(self) -> None:
        """Drop cached translations, the engine's and those of guest_access."""
        self.engine.flush_tlb()
        self.guest.flush()

    def flush_tlb_one(self, va: int) -> None:
        """Drop the translation of `va`."""
        self.engine.flush_tlb_page(va)
        self.guest.flush_page(va)

    # -- general references

    def get_page(self, mfn: int) -> bool:
        """get_page_from_mfn(): hold a frame of the guest's. False when it is not the guest's."""
        pg = mfn - self.base
        if 0 <= pg < self.nr and self.owner[pg] == self.domid and self.count[pg]:
            self.count[pg] += 1
            return True
        return False

    def put_page(self, mfn: int) -> None:
        """Let go of a frame; the last holder frees it."""
        pg = mfn - self.base
        left = self.count[pg] - 1
        self.count[pg] = left
        if not left:
            self.frames.free_domheap_page(pg)

    # -- types

    def get_page_type(self, mfn: int, ptype: int, xen_l2: int = 0) -> int:
        """Take a use of the frame as `ptype`, validating it if this is the first. The caller holds it."""
        pg = mfn - self.base
        uses = self.tcount[pg]
        flags = self.pflags[pg]
        if not uses:
            if self.ptype[pg] != ptype:
                if self.stamp[pg] >= self.engine.tlb_flushes:
                    self.flush_tlb()
                self.ptype[pg] = ptype
                flags &= ~PGT_validated
            flags = flags & ~PGT_pae_xen_l2 | xen_l2
            self.pflags[pg] = flags
        elif self.ptype[pg] != ptype or flags & PGT_pae_xen_l2 != xen_l2:
            return -EINVAL
        self.tcount[pg] = uses + 1
        if flags & PGT_validated:
            return 0
        rc = self._validate(pg, ptype)
        if rc:
            self.tcount[pg] = 0
            self.ptype[pg] = PGT_none
            self.pflags[pg] &= ~(PGT_validated | PGT_pae_xen_l2)
            return rc
        self.pflags[pg] |= PGT_validated
        return 0

    def _validate(self, pg: int, ptype: int) -> int:
        promote = self._promote[ptype] if ptype <= PGT_l4_page_table else None
        if promote is not None:
            self._spend_on_table()
            return promote(pg)
        if ptype == PGT_seg_desc_page:
            self._spend_on_table()
            return self.validate_segdesc_page(pg + self.base)
        return 0

    def _spend_on_table(self) -> None:
        """Looking at a whole table takes of the vCPU's turn: no guest may have it done for ever."""
        self.engine.cell[0] -= _TABLE_COST
        self.engine.cell[1] += _TABLE_COST

    def put_page_type(self, mfn: int) -> None:
        """End a use; the last use of a page table devalidates it."""
        pg = mfn - self.base
        left = self.tcount[pg] - 1
        if not left:
            ptype = self.ptype[pg]
            if 0 < ptype <= PGT_l4_page_table and self.pflags[pg] & PGT_validated:
                self.pflags[pg] &= ~PGT_validated
                self._spend_on_table()
                self._demote(pg, ptype)
            self.stamp[pg] = self.engine.tlb_flushes
        self.tcount[pg] = left

    def get_page_and_type(self, mfn: int, ptype: int, xen_l2: int = 0) -> int:
        """get_page_and_type_from_mfn(): hold the frame and use it as `ptype`."""
        if not self.get_page(mfn):
            return -EINVAL
        rc = self.get_page_type(mfn, ptype, xen_l2)
        if rc:
            self.put_page(mfn)
        return rc

    def put_page_and_type(self, mfn: int) -> None:
        """End a use and let go."""
        self.put_page_type(mfn)
        self.put_page(mfn)

    # -- L1 entries

    def get_page_from_l1e(self, l1e: int) -> int:
        """Take the references of a present L1 entry."""
        if l1e & L1_DISALLOW_MASK:
            return -EINVAL
        mfn = (l1e >> 12) & self.mfn_mask
        pg = mfn - self.base
        if not 0 <= pg < self.nr:  # not RAM: the guest may map no device
            return -EINVAL if mfn == INVALID_MFN else -EPERM
        held = self.count[pg]
        if self.owner[pg] != self.domid or not held:
            return -EBUSY
        if l1e & PAGE_RW:
            uses = self.tcount[pg]
            if self.ptype[pg] != PGT_writable_page:
                if uses:
                    return -EBUSY
                if self.stamp[pg] >= self.engine.tlb_flushes:
                    self.flush_tlb()
                self.ptype[pg] = PGT_writable_page
                self.pflags[pg] |= PGT_validated
            self.tcount[pg] = uses + 1
        self.count[pg] = held + 1
        return 0

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
        """adjust_guest_l2e(), _l3e(), _l4e()."""
        if not entry & PAGE_PRESENT:
            return entry
        if self.pv32:
            return entry | PAGE_USER | PAGE_RW if level == 3 else entry
        return entry | PAGE_USER

    # -- validation of whole tables

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
                for good in taken:
                    self.put_page_from_l1e(e[good])
                return rc
            taken.append(at)
            if adjust:
                e[at] = self.adjust_guest_l1e(l1e)
        return 0

    def _promote_upper(self, pg: int, level: int, slots: range) -> int:
        """Validate the guest's slots of an L2, L3 or L4 table, all or nothing."""
        e = self.e
        start = pg << self.shift
        values = e[start : start + self.entries].tolist()
        taken: list[int] = []
        for i in slots:
            entry = values[i]
            if not entry & PAGE_PRESENT:
                continue
            rc = self._get_page_from_upper(entry, level, i)
            if rc:
                for good in taken:
                    self._put_page_from_upper(e[start + good], level)
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
            return -EINVAL
        return self._promote_upper(pg, 3, range(4))

    def _promote_l4_table(self, pg: int) -> int:
        if self.pv32:
            return -EINVAL
        for slots in (range(256), range(272, 512)):
            rc = self._promote_upper(pg, 4, slots)
            if rc:
                if slots.start:
                    self._demote_slots(pg, 4, range(256))
                return rc
        self.xen.init_xen_l4_slots(pg << 9)
        return 0

    def _get_page_from_upper(self, entry: int, level: int, slot: int) -> int:
        """get_page_from_l2e(), _l3e(), _l4e(): a use of the lower table; linear tables are refused."""
        mfn = (entry >> 12) & self.mfn_mask
        if level == 2:
            return -EINVAL if entry & L2_DISALLOW_MASK else self.get_page_and_type(mfn, PGT_l1_page_table)
        if level == 3:
            if entry & self.l3_disallow:
                return -EINVAL
            if self.pv32 and slot == 3:
                return self._get_pae_xen_l2(mfn)
            return self.get_page_and_type(mfn, PGT_l2_page_table)
        return -EINVAL if entry & L2_DISALLOW_MASK else self.get_page_and_type(mfn, PGT_l3_page_table)

    def _get_pae_xen_l2(self, mfn: int) -> int:
        """The L2 of slot 3 carries Xen's slots, so no other L3 may share it (pae_xen_mappings_check())."""
        rc = self.get_page_and_type(mfn, PGT_l2_page_table, PGT_pae_xen_l2)
        if not rc and self.tcount[mfn - self.base] != 1:
            self.put_page_and_type(mfn)
            return -EINVAL
        return rc

    def _put_page_from_upper(self, entry: int, _level: int) -> None:
        if entry & PAGE_PRESENT:
            self.put_page_and_type((entry >> 12) & self.mfn_mask)

    def _demote(self, pg: int, ptype: int) -> None:
        """demote_l1_table() .. demote_l4_table(): give back what the entries hold."""
        if ptype == PGT_l1_page_table:
            start = pg << self.shift
            put = self.put_page_from_l1e
            for l1e in self.e[start : start + self.entries].tolist():
                if l1e & PAGE_PRESENT:
                    put(l1e)
        elif ptype == PGT_l2_page_table:
            self._demote_slots(pg, 2, self.guest_l2_slots(pg))
            self.pflags[pg] &= ~PGT_pae_xen_l2
        elif ptype == PGT_l3_page_table:
            self._demote_slots(pg, 3, range(4) if self.pv32 else range(512))
        else:
            self._demote_slots(pg, 4, range(256))
            self._demote_slots(pg, 4, range(272, 512))

    def _demote_slots(self, pg: int, level: int, slots: range) -> None:
        start = pg << self.shift
        values = self.e[start : start + self.entries].tolist()
        for i in slots:
            entry = values[i]
            if not entry & PAGE_PRESENT:
                continue
            if level == 3 and self.pv32:  # unadjust_guest_l3e()
                self.e[start + i] = entry & ~(PAGE_USER | PAGE_RW | PAGE_ACCESSED)
            self._put_page_from_upper(entry, level)

    def guest_entries(self, pg: int, ptype: int) -> Iterator[tuple[int, int]]:
        """The entries of a validated table that are the guest's, with their slots."""
        start = pg << self.shift
        values = self.e[start : start + self.entries].tolist()
        if ptype == PGT_l1_page_table:
            yield from enumerate(values)
            return
        if ptype == PGT_l2_page_table:
            slots: Iterable[int] = self.guest_l2_slots(pg)
        elif ptype == PGT_l3_page_table:
            slots = range(4) if self.pv32 else range(512)
        else:
            slots = (*range(256), *range(272, 512))
        for slot in slots:
            yield slot, values[slot]

    # -- changing one entry of a live table

    def mod_l1_entry(self, at: int, nl1e: int, preserve_ad: bool = False) -> int:
        """Replace the L1 entry at `at`."""
        e = self.e
        ol1e = e[at]
        if nl1e & PAGE_PRESENT:
            if nl1e & L1_DISALLOW_MASK:
                return -EINVAL
            if not self.pv32:
                nl1e = self.adjust_guest_l1e(nl1e)
            if not (ol1e ^ nl1e) & _L1_CHANGED:
                e[at] = nl1e | (ol1e & _AD) if preserve_ad else nl1e
                return 0
            rc = self.get_page_from_l1e(nl1e)
            if rc:
                return rc
        e[at] = nl1e | (ol1e & _AD) if preserve_ad else nl1e
        if ol1e & PAGE_PRESENT:
            self.put_page_from_l1e(ol1e)
        return 0

    def mod_l2_entry(self, at: int, new: int, preserve_ad: bool = False) -> int:
        """Replace the L2 entry at `at`; -EPERM in Xen's slots."""
        pg, slot = at >> self.shift, at & (self.entries - 1)
        if slot not in self.guest_l2_slots(pg):
            return -EPERM
        return self._mod_upper(at, new, 2, slot, L2_DISALLOW_MASK, preserve_ad)

    def mod_l3_entry(self, at: int, new: int, preserve_ad: bool = False) -> int:
        """Replace the L3 entry at `at`; a PAE guest cannot change slot 3, nor any that is not there."""
        slot = at & 511
        if self.pv32 and slot >= 3:
            return -EINVAL
        return self._mod_upper(at, new, 3, slot, self.l3_disallow, preserve_ad)

    def mod_l4_entry(self, at: int, new: int, preserve_ad: bool = False) -> int:
        """Replace the L4 entry at `at`; -EINVAL in Xen's slots."""
        slot = at & 511
        if 256 <= slot < 272:
            return -EINVAL
        return self._mod_upper(at, new, 4, slot, L2_DISALLOW_MASK, preserve_ad)

    def _mod_upper(self, at: int, new: int, level: int, slot: int, disallow: int, preserve_ad: bool) -> int:
        e = self.e
        old = e[at]
        if new & PAGE_PRESENT:
            if new & disallow:
                return -EINVAL
            new = self._adjust_upper(new, level)
            if not (old ^ new) & _LX_CHANGED:
                e[at] = new | (old & _AD) if preserve_ad else new
                return 0
            rc = self._get_page_from_upper(new, level, slot)
            if rc:
                return rc
        e[at] = new | (old & _AD) if preserve_ad else new
        self._put_page_from_upper(old, level)
        return 0

    # -- walks

    def l1_entry_of(self, root_mfn: int, va: int) -> int:
        """The index of the L1 entry that maps `va` under `root_mfn`, or -1 (also in Xen's own slots)."""
        e, mask, base = self.e, self.mfn_mask, self.base
        if self.levels == 2:
            pde: int = e[((root_mfn - base) << 10) + (va >> 22)]
            if pde & (PAGE_PRESENT | PAGE_PSE) != PAGE_PRESENT:
                return -1
            return ((((pde >> 12) & mask) - base) << 10) + ((va >> 12) & 1023)
        table = root_mfn
        entry: int
        if self.levels == 4:
            entry = e[((root_mfn - base) << 9) + ((va >> 39) & 511)]
            if not entry & PAGE_PRESENT:
                return -1
            table = (entry >> 12) & mask
        entry = e[((table - base) << 9) + ((va >> 30) & 511)]
        if entry & (PAGE_PRESENT | PAGE_PSE) != PAGE_PRESENT:
            return -1
        entry = e[((((entry >> 12) & mask) - base) << 9) + ((va >> 21) & 511)]
        if entry & (PAGE_PRESENT | PAGE_PSE) != PAGE_PRESENT:
            return -1
        return ((((entry >> 12) & mask) - base) << 9) + ((va >> 12) & 511)

    def walk(self, root_mfn: int, va: int, write: bool) -> int:
        """The byte offset in `mem.view` of va's page as the guest kernel may touch it, or -1.

        Sets the accessed and dirty bits, as the processor does when Xen copies.
        """
        at = self.l1_entry_of(root_mfn, va)
        if at < 0:
            return -1
        e = self.e
        l1e = e[at]
        if not l1e & PAGE_PRESENT or (write and not l1e & PAGE_RW):
            return -1
        e[at] = l1e | (_AD if write else PAGE_ACCESSED)
        return int((((l1e >> 12) & self.mfn_mask) - self.base) << 12)

    # -- the machine-to-physical table and whole frames

    def set_gpfn_from_mfn(self, mfn: int, pfn: int) -> None:
        """Set M2P[mfn]; `pfn` may be any word (INVALID_M2P_ENTRY is all ones)."""
        words = self.mem.d if self.abi.m2p_entry == 4 else self.mem.q
        start = (self.mem.m2p_mfn - self.base) << (10 if self.abi.m2p_entry == 4 else 9)
        words[start + mfn] = pfn & ((1 << 8 * self.abi.m2p_entry) - 1)

    def alloc_domheap_page(self) -> int:
        """A frame for the guest, zeroed, held by its allocation; -1 when the machine has no more."""
        pg = self.frames.alloc_domheap_page(self.domid)
        if pg < 0:
            return -1
        at = pg << 12
        self.mem.view[at : at + 4096] = bytes(4096)
        return pg + self.base

    def guest_remove_page(self, mfn: int) -> int:
        """Drop the guest's allocation reference (decrease_reservation); the frame goes with its last user."""
        pg = mfn - self.base
        if not self.get_page(mfn):
            return -EINVAL
        if self.pflags[pg] & PGT_pinned:
            self.pflags[pg] &= ~PGT_pinned
            self.put_page_and_type(mfn)
        if self.pflags[pg] & PGC_allocated:
            self.pflags[pg] &= ~PGC_allocated
            self.put_page(mfn)
        self.put_page(mfn)
        return 0

    def get_page_writable(self, mfn: int) -> bool:
        """Hold a frame of the guest's and use it as writable (register_vcpu_info and the like)."""
        return not self.get_page_and_type(mfn, PGT_writable_page)

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
                return rc
            v.cr3_mfn = mfn
            if old:
                self.put_page_and_type(old)
        self.xen.write_ptbase(v)
        return 0
