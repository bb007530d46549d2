"""mmuext_op: pins, base pointers, flushes, clearing and copying, argument by argument."""

from __future__ import annotations

import struct

import pytest

from hvcore.page_info import PGT_pinned
from hvcore.public import xen
from hvcore.public.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from hvcore.pv.mmuext_op import do_mmuext_op
from tests.hvcore.pv_cpu import DATA, HOLE, PV32, PV64, PvCpu, call

TABLE, TARGET, OTHER = 36, 37, 38
DONE = DATA + 0x800
OP = {4: "<III", 8: "<I4xQQ"}


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def ops(cpu: PvCpu, *rows: tuple[int, int, int], domid: int = xen.DOMID_SELF) -> int:
    cpu.put(DATA, b"".join(struct.pack(OP[cpu.abi.word], *row) for row in rows))
    cpu.put(DONE, struct.pack("<I", 0x55))
    return call(do_mmuext_op, cpu.v, DATA, len(rows), DONE, domid)


def op(cpu: PvCpu, cmd: int, arg1: int = 0, arg2: int = 0) -> int:
    return ops(cpu, (cmd, arg1, arg2))


def counts(cpu: PvCpu) -> tuple[list[int], list[int], bytes]:
    frames = cpu.d.frames
    return frames.count.tolist(), frames.tcount.tolist(), bytes(frames.flags)


