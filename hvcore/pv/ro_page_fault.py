"""Writable page tables: a guest store to a live L1 table, carried out under Xen's eyes.

Real Xen emulates the store. Here the engine itself runs it, once, against a copy: the page that the guest
meant to write is for one single-stepped instruction backed by a scratch frame with the table's contents.
Afterwards the one entry that differs goes through mod_l1_entry() like any other update, and the mapping is
put back. The live table is never written unchecked, whatever the instruction was.

Xen does this for L1 tables alone. `upper_tables` extends it to the others: GNU Mach of 2022 stores to an L2
that it has just made read-only, and dies of that under Xen.
Source: ptwr_emulated_update() in xen/arch/x86/pv/ro-page-fault.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.page_info import OWNER_GUEST, PGT_l1_page_table, PGT_l4_page_table
from hvcore.pv.mm import PAGE_DIRTY, PAGE_PRESENT, PAGE_RW

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain

_TF = 0x100
TRAP_debug, TRAP_page_fault = 1, 14
_GPRS = 16


class RoPageFault:
    """At most one store is under way: between `try_start()` and the engine's next exit."""

    def __init__(self, domain: Domain, *, upper_tables: bool = False) -> None:
        self.d = domain
        self.upper_tables = upper_tables
        self.engine = domain.engine
        self.mm = domain.mm
        self.scratch_mfn = domain.mem.alloc_xenheap_page()
        self.scratch = domain.mem.frame(self.scratch_mfn)
        self.pending = False
        self.stores = 0
        self._at = 0  # the entry that maps the table for the guest
        self._pte = 0
        self._table = 0  # the table's mfn
        self._cr2 = 0
        self._saved: list[int] = []
        self._eflags = 0
        # How a refused store ends: with the page fault that the processor raised (Traps.inject).
        self.reject: Callable[[int, int, int], None] = lambda _vector, _code, _cr2: None

    def try_start(self, cr2: int) -> bool:
        """pv_ro_page_fault(): begin the store if `cr2` is a read-only mapping of the guest's own L1 table."""
        mm = self.mm
        at = mm.l1_entry_of(self.d.current.cr3_mfn, cr2)
        if at < 0:
            return False
        pte = mm.e[at]
        if pte & (PAGE_PRESENT | PAGE_RW) != PAGE_PRESENT:
            return False
        mfn = (pte >> 12) & mm.mfn_mask
        pg = mfn - mm.base
        if not 0 <= pg < mm.nr or mm.owner[pg] != OWNER_GUEST:
            return False
        highest = PGT_l4_page_table if self.upper_tables else PGT_l1_page_table
        if not (PGT_l1_page_table <= mm.ptype[pg] <= highest and mm.tcount[pg]):
            return False
        self.scratch[:] = self.d.mem.frame(mfn)
        self._at, self._pte, self._table, self._cr2 = at, pte, mfn, cr2
        self._saved = self.engine.q[: _GPRS + 1].tolist()
        self._eflags = self.engine.read_eflags()
        frame_bits = mm.mfn_mask << 12
        mm.e[at] = pte & ~frame_bits | self.scratch_mfn << 12 | PAGE_RW | PAGE_DIRTY
        mm.flush_tlb()
        self.engine.write_eflags(self._eflags | _TF)
        self.pending = True
        return True

    def step_done(self, vector: int) -> bool:
        """The next exit: put the mapping back and check what was stored.

        True when the exit is dealt with; False when the instruction itself faulted and `vector` still has
        to be handled.
        """
        mm, engine = self.mm, self.engine
        self.pending = False
        mm.e[self._at] = self._pte
        mm.flush_tlb()
        engine.write_eflags(engine.read_eflags() & ~_TF | self._eflags & _TF)
        if vector != TRAP_debug:
            return False
        engine.take_debug_status()
        self.stores += 1
        if not self._commit():
            engine.q[: _GPRS + 1] = memoryview(_words(self._saved)).cast("B").cast("Q")
            engine.write_eflags(self._eflags)
            self.reject(TRAP_page_fault, 3, self._cr2)
            return True
        return not self._eflags & _TF

    def _commit(self) -> bool:
        """Apply the one changed entry; False if it is refused, or if more than one changed."""
        mm = self.mm
        size = 8 if mm.shift == 9 else 4
        offset = self._cr2 & 4095 & -size
        live = self.d.mem.frame(self._table)
        new = int.from_bytes(self.scratch[offset : offset + size], "little")
        self.scratch[offset : offset + size] = live[offset : offset + size]
        if self.scratch != live:
            return False
        at = ((self._table - mm.base) << mm.shift) + offset // size
        old = mm.e[at]
        ptype = mm.ptype[self._table - mm.base]
        modify = (mm.mod_l1_entry, mm.mod_l2_entry, mm.mod_l3_entry, mm.mod_l4_entry)[ptype - 1]
        if not modify(at, new):
            return True
        # A PAE guest that writes the upper half first: drop PRESENT, the lower half is to follow.
        upper_half = mm.pv32 and size == 8 and (new ^ old) & 0xFFFFFFFF == 0
        return upper_half and ptype == PGT_l1_page_table and not mm.mod_l1_entry(at, new & ~PAGE_PRESENT)


def _words(values: list[int]) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)
