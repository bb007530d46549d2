"""`struct page_info` for every frame, as parallel arrays indexed by `mfn - base_mfn`.

A frame has an owner, a general count (`count`, PGC_count_mask: how many things hold it), and a type with its
own count (`tcount`, PGT_count_mask). The invariants that they serve are written at the head of pv/mm.py.
Source: xen/arch/x86/include/asm/mm.h.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress

from hvcore.public.xen import DOMID_INVALID

# PGT_*: the mutually exclusive types of a frame.
PGT_none = 0
PGT_l1_page_table = 1
PGT_l2_page_table = 2
PGT_l3_page_table = 3
PGT_l4_page_table = 4
PGT_seg_desc_page = 5
PGT_shared_page = 6
PGT_writable_page = 7

PGT_NAMES = ("none", "l1", "l2", "l3", "l4", "seg_desc", "shared", "writable")

# Bits of `flags`.
PGC_allocated = 1  # the owner's own reference is held
PGT_validated = 2
PGT_pinned = 4
PGT_pae_xen_l2 = 8  # the PAE L2 that carries Xen's slots
PGC_xen_heap = 16

NO_OWNER = DOMID_INVALID  # where Xen's page_get_owner() is NULL


class FrameTable:
    """The frame table of `nr` frames from `base_mfn` on. `owner` holds domids.

    `free_frames` is the heap of frames that were given back, by index, the next to be handed out last;
    `tot_pages` says how many frames each domain has (domain_adjust_tot_pages()), Xen's own not counted.
    """

    __slots__ = (
        "base_mfn",
        "count",
        "flags",
        "free_frames",
        "linear_pt_count",
        "nr",
        "owner",
        "ptype",
        "tcount",
        "tlbflush_timestamp",
        "tot_pages",
    )

    WIRING = frozenset(("base_mfn", "nr"))

    def __init__(self, base_mfn: int, nr: int) -> None:
        self.base_mfn = base_mfn
        self.nr = nr
        self.owner = array("H", [NO_OWNER]) * nr
        self.flags = bytearray(nr)
        self.ptype = bytearray(nr)
        self.count = array("I", bytes(4 * nr))
        self.tcount = array("I", bytes(4 * nr))
        self.tlbflush_timestamp = array("I", bytes(4 * nr))
        # Of a page table: how many of its entries name tables of its own level, or, negative, how many
        # entries of such tables name it (pv/linear_pt.py). Sixteen bits, as in Xen: they are a limit.
        self.linear_pt_count = array("h", bytes(2 * nr))
        self.free_frames: list[int] = []
        self.tot_pages: dict[int, int] = {}

    def assign(self, start_mfn: int, nr: int, owner: int) -> None:
        """assign_pages(): give `nr` frames to the domain `owner`, with the allocation's reference held."""
        i = start_mfn - self.base_mfn
        self.owner[i : i + nr] = array("H", [owner]) * nr
        self.flags[i : i + nr] = bytes([PGC_allocated]) * nr
        self.count[i : i + nr] = array("I", [1]) * nr
        self.tot_pages[owner] = self.tot_pages.get(owner, 0) + nr

    def owned(self, owner: int, first: int, end: int) -> Iterator[int]:
        """The frames within [first, end) that are the domain's, by their indices."""
        pg = first
        with suppress(ValueError):  # of index(): there are no more
            while True:
                pg = self.owner.index(owner, pg, end)
                yield pg
                pg += 1

    def alloc_domheap_page(self, owner: int) -> int:
        """A frame of the heap for `owner`, by its index; -1 when there is none. Its contents are old ones."""
        if not self.free_frames:
            return -1
        pg = self.free_frames.pop()
        self.assign(pg + self.base_mfn, 1, owner)
        self.tcount[pg] = 0
        return pg

    def free_domheap_page(self, pg: int) -> None:
        """Nobody holds the frame any more: it goes to the heap, unless Xen keeps it."""
        if not self.flags[pg] & PGC_xen_heap:
            self.free_frames.append(pg)
            if self.owner[pg] != NO_OWNER:
                self.tot_pages[self.owner[pg]] -= 1
        self.owner[pg] = NO_OWNER
        self.ptype[pg] = PGT_none
        self.flags[pg] = 0

    def steal_page(self, mfn: int, owner: int) -> bool:
        """Take an ordinary frame that nothing but its allocation holds from `owner`: whether it could be had.

        It is then nobody's, and nowhere in the heap: whoever stole it assigns or frees it.
        """
        pg = mfn - self.base_mfn
        if not 0 <= pg < self.nr or self.owner[pg] != owner or self.count[pg] != 1:
            return False
        if self.flags[pg] & (PGC_allocated | PGC_xen_heap) != PGC_allocated:
            return False
        self.count[pg] = self.flags[pg] = 0
        self.ptype[pg] = PGT_none
        self.owner[pg] = NO_OWNER
        self.tot_pages[owner] -= 1
        return True

    def share_xen_page_with_guest(self, mfn: int, owner: int, writable: bool) -> None:
        """Let `owner` map one of Xen's frames; its type can never change."""
        pg = mfn - self.base_mfn
        self.owner[pg] = owner
        self.ptype[pg] = PGT_writable_page if writable else PGT_none
        self.tcount[pg] = 1
        self.count[pg] = 1
        self.flags[pg] = PGT_validated | PGC_allocated | PGC_xen_heap

    def unshare_xen_page(self, mfn: int) -> None:
        """Take back what share_xen_page_with_guest() gave and nobody maps."""
        pg = mfn - self.base_mfn
        self.owner[pg] = NO_OWNER
        self.ptype[pg] = PGT_none
        self.flags[pg] = self.count[pg] = self.tcount[pg] = 0
