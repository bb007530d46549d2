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

from hvcore.cpu.processor import CS, RIP
from hvcore.errors import GuestError
from hvcore.page_info import PGT_l1_page_table, PGT_l4_page_table
from hvcore.public.xen import PAGE_SIZE
from hvcore.refusal import Reason
from hvcore.x86 import PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, X86_EFLAGS_TF, TRAP_debug, TRAP_page_fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain

VMASST_writable_pagetables = 1 << 2
_COMPARES = 0x100  # a bit of a store's form: by compare and exchange, as every locked store is
_LOCK, _OPSIZE, _REX_W = 0xF0, 0x66, 8
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, _OPSIZE, 0x67, _LOCK, 0xF2, 0xF3))
_MAX_INST_LEN = 15
_XCHG, _CMPXCHG, _SETCC, _CMPXCHG8B = 0x86, 0xB0, 0x90, 0xC7  # the latter three after 0F
_BYTE_0F = frozenset((_CMPXCHG, 0xC0))
_GPRS = 16
_EMPTY = bytes(PAGE_SIZE)


def store_form(code: bytes, *, long_mode: bool) -> int:
    """How many bytes the store in `code` writes, plus _COMPARES where it is made by compare and exchange.

    For stores from general registers and immediates; another gives a width of no less than it has.
    """
    size, locked, at = 4, False, 0
    while at < len(code) and code[at] in _PREFIXES:
        size = 2 if code[at] == _OPSIZE else size
        locked |= code[at] == _LOCK
        at += 1
    if long_mode and code[at : at + 1] and code[at] & 0xF0 == 0x40:
        size = 8 if code[at] & _REX_W else size
        at += 1
    opcode = code[at : at + 2]
    if opcode[:1] != b"\x0f":
        first = opcode[0] if opcode else 1
        return (size if first & 1 else 1) + (_COMPARES if locked or first & 0xFE == _XCHG else 0)
    second = opcode[1] if len(opcode) > 1 else 0
    if second == _CMPXCHG8B:
        return 2 * max(size, 4) + _COMPARES
    if second & 0xF0 == _SETCC or second in _BYTE_0F:
        size = 1
    return size + (_COMPARES if locked or second & 0xFE == _CMPXCHG else 0)


