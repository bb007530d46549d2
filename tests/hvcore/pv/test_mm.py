"""Page types and counts: what promotes, what refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.page_info import (
    PGT_l1_page_table,
    PGT_l2_page_table,
    PGT_l3_page_table,
    PGT_l4_page_table,
    PGT_pae_xen_l2,
    PGT_seg_desc_page,
    PGT_writable_page,
)
from hvcore.public.errno import EBUSY, EINVAL, EPERM
from hvcore.pv.mm import INVALID_MFN, PAGE_GUEST_KERNEL
from hvcore.x86 import PAGE_PSE, PAGE_USER
from tests.hvcore.pv_cpu import PV32, PV64, PvCpu

TABLE, TARGET, OTHER, SPARE = 10, 11, 12, 13  # pages
RO, RW = 0x25, 0x27
L1 = 3  # the page of the bench's own L1


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def pte(cpu: PvCpu, page: int, flags: int) -> int:
    return (cpu.base + page) << 12 | flags


def counts(cpu: PvCpu) -> tuple[list[int], list[int]]:
    return cpu.d.frames.count.tolist(), cpu.d.frames.tcount.tolist()


def frame(cpu: PvCpu, page: int) -> tuple[int, int, int]:
    """Type, type count and count of a page."""
    pg, frames = cpu.base + page - cpu.mem.base_mfn, cpu.d.frames
    return frames.ptype[pg], frames.tcount[pg], frames.count[pg]


def entry_at(cpu: PvCpu, page: int, slot: int) -> int:
    return ((cpu.base + page - cpu.mem.base_mfn) << 9) + slot


def test_an_l1_takes_a_reference_for_each_entry_and_gives_it_back(cpu: PvCpu) -> None:
    cpu.map(TABLE, RO)
    cpu.set_entry(TABLE, 0, pte(cpu, TARGET, RW))
    cpu.set_entry(TABLE, 1, pte(cpu, OTHER, RO))
    cpu.set_entry(TABLE, 2, pte(cpu, SPARE, 0x6))  # not present: whatever it says
    before = counts(cpu)
    was = {page: frame(cpu, page) for page in (TARGET, OTHER, SPARE)}
    mm = cpu.d.mm
    assert mm.get_page_and_type(cpu.base + TABLE, PGT_l1_page_table) == 0
    assert frame(cpu, TABLE)[:2] == (PGT_l1_page_table, 1)
    assert frame(cpu, TARGET) == (PGT_writable_page, was[TARGET][1] + 1, was[TARGET][2] + 1)
    assert frame(cpu, OTHER)[1:] == (was[OTHER][1], was[OTHER][2] + 1)
    assert frame(cpu, SPARE) == was[SPARE]
    mm.put_page_and_type(cpu.base + TABLE)
    assert counts(cpu) == before


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (lambda cpu: pte(cpu, TABLE, RW), EBUSY),  # itself, writable
        (lambda cpu: pte(cpu, 0, RW), EBUSY),  # the base table, writable
        (lambda cpu: pte(cpu, OTHER, RW | PAGE_PSE), EINVAL),
        (lambda cpu: cpu.mem.end_mfn << 12 | RO, EPERM),  # behind the machine's memory: I/O
        (lambda cpu: INVALID_MFN << 12 | RO, EINVAL),
        (lambda cpu: cpu.d.mm.xen.gdt_page_mfn << 12 | RO, EBUSY),  # Xen's own
    ],
)
def test_a_refused_table_leaves_nothing_behind(cpu: PvCpu, bad: object, error: int) -> None:
    assert callable(bad)
    cpu.map(TABLE, RO)
    for slot in range(5):
        cpu.set_entry(TABLE, slot, pte(cpu, TARGET, RW))
    cpu.set_entry(TABLE, 300, bad(cpu))
    before = counts(cpu)
    assert cpu.d.mm.get_page_and_type(cpu.base + TABLE, PGT_l1_page_table) == -error
    assert counts(cpu) == before
    # it is plain memory still
    cpu.map(TABLE, RW)
    assert frame(cpu, TABLE)[:2] == (PGT_writable_page, 1)


def test_a_frame_has_one_type_at_a_time(cpu: PvCpu) -> None:
    mm, mfn = cpu.d.mm, cpu.base + TABLE
    assert mm.get_page_and_type(mfn, PGT_l1_page_table) == -EINVAL  # mapped writable
    cpu.map(TABLE, RO)
    assert mm.get_page_and_type(mfn, PGT_l1_page_table) == 0
    for ptype in (PGT_l2_page_table, PGT_seg_desc_page, PGT_writable_page):
        before = counts(cpu)
        assert mm.get_page_and_type(mfn, ptype) == -EINVAL
        assert counts(cpu) == before
    assert mm.mod_l1_entry(entry_at(cpu, L1, TABLE), pte(cpu, TABLE, RW)) == -EBUSY
    assert mm.get_page_and_type(mfn, PGT_l1_page_table) == 0
    assert frame(cpu, TABLE)[1] == 2
    mm.put_page_and_type(mfn)
    mm.put_page_and_type(mfn)
    assert mm.get_page_and_type(mfn, PGT_seg_desc_page) == 0


def test_a_live_table_cannot_be_seen_through_a_stale_tlb(cpu: PvCpu) -> None:
    """A frame that was writable until now flushes the TLB when it becomes a table, once."""
    mm, mfn = cpu.d.mm, cpu.base + TABLE
    at = entry_at(cpu, L1, TABLE)
    assert mm.mod_l1_entry(at, pte(cpu, TABLE, RO)) == 0
    flushes = cpu.engine.tlb_flushes
    assert mm.get_page_and_type(mfn, PGT_l1_page_table) == 0
    assert cpu.engine.tlb_flushes == flushes + 1
    mm.put_page_and_type(mfn)
    mm.flush_tlb()
    flushes = cpu.engine.tlb_flushes
    assert mm.get_page_and_type(mfn, PGT_l2_page_table) == 0  # flushed since
    assert cpu.engine.tlb_flushes == flushes


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (lambda cpu: pte(cpu, OTHER, RW), 0),
        (lambda cpu: 0, 0),
        (lambda cpu: 0xFFFF_FFFF_FFFF_F000, 0),  # not present: anything
        (lambda cpu: pte(cpu, OTHER, RW | PAGE_PSE), EINVAL),
        (lambda cpu: pte(cpu, OTHER, RW | 0x8), EINVAL),  # PWT
        (lambda cpu: pte(cpu, OTHER, RW | 0x10), EINVAL),  # PCD
        (lambda cpu: pte(cpu, 0, RO), 0),
        (lambda cpu: pte(cpu, 0, RW), EBUSY),
        (lambda cpu: 0xFFFFF << 12 | RW, EPERM),
        (lambda cpu: INVALID_MFN << 12 | RW, EINVAL),
    ],
)
def test_mod_l1_entry(cpu: PvCpu, value: object, error: int) -> None:
    assert callable(value)
    mm, at = cpu.d.mm, entry_at(cpu, L1, TARGET)
    old, before = mm.e[at], counts(cpu)
    assert mm.mod_l1_entry(at, value(cpu)) == -error
    if error:
        assert (mm.e[at], counts(cpu)) == (old, before)
    else:
        assert mm.e[at] & ~0xFFF & (1 << 52) - 1 == value(cpu) & ~0xFFF & (1 << 52) - 1
        assert mm.mod_l1_entry(at, old) == 0
        assert counts(cpu) == before


def test_flags_change_without_new_references(cpu: PvCpu) -> None:
    mm, at = cpu.d.mm, entry_at(cpu, L1, TARGET)
    before = counts(cpu)
    mm.e[at] |= 0x60
    assert mm.mod_l1_entry(at, pte(cpu, TARGET, RW | 0x200), preserve_ad=True) == 0
    assert mm.e[at] & 0xFFF & ~0x100 == RW | 0x260
    assert mm.mod_l1_entry(at, pte(cpu, TARGET, RW)) == 0
    assert mm.e[at] & 0x40 == 0
    assert counts(cpu) == before


def test_user_bits_are_xens_on_64_bits_alone(cpu: PvCpu) -> None:
    mm, at = cpu.d.mm, entry_at(cpu, L1, TARGET)
    assert mm.mod_l1_entry(at, pte(cpu, TARGET, 0x23)) == 0
    added = mm.e[at] & (PAGE_USER | PAGE_GUEST_KERNEL)
    assert added == (0 if cpu.abi.is_32bit else PAGE_USER | PAGE_GUEST_KERNEL)


def test_xens_slots_are_not_the_guests() -> None:
    pv32, pv64 = PvCpu(PV32), PvCpu(PV64)
    first = pv32.d.mm.xen.first_xen_l2_slot
    for slot in (first, 511):
        assert pv32.d.mm.mod_l2_entry(entry_at(pv32, 2, slot), 0) == -EPERM
    assert pv32.d.mm.mod_l2_entry(entry_at(pv32, 2, first - 1), 0) == 0
    assert pv32.d.mm.mod_l2_entry(entry_at(pv32, 1, 511), 0) == 0  # an L2 of another slot is all the guest's
    for slot, error in ((2, 0), (3, EINVAL), (4, EINVAL), (511, EINVAL)):
        assert pv32.d.mm.mod_l3_entry(entry_at(pv32, 0, slot), 0) == -error
    for slot, error in ((255, 0), (256, EINVAL), (271, EINVAL), (272, 0)):
        assert pv64.d.mm.mod_l4_entry(entry_at(pv64, 0, slot), 0) == -error


def test_the_top_l2_of_a_pae_guest_belongs_to_one_l3() -> None:
    cpu = PvCpu(PV32)
    mm, top = cpu.d.mm, cpu.base + 2 - cpu.mem.base_mfn
    assert mm.pflags[top] & PGT_pae_xen_l2
    cpu.map(TABLE, RO)
    before = counts(cpu)
    assert mm.get_page_and_type(cpu.base + TABLE, PGT_l3_page_table) == -EINVAL  # no slot 3
    cpu.set_entry(TABLE, 3, pte(cpu, 2, 1))
    assert mm.get_page_and_type(cpu.base + TABLE, PGT_l3_page_table) == -EINVAL  # the other's
    cpu.set_entry(TABLE, 3, pte(cpu, 1, 1))
    assert mm.get_page_and_type(cpu.base + TABLE, PGT_l3_page_table) == -EINVAL  # in use without Xen's slots
    assert mm.mod_l3_entry(entry_at(cpu, 0, 1), pte(cpu, 2, 1)) == -EINVAL  # nor in a lower slot
    assert counts(cpu) == before
    cpu.map(OTHER, RO)
    cpu.set_entry(TABLE, 3, pte(cpu, OTHER, 1))
    assert mm.get_page_and_type(cpu.base + TABLE, PGT_l3_page_table) == 0
    assert mm.get_page_and_type(cpu.base + TABLE, PGT_l4_page_table) == -EINVAL


def test_new_guest_cr3(cpu: PvCpu) -> None:
    mm, v = cpu.d.mm, cpu.v
    before = counts(cpu)
    for page in (1, 3, TARGET, 1 << 20):
        assert mm.new_guest_cr3(cpu.base + page) == -EINVAL
        assert (v.cr3_mfn, counts(cpu)) == (cpu.base, before)
    assert mm.new_guest_cr3(cpu.base) == 0
    assert counts(cpu) == before
    if cpu.abi.pt_levels == 4:
        cpu.map(TABLE, RO)
        cpu.set_entry(TABLE, 0, pte(cpu, 1, 0x67))
        assert mm.new_guest_cr3(cpu.base + TABLE) == 0
        assert (v.cr3_mfn, frame(cpu, 0)[1], frame(cpu, 1)[1]) == (cpu.base + TABLE, 0, 1)


def test_a_frame_goes_with_its_last_holder(cpu: PvCpu) -> None:
    mm, mfn = cpu.d.mm, cpu.base + TARGET
    before = cpu.d.tot_pages
    assert mm.guest_remove_page(mfn) == 0
    assert cpu.d.tot_pages == before  # it is mapped
    assert mm.mod_l1_entry(entry_at(cpu, L1, TARGET), 0) == 0
    assert cpu.d.tot_pages == before - 1
    assert not mm.get_page(mfn)
    assert mm.guest_remove_page(mfn) == -EINVAL
    cpu.mem.frame(mfn)[:] = b"\x55" * 4096
    assert mm.alloc_domheap_page() == mfn
    assert bytes(cpu.mem.frame(mfn)) == bytes(4096)
    assert mm.alloc_domheap_page() == -1
    assert cpu.d.tot_pages == before


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([PV32, PV64]),
    st.lists(st.tuples(st.integers(4, 47), st.integers(0, 63), st.integers(0, 0x3FF)), max_size=30),
)
def test_counts_are_those_of_the_entries(abi: object, changes: list[tuple[int, int, int]]) -> None:
    cpu = PvCpu(abi)  # type: ignore[arg-type]
    mm = cpu.d.mm
    for slot, page, flags in changes:
        mm.mod_l1_entry(entry_at(cpu, L1, slot), pte(cpu, page, flags))
    held = dict.fromkeys(range(64), 0)
    written = dict.fromkeys(range(64), 0)
    for slot in range(512):
        entry = mm.e[entry_at(cpu, L1, slot)]
        page = (entry >> 12 & (1 << 40) - 1) - cpu.base
        if entry & 1:
            held[page] += 1
            written[page] += entry >> 1 & 1
    for page in range(4, 64):
        ptype, uses, holders = frame(cpu, page)
        assert (uses, holders) == (written[page], held[page] + 1)
        assert ptype == PGT_writable_page or not uses
    assert not any(written[page] for page in range(4))
