"""mmu_update and update_va_mapping: what is done, how far, and with which error."""

from __future__ import annotations

import struct

import pytest

from hvcore.public.errno import EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from hvcore.public.xen import DOMID_IO, DOMID_SELF, DOMID_XEN
from hvcore.pv.mmu_update import (
    do_mmu_update,
    do_update_va_mapping,
    do_update_va_mapping_otherdomain,
)
from tests.hvcore.pv_cpu import DATA, HOLE, PV32, PV64, PvCpu, call

TARGET, OTHER = 36, 37
DONE = DATA + 0x800


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def pte(cpu: PvCpu, page: int, flags: int = 0x27) -> int:
    return (cpu.base + page) << 12 | flags


def place(cpu: PvCpu, page: int) -> int:
    """The machine address of the L1 entry of a page."""
    return (cpu.base + 3) << 12 | page << 3


def entry(cpu: PvCpu, page: int) -> int:
    return int(cpu.get(0x3000 + 8 * page, "Q")[0]) & ((1 << 52) - 1) & ~0x100


def leaves(cpu: PvCpu) -> list[int]:
    """The leaf table without accessed and dirty, which copying from the guest sets."""
    return [value & ~0x60 for value in cpu.get(0x3000, "512Q")]


def update(cpu: PvCpu, *requests: tuple[int, int], domid: int = DOMID_SELF) -> int:
    cpu.put(DATA, b"".join(struct.pack("<QQ", *request) for request in requests))
    cpu.put(DONE, struct.pack("<I", 0x55))
    return call(do_mmu_update, cpu.v, DATA, len(requests), DONE, domid)


def done(cpu: PvCpu) -> int:
    return int(cpu.get(DONE, "I")[0])


def test_requests_are_applied_in_order(cpu: PvCpu) -> None:
    assert update(cpu, (place(cpu, TARGET), pte(cpu, OTHER)), (place(cpu, OTHER), pte(cpu, TARGET))) == 0
    assert done(cpu) == 2
    assert (entry(cpu, TARGET), entry(cpu, OTHER)) == (pte(cpu, OTHER), pte(cpu, TARGET))


@pytest.mark.parametrize("bad", range(3))
def test_it_stops_at_the_first_error(cpu: PvCpu, bad: int) -> None:
    requests = [(place(cpu, TARGET + i), pte(cpu, 40 + i)) for i in range(3)]
    requests[bad] = (requests[bad][0], pte(cpu, 0))  # a page table, writable
    assert update(cpu, *requests) == -EBUSY
    assert done(cpu) == bad
    moved = [entry(cpu, TARGET + i) == pte(cpu, 40 + i) for i in range(3)]
    assert moved == [i < bad for i in range(3)]


@pytest.mark.parametrize(
    ("ptr", "val", "error"),
    [
        (lambda c: place(c, TARGET) | 4, lambda c: pte(c, OTHER), ENOSYS),  # a command of none
        (lambda c: c.mem.end_mfn << 12, lambda c: 0, EINVAL),
        (lambda c: c.d.mm.xen.gdt_page_mfn << 12, lambda c: 0, EINVAL),
        (lambda c: place(c, TARGET), lambda c: 0xFFFFF << 12 | 0x27, EPERM),
        (lambda c: place(c, TARGET) | 2, lambda c: pte(c, 0), EBUSY),
        (lambda c: c.mem.end_mfn << 12 | 1, lambda c: 5, EINVAL),  # machphys of no frame
    ],
)
def test_refusals(cpu: PvCpu, ptr: object, val: object, error: int) -> None:
    assert callable(ptr)
    assert callable(val)
    before = leaves(cpu)
    assert update(cpu, (ptr(cpu), val(cpu))) == -error
    assert leaves(cpu) == before


