"""Why a page-table entry or a page's type was refused: typed values, worded as Xen's log words them.

A debug build of Xen prints a line where it refuses, and often more on the way out. Here each is a Refusal: a
Reason, which names the rule and the errno, with the values that go into its words. Reasons that Xen has no
words for are silent in Xen, too; their words are ours.
Source: the gdprintk()s of xen/arch/x86/mm.c, pv/ro-page-fault.c and pv/grant_table.c of Xen 4.17.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from hvcore.public.errno import EBUSY, EINVAL, EPERM

# A page's type as Xen's source calls it, by PGT_*.
TYPE_NAMES = (
    "PGT_none",
    *(f"PGT_l{level}_page_table" for level in range(1, 5)),
    "PGT_seg_desc_page",
    "PGT_shared_page",
    "PGT_writable_page",
)


class Reason(Enum):
    """A rule that refuses: its words, the errno, and whether another refusal is what led to it."""

    BAD_FLAGS = "Bad L{} flags {:x}", EINVAL
    MMIO = "d{} non-privileged attempt to map MMIO space {:x}", EPERM
    INVALID_MFN = "L1 entry {:x} names INVALID_MFN", EINVAL
    OTHER_OWNER = "pg_owner d{} l1e_owner d{}, but mfn {:x} is not the domain's", EBUSY
    BAD_TYPE = "Bad type (saw {} in use {} times != exp {}) for mfn {:x} (pfn {:x})", EINVAL
    NOT_OWNED = "mfn {:x} is not the domain's", EINVAL
    LINEAR_WRITABLE = "Attempt to create linear p.t. with write perms", EINVAL
    LINEAR_ENTRIES = "linear p.t.: L{} table {:x} is itself in linear use ({} times)", EINVAL
    LINEAR_USES = "linear p.t.: L{} table {:x} has linear entries itself ({} of them)", EINVAL
    LINEAR_LIMIT = "linear p.t.: L{} table {:x} is in linear use as often as can be counted", EINVAL
    PAE_L3_SLOT_3 = (
        "PAE L3 {:x} has no L2 in slot 3, which is to carry Xen's own entries (it reads {:x})",
        EINVAL,
    )
    PAE_L3_SHARED = "PAE L3 3rd slot is shared", EINVAL
    PAE_L3_UPDATE = "L3 slot {:#x} of a PAE guest cannot change while the table is in use", EINVAL
    XEN_PRIVATE_L2 = "L2 update in Xen-private area, slot {:#x}", EPERM
    XEN_PRIVATE_L4 = "L4 update in Xen-private area, slot {:#x}", EINVAL
    NO_L4 = "an L4 table in a 32-bit guest", EINVAL
    NO_PAGE = "Could not get page for normal update", EINVAL
    NO_M2P_PAGE = "Could not get page for mach->phys update", EINVAL
    NO_TABLE = "no L1 table maps {:x}", EINVAL
    NOT_PINNED = "mfn {:x} not pinned", EINVAL
    ALREADY_PINNED = "mfn {:x} already pinned", EINVAL
    UPPER_STORE = "a store to an L{} page table, where Xen carries out those to L1 tables alone", EINVAL
    NO_ASSIST = "a store to an L1 page table without VMASST_TYPE_writable_pagetables", EINVAL
    STORE_SHAPE = "bad access (cr2={:x}): only naturally aligned stores to one entry", EINVAL
    DESCRIPTOR = "mfn {:x} holds a descriptor that Xen lets no guest have", EINVAL
    # Of grant mappings, whose result is a GNTST_* of its own.
    GRANT_MISALIGNED = "Misaligned PTE address {:x}", 0
    GRANT_NO_PTE = "Could not find L1 PTE for linear address {:x}", 0
    GRANT_NO_TABLE = "mfn {:x} is no L1 table of the domain's", 0
    GRANT_OTHER_PTE = "PTE {:x} for {:x} doesn't match grant ({:x})", 0
    # What comes on the way out.
    NOT_WRITABLE = "Could not get page type PGT_writable_page", EBUSY, True
    L1_ENTRY = (
        "Error getting mfn {:x} (pfn {:x}) from L1 entry {:x} for l1e_owner d{}, pg_owner d{}",
        EBUSY,
        True,
    )
    PROMOTE = "Failure {} in promote_l{}_table: slot {:#x}", 0, True
    VALIDATE = "Error while validating mfn {:x} (pfn {:x}) for type {}", 0, True
    PIN = "Error {} while pinning mfn {:x}", 0, True
    BASEPTR = "Error while installing new baseptr {:x}", 0, True
    USER_BASEPTR = "Error {} installing new mfn {:x}", 0, True
    STORE = "could not get_page_from_l1e()", 0, True

    def __init__(self, words: str, errno: int, consequence: bool = False) -> None:
        self.words = words
        self.errno = errno
        self.consequence = consequence


class Refusal(NamedTuple):
    """One refusal; as text, one line of Xen's log."""

    reason: Reason
    values: tuple[int | str, ...]

    def __str__(self) -> str:
        return self.reason.words.format(*self.values)
