"""Fast lanes change nothing that a guest, or whoever looks at a run, can see: only who did it."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from domainbuilder import guests
from domainbuilder.build.domain_image import build
from domainbuilder.conform.run import MEMORY_MIB, VCPUS
from domainbuilder.plan.domain_plan import plan
from hvcore.cpu import words
from hvcore.cpu.compiled import core
from hvcore.host import Host
from hvcore.machine import Stop
from hvcore.machine_memory import MachineMemory
from hvcore.pv.audit import audit
from hvcore.stats import Stats

# Those that do most of what has a lane, and what is near to it.
CONFORMANCE = (
    "mmu_update", "update_va_mapping", "mmuext_op", "multicall_stops", "pinning", "linear_pt", "stack_switch",
    "tls", "user_mode", "syscall", "iret", "event_mask", "ptwr",
)  # fmt: skip


HOSTILE_SEEDS = range(1, 9)
HOSTILE_ACTS = 4000
GUEST_NS = 20_000_000_000  # no run takes longer


class Run(NamedTuple):
    """All that there is to see of a run."""

    stop: Stop
    reason: str
    stats: Stats
    memory: int
    console: bytes
    registers: tuple[int, ...]
    recent: tuple[object, ...]


def run(
    kernel: Path,
    *,
    lanes: bool,
    cmdline: str = "",
    memory_mib: int = MEMORY_MIB,
    guest_ns: int = GUEST_NS,
) -> tuple[Run, dict[str, tuple[int, int]]]:
    """Run a guest to its end; what lanes did is not part of what is seen."""
    planned = plan(kernel, memory_mib=memory_mib, cmdline=cmdline)
    memory = MachineMemory(planned.nr_pages)
    image = build(planned, ram=memory.ram, shared_info_mfn=memory.first_mfn - 1)
    printed: list[bytes] = []
    host = Host(memory)
    machine = host.create(image.boot_image(), vcpus=VCPUS, console_output=printed.append, lanes=lanes)
    host.set_timer("enough", machine.clock.now() + guest_ns, host.pause)
    stop = machine.run()
    assert audit(machine.domain) == []
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
    host.close()
    return seen, counts


def same_with_and_without(
    kernel: Path, cmdline: str = "", memory_mib: int = MEMORY_MIB
) -> dict[str, tuple[int, int]]:
    without, none = run(kernel, lanes=False, cmdline=cmdline, memory_mib=memory_mib)
    seen, counts = run(kernel, lanes=True, cmdline=cmdline, memory_mib=memory_mib)
    assert seen == without
    assert none == {}
    return counts


@pytest.mark.parametrize("width", ["32", "64"])
@pytest.mark.parametrize("name", CONFORMANCE)
def test_a_run_is_the_same_without_lanes(
    conformance_guest: Callable[[str], Path], name: str, width: str
) -> None:
    assert same_with_and_without(conformance_guest(f"{name}-{width}"))


@pytest.mark.parametrize("width", ["32", "64"])
def test_a_hostile_guest_is_the_same_without_lanes(hostile_guests: dict[str, Path], width: str) -> None:
    kernel, left, taken = hostile_guests[width], 0, 0
    for seed in HOSTILE_SEEDS:
        counts = same_with_and_without(kernel, f"seed={seed} acts={HOSTILE_ACTS}", 8)
        taken += sum(pair[0] for pair in counts.values())
        left += sum(pair[1] for pair in counts.values())
    assert min(left, taken) > 100


def test_hello_is_the_same_without_lanes() -> None:
    assert same_with_and_without(guests.path("hello"))


def test_a_word_has_eight_bytes() -> None:
    for block in (words.EngineWords, words.VcpuWords, words.DomainWords):
        assert ctypes.sizeof(block) == 8 * len(block.__annotations__)


def test_the_core_is_there() -> None:
    assert core() is not None