class RoPageFault:
    """At most one store is under way: between `try_start()` and the engine's next exit."""

    WIRING = frozenset(("d", "upper_tables", "engine", "mm", "scratch_mfn", "scratch", "reject"))

    def __init__(self, domain: Domain, *, upper_tables: bool = False) -> None:
        self.d = domain
        self.upper_tables = upper_tables
        self.engine = domain.engine
        self.mm = domain.mm
        self.scratch_mfn = domain.alloc_xenheap_page()
        self.scratch = domain.mem.frame(self.scratch_mfn)
        self.pending = False
        # How many exceptions there had been when a store to an L2-L4 table was last refused that
        # `upper_tables` would have let through; -1: never.
        self.refused_upper_at = -1
        self._compares = False
        self._at = 0  # the entry that maps the table for the guest
        self._pte = 0
        self._above: list[int] = []  # upper entries that were read-only: index, entry, index, entry...
        self._table = 0  # the table's mfn
        self._cr2 = 0
        self._saved: list[int] = []
        self._eflags = 0
        # How a refused store ends: with the page fault that the processor raised (Traps.inject).
        self.reject: Callable[[int, int, int], None] = lambda _vector, _code, _cr2: None

    @property
    def stores(self) -> int:
        """How many stores were made, by this or by the compiled core."""
        return self.d.words.page_table_stores

    def _leaf(self, cr2: int) -> int:
        """The index of the read-only entry that maps `cr2` and names a frame of the guest's, or -1.

        It may be an upper entry that a linear page table shows.
        """
        mm, abi = self.mm, self.d.abi
        if abi.hypervisor_virt_start <= cr2 < abi.hypervisor_virt_end:  # fixup_page_fault()
            return -1
        at = mm.l1_entry_of(self.d.current.cr3_mfn, cr2)
        if at < 0 or mm.e[at] & (PAGE_PRESENT | PAGE_RW) != PAGE_PRESENT:
            return -1
        pg = ((mm.e[at] >> 12) & mm.mfn_mask) - mm.base
        return at if 0 <= pg < mm.nr and mm.owner[pg] == mm.domid else -1

    def try_start(self, cr2: int) -> bool:
        """pv_ro_page_fault(): begin the store if `cr2` is a read-only mapping of the guest's own L1 table.

        Xen looks at the leaf alone: those above it may be read-only, too.
        """
        mm, at = self.mm, self._leaf(cr2)
        if at < 0:
            return False
        pte = mm.e[at]
        mfn = (pte >> 12) & mm.mfn_mask
        pg = mfn - mm.base
        level = mm.ptype[pg]
        if not (PGT_l1_page_table <= level <= PGT_l4_page_table and mm.tcount[pg]):
            return False
        if not self.upper_tables:
            if level > PGT_l1_page_table:
                mm.refuse(Reason.UPPER_STORE, level)
                self.refused_upper_at = sum(self.d.trace.exceptions)
                return False
            if not self.d.vm_assist & VMASST_writable_pagetables:
                mm.refuse(Reason.NO_ASSIST)
                return False
        self._compares = False
        if cr2 & 7:
            form = store_form(self._code(), long_mode=self.mm.shift == 9 and not self.mm.pv32)
            if cr2 & ((form & ~_COMPARES) - 1):
                mm.refuse(Reason.STORE_SHAPE, cr2)
                return False
            self._compares = form >= _COMPARES
        self.scratch[:] = self.d.mem.frame(mfn)
        self._at, self._pte, self._table, self._cr2 = at, pte, mfn, cr2
        self._above.clear()
        for upper in mm.entries_above(self.d.current.cr3_mfn, cr2):
            if not mm.e[upper] & PAGE_RW:
                self._above += (upper, mm.e[upper])
                mm.write_entry(upper, mm.e[upper] | PAGE_RW, level=2)
        self._saved = self.engine.q[: _GPRS + 1].tolist()
        self._eflags = self.engine.read_eflags()
        frame_bits = mm.mfn_mask << 12
        mm.write_entry(at, pte & ~frame_bits | self.scratch_mfn << 12 | PAGE_RW | PAGE_DIRTY)
        self.engine.write_eflags(self._eflags | X86_EFLAGS_TF)
        self.pending = True
        return True

    def upper_store_was_the_end(self) -> bool:
        """Whether nothing has come after a refused store to an L2-L4 table that was an exception, too."""
        return self.refused_upper_at == sum(self.d.trace.exceptions)

    def _code(self) -> bytes:
        """The instruction under way, as far as it can be read."""
        guest, engine = self.d.guest, self.engine
        ip = engine.q[RIP] + engine.segment_base(CS)
        for size in (_MAX_INST_LEN, 4096 - (ip & 4095)):
            try:
                return guest.copy_from(ip & self.d.abi.word_mask, size)
            except GuestError:
                continue
        return b""

    def step_done(self, vector: int) -> bool:
        """The next exit: put the mapping back and check what was stored.

        True when the exit is dealt with; False when the instruction itself faulted and `vector` still has
        to be handled. The scratch frame is empty again then, as the core leaves it, which does without.
        """
        try:
            return self._end_step(vector)
        finally:
            self.scratch[:] = _EMPTY

    def _end_step(self, vector: int) -> bool:
        mm, engine = self.mm, self.engine
        self.pending = False
        mm.write_entry(self._at, self._pte)
        for i in range(0, len(self._above), 2):
            mm.write_entry(self._above[i], self._above[i + 1], level=2)
        engine.write_eflags(engine.read_eflags() & ~X86_EFLAGS_TF | self._eflags & X86_EFLAGS_TF)
        if vector != TRAP_debug:
            if vector != TRAP_page_fault or engine.cr2 & self.d.abi.word_mask != self._cr2:
                return False
            self.reject(TRAP_page_fault, 3, self._cr2)  # or the same store would be begun again
            return True
        engine.take_debug_status()
        self.d.words.page_table_stores += 1
        if not self._commit():
            engine.q[: _GPRS + 1] = memoryview(_words(self._saved)).cast("B").cast("Q")
            engine.write_eflags(self._eflags)
            self.reject(TRAP_page_fault, 3, self._cr2)
            return True
        return not self._eflags & X86_EFLAGS_TF

    def _commit(self) -> bool:
        """Apply the one changed entry; False if it is refused, or if more than one changed."""
        mm = self.mm
        size = 8 if mm.shift == 9 else 4
        offset = self._cr2 & 4095 & -size
        live = self.d.mem.frame(self._table)
        new = int.from_bytes(self.scratch[offset : offset + size], "little")
        self.scratch[offset : offset + size] = live[offset : offset + size]
        if bytes(self.scratch) != bytes(live):  # as views they would be compared item by item
            mm.refuse(Reason.STORE_SHAPE, self._cr2)
            return False
        at = ((self._table - mm.base) << mm.shift) + offset // size
        old = mm.e[at]
        ptype = mm.ptype[self._table - mm.base]
        modify = (mm.mod_l1_entry, mm.mod_l2_entry, mm.mod_l3_entry, mm.mod_l4_entry)[ptype - 1]
        noted = len(mm.trace.pending)
        if not modify(at, new):
            if mm.flush_linear_pt:
                mm.flush_linear_pt = False
                mm.flush_tlb()
            return True
        # A PAE guest that writes the upper half first: drop PRESENT, the lower half is to follow.
        upper_half = mm.pv32 and size == 8 and (new ^ old) & 0xFFFFFFFF == 0
        upper_half = upper_half and self._cr2 & 4 != 0 and not self._compares
        if upper_half and ptype == PGT_l1_page_table and not mm.mod_l1_entry(at, new & ~PAGE_PRESENT):
            del mm.trace.pending[noted:]
            return True
        mm.refuse(Reason.STORE)
        return False


def _words(values: list[int]) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)
