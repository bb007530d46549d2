"""Guest virtual memory as a debugger sees it: nothing is changed, nothing raises, garbage ends the walk.

The hypervisor's own accessors trust page tables that it has validated, and set accessed bits; a crash report
may do neither. Source: do_page_walk() in xen/arch/x86/x86_64/mm.c, show_page_walk() in x86_64/traps.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE
from hvcore.x86 import PAGE_PRESENT, PAGE_PSE

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu

_FLAG_NAMES = (
    (1 << 3, "write-through"),
    (1 << 4, "uncached"),
    (1 << 5, "accessed"),
    (1 << 6, "dirty"),
    (1 << 8, "global"),
    (1 << 63, "no-execute"),
)


@dataclass(frozen=True, slots=True)
class PageEntry:
    """One entry of a walk. `pfn` is None where the machine frame is none of the guest's."""

    level: int
    index: int
    entry: int
    flags: tuple[str, ...]
    mfn: int
    pfn: int | None


@dataclass(frozen=True, slots=True)
class Walk:
    """A walk from the top: the entries seen, and how it ended: "mapped", "not present", ..."""

    entries: tuple[PageEntry, ...]
    end: str
    machine_address: int | None


class GuestView:
    """The address space of a vCPU; where none is named, of that which runs, or ran when its guest died."""

    def __init__(self, machine: Machine, vcpu: Vcpu | None = None) -> None:
        d = machine.domain
        self._domain = d
        self._mem = machine.mem
        self._abi = d.abi
        self._m2p = self._mem.m2p[d.abi.m2p_entry].words
        v = d.current if vcpu is None else vcpu
        self.root_mfn = v.root_mfn

    def pfn_of(self, mfn: int) -> int | None:
        """The machine-to-physical table's answer, or None."""
        d = self._domain
        pg = mfn - d.frames.base_mfn
        if not 0 <= pg < d.frames.nr or d.frames.owner[pg] != d.domain_id:
            return None
        pfn: int = self._m2p[mfn]
        return pfn if pfn < d.nr_pages else None

    def walk(self, va: int) -> Walk:
        """The page walk of `va` as the processor would do it, entry by entry."""
        abi = self._abi
        bits = 10 if abi.pte_size == 4 else 9
        mfn = self.root_mfn
        entries: list[PageEntry] = []
        for level in range(abi.pt_levels, 0, -1):
            shift = PAGE_SHIFT + bits * (level - 1)
            index = va >> shift & ((1 << bits) - 1)
            entry = self._entry(mfn, index)
            if entry is None:
                return Walk(tuple(entries), f"the L{level} table would be outside of memory", None)
            mfn = entry >> PAGE_SHIFT & ((1 << 40) - 1)
            flags = _flags(entry, level)
            entries.append(PageEntry(level, index, entry, flags, mfn, self.pfn_of(mfn)))
            if not entry & PAGE_PRESENT:
                return Walk(tuple(entries), f"the L{level} entry is not present", None)
            if level == 1 or (entry & PAGE_PSE and level < abi.pt_levels):
                at = ((mfn << PAGE_SHIFT) & -(1 << shift)) | (va & ((1 << shift) - 1))
                return Walk(tuple(entries), "mapped", at)
        raise AssertionError("a page table has at least one level")

    def _entry(self, mfn: int, index: int) -> int | None:
        try:
            frame = self._mem.frame(mfn)
        except IndexError:
            return None
        size = self._abi.pte_size
        return int.from_bytes(frame[index * size : (index + 1) * size], "little")

    def read(self, va: int, size: int) -> bytes:
        """The bytes at `va`, as many of `size` as are mapped."""
        parts = []
        while size > 0:
            at = self.walk(va & self._abi.word_mask).machine_address
            step = min(size, PAGE_SIZE - (va & (PAGE_SIZE - 1)))
            if at is None:
                break
            try:
                frame = self._mem.frame(at >> PAGE_SHIFT)
            except IndexError:
                break
            offset = at & (PAGE_SIZE - 1)
            parts.append(bytes(frame[offset : offset + step]))
            va, size = va + step, size - step
        return b"".join(parts)


def _flags(entry: int, level: int) -> tuple[str, ...]:
    if not entry & PAGE_PRESENT:
        return ("not present",)
    names = ["present"]
    names.append("writable" if entry & 2 else "read-only")
    names.append("user" if entry & 4 else "supervisor")
    if level > 1 and entry & PAGE_PSE:
        names.append("PSE")
    names += [name for bit, name in _FLAG_NAMES if entry & bit]
    return tuple(names)
