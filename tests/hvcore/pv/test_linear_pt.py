"""Linear page tables: who may name whom, what is counted, and that all of it is given back."""

from __future__ import annotations

import pytest

from hvcore.public.errno import EINVAL
from hvcore.refusal import Reason, Refusal
from hvcore.x86 import PAGE_ACCESSED, PAGE_DIRTY
from tests.hvcore.pv_cpu import PV32, PV64, PvCpu

A, B, C = 20, 21, 22  # pages that become tables
LINK = 0x5
LEVELS = [(PV32, 2), (PV64, 2), (PV64, 3), (PV64, 4)]


class Tables:
    """The three tables of one level, each pinned, as a test wants them."""

    def __init__(self, cpu: PvCpu, level: int) -> None:
        self.cpu, self.mm, self.level = cpu, cpu.d.mm, level
        self.before = cpu.d.frames.count.tolist(), cpu.d.frames.tcount.tolist()
        for page in (A, B, C):
            cpu.map(page, 0x25)
        for page in (A, B, C):
            self.pin(page)

    def mfn(self, page: int) -> int:
        return self.cpu.base + page

    def pin(self, page: int) -> None:
        assert self.mm.get_page_and_type(self.mfn(page), self.level) == 0

    def unpin(self, page: int) -> None:
        self.mm.put_page_and_type(self.mfn(page))

    def set(self, page: int, slot: int, value: int) -> int:
        modify = (self.mm.mod_l2_entry, self.mm.mod_l3_entry, self.mm.mod_l4_entry)[self.level - 2]
        return modify(((self.mfn(page) - self.mm.base) << 9) + slot, value)

    def link(self, page: int, slot: int, target: int, flags: int = LINK) -> int:
        return self.set(page, slot, self.mfn(target) << 12 | flags)

    def count(self, page: int) -> int:
        return self.mm.linear_pt_count[self.mfn(page) - self.mm.base]

    def why(self) -> list[Reason]:
        """The reasons of the last refusal."""
        pending = self.mm.trace.pending
        reasons = [refusal.reason for refusal in pending if isinstance(refusal, Refusal)]
        pending.clear()
        return reasons

    def all_given_back(self) -> bool:
        for page in (A, B, C):
            self.cpu.map(page, 0x27)
        return self.before == (self.cpu.d.frames.count.tolist(), self.cpu.d.frames.tcount.tolist())


@pytest.fixture(params=LEVELS, ids=["pae-l2", "64-l2", "64-l3", "64-l4"])
def tables(request: pytest.FixtureRequest) -> Tables:
    abi, level = request.param
    return Tables(PvCpu(abi), level)


def test_a_table_names_itself_without_a_reference(tables: Tables) -> None:
    held = tables.mm.count.tolist(), tables.mm.tcount.tolist()
    assert tables.link(A, 5, A) == 0
    assert (tables.mm.count.tolist(), tables.mm.tcount.tolist()) == held
    assert tables.count(A) == 0
    assert tables.why() == []
    for page in (A, B, C):
        tables.unpin(page)
    assert tables.all_given_back()


def test_never_with_write_permission(tables: Tables) -> None:
    for target in (A, B):
        assert tables.link(A, 5, target, LINK | 2) == -EINVAL
        assert tables.why() == [Reason.BAD_TYPE, Reason.LINEAR_WRITABLE]
    assert tables.link(A, 5, B) == 0
    assert tables.link(A, 5, B, LINK | 2) == -EINVAL
    assert tables.link(A, 5, B, LINK | PAGE_ACCESSED | PAGE_DIRTY) == 0
    assert tables.count(B) == -1