def test_pin_and_unpin(cpu: PvCpu) -> None:
    mfn = cpu.base + TABLE
    assert op(cpu, xen.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL  # mapped writable
    cpu.map(TABLE, 0x25)
    before = counts(cpu)
    assert op(cpu, xen.MMUEXT_PIN_L1_TABLE, mfn) == 0
    assert cpu.d.frames.flags[mfn - cpu.mem.base_mfn] & PGT_pinned
    pinned = counts(cpu)
    assert op(cpu, xen.MMUEXT_PIN_L1_TABLE, mfn) == -EINVAL  # pinned already
    assert op(cpu, xen.MMUEXT_PIN_L2_TABLE, mfn) == -EINVAL  # an L1 now
    assert counts(cpu) == pinned
    assert op(cpu, xen.MMUEXT_UNPIN_TABLE, mfn) == 0
    assert counts(cpu)[:2] == before[:2]
    assert op(cpu, xen.MMUEXT_UNPIN_TABLE, mfn) == -EINVAL


def test_a_level_that_the_guest_does_not_have(cpu: PvCpu) -> None:
    cpu.map(TABLE, 0x25)
    before = counts(cpu)
    assert op(cpu, xen.MMUEXT_PIN_L4_TABLE, cpu.base + TABLE) == 0  # ignored, or an empty L4
    assert (counts(cpu) == before) is (cpu.abi.pt_levels == 3)


@pytest.mark.parametrize(
    ("cmd", "arg1", "arg2", "error"),
    [
        (xen.MMUEXT_PIN_L1_TABLE, lambda c: c.mem.end_mfn, 0, EINVAL),
        (xen.MMUEXT_UNPIN_TABLE, lambda c: c.mem.end_mfn, 0, EINVAL),
        (xen.MMUEXT_NEW_BASEPTR, lambda c: c.base + 3, 0, EINVAL),
        (xen.MMUEXT_NEW_USER_BASEPTR, lambda c: c.base + 3, 0, EINVAL),
        (xen.MMUEXT_TLB_FLUSH_MULTI, lambda c: 0, HOLE, EINVAL),
        (xen.MMUEXT_INVLPG_MULTI, lambda c: DATA, HOLE, EINVAL),
        (xen.MMUEXT_FLUSH_CACHE, lambda c: 0, 0, EACCES),
        (xen.MMUEXT_FLUSH_CACHE_GLOBAL, lambda c: 0, 0, EINVAL),
        (xen.MMUEXT_SET_LDT, lambda c: DATA + 8, 16, EINVAL),
        (xen.MMUEXT_SET_LDT, lambda c: DATA, 8193, EINVAL),
        (xen.MMUEXT_CLEAR_PAGE, lambda c: c.base + 1, 0, EINVAL),
        (xen.MMUEXT_CLEAR_PAGE, lambda c: c.mem.end_mfn, 0, EINVAL),
        (xen.MMUEXT_COPY_PAGE, lambda c: c.base + 1, 0, EINVAL),
        (xen.MMUEXT_MARK_SUPER, lambda c: c.base, 0, EOPNOTSUPP),
        (xen.MMUEXT_UNMARK_SUPER, lambda c: c.base, 0, EOPNOTSUPP),
        (14, lambda c: 0, 0, ENOSYS),
        (21, lambda c: 0, 0, ENOSYS),
    ],
)
def test_refusals_change_nothing(cpu: PvCpu, cmd: int, arg1: object, arg2: int, error: int) -> None:
    assert callable(arg1)
    before = counts(cpu)
    assert op(cpu, cmd, arg1(cpu), arg2) == -error
    assert counts(cpu) == before
    assert cpu.get(DONE, "I") == (0,)


def test_clear_and_copy(cpu: PvCpu) -> None:
    cpu.put(TARGET << 12, b"\xa5" * 4096)
    before = counts(cpu)
    assert op(cpu, xen.MMUEXT_COPY_PAGE, cpu.base + OTHER, cpu.base + TARGET) == 0
    assert bytes(cpu.mem.frame(cpu.base + OTHER)) == b"\xa5" * 4096
    assert op(cpu, xen.MMUEXT_CLEAR_PAGE, cpu.base + OTHER) == 0
    assert bytes(cpu.mem.frame(cpu.base + OTHER)) == bytes(4096)
    assert op(cpu, xen.MMUEXT_COPY_PAGE, cpu.base + OTHER, cpu.base + 3) == 0  # tables may be read
    assert op(cpu, xen.MMUEXT_COPY_PAGE, cpu.base + OTHER, cpu.mem.end_mfn) == -EINVAL
    assert counts(cpu) == before


@pytest.mark.parametrize(
    "cmd",
    [
        xen.MMUEXT_TLB_FLUSH_LOCAL, xen.MMUEXT_TLB_FLUSH_ALL, xen.MMUEXT_TLB_FLUSH_MULTI,
    ],
)  # fmt: skip
def test_flushes_flush(cpu: PvCpu, cmd: int) -> None:
    before = cpu.engine.tlb_flushes
    assert op(cpu, cmd, 0, DATA) == 0
    assert cpu.engine.tlb_flushes == before + 1


def test_user_base_pointers_are_for_64_bits() -> None:
    cpu = PvCpu(PV64)
    assert op(cpu, xen.MMUEXT_NEW_USER_BASEPTR, cpu.base) == 0
    assert cpu.v.user_cr3_mfn == cpu.base
    used = counts(cpu)
    assert op(cpu, xen.MMUEXT_NEW_USER_BASEPTR, cpu.base) == 0
    assert counts(cpu) == used
    assert op(cpu, xen.MMUEXT_NEW_USER_BASEPTR, 0) == 0
    assert cpu.v.user_cr3_mfn == 0
    pv32 = PvCpu(PV32)
    assert op(pv32, xen.MMUEXT_NEW_USER_BASEPTR, pv32.base) == -EINVAL


def test_a_list_stops_at_the_first_error(cpu: PvCpu) -> None:
    cpu.put(OTHER << 12, b"\xff")
    rows = ((xen.MMUEXT_TLB_FLUSH_LOCAL, 0, 0), (99, 0, 0), (xen.MMUEXT_CLEAR_PAGE, cpu.base + OTHER, 0))
    assert ops(cpu, *rows) == -ENOSYS
    assert cpu.get(DONE, "I") == (1,)
    assert cpu.get(OTHER << 12, "B") == (0xFF,)


@pytest.mark.parametrize(
    ("domid", "error"),
    [(xen.DOMID_SELF, 0), (0x1234, ESRCH), (xen.DOMID_IO, EPERM), (xen.DOMID_XEN, EPERM), (0, EPERM)],
)
def test_whose_pages(cpu: PvCpu, domid: int, error: int) -> None:
    assert ops(cpu, (xen.MMUEXT_TLB_FLUSH_LOCAL, 0, 0), domid=domid) == -error


def test_operations_that_cannot_be_read(cpu: PvCpu) -> None:
    assert call(do_mmuext_op, cpu.v, HOLE, 1, 0, xen.DOMID_SELF) == -EFAULT
    xens = 0xFFF00000 if cpu.abi.is_32bit else cpu.abi.hypervisor_virt_start  # beyond what it can read
    assert call(do_mmuext_op, cpu.v, xens, 1, 0, xen.DOMID_SELF) == -EFAULT
