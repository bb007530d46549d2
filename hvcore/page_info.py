"""`struct page_info` for every frame, as parallel arrays indexed by `mfn - base_mfn`.

A frame has an owner, a general count (`count`, PGC_count_mask: how many things hold it), and a type with its
own count (`tcount`, PGT_count_mask). The invariants that they serve are written at the head of pv/mm.py.
Source: xen/arch/x86/include/asm/mm.h.
"""

from __future__ import annotations

from array import array

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

# Owners.
OWNER_NONE = 0
OWNER_GUEST = 1
OWNER_XEN = 2  # DOMID_XEN: mappable read-only at best


class FrameTable:
    """The frame table of `nr` frames from `base_mfn` on."""

    __slots__ = ("base_mfn", "count", "flags", "nr", "owner", "ptype", "tcount", "tlbflush_timestamp")

    def __init__(self, base_mfn: int, nr: int) -> None:
        self.base_mfn = base_mfn
        self.nr = nr
        self.owner = bytearray(nr)
        self.flags = bytearray(nr)
        self.ptype = bytearray(nr)
        self.count = array("I", bytes(4 * nr))
        self.tcount = array("I", bytes(4 * nr))
        self.tlbflush_timestamp = array("I", bytes(4 * nr))

    def assign(self, start_mfn: int, nr: int, owner: int = OWNER_GUEST) -> None:
        """Give `nr` frames to `owner` with the allocation reference held (assign_pages())."""
        i = start_mfn - self.base_mfn
        self.owner[i : i + nr] = bytes([owner]) * nr
        self.flags[i : i + nr] = bytes([PGC_allocated]) * nr
        self.count[i : i + nr] = array("I", [1]) * nr
