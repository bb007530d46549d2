"""audit() finds every kind of wrong count, planted here one at a time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from hvcore.page_info import NO_OWNER, PGC_allocated, PGT_pinned, PGT_validated, PGT_writable_page
from hvcore.pv.audit import audit
from tests.hvcore.pv_cpu import PV32, PV64, PvCpu


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    bench = PvCpu(request.param)
    held: list[tuple[int, bool]] = []
    bench.d.evtchn = cast("object", SimpleNamespace(held_frames=lambda: ()))  # type: ignore[assignment]
    bench.d.grant_table = SimpleNamespace(held_frames=lambda: held)  # type: ignore[assignment]
    return bench


def pg(cpu: PvCpu, page: int) -> int:
    return cpu.base + page - cpu.mem.base_mfn


def test_a_fresh_domain_is_clean(cpu: PvCpu) -> None:
    assert audit(cpu.d) == []
    cpu.set_gdt({0x18: 0x00CFF2000000FFFF})
    cpu.map(20, 0x25)
    cpu.map(21, 0)
    assert audit(cpu.d) == []


def _count(cpu: PvCpu) -> None:
    cpu.d.frames.count[pg(cpu, 20)] += 1


def _type_count(cpu: PvCpu) -> None:
    cpu.d.frames.tcount[pg(cpu, 20)] += 1


def _entry(cpu: PvCpu) -> None:
    cpu.set_entry(3, 40, (cpu.base + 20) << 12 | 0x27)  # behind Xen's back


def _writable_table(cpu: PvCpu) -> None:
    cpu.set_entry(3, 1, (cpu.base + 1) << 12 | 0x27)


def _pin(cpu: PvCpu) -> None:
    cpu.d.frames.flags[pg(cpu, 3)] |= PGT_pinned


def _not_validated(cpu: PvCpu) -> None:
    cpu.d.frames.flags[pg(cpu, 3)] &= ~PGT_validated


def _lost_allocation(cpu: PvCpu) -> None:
    cpu.d.frames.flags[pg(cpu, 20)] &= ~PGC_allocated


def _type(cpu: PvCpu) -> None:
    cpu.d.frames.ptype[pg(cpu, 3)] = PGT_writable_page


def _owner(cpu: PvCpu) -> None:
    cpu.d.frames.owner[pg(cpu, 20)] = NO_OWNER


def _base(cpu: PvCpu) -> None:
    cpu.v.cr3_mfn = cpu.base + 20


def _nowhere(cpu: PvCpu) -> None:
    cpu.set_entry(3, 60, 0xFFFFF << 12 | 0x25)


def _gdt(cpu: PvCpu) -> None:
    cpu.v.gdt_frames = (cpu.base + 20,)


def _info(cpu: PvCpu) -> None:
    cpu.v.info_mfn = cpu.base + 3


def _grant(cpu: PvCpu) -> None:
    cast("list[tuple[int, bool]]", cpu.d.grant_table.held_frames()).append((cpu.base + 20, True))


def _linear_count(cpu: PvCpu) -> None:
    cpu.d.frames.linear_pt_count[pg(cpu, 1)] += 1


def _linear_entry(cpu: PvCpu) -> None:
    level = 2 if cpu.abi.is_32bit else 3
    cpu.map(30, 0x25)
    assert cpu.d.mm.get_page_and_type(cpu.base + 30, level) == 0
    cpu.d.frames.flags[pg(cpu, 30)] |= PGT_pinned
    assert audit(cpu.d) == []
    cpu.set_entry(1, 77, (cpu.base + 30) << 12 | 0x25)


def _linear_and_writable(cpu: PvCpu) -> None:
    cpu.set_entry(1, 77, (cpu.base + 1) << 12 | 0x27)  # itself, which nothing counts


@pytest.mark.parametrize(
    "plant",
    [
        _count, _type_count, _entry, _writable_table, _pin, _not_validated, _lost_allocation, _type, _owner,
        _base, _nowhere, _gdt, _info, _grant, _linear_count, _linear_entry, _linear_and_writable,
    ],
)  # fmt: skip
def test_a_planted_error_is_found(cpu: PvCpu, plant: Callable[[PvCpu], None]) -> None:
    assert audit(cpu.d) == []
    plant(cpu)
    found = audit(cpu.d)
    assert found
    assert all("0x" in line for line in found)  # each names its frame