def test_preserving_accessed_and_dirty(cpu: PvCpu) -> None:
    assert update(cpu, (place(cpu, TARGET), pte(cpu, TARGET, 0x67))) == 0
    assert update(cpu, (place(cpu, TARGET) | 2, pte(cpu, TARGET, 0x7))) == 0
    assert entry(cpu, TARGET) & 0x60 == 0x60
    assert update(cpu, (place(cpu, TARGET), pte(cpu, TARGET, 0x7))) == 0
    assert entry(cpu, TARGET) & 0x60 == 0


def test_plain_memory_is_written_as_it_is(cpu: PvCpu) -> None:
    assert update(cpu, ((cpu.base + OTHER) << 12 | 8, 0xDEAD_BEEF_0000_0001)) == 0
    assert cpu.get((OTHER << 12) + 8, "Q") == (0xDEAD_BEEF_0000_0001,)


def test_machphys(cpu: PvCpu) -> None:
    assert update(cpu, ((cpu.base + OTHER) << 12 | 1, 0x1234)) == 0
    size = cpu.abi.m2p_entry
    at = (cpu.mem.m2p[size].mfn - cpu.mem.base_mfn << 12) + (cpu.base + OTHER) * size
    assert int.from_bytes(cpu.mem.view[at : at + size], "little") == 0x1234


@pytest.mark.parametrize(
    ("domid", "error"), [(DOMID_SELF, 0), (0x1234, ESRCH), (DOMID_XEN, EPERM), (0, EPERM), (DOMID_IO, EBUSY)]
)
def test_the_frames_owner(cpu: PvCpu, domid: int, error: int) -> None:
    assert update(cpu, (place(cpu, TARGET), pte(cpu, OTHER)), domid=domid) == -error


def test_arguments_that_cannot_be_read(cpu: PvCpu) -> None:
    assert call(do_mmu_update, cpu.v, HOLE, 1, 0, DOMID_SELF) == -EFAULT
    xens = 0xFFF00000 if cpu.abi.is_32bit else cpu.abi.hypervisor_virt_start  # beyond what it can read
    assert call(do_mmu_update, cpu.v, xens, 1, 0, DOMID_SELF) == -EFAULT
    assert call(do_mmu_update, cpu.v, HOLE, 0, 0, DOMID_SELF) == 0
    # the count cannot be told: that is no error
    cpu.put(DATA, struct.pack("<QQ", place(cpu, TARGET), pte(cpu, OTHER)))
    assert call(do_mmu_update, cpu.v, DATA, 1, HOLE, DOMID_SELF) == 0


def test_update_va_mapping_and_its_flushes(cpu: PvCpu) -> None:
    for flags, flushes in ((0, 0), (1, 1), (1 | 4, 1)):
        before = cpu.engine.tlb_flushes
        assert call(do_update_va_mapping, cpu.v, TARGET << 12, pte(cpu, OTHER), flags) == 0
        assert entry(cpu, TARGET) == pte(cpu, OTHER)
        assert cpu.engine.tlb_flushes - before == flushes
    assert call(do_update_va_mapping, cpu.v, TARGET << 12, pte(cpu, 0), 0) == -EBUSY
    assert call(do_update_va_mapping, cpu.v, 0x4000_0000, pte(cpu, OTHER), 0) == -EINVAL  # no leaf table
    assert call(do_update_va_mapping, cpu.v, TARGET << 12, pte(cpu, TARGET), HOLE | 1) == -EFAULT
    assert entry(cpu, TARGET) == pte(cpu, TARGET)  # the mapping stands all the same


@pytest.mark.parametrize(
    ("domid", "error"), [(DOMID_SELF, 0), (0x1234, ESRCH), (DOMID_XEN, EPERM), (DOMID_IO, EPERM)]
)
def test_update_va_mapping_otherdomain(cpu: PvCpu, domid: int, error: int) -> None:
    value = pte(cpu, OTHER)
    assert call(do_update_va_mapping_otherdomain, cpu.v, TARGET << 12, value, 0, domid) == -error
    assert (entry(cpu, TARGET) == value) is (not error)
