"""copy_from_guest and copy_to_guest: what can be touched, and across pages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT
from hvcore.x86 import M32
from tests.hvcore.pv_cpu import HOLE, PV32, PV64, PvCpu

PAGE = 36


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def test_words_of_each_size(cpu: PvCpu) -> None:
    guest, at = cpu.d.guest, (PAGE << 12) + 0x10
    guest.write_u64(at, 0x1122334455667788)
    assert cpu.get(at, "Q") == (0x1122334455667788,)
    assert (guest.read_u32(at), guest.read_u32(at + 4)) == (0x55667788, 0x11223344)
    assert guest.read_ulong(at) == (0x55667788 if cpu.abi.word == 4 else 0x1122334455667788)
    guest.write_u32(at, -1)
    guest.write_ulong(at + 8, -2)
    assert cpu.get(at, "I") == (0xFFFFFFFF,)
    assert guest.read_ulong(at + 8) == (1 << 8 * cpu.abi.word) - 2
    layout = struct.Struct("<HI")
    guest.pack(layout, at, 7, 8)
    assert guest.unpack(layout, at) == (7, 8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 * 4096), st.binary(max_size=9000))
def test_copies_across_pages(offset: int, data: bytes) -> None:
    cpu = PvCpu(PV32)
    cpu.d.guest.copy_to((PAGE << 12) + offset, data)
    assert cpu.d.guest.copy_from((PAGE << 12) + offset, len(data)) == data
    start = (cpu.base - cpu.mem.base_mfn << 12) + (PAGE << 12) + offset
    assert bytes(cpu.mem.view[start : start + len(data)]) == data


@pytest.mark.parametrize("where", ["hole", "xen", "noncanonical", "above"])
def test_what_the_guest_kernel_cannot_touch(cpu: PvCpu, where: str) -> None:
    at = {
        "hole": HOLE,
        "xen": cpu.abi.hypervisor_virt_start,
        "noncanonical": cpu.abi.hypervisor_virt_start if cpu.abi.is_32bit else 1 << 47,
        "above": 0x4000_0000,
    }[where]
    guest = cpu.d.guest
    loads = (lambda: guest.copy_from(at, 1), lambda: guest.read_u32(at))
    stores = (lambda: guest.copy_to(at, b"x"), lambda: guest.probe_write(at, 1))
    may_load = cpu.abi.is_32bit and at == cpu.abi.hypervisor_virt_start  # the M2P, as a 64-bit Xen reads it
    for access in stores if may_load else (*loads, *stores):
        with pytest.raises(GuestError) as caught:
            access()
        assert caught.value.errno == EFAULT
    if may_load:
        assert guest.read_u32(at) == M32  # frame 0 is nobody's
    assert guest.copy_from(at, 0) == b""


def test_read_only_pages_are_read_alone(cpu: PvCpu) -> None:
    guest = cpu.d.guest
    guest.read_u32(0x3000)  # a page table
    with pytest.raises(GuestError):
        guest.copy_to(0x3000, b"x")
    with pytest.raises(GuestError):
        guest.probe_write(0x3000, 1)


def test_what_lies_before_a_fault_is_written(cpu: PvCpu) -> None:
    with pytest.raises(GuestError):
        cpu.d.guest.copy_to(HOLE - 4, b"abcdefgh")
    assert cpu.get(HOLE - 4, "4s") == (b"abcd",)
    with pytest.raises(GuestError):
        cpu.d.guest.probe_write(HOLE - 4, 8)


def test_no_translation_is_kept(cpu: PvCpu) -> None:
    guest, at = cpu.d.guest, PAGE << 12
    guest.write_u32(at, 1)
    assert guest.read_u32(at) == 1
    cpu.put((PAGE + 1) << 12, struct.pack("<I", 2))
    cpu.set_entry(3, PAGE, (cpu.base + PAGE + 1) << 12 | 0x27)
    assert guest.read_u32(at) == 2
    cpu.set_entry(3, PAGE, 0)
    with pytest.raises(GuestError):
        guest.read_u32(at)


def test_accessed_and_dirty(cpu: PvCpu) -> None:
    cpu.set_entry(3, PAGE, (cpu.base + PAGE) << 12 | 0x7)
    guest = cpu.d.guest
    guest.read_u32(PAGE << 12)
    assert cpu.get(0x3000 + 8 * PAGE, "Q")[0] & 0x60 == 0x20
    guest.write_u32(PAGE << 12, 0)
    assert cpu.get(0x3000 + 8 * PAGE, "Q")[0] & 0x60 == 0x60


def test_okay_looks_at_the_range_alone(cpu: PvCpu) -> None:
    guest, start = cpu.d.guest, cpu.abi.hypervisor_virt_start
    assert guest.okay(HOLE, 1 << 20)
    assert not guest.okay(HOLE, 1 << 64)
    if cpu.abi.is_32bit:  # all addresses of a 32-bit guest are good to a 64-bit Xen
        assert guest.okay(start - 8, 9)
        assert guest.okay(M32, 1)
        assert not guest.okay(M32, 2)
    else:
        assert not guest.okay(start, 1)
        assert guest.okay((1 << 47) - 8, 8)
        assert not guest.okay((1 << 47) - 8, 9)
        assert guest.okay(cpu.abi.hypervisor_virt_end, 8)
