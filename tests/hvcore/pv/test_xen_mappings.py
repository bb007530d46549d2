"""Xen's part of the address space: the M2P can be read and not written, the rest not even that."""

from __future__ import annotations

import pytest

from hvcore.pv.xen_mappings import PERDOMAIN_VIRT_START
from tests.hvcore.pv_cpu import HOLE, INT3, PV32, PV64, PvCpu

LOAD, STORE = "8b07", "8907"  # mov (edi), eax; mov eax, (edi)


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def m2p(cpu: PvCpu, mfn: int) -> int:
    return cpu.abi.hypervisor_virt_start + mfn * cpu.abi.m2p_entry


def test_the_m2p_is_read_by_the_guest(cpu: PvCpu) -> None:
    cpu.mem.set_gpfn_from_mfn(cpu.base + 5, 0x1234)
    assert cpu.run(LOAD, di=m2p(cpu, cpu.base + 5)) == [INT3]
    assert cpu.eax() & 0xFFFFFFFF == 0x1234
    assert cpu.run(LOAD, di=m2p(cpu, 0)) == [INT3]
    assert cpu.eax() & 0xFFFFFFFF == 0xFFFFFFFF  # INVALID_M2P_ENTRY


def test_the_m2p_is_not_written(cpu: PvCpu) -> None:
    where = m2p(cpu, cpu.base + 5)
    ((vector, error_code, cr2),) = cpu.run(STORE, di=where)
    assert (vector, cr2) == (14, where)
    assert error_code is not None
    assert error_code & 3 == 3


@pytest.mark.parametrize("offset", [0, 0xE000, 0x10000])
def test_descriptor_tables_are_out_of_reach(offset: int) -> None:
    cpu = PvCpu(PV64)
    for code in (LOAD, STORE):
        ((vector, _error_code, cr2),) = cpu.run(code, di=PERDOMAIN_VIRT_START + offset)
        assert (vector, cr2) == (14, PERDOMAIN_VIRT_START + offset)


def test_where_tables_of_each_vcpu_lie(cpu: PvCpu) -> None:
    xen = cpu.d.mm.xen
    assert xen.gdt_virt_start(cpu.v) == PERDOMAIN_VIRT_START
    assert xen.ldt_virt_start(cpu.v) == PERDOMAIN_VIRT_START + 0x10000
    cpu.v.vcpu_id = 3
    assert xen.gdt_virt_start(cpu.v) == PERDOMAIN_VIRT_START + 3 * 0x20000


def test_slots_of_xen_in_the_guests_tables() -> None:
    pv32, pv64 = PvCpu(PV32), PvCpu(PV64)
    slots = pv32.get(0x2000, "512Q")
    first = pv32.d.mm.xen.first_xen_l2_slot
    assert first == pv32.abi.hypervisor_virt_start >> 21 & 511
    assert not any(slots[:first])
    covered = -(-pv32.mem.m2p[4].frames // 512)
    assert all(entry & 0x83 == 0x81 for entry in slots[first : first + covered])
    assert not any(slots[first + covered :])
    top = pv64.get(0, "512Q")
    assert all(top[slot] & 1 for slot in (256, 258, 260))
    assert not top[256] & 2  # the M2P for reading
    assert not any(entry & 4 for entry in top[257:272])  # the rest not in user mode, where the kernel is


def test_switching_page_tables_forgets_translations(cpu: PvCpu) -> None:
    cpu.d.guest.read_u32(0x14000)
    cpu.set_entry(3, 0x14, 0)
    cpu.d.mm.xen.write_ptbase(cpu.v)
    assert cpu.run(LOAD, di=0x14000)[0][0] == 14
    assert cpu.run(LOAD, di=HOLE)[0][0] == 14
