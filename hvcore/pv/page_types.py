"""Frames and what they are in use as: general references, types with their counts, whole frames.

The invariants are written at the head of pv/mm.py, whose PageTables builds on this.
Source: get_page(), _get_page_type(), _put_page_type() in xen/arch/x86/mm.c of Xen 4.17.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from hvcore.page_info import (
    PGC_allocated,
    PGT_l1_page_table,
    PGT_l4_page_table,
    PGT_none,
    PGT_pae_xen_l2,
    PGT_pinned,
    PGT_seg_desc_page,
    PGT_validated,
    PGT_writable_page,
)
from hvcore.public.errno import EINVAL
from hvcore.refusal import TYPE_NAMES, Reason

if TYPE_CHECKING:
    from hvcore.domain import Domain

_TABLE_COST = 2000  # ns


class Tlb(Protocol):
    """What frames and their types need of a processor: translations dropped, and the clock's words."""

    cell: memoryview

    @property
    def tlb_flushes(self) -> int:
        """How often every cached translation was dropped."""

    def flush_tlb(self) -> None:
        """Drop all."""

    def flush_tlb_page(self, address: int) -> None:
        """Drop that of one page."""

    def drop_translations(self) -> None:
        """Drop all, uncounted."""

    def drop_entry(self, address: int) -> None:
        """The last-level entry at machine address `address` has changed: drop what came of it."""


class PageTypes(ABC):
    """The frame table of the domain at work. Results are 0 or a negative errno.

    What is refused leaves its reasons in the trace, the first cause first.
    """

    def __init__(self, d: Domain, engine: Tlb) -> None:
        frames = d.frames
        self.abi = d.abi
        self.mem = d.mem
        self.frames = frames
        self.engine = engine
        self.guest = d.guest
        self.base = frames.base_mfn
        self.nr = frames.nr
        self.ptype = frames.ptype
        self.pflags = frames.flags
        self.tcount = frames.tcount
        self.count = frames.count
        self.owner = frames.owner
        self.domid = d.domain_id
        self.stamp = frames.tlbflush_timestamp
        self.linear_pt_count = frames.linear_pt_count
        self.trace = d.trace
        self.validate_segdesc_page: Callable[[int], int] = lambda _mfn: -EINVAL

    # -- reasons

    def refuse(self, reason: Reason, *values: int | str) -> int:
        """Note why; the negative errno of `reason`."""
        self.trace.refuse(reason, values)
        return -reason.errno

    def gpfn(self, mfn: int) -> int:
        """get_gpfn_from_mfn(), for messages: what the machine-to-physical table says, or ones."""
        if not 0 <= mfn - self.base < self.nr:
            return (1 << 64) - 1
        return int(self.mem.m2p[self.abi.m2p_entry].words[mfn])

    # -- the tables themselves, which pv/mm.py knows

    @abstractmethod
    def _promote(self, pg: int, ptype: int) -> int:
        """promote_l1_table() .. promote_l4_table()."""

    @abstractmethod
    def _demote(self, pg: int, ptype: int) -> None:
        """demote_l1_table() .. demote_l4_table()."""

    # -- TLB

    def flush_tlb(self) -> None:
        """Drop cached translations."""
        self.engine.flush_tlb()

    def flush_tlb_one(self, va: int) -> None:
        """Drop the translation of `va`."""
        self.engine.flush_tlb_page(va)

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
            return self._bad_type(mfn, ptype)
        self.tcount[pg] = uses + 1
        if flags & PGT_validated:
            return 0
        rc = self._validate(pg, ptype)
        if rc:
            self.refuse(Reason.VALIDATE, mfn, self.gpfn(mfn), TYPE_NAMES[ptype])
            self.tcount[pg] = 0
            self.ptype[pg] = PGT_none
            self.pflags[pg] &= ~(PGT_validated | PGT_pae_xen_l2)
            return rc
        self.pflags[pg] |= PGT_validated
        return 0

    def _bad_type(self, mfn: int, ptype: int) -> int:
        pg = mfn - self.base
        saw, uses = TYPE_NAMES[self.ptype[pg]], self.tcount[pg]
        return self.refuse(Reason.BAD_TYPE, saw, uses, TYPE_NAMES[ptype], mfn, self.gpfn(mfn))

    def _validate(self, pg: int, ptype: int) -> int:
        if PGT_l1_page_table <= ptype <= PGT_l4_page_table:
            self._spend_on_table()
            self.linear_pt_count[pg] = 0
            return self._promote(pg, ptype)
        if ptype == PGT_seg_desc_page:
            self._spend_on_table()
            rc = self.validate_segdesc_page(pg + self.base)
            return self.refuse(Reason.DESCRIPTOR, pg + self.base) if rc else 0
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
                if ptype == self.abi.pt_levels:
                    self.engine.drop_translations()
                self._demote(pg, ptype)
            self.stamp[pg] = self.engine.tlb_flushes
        self.tcount[pg] = left

    def get_page_and_type(self, mfn: int, ptype: int, xen_l2: int = 0) -> int:
        """get_page_and_type_from_mfn(): hold the frame and use it as `ptype`."""
        if not self.get_page(mfn):
            return self.refuse(Reason.NOT_OWNED, mfn)
        rc = self.get_page_type(mfn, ptype, xen_l2)
        if rc:
            self.put_page(mfn)
        return rc

    def put_page_and_type(self, mfn: int) -> None:
        """End a use and let go."""
        self.put_page_type(mfn)
        self.put_page(mfn)

    # -- whole frames

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
