"""The life of page tables as hypothesis makes it up, against a model of what is pinned and mapped."""

from __future__ import annotations

import tempfile
from typing import Any, ClassVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hvcore.public.memory import xen_memory_reservation
from hvcore.public.xen import Hypercall
from tests.hvcore.hostile.world import GUESTS, Mapped, World

H = Hypercall
PAGES = st.integers(0, 7)
ENTRIES = st.tuples(PAGES, st.sampled_from([0x21, 0x63, 0x67]))
TABLES = st.dictionaries(st.sampled_from([0, 1, 2, 3, 511]), ENTRIES, max_size=4)
UNPIN, NEW_BASEPTR, SET_LDT = 4, 5, 13
EFAULT, EINVAL, EBUSY = 14, 22, 16


class PageTables(RuleBasedStateMachine):
    """A few pages of the guest that become tables, are mapped, pinned, loaded, given back."""

    guest: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    @initialize()
    def start(self) -> None:
        self.w = World(self.guest, self.folder.name)
        free = [m for m in self.w.mapped if m.writable]
        self.pages: list[Mapped] = free[-8:]
        self.args = free[0].va
        self.pinned: dict[int, int] = {}  # frame -> command that pinned it

    def teardown(self) -> None:
        self.w.close()
        self.folder.cleanup()

    # -- helpers

    def map(self, m: Mapped, entry: int) -> int:
        wide = (entry,) if self.w.abi.word == 8 else (entry & 0xFFFFFFFF, entry >> 32)
        return self.w.call(H.update_va_mapping, (m.va, *wide, 2, 0, 0, 0)[:6])

    def extended(self, command: int, first: int, second: int = 0) -> int:
        word = self.w.abi.word
        op = b"".join(value.to_bytes(word, "little") for value in (command, first, second))
        if not self.w.store(self.args, op):
            return -EFAULT  # the guest has no such page any more
        return self.w.call(H.mmuext_op, (self.args, 1, 0, 0x7FF0, 0, 0))

    def uses(self, mfn: int) -> tuple[int, int]:
        pg = mfn - self.w.mm.base
        return self.w.mm.ptype[pg], self.w.mm.tcount[pg]

    # -- rules

    @rule(page=PAGES, other=PAGES, flags=st.sampled_from([0, 0x21, 0x23, 0x27, 0x67, 0xE3, 1 << 63 | 0x63]))
    def map_page(self, page: int, other: int, flags: int) -> None:
        m, mfn = self.pages[page], self.pages[other].mfn
        ptype, uses = self.uses(mfn)
        entry = mfn << 12 | flags & (1 << 8 * self.w.mm.e.itemsize) - 1
        rc = self.map(m, entry)
        if rc == 0 and flags & 3 == 3:
            assert ptype in (0, 7) or not uses, "a page in use as a table was mapped writable"

    @rule(page=PAGES, slots=TABLES)
    def fill(self, page: int, slots: dict[int, tuple[int, int]]) -> None:
        size = self.w.mm.e.itemsize
        raw = bytearray(4096)
        for slot, (other, flags) in slots.items():
            entry = self.pages[other].mfn << 12 | flags
            raw[slot * size : (slot + 1) * size] = entry.to_bytes(size, "little")
        self.w.store(self.pages[page].va, bytes(raw))

    @rule(page=PAGES, level=st.integers(0, 3))
    def pin(self, page: int, level: int) -> None:
        m = self.pages[page]
        if self.map(m, m.mfn << 12 | 0x21):
            return
        held = m.mfn in self.pinned
        rc = self.extended(level, m.mfn)
        if level >= self.w.abi.pt_levels:
            assert rc in (0, -EFAULT), "a level that the guest does not have is ignored"
        elif rc == 0:
            assert not held, "a pinned table was pinned again"
            self.pinned[m.mfn] = level
            assert self.uses(m.mfn)[0] == level + 1
            assert self.map(m, m.mfn << 12 | 0x63) == -EBUSY

    @rule(page=PAGES)
    def unpin(self, page: int) -> None:
        mfn = self.pages[page].mfn
        rc = self.extended(UNPIN, mfn)
        if rc == -EFAULT:
            return
        assert rc == (0 if self.pinned.pop(mfn, None) is not None else -EINVAL)

    @rule(
        page=PAGES,
        slot=st.sampled_from([0, 1, 2, 3, 511]),
        other=PAGES,
        flags=st.sampled_from([0, 0x21, 0x63]),
    )
    def update(self, page: int, slot: int, other: int, flags: int) -> None:
        size = self.w.mm.e.itemsize
        pointer = self.pages[page].mfn << 12 | slot * size
        value = self.pages[other].mfn << 12 | flags
        if not self.w.store(self.args, pointer.to_bytes(8, "little") + value.to_bytes(8, "little")):
            return
        self.w.call(H.mmu_update, (self.args, 1, 0, 0x7FF0, 0, 0))

    def links(self) -> set[tuple[int, int]]:
        """Which table names which other of its level, read from the tables."""
        mm, found = self.w.mm, set()
        for m in self.pages:
            ptype, uses = self.uses(m.mfn)
            if 2 <= ptype <= 4 and uses:
                for _slot, entry in mm.guest_entries(m.mfn - mm.base, ptype):
                    target = (entry >> 12) & mm.mfn_mask
                    if entry & 1 and target != m.mfn and self.uses(target)[0] == ptype:
                        found.add((m.mfn, target))
        return found

    @rule(pages=st.tuples(PAGES, PAGES), level=st.integers(1, 3), flags=st.sampled_from([0x21, 0x63]))
    def link(self, pages: tuple[int, int], level: int, flags: int) -> None:
        """A linear page table: one table names another, both made for it where they can be."""
        a, b = (self.pages[page] for page in pages)
        for m in (a, b):
            if m.mfn not in self.pinned:
                self.w.store(m.va, bytes(4096))
                self.pin(self.pages.index(m), level)
        (ptype, uses), links = self.uses(a.mfn), self.links()
        if not (2 <= ptype <= 4 and uses and self.uses(b.mfn)[0] == ptype and self.uses(b.mfn)[1]):
            return
        forbidden = flags & 2 or (self.w.abi.pt_levels == 3 and ptype == 3)
        if a != b:
            forbidden = forbidden or any(t == a.mfn for _, t in links) or any(f == b.mfn for f, _ in links)
        size = self.w.mm.e.itemsize
        pointer, value = a.mfn << 12 | 2 * size, b.mfn << 12 | flags
        if not self.w.store(self.args, pointer.to_bytes(8, "little") + value.to_bytes(8, "little")):
            return
        event(f"linear, {'refused' if forbidden else 'allowed'}")
        rc = self.w.call(H.mmu_update, (self.args, 1, 0, 0x7FF0, 0, 0))
        assert rc == (-EINVAL if forbidden else 0)

    @rule(page=PAGES, slot=st.sampled_from([0, 1, 511]), other=PAGES, flags=st.sampled_from([0, 0x21, 0x63]))
    def store_to_table(self, page: int, slot: int, other: int, flags: int) -> None:
        size = self.w.mm.e.itemsize
        value = self.pages[other].mfn << 12 | flags
        self.w.store(self.pages[page].va + slot * size, value.to_bytes(size, "little"))

    @rule(page=PAGES, copy=st.booleans())
    def second_root(self, page: int, copy: bool) -> None:
        """A root that shares the first one's lower tables, loaded."""
        m, mm = self.pages[page], self.w.mm
        used = 4 if mm.levels == 3 else mm.entries
        top = (self.w.v.cr3_mfn - mm.base) << mm.shift
        drop = 0x1E6 if used == 4 else 0x180
        entries = [e & ~drop if copy and e & 1 else 0 for e in mm.e[top : top + used]]
        self.w.store(m.va, b"".join(e.to_bytes(mm.e.itemsize, "little") for e in entries))
        if self.map(m, m.mfn << 12 | 0x21) == 0 and self.extended(NEW_BASEPTR, m.mfn) == 0:
            assert self.w.v.cr3_mfn == m.mfn

    @rule(pages=st.lists(PAGES, max_size=3))
    def set_gdt(self, pages: list[int]) -> None:
        word = self.w.abi.word
        if not self.w.store(self.args, b"".join(self.pages[p].mfn.to_bytes(word, "little") for p in pages)):
            return
        rc = self.w.call(H.set_gdt, (self.args, 512 * len(pages), 0, 0, 0, 0))
        if rc == 0:
            assert list(self.w.v.gdt_frames) == [self.pages[p].mfn for p in pages]

    @rule(page=PAGES, entries=st.sampled_from([0, 1, 512, 8192, 8193]))
    def ldt(self, page: int, entries: int) -> None:
        self.extended(SET_LDT, self.pages[page].va, entries)
        for offset in (0, 0x1000):
            self.w.ldt_fault(offset)

    @rule(page=PAGES, command=st.sampled_from([0, 1, 6]))
    def reservation(self, page: int, command: int) -> None:
        word = self.w.abi.word
        mfn = self.pages[page].mfn
        block = xen_memory_reservation[word].pack(self.args + 64, 1, 0, 0, 0x7FF0)
        if not self.w.store(self.args, block.ljust(64, b"\0") + mfn.to_bytes(word, "little")):
            return
        before = self.w.d.tot_pages
        assert self.w.call(H.memory_op, (command, self.args, 0, 0, 0, 0)) in (0, 1)
        if command == 1:
            self.pinned.pop(mfn, None)
            assert self.w.d.tot_pages in (before, before - 1)

    @precondition(lambda self: self.w.v.cr3_mfn)
    @rule(ns=st.integers(0, 10**7))
    def time(self, ns: int) -> None:
        self.w.pass_time(ns)
        self.w.revive()

    @invariant()
    def nothing_is_wrong(self) -> None:
        if hasattr(self, "w"):
            assert self.w.problems() == []


SETTINGS = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def _case(kind: str) -> Any:
    machine: Any = type(f"PageTables_{kind}", (PageTables,), {"guest": kind})
    machine.TestCase.settings = SETTINGS
    return machine.TestCase


TestPae, Test64, TestTwoLevel = (_case(kind) for kind in GUESTS)
