"""MSRs by number, against the cases of read_msr(), write_msr(), guest_rdmsr() and vmce.c for an AMD host."""

from __future__ import annotations

import pytest

from hvcore.errors import GuestFault
from hvcore.page_info import PGT_writable_page
from hvcore.pv.msr import read_msr, write_msr
from tests.hvcore.pv_cpu import PV32, PV64, PvCpu


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def refused(function: object, *args: object) -> bool:
    assert callable(function)
    try:
        function(*args)
    except GuestFault as fault:
        return (fault.vector, fault.error_code) == (13, 0)
    return False


READABLE = {
    0x1B: 0xFEE00900, 0x8B: 0, 0xCE: 0, 0x140: 0, 0x179: 2, 0x17A: 0, 0x17B: 0, 0x277: 0x050100070406,
    0x280: 0, 0x29F: 0, 0x345: 0, 0x400: 2**64 - 1, 0x401: 0, 0x402: 0, 0x403: 0,
    0x404: 2**64 - 1, 0x408: 0, 0x47F: 0,
    0x40000000: 0, 0xC0010000: 0, 0xC0010007: 0, 0xC0010015: 0, 0xC001001F: 0, 0xC0010041: 0, 0xC0010064: 0,
    0xC0010200: 0, 0xC001020B: 0, 0xC0011029: 2,
}  # fmt: skip
UNREADABLE = (
    0x17, 0x33, 0x35, 0x3A, 0x48, 0x49, 0x4E, 0x4F, 0x79, 0xC1, 0xCF, 0x10A, 0x10B, 0x10F, 0x122, 0x186,
    0x198, 0x199, 0x19C, 0x1A0, 0x4D0, 0x560, 0x570, 0x6A0, 0x6A8, 0x800, 0x830, 0xD90, 0xDA0, 0x40000001,
    0x400002FF, 0xC0000081, 0xC0000103, 0xC0000105, 0xC0010010, 0xC0010020, 0xC0010055, 0xC0010058,
    0xC001011F, 0xC00102F0, 0xC0011019, 0xC0011027, 0xFFFFFFFF,
)  # fmt: skip


def test_what_can_be_read(cpu: PvCpu) -> None:
    cpu.v.trap_ctxt[13] = (0, cpu.abi.flat_kernel_cs, 0x1000)
    assert {msr: read_msr(cpu.v, msr) for msr in READABLE} == READABLE


def test_what_cannot_be_read(cpu: PvCpu) -> None:
    cpu.v.trap_ctxt[13] = (0, cpu.abi.flat_kernel_cs, 0x1000)
    assert [msr for msr in UNREADABLE if not refused(read_msr, cpu.v, msr)] == []


def test_a_guest_without_a_gp_handler_reads_hardware_msrs_as_zero(cpu: PvCpu) -> None:
    assert read_msr(cpu.v, 0xC0000081) == 0  # STAR: there, but Xen's
    assert read_msr(cpu.v, 0xC0010055) == 0
    assert refused(read_msr, cpu.v, 0x12345)
    assert refused(read_msr, cpu.v, 0x40000001)


def test_the_apic_base_knows_the_boot_processor(cpu: PvCpu) -> None:
    cpu.v.vcpu_id = 1
    assert read_msr(cpu.v, 0x1B) == 0xFEE00800


def test_efer_can_only_be_written_back(cpu: PvCpu) -> None:
    efer = read_msr(cpu.v, 0xC0000080)
    assert efer == (0x801 if cpu.abi.is_32bit else 0xD01)
    write_msr(cpu.v, 0xC0000080, efer)
    assert refused(write_msr, cpu.v, 0xC0000080, efer ^ 1)


def test_the_tsc_runs_with_the_clock(cpu: PvCpu) -> None:
    cpu.d.clock.advance_to(5_000_000)
    assert read_msr(cpu.v, 0x10) == 10_000_000
    assert refused(write_msr, cpu.v, 0x10, 0)


def test_segment_bases_are_for_64_bit_guests() -> None:
    cpu = PvCpu(PV32)
    cpu.v.trap_ctxt[13] = (0, 0xE019, 0x1000)
    for msr in (0xC0000100, 0xC0000101, 0xC0000102):
        assert refused(read_msr, cpu.v, msr)
        assert refused(write_msr, cpu.v, msr, 0)


def test_the_three_segment_bases_are_apart() -> None:
    cpu = PvCpu(PV64)
    for i, msr in enumerate((0xC0000100, 0xC0000101, 0xC0000102)):
        write_msr(cpu.v, msr, 0x1000 * i + 0x7FFF00000000)
    assert [read_msr(cpu.v, msr) & 0xFFFF for msr in (0xC0000100, 0xC0000101, 0xC0000102)] == [
        0,
        0x1000,
        0x2000,
    ]
    assert cpu.v.gs_base_user == 0x7FFF00002000
    assert refused(write_msr, cpu.v, 0xC0000102, 1 << 47)


def test_ignored_writes(cpu: PvCpu) -> None:
    for msr in (
        0xE7,
        0xE8,
        0x179,
        0x17B,
        0x280,
        0x400,
        0x404,
        0xC0010000,
        0xC0010015,
        0xC001001F,
        0xC0010062,
        0xC0011029,
    ):
        before = None if msr in (0xE7, 0xE8) else read_msr(cpu.v, msr)
        write_msr(cpu.v, msr, 0x1234)
        assert before is None or read_msr(cpu.v, msr) == before


def test_machine_check_banks_can_only_be_cleared(cpu: PvCpu) -> None:
    for msr in (0x401, 0x402, 0x403, 0x405):
        write_msr(cpu.v, msr, 0)
        assert refused(write_msr, cpu.v, msr, 1)
    write_msr(cpu.v, 0x17A, 4)
    assert read_msr(cpu.v, 0x17A) == 4


@pytest.mark.parametrize(
    "msr",
    [0x1B, 0x8B, 0x79, 0xCE, 0x140, 0x199, 0x19A, 0x1A0, 0x1B0, 0x277, 0x4D0, 0xC0010058, 0xC0000103, 0x800],
)
def test_refused_writes(cpu: PvCpu, msr: int) -> None:
    assert refused(write_msr, cpu.v, msr, 1)


def test_the_hypercall_page_by_msr(cpu: PvCpu) -> None:
    page = 20
    write_msr(cpu.v, 0x40000000, (cpu.base + page) << 12)
    stub = "b81d000000cd82c3" if cpu.abi.is_32bit else "514153b81d0000000f05415b59c3"
    code = bytes(cpu.mem.frame(cpu.base + page)[29 * 32 : 30 * 32])
    assert code == bytes.fromhex(stub).ljust(32, b"\xcc")
    pg = cpu.base + page - cpu.mem.base_mfn
    assert cpu.d.frames.ptype[pg] == PGT_writable_page
    assert cpu.d.frames.tcount[pg] == 1  # the mapping's alone


def test_the_hypercall_page_goes_to_no_page_table_and_no_other_frame(cpu: PvCpu) -> None:
    before = bytes(cpu.mem.frame(cpu.base))
    assert refused(write_msr, cpu.v, 0x40000000, cpu.base << 12)
    assert bytes(cpu.mem.frame(cpu.base)) == before
    assert refused(write_msr, cpu.v, 0x40000000, cpu.mem.base_mfn << 12)
    assert refused(write_msr, cpu.v, 0x40000000, (cpu.base + 20) << 12 | 1)
    assert refused(write_msr, cpu.v, 0x40000001, 0)
