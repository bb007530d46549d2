"""Descriptors, GDTs and LDTs: Xen's rules on paper, and what the engine makes of the tables."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore import abi as abi_module
from hvcore.cpu.processor import DS, GS
from hvcore.page_info import PGT_seg_desc_page, PGT_writable_page
from hvcore.public.errno import EFAULT, EINVAL
from hvcore.pv.descriptor_tables import (
    check_descriptor,
    do_set_gdt,
    do_update_descriptor,
    init_xen_gdt_page,
    pv_destroy_gdt,
    pv_map_ldt_shadow_page,
    set_ldt,
    validate_segdesc_page,
)
from hvcore.pv.emulate import read_descriptor
from tests.hvcore.pv_cpu import DATA, GDT_PAGE, HOLE, INT3, PV32, PV64, PvCpu, call

TWO_LEVEL = abi_module.PV32_2LEVEL
FLAT_DATA = 0x00CF93000000FFFF
LIST = 0x15000
LDT_PAGE = 9


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def check(abi: abi_module.Abi, raw: int) -> int | None:
    fixed = check_descriptor(abi, raw & 0xFFFFFFFF, raw >> 32)
    return None if fixed is None else fixed[0] | fixed[1] << 32


def uses(cpu: PvCpu, page: int) -> tuple[int, int]:
    """Type and type count of a page."""
    pg = cpu.base + page - cpu.mem.base_mfn
    return cpu.d.frames.ptype[pg], cpu.d.frames.tcount[pg]


# -- check_descriptor()


@pytest.mark.parametrize(
    ("raw", "pv32", "pv64"),
    [
        (0, 0, 0),
        (0x00CF13000000FFFF, 0x00CF13000000FFFF, 0x00CF13000000FFFF),  # not present: as it is
        (0x00CF93000000FFFF, 0x00CFB3000000FFFF, 0x00CFF3000000FFFF),  # DPL 0 is raised to the kernel's
        (0x00CFB3000000FFFF, 0x00CFB3000000FFFF, 0x00CFF3000000FFFF),
        (0x00CFF3000000FFFF, 0x00CFF3000000FFFF, 0x00CFF3000000FFFF),
        (0x00AF9B000000FFFF, None, 0x00AFFB000000FFFF),  # long mode code
        (0x00CF930000006800 | 0x000F << 48, 0x00CFB3000000FFFF, 0x00CFF30000006800),  # limit 0xf6800: opened
        (0x00CF92000000FFFF, 0x00CFB2000000FFFF, 0x00CFF2000000FFFF),
        (0x00C3930000001000, 0x00C3B30000001000, 0x00C3F30000001000),  # a low limit stays
        (0x00008B0000000067, None, None),  # TSS
        (0x0000820000000FFF, None, None),  # LDT
        (0x0000850000180000, None, None),  # task gate
        (0x00008E0000180000, None, None),  # interrupt gate
        (0x0000840000180000, None, None),  # 16-bit call gate
        (0x1234800000005678, 0x1234800000005678, 0x1234800000005678),  # type 0
        (0x00108C00E0195678, 0x00108C00E0195678, None),  # call gate to Xen's flat code, as PV32 names it
        (0x0010EC0000185678, 0x00108C00001B5678, 0x00108C00001B5678),  # DPL 3 goes to the RPL
        (0x00108C0000185678, 0x00108C0000195678, 0x00108C00001B5678),
        (0x00108C00E0085678, None, None),  # to Xen's own code
        (0x00108C00E00C5678, 0x00108C00E00D5678, 0x00108C00E00F5678),  # the LDT has all indices
        (0x00108C0100185678, 0x00108C0100195678, None),  # parameters
        (0x00108C2000185678, None, None),  # reserved bits
    ],
)  # fmt: skip
def test_what_descriptors_become(raw: int, pv32: int | None, pv64: int | None) -> None:
    assert check(PV32, raw) == pv32
    assert check(PV64, raw) == pv64


def test_segments_with_a_base_are_not_opened() -> None:
    raw = 0x00CFB30000010000 | 0xFFFE
    assert check(PV32, raw) == raw


@pytest.mark.parametrize(
    ("raw", "fixed"),
    [
        (0x00CF93000000FFFF, 0x00CFB3000000C3FF),  # 4 GB are cut to 0xfc400000
        (0x00CF9B000000FFFF, 0x00CFBB000000C3FF),
        (0x00C393000000FFFF, 0x00C3B3000000FFFF),
        (0xC0CF93000000FFFF, 0xC0C3B3000000C3FF),  # base 0xc0000000
        (0xFCCF93000000FFFF, 0xFCC0B300000003FF),  # base 0xfc000000: 4 MB are left
        (0xFCC093400000FFFF, None),  # base 0xfc400000
        (0xFC0F933FE000FFFF, None),  # limits in bytes cannot be cut
        (0x00CF97000000FFFF, 0x00CFB7000000FFFF),  # grows down from 4 GB: no access at all
        (0x00C0970000000001, 0x00CFB7000000FFFF),  # grows down over all: cut to nothing
    ],
)  # fmt: skip
def test_a_32_bit_xen_cuts_segments_off(raw: int, fixed: int | None) -> None:
    assert check(TWO_LEVEL, raw) == fixed


@given(st.integers(0, 2**64 - 1), st.sampled_from([PV32, PV64, TWO_LEVEL]))
@settings(max_examples=500, deadline=None)
def test_what_passes_is_stable_and_never_inner(raw: int, abi: abi_module.Abi) -> None:
    fixed = check(abi, raw)
    if fixed is None or not fixed >> 47 & 1:
        return
    if fixed >> 44 & 1:
        assert fixed >> 45 & 3 >= abi.kernel_cpl
        assert check(abi, fixed) == fixed
        assert not (abi.is_32bit and abi.pt_levels == 3 and fixed >> 53 & 1)
    elif fixed >> 40 & 0xF:
        assert fixed >> 40 & 0x7F == 0x0C  # a call gate, DPL 0


@given(st.integers(0, 2**64 - 1))
@settings(max_examples=500, deadline=None)
def test_no_segment_of_a_two_level_guest_reaches_above_the_m2p(raw: int) -> None:
    fixed = check(TWO_LEVEL, raw | 1 << 47 | 1 << 44)
    if fixed is None:
        return
    base = fixed >> 16 & 0xFFFFFF | fixed >> 32 & 0xFF000000
    limit = fixed & 0xFFFF | fixed >> 32 & 0xF0000
    if fixed >> 55 & 1:
        limit = limit << 12 | 0xFFF
    if fixed >> 42 & 3 == 1:  # data that grows down: from limit + 1 to 4 GB above the base
        assert (base & ~0xFFF) + limit + 1 >= 1 << 32 or base + limit + 1 & 0xFFFFFFFF <= base
    else:
        assert base + limit < 0xFC400000


def test_xens_own_entries() -> None:
    """desc.c: boot_compat_gdt and boot_gdt, as guests of real Xen read them with lar and lsl."""
    page = memoryview(bytearray(4096))
    init_xen_gdt_page(page, PV32)
    entries = page.cast("Q")
    assert [entries[(sel & 0xFFF) >> 3] for sel in (0xE019, 0xE021, 0xE02B, 0xE033)] == [
        0x00CFBB000000FFFF, 0x00CFB3000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF,
    ]  # fmt: skip
    init_xen_gdt_page(page, PV64)
    assert [entries[(sel & 0xFFF) >> 3] for sel in (0xE023, 0xE02B, 0xE033)] == [
        0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF,
    ]  # fmt: skip
    assert sum(1 for entry in entries if entry) == 6


# -- the GDT


def gdt_list(cpu: PvCpu, *frames: int) -> int:
    cpu.put(LIST, struct.pack(f"<{len(frames)}{cpu.abi.word_format}", *frames))
    return LIST


def test_set_gdt_types_checks_and_maps_the_frame(cpu: PvCpu) -> None:
    cpu.map(GDT_PAGE, 0x25)
    cpu.put((GDT_PAGE << 12) + 0x18, struct.pack("<Q", FLAT_DATA))
    assert do_set_gdt(cpu.v, gdt_list(cpu, cpu.base + GDT_PAGE), 4) == 0
    assert uses(cpu, GDT_PAGE) == (PGT_seg_desc_page, 1)
    assert cpu.get((GDT_PAGE << 12) + 0x18, "Q") == (
        (0x00CFB3000000FFFF if cpu.abi.is_32bit else 0x00CFF3000000FFFF),
    )
    selector = 0x18 | cpu.abi.kernel_cpl
    assert cpu.run(b"\xb8" + struct.pack("<I", selector) + b"\x8e\xd8") == [INT3]  # mov %eax, %ds
    assert cpu.engine.selector(DS) == selector


def test_a_gdt_page_can_no_longer_be_written(cpu: PvCpu) -> None:
    cpu.set_gdt({})
    at = ((cpu.base + 3 - cpu.mem.base_mfn) << 9) + GDT_PAGE
    assert cpu.d.mm.mod_l1_entry(at, (cpu.base + GDT_PAGE) << 12 | 0x27) < 0
    pv_destroy_gdt(cpu.v)
    assert cpu.d.mm.mod_l1_entry(at, (cpu.base + GDT_PAGE) << 12 | 0x27) == 0


def test_a_new_gdt_lets_go_of_the_old(cpu: PvCpu) -> None:
    cpu.set_gdt({0x18: FLAT_DATA})
    cpu.map(10, 0x25)
    assert do_set_gdt(cpu.v, gdt_list(cpu, cpu.base + 10), 512) == 0
    assert uses(cpu, GDT_PAGE)[1] == 0
    assert uses(cpu, 10) == (PGT_seg_desc_page, 1)
    assert read_descriptor(cpu.v, 0x1B, False) == (0, 0, 0)


@pytest.mark.parametrize("frame", [16, 0, 0x100000, -1], ids=["writable", "page table", "no frame", "heap"])
def test_a_bad_frame_leaves_the_old_gdt(cpu: PvCpu, frame: int) -> None:
    cpu.set_gdt({0x18: FLAT_DATA})
    cpu.map(10, 0x25)
    assert do_set_gdt(cpu.v, gdt_list(cpu, cpu.base + 10, cpu.base + frame), 513) == -EINVAL
    assert cpu.v.gdt_frames == (cpu.base + GDT_PAGE,)
    assert uses(cpu, 10)[1] == 0
    assert uses(cpu, GDT_PAGE) == (PGT_seg_desc_page, 1)


def test_a_gdt_with_a_forbidden_descriptor(cpu: PvCpu) -> None:
    cpu.map(GDT_PAGE, 0x25)
    cpu.put((GDT_PAGE << 12) + 8 * 511, struct.pack("<Q", 0x00008B0000000067))
    assert do_set_gdt(cpu.v, gdt_list(cpu, cpu.base + GDT_PAGE), 1) == -EINVAL
    assert validate_segdesc_page(cpu.mem, cpu.base + GDT_PAGE, cpu.abi) == -EINVAL
    assert uses(cpu, GDT_PAGE)[1] == 0


def test_arguments_of_set_gdt(cpu: PvCpu) -> None:
    assert call(do_set_gdt, cpu.v, LIST, 14 * 512 + 1) == -EINVAL
    assert call(do_set_gdt, cpu.v, HOLE, 1) == -EFAULT
    assert call(do_set_gdt, cpu.v, HOLE, 0) == 0
    assert cpu.v.gdt_frames == ()


def test_one_frame_may_stand_at_two_places(cpu: PvCpu) -> None:
    cpu.map(GDT_PAGE, 0x25)
    frame = cpu.base + GDT_PAGE
    assert do_set_gdt(cpu.v, gdt_list(cpu, frame, frame), 1024) == 0
    assert uses(cpu, GDT_PAGE) == (PGT_seg_desc_page, 2)
    pv_destroy_gdt(cpu.v)
    assert uses(cpu, GDT_PAGE)[1] == 0


# -- update_descriptor


def test_update_descriptor_in_a_live_gdt(cpu: PvCpu) -> None:
    cpu.set_gdt({})
    at = (cpu.base + GDT_PAGE) << 12
    assert do_update_descriptor(cpu.v, at + 0x20, FLAT_DATA) == 0
    expected = 0x00CFB3000000FFFF if cpu.abi.is_32bit else 0x00CFF3000000FFFF
    assert cpu.get((GDT_PAGE << 12) + 0x20, "Q") == (expected,)
    assert uses(cpu, GDT_PAGE) == (PGT_seg_desc_page, 1)


def test_update_descriptor_in_a_plain_page(cpu: PvCpu) -> None:
    before = uses(cpu, 16)
    assert before[0] == PGT_writable_page
    assert do_update_descriptor(cpu.v, (cpu.base + 16) << 12, FLAT_DATA) == 0
    assert uses(cpu, 16) == before


@pytest.mark.parametrize(
    ("page", "offset", "desc"),
    [
        (GDT_PAGE, 4, FLAT_DATA),
        (GDT_PAGE, 8, 0x00008B0000000067),
        (0, 8, FLAT_DATA),
        (3, 8, 0),
        (-2, 8, 0),
        (0x10000, 8, 0),
    ],
    ids=["misaligned", "TSS", "top table", "L1 table", "Xen's frame", "no frame"],
)
def test_update_descriptor_refuses(cpu: PvCpu, page: int, offset: int, desc: int) -> None:
    cpu.set_gdt({})
    before = bytes(cpu.mem.frame(cpu.base)), bytes(cpu.mem.frame(cpu.base + 3))
    counts = bytes(cpu.d.frames.count)
    assert do_update_descriptor(cpu.v, ((cpu.base + page) << 12) + offset, desc) == -EINVAL
    assert (bytes(cpu.mem.frame(cpu.base)), bytes(cpu.mem.frame(cpu.base + 3))) == before
    assert bytes(cpu.d.frames.count) == counts


# -- the LDT


def make_ldt(cpu: PvCpu, page: int = LDT_PAGE) -> None:
    cpu.map(page, 0x25)
    cpu.put((page << 12) + 8, struct.pack("<Q", 0x00CFF3001000FFFF))


def test_the_ldt_is_mapped_when_it_is_used(cpu: PvCpu) -> None:
    make_ldt(cpu)
    assert set_ldt(cpu.v, LDT_PAGE << 12, 2) == 0
    assert uses(cpu, LDT_PAGE)[1] == 0
    assert cpu.run("b80f000000 8ee8") == [INT3]  # mov $0xf, %gs
    assert cpu.engine.selector(GS) == 0xF
    assert cpu.engine.segment_base(GS) == 0x1000
    assert cpu.v.ldt_shadow == {0: cpu.base + LDT_PAGE}
    assert uses(cpu, LDT_PAGE) == (PGT_seg_desc_page, 1)


def test_beyond_the_ldts_limit(cpu: PvCpu) -> None:
    make_ldt(cpu)
    assert set_ldt(cpu.v, LDT_PAGE << 12, 2) == 0
    assert cpu.run("b817000000 8ee8") == [(13, 0x14, None)]
    assert not pv_map_ldt_shadow_page(cpu.v, 16)


def test_a_new_ldt_drops_the_mapped_pages(cpu: PvCpu) -> None:
    make_ldt(cpu)
    assert set_ldt(cpu.v, LDT_PAGE << 12, 2) == 0
    assert pv_map_ldt_shadow_page(cpu.v, 8)
    assert pv_map_ldt_shadow_page(cpu.v, 8)
    assert uses(cpu, LDT_PAGE) == (PGT_seg_desc_page, 1)
    assert set_ldt(cpu.v, LDT_PAGE << 12, 2) == 0
    assert uses(cpu, LDT_PAGE)[1] == 1
    assert set_ldt(cpu.v, 0x5000, 0) == 0
    assert uses(cpu, LDT_PAGE)[1] == 0
    assert (cpu.v.ldt_base, cpu.v.ldt_ents, cpu.v.ldt_shadow) == (0, 0, {})
    assert cpu.run("b80f000000 8ee8") == [(13, 0xC, None)]


def test_an_ldt_page_must_be_fit_for_descriptors(cpu: PvCpu) -> None:
    assert set_ldt(cpu.v, 16 << 12, 512) == 0  # mapped writable
    assert not pv_map_ldt_shadow_page(cpu.v, 0)
    assert set_ldt(cpu.v, HOLE, 512) == 0
    assert not pv_map_ldt_shadow_page(cpu.v, 0)
    make_ldt(cpu)
    cpu.put(LDT_PAGE << 12, struct.pack("<Q", 0x00008B0000000067))
    assert set_ldt(cpu.v, LDT_PAGE << 12, 512) == 0
    assert not pv_map_ldt_shadow_page(cpu.v, 0)


def test_arguments_of_set_ldt(cpu: PvCpu) -> None:
    assert set_ldt(cpu.v, DATA, 8193) == -EINVAL
    assert set_ldt(cpu.v, DATA + 8, 1) == -EINVAL
    assert set_ldt(cpu.v, DATA + 8, 0) == 0
    assert set_ldt(cpu.v, DATA, 8192) == 0
    if not cpu.abi.is_32bit:
        assert set_ldt(cpu.v, 0xFFFF800000000000, 1) == -EINVAL


def test_an_ldt_of_two_pages(cpu: PvCpu) -> None:
    make_ldt(cpu)
    cpu.map(LDT_PAGE + 1, 0x25)
    assert set_ldt(cpu.v, LDT_PAGE << 12, 1024) == 0
    assert pv_map_ldt_shadow_page(cpu.v, 0x1008)
    assert cpu.v.ldt_shadow == {1: cpu.base + LDT_PAGE + 1}
    assert read_descriptor(cpu.v, 0xF, False) == (0x1000, 0xFFFFFFFF, 0xC0F300)
    assert sorted(cpu.v.ldt_shadow) == [0, 1]
