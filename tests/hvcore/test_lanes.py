"""Fast lanes change nothing that a guest, or whoever looks at a run, can see: only who did it."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from domainbuilder import guests
from domainbuilder.build.domain_image import build
from domainbuilder.conform.run import MEMORY_MIB, VCPUS, bundled
from domainbuilder.plan.domain_plan import plan
from hvcore.cpu import words
from hvcore.cpu.compiled import core
from hvcore.machine import Machine, Stats, Stop
from hvcore.machine_memory import MachineMemory

# Those that do most of what has a lane, and what is near to it; every guest of `conform` may be asked for.
CONFORMANCE = (
    "mmu_update", "update_va_mapping", "mmuext_op", "multicall", "multicall_stops", "pinning", "linear_pt",
    "upper_tables", "stack_switch", "tls", "fpu", "xen_version", "user_mode", "syscall", "tlb_flush",
    "bad_entries", "event_mask", "nested_faults",
)  # fmt: skip


class Run(NamedTuple):
    """All that there is to see of a run."""

    stop: Stop
    reason: str
    stats: Stats
    memory: int
    console: bytes
    registers: tuple[int, ...]
    recent: tuple[object, ...]


def run(kernel: Path, *, lanes: bool, vcpus: int = VCPUS) -> tuple[Run, dict[str, tuple[int, int]]]:
    """Run a guest to its end; what lanes did is not part of what is seen."""
    planned = plan(kernel, memory_mib=MEMORY_MIB)
    memory = MachineMemory(planned.nr_pages)
    image = build(planned, ram=memory.ram, shared_info_mfn=memory.first_mfn - 1)
    printed: list[bytes] = []
    machine = Machine(image, memory=memory, vcpus=vcpus, console_output=printed.append, lanes=lanes)
    machine.clock.set_host_timer("enough", machine.clock.now() + 20_000_000_000, machine.pause)
    stop = machine.run()
    seen = Run(
        stop,
        machine.shutdown_reason or str(machine.crash),
        machine.stats(),
        zlib.crc32(memory.view),
        b"".join(printed),
        tuple(machine.engine.q[:17]),
        tuple(machine.domain.trace.last_hypercalls()),
    )
    counts = machine.lanes.counts()
    machine.close()
    return seen, counts


@pytest.fixture(scope="module")
def conformance() -> Iterator[dict[str, Path]]:
    with bundled() as found:
        yield {guest.name: guest.kernel for guest in found}


def same_with_and_without(kernel: Path) -> dict[str, tuple[int, int]]:
    without, none = run(kernel, lanes=False)
    seen, counts = run(kernel, lanes=True)
    assert seen == without
    assert none == {}
    return counts


@pytest.mark.parametrize("name", CONFORMANCE)
def test_a_run_is_the_same_without_lanes(conformance: dict[str, Path], name: str) -> None:
    assert same_with_and_without(conformance[name])


def test_hello_is_the_same_without_lanes() -> None:
    assert same_with_and_without(guests.path("hello"))


def test_a_word_has_eight_bytes() -> None:
    for block in (words.EngineWords, words.VcpuWords, words.DomainWords):
        assert ctypes.sizeof(block) == 8 * len(block.__annotations__)


def test_the_core_is_there() -> None:
    assert core() is not None
