"""The guest's page tables as the processor walks them, for copies to and from the guest.

An index `at` is an entry's place in `self.e`, as in mm.py. Under Xen the processor does it, and for dumps
do_page_walk() in xen/arch/x86/x86_64/mm.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.pv.page_types import PageTypes
from hvcore.x86 import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_PSE, PAGE_RW, PAGE_USER

if TYPE_CHECKING:
    from hvcore.cpu.engine import Engine
    from hvcore.domain import Domain
    from hvcore.pv.xen_mappings import XenMappings

_AD = PAGE_ACCESSED | PAGE_DIRTY


class PageWalk(PageTypes):
    """The geometry of the domain's page tables, and finding entries and pages in them."""

    def __init__(self, d: Domain, engine: Engine, xen: XenMappings) -> None:
        super().__init__(d, engine)
        abi, mem = d.abi, d.mem
        self.xen = xen
        self.pv32 = abi.is_32bit
        self.levels = abi.pt_levels
        # Entries: 512 of eight bytes, or 1024 of four for two-level guests.
        self.shift = 9 if abi.pte_size == 8 else 10
        self.entries = 1 << self.shift
        self.e: memoryview = mem.q if abi.pte_size == 8 else mem.d
        self.mfn_mask = (1 << 40) - 1 if abi.pte_size == 8 else (1 << 20) - 1
        # What a leaf needs. A linear page table shows a 64-bit guest Xen's own entries, which are no user's.
        self.readable = PAGE_PRESENT if self.pv32 else PAGE_PRESENT | PAGE_USER

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
            return -1 if write else self._m2p_page(va)
        e = self.e
        l1e = e[at]
        if l1e & self.readable != self.readable:
            return -1
        if write and not (l1e & PAGE_RW and self._writable_above(root_mfn, va)):
            return -1
        e[at] = l1e | (_AD if write else PAGE_ACCESSED)
        return int((((l1e >> 12) & self.mfn_mask) - self.base) << 12)

    def look(self, root_mfn: int, va: int) -> int:
        """The byte offset in `mem.view` of va's page for the guest kernel to read, or -1; nothing is set."""
        at = self.l1_entry_of(root_mfn, va)
        if at < 0:
            return self._m2p_page(va)
        l1e = self.e[at]
        if l1e & self.readable != self.readable:
            return -1
        return int((((l1e >> 12) & self.mfn_mask) - self.base) << 12)

    def _m2p_page(self, va: int) -> int:
        """The byte offset in `mem.view` of va's page of the M2P, which a PAE guest can read, or -1."""
        page = (va - self.xen.abi.m2p_virt_start) >> 12
        m2p = self.xen.m2p
        return (m2p.mfn - self.base + page) << 12 if self.levels == 3 and 0 <= page < m2p.frames else -1

    def entries_above(self, root_mfn: int, va: int) -> list[int]:
        """The indices of the entries above the leaf that maps `va`, the base's first; it has to be there."""
        e, shift, table, found = self.e, self.shift, root_mfn, []
        for level in range(self.levels - 1, 0, -1):
            at = ((table - self.base) << shift) + (va >> 12 + shift * level & self.entries - 1)
            found.append(at)
            table = (e[at] >> 12) & self.mfn_mask
        return found

    def _writable_above(self, root_mfn: int, va: int) -> bool:
        """Whether the entries above the leaf let `va` be written, as a linear page table's does not."""
        allowed = PAGE_RW
        for at in self.entries_above(root_mfn, va):
            allowed &= self.e[at]
        return bool(allowed)
