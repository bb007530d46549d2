"""The L1 entries of granted frames: made, refused, taken back, replaced."""

from __future__ import annotations

from functools import partial

import pytest

from hvcore.pv.grant_mappings import create_grant_host_mapping, replace_grant_host_mapping
from tests.hvcore.pv_cpu import HOLE, PV32, PV64, PvCpu

PLACE, GRANTED, OTHER = 36, 37, 38
OKAY, GENERAL_ERROR = 0, -1
HOST, READONLY, APPLICATION, CONTAINS_PTE = 2, 4, 8, 16
NX = 1 << 63


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


def entry(cpu: PvCpu, page: int) -> int:
    return int(cpu.get(0x3000 + 8 * page, "Q")[0])


def pte_address(cpu: PvCpu, page: int) -> int:
    return (cpu.base + 3) << 12 | 8 * page


def held(cpu: PvCpu, page: int) -> tuple[int, int]:
    pg = cpu.base + page - cpu.mem.base_mfn
    return cpu.d.frames.count[pg], cpu.d.frames.tcount[pg]


def create(cpu: PvCpu, addr: int, flags: int, mfn: int | None = None) -> int:
    return create_grant_host_mapping(cpu.d.mm, addr, cpu.base + GRANTED if mfn is None else mfn, flags)


@pytest.mark.parametrize("by_pte", [False, True])
@pytest.mark.parametrize(
    ("flags", "bits"),
    [(HOST, 0x63), (HOST | READONLY, 0x61), (HOST | APPLICATION, 0x67), (HOST | 5 << 16, 0x63 | 5 << 9)],
)
def test_the_entry_of_a_grant(cpu: PvCpu, flags: int, bits: int, by_pte: bool) -> None:
    was = held(cpu, PLACE)
    where = pte_address(cpu, PLACE) if by_pte else PLACE << 12
    assert create(cpu, where, flags | (CONTAINS_PTE if by_pte else 0)) == OKAY
    made = entry(cpu, PLACE)
    assert made >> 12 & (1 << 40) - 1 == cpu.base + GRANTED
    assert made & NX
    assert made & 0xE63 == bits & 0xE63
    if cpu.abi.is_32bit:
        assert made & 4 == bits & 4
    assert held(cpu, PLACE) == (was[0] - 1, was[1] - 1)  # what was there is given back


def test_the_reason_is_told(cpu: PvCpu) -> None:
    place = pte_address(cpu, PLACE)
    mfn = cpu.base + OTHER
    refused = (
        (partial(create, cpu, 0x4000_0000, HOST), "Could not find L1 PTE for linear address 40000000"),
        (partial(create, cpu, place + 4, HOST | CONTAINS_PTE), f"Misaligned PTE address {place + 4:x}"),
        (partial(create, cpu, mfn << 12, HOST | CONTAINS_PTE), f"mfn {mfn:x} is no L1 table of the domain's"),
        (
            partial(replace_grant_host_mapping, cpu.d.mm, PLACE << 12, mfn, 0, HOST),
            f"PTE {entry(cpu, PLACE):x} for {PLACE << 12:x} doesn't match grant",
        ),
    )
    for act, words in refused:
        cpu.d.trace.pending.clear()
        assert act() == GENERAL_ERROR
        (refusal,) = cpu.d.trace.pending
        assert str(refusal).startswith(words)


def test_places_that_are_none(cpu: PvCpu) -> None:
    before = cpu.get(0x3000, "4096s"), cpu.d.frames.count.tolist()
    assert create(cpu, 0x4000_0000, HOST) == GENERAL_ERROR  # no leaf table
    assert create(cpu, pte_address(cpu, PLACE) + 4, HOST | CONTAINS_PTE) == GENERAL_ERROR
    assert create(cpu, (cpu.base + OTHER) << 12, HOST | CONTAINS_PTE) == GENERAL_ERROR  # plain memory
    assert create(cpu, cpu.base << 12, HOST | CONTAINS_PTE) == GENERAL_ERROR  # no L1
    assert create(cpu, cpu.mem.end_mfn << 12, HOST | CONTAINS_PTE) == GENERAL_ERROR
    if cpu.abi.is_32bit:
        assert create(cpu, 1 << 32 | PLACE << 12, HOST) == GENERAL_ERROR
    assert (cpu.get(0x3000, "4096s"), cpu.d.frames.count.tolist()) == before


def test_unmapping_wants_what_was_mapped(cpu: PvCpu) -> None:
    mm, mfn = cpu.d.mm, cpu.base + GRANTED
    assert create(cpu, PLACE << 12, HOST) == OKAY
    made = entry(cpu, PLACE)
    assert replace_grant_host_mapping(mm, PLACE << 12, mfn + 1, 0, HOST) == GENERAL_ERROR
    assert replace_grant_host_mapping(mm, PLACE << 12, mfn, 0, HOST | READONLY) == GENERAL_ERROR
    assert replace_grant_host_mapping(mm, OTHER << 12, mfn, 0, HOST) == GENERAL_ERROR
    assert replace_grant_host_mapping(mm, 0x4000_0000, mfn, 0, HOST) == GENERAL_ERROR
    assert entry(cpu, PLACE) == made
    assert replace_grant_host_mapping(mm, PLACE << 12, mfn, 0, HOST) == OKAY
    assert entry(cpu, PLACE) == 0
    assert replace_grant_host_mapping(mm, PLACE << 12, mfn, 0, HOST) == GENERAL_ERROR


def test_another_mapping_moves_in(cpu: PvCpu) -> None:
    mm, mfn = cpu.d.mm, cpu.base + GRANTED
    assert create(cpu, PLACE << 12, HOST) == OKAY
    moved, was = entry(cpu, OTHER), held(cpu, OTHER)
    assert replace_grant_host_mapping(mm, PLACE << 12, mfn, 0x4000_0000, HOST) == GENERAL_ERROR
    assert replace_grant_host_mapping(mm, PLACE << 12, mfn, OTHER << 12, HOST) == OKAY
    assert (entry(cpu, PLACE), entry(cpu, OTHER)) == (moved, 0)
    assert held(cpu, OTHER) == was
    assert cpu.d.mm.l1_entry_of(cpu.v.cr3_mfn, HOLE) >= 0
