"""Segment loads as iretq and mov would make them: which fault, with which error code."""

from __future__ import annotations

import pytest

from hvcore.cpu.processor import CS, DS, GS, SS
from hvcore.errors import GuestFault
from hvcore.pv.segments import descriptor_base, descriptor_limit, drop_privileged_data, load_cs_ss, load_data
from tests.hvcore.pv_cpu import PV32, PvCpu

GP, NP, SSF = 13, 11, 12
CODE1, DATA1, CODE3, DATA3, DATA3_RO, DATA3_NP, CODE3_NP, CODE3_XO, CONFORMING = range(0x18, 0x60, 8)
GDT = {
    CODE1: 0x00CFBB000000FFFF,
    DATA1: 0x00CFB3000000FFFF,
    CODE3: 0x00CFFB000000FFFF,
    DATA3: 0x00CFF3000000FFFF,
    DATA3_RO: 0x00CFF1000000FFFF,
    DATA3_NP: 0x00CF73000000FFFF,
    CODE3_NP: 0x00CF7B000000FFFF,
    CODE3_XO: 0x00CFF9000000FFFF,
    CONFORMING: 0x00CFBF000000FFFF,
}


@pytest.fixture
def cpu() -> PvCpu:
    bench = PvCpu(PV32)
    bench.set_gdt(GDT)
    bench.run("")
    return bench


@pytest.mark.parametrize(
    ("cs", "ss", "fault"),
    [
        (CODE1 | 1, DATA1 | 1, None),
        (CODE3 | 3, DATA3 | 3, None),
        (0xE019, 0xE021, None),  # Xen's flat ones
        (0, DATA3 | 3, (GP, 0)),
        (3, DATA3 | 3, (GP, 0)),
        (DATA3 | 3, DATA3 | 3, (GP, DATA3)),  # no code
        (CODE1 | 3, DATA3 | 3, (GP, CODE1)),  # DPL and RPL differ
        (CODE3 | 1, DATA1 | 1, (GP, CODE3)),
        (CODE3_NP | 3, DATA3 | 3, (NP, CODE3_NP)),
        (0x1F8 | 3, DATA3 | 3, (GP, 0x1F8)),  # an empty descriptor
        (CODE3 | 3, 0, (GP, 0)),
        (CODE3 | 3, CODE3 | 3, (GP, CODE3)),
        (CODE3 | 3, DATA3_RO | 3, (GP, DATA3_RO)),
        (CODE3 | 3, DATA1 | 3, (GP, DATA1)),
        (CODE3 | 3, DATA3 | 1, (GP, DATA3)),
        (CODE3 | 3, DATA3_NP | 3, (SSF, DATA3_NP)),
        (CODE3 | 7, DATA3 | 3, (GP, CODE3 | 4)),  # there is no LDT
    ],
)
def test_cs_and_ss(cpu: PvCpu, cs: int, ss: int, fault: tuple[int, int] | None) -> None:
    before = cpu.engine.selector(CS), cpu.engine.selector(SS)
    if fault is None:
        load_cs_ss(cpu.v, cs, ss)
        assert (cpu.engine.selector(CS), cpu.engine.selector(SS), cpu.engine.cpl) == (cs, ss, cs & 3)
        return
    with pytest.raises(GuestFault) as caught:
        load_cs_ss(cpu.v, cs, ss)
    assert (caught.value.vector, caught.value.error_code) == fault
    assert (cpu.engine.selector(CS), cpu.engine.selector(SS)) == before


@pytest.mark.parametrize(
    ("selector", "ring1", "ring3"),
    [
        (0, True, True),
        (3, True, True),
        (DATA1 | 1, True, False),
        (DATA1 | 3, False, False),
        (DATA3 | 3, True, True),
        (DATA3 | 1, True, True),
        (DATA3_RO | 3, True, True),
        (DATA3_NP | 3, False, False),
        (CODE3 | 3, True, True),
        (CODE3_XO | 3, False, False),
        (CODE1 | 1, True, False),
        (CONFORMING | 3, True, True),
        (0x1F8 | 3, False, False),
        (DATA3 | 7, False, False),
    ],
)
def test_data_segments(cpu: PvCpu, selector: int, ring1: bool, ring3: bool) -> None:
    for cs, ss, loads in ((CODE1 | 1, DATA1 | 1, ring1), (CODE3 | 3, DATA3 | 3, ring3)):
        load_cs_ss(cpu.v, cs, ss)
        assert load_data(cpu.v, GS, 0)
        assert load_data(cpu.v, GS, selector) is loads
        assert cpu.engine.selector(GS) == (selector if loads else 0)


def test_an_outer_ring_gets_no_inner_data(cpu: PvCpu) -> None:
    load_cs_ss(cpu.v, CODE1 | 1, DATA1 | 1)
    assert load_data(cpu.v, DS, DATA1 | 1)
    assert load_data(cpu.v, GS, DATA3 | 3)
    load_cs_ss(cpu.v, CODE3 | 3, DATA3 | 3)
    drop_privileged_data(cpu.v)
    assert (cpu.engine.selector(DS), cpu.engine.selector(GS)) == (0, DATA3 | 3)


@pytest.mark.parametrize(
    ("low", "high", "base", "limit"),
    [
        (0x0000FFFF, 0x00CF9300, 0, 0xFFFFFFFF),
        (0x56781234, 0x9A4F93BC, 0x9ABC5678, 0xF1234),
        (0x56781234, 0x9ACF93BC, 0x9ABC5678, 0xF1234FFF),
        (0x00000000, 0x00409300, 0, 0),
    ],
)
def test_base_and_limit(low: int, high: int, base: int, limit: int) -> None:
    assert (descriptor_base(low, high), descriptor_limit(low, high)) == (base, limit)