def test_the_counts_forbid_a_second_level(tables: Tables) -> None:
    assert tables.link(A, 5, B) == tables.link(A, 6, B) == tables.link(C, 5, B) == 0
    assert [tables.count(page) for page in (A, B, C)] == [2, -3, 1]
    assert tables.link(B, 5, C) == -EINVAL
    assert tables.why() == [Reason.BAD_TYPE, Reason.LINEAR_ENTRIES]
    assert tables.link(C, 6, A) == -EINVAL
    assert tables.why() == [Reason.BAD_TYPE, Reason.LINEAR_USES]
    assert tables.set(A, 5, 0) == tables.set(A, 6, 0) == tables.set(C, 5, 0) == 0
    assert [tables.count(page) for page in (A, B, C)] == [0, 0, 0]
    assert tables.link(B, 5, C) == 0
    for page in (A, B, C):
        tables.unpin(page)
    assert tables.all_given_back()


def test_the_last_use_may_be_a_linear_one(tables: Tables) -> None:
    assert tables.link(A, 5, B) == 0
    tables.unpin(B)
    assert tables.mm.tcount[tables.mfn(B) - tables.mm.base] == 1
    tables.unpin(A)
    tables.unpin(C)
    assert tables.all_given_back()


def test_uses_are_counted_in_sixteen_bits(tables: Tables) -> None:
    at = tables.mfn(B) - tables.mm.base
    tables.mm.linear_pt_count[at] = -(1 << 15)
    assert tables.link(A, 5, B) == -EINVAL
    assert tables.why() == [Reason.BAD_TYPE, Reason.LINEAR_LIMIT]
    tables.mm.linear_pt_count[at] += 1
    assert tables.link(A, 5, B) == 0


def test_a_refused_table_gives_its_links_back(tables: Tables) -> None:
    tables.unpin(A)
    tables.cpu.map(A, 0x27)
    for slot, (target, flags) in enumerate(((B, LINK), (A, LINK), (A, LINK | 2))):
        tables.cpu.set_entry(A, slot, tables.mfn(target) << 12 | flags)
    tables.cpu.map(A, 0x25)
    assert tables.mm.get_page_and_type(tables.mfn(A), tables.level) == -EINVAL
    assert tables.why() == [Reason.BAD_TYPE, Reason.LINEAR_WRITABLE, Reason.PROMOTE, Reason.VALIDATE]
    assert tables.count(B) == 0
    tables.cpu.set_entry(A, 2, 0)
    tables.pin(A)
    assert (tables.count(A), tables.count(B)) == (1, -1)


def test_an_l3_of_a_pae_guest_names_none() -> None:
    cpu = PvCpu(PV32)
    assert cpu.d.mm.mod_l3_entry(((cpu.base - cpu.mem.base_mfn) << 9) + 1, cpu.base << 12 | 1) == -EINVAL
    (refusal,) = cpu.d.trace.pending
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.BAD_TYPE


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_a_copy_of_xens_does_not_write_where_the_guest_could_not(abi: object) -> None:
    """Through a linear page table a lower table looks writable, as the entry that maps it is."""
    cpu = PvCpu(abi)  # type: ignore[arg-type]
    mm, levels = cpu.d.mm, cpu.abi.pt_levels
    top = 0 if levels == 4 else 1  # the L2 of the first gigabyte, where there is no L4
    modify = mm.mod_l4_entry if levels == 4 else mm.mod_l2_entry
    at = ((cpu.base + top - cpu.mem.base_mfn) << 9) + 7
    assert modify(at, (cpu.base + top) << 12 | LINK) == 0
    window = 7 << (39 if levels == 4 else 21)
    assert mm.walk(cpu.v.cr3_mfn, window, False) == (cpu.base + 3 - cpu.mem.base_mfn) << 12
    assert mm.walk(cpu.v.cr3_mfn, window, True) == -1
    assert mm.walk(cpu.v.cr3_mfn, 0x10000, True) >= 0
    xens = window + (262 << 30) if levels == 4 else 0  # Xen's directmap, one level too low
    assert levels != 4 or mm.walk(cpu.v.cr3_mfn, xens, False) == -1
