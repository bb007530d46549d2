"""A guest that does harm from its own ring (samples/hostile): real faults, real stores, the real engine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from domainbuilder.launch.domain import launch
from hvcore.pv.audit import audit

pytest.importorskip("ziglang")

SEEDS = range(1, 31)
ACTS = 6000


class Run(NamedTuple):
    """What a hostile guest came to."""

    reason: str
    console: bytes
    hypercalls: int
    faults: int
    problems: list[str]


def run(kernel: Path, seed: int) -> Run:
    output = bytearray()
    with launch(
        kernel, memory_mib=8, timeout=120, cmdline=f"seed={seed} acts={ACTS}", console_output=output.extend
    ) as dom:
        outcome = dom.wait()
        stats = dom.stats()
        problems = audit(dom.machine.domain)
    return Run(
        outcome.reason, bytes(output), sum(stats.hypercalls.values()), sum(stats.traps.values()), problems
    )


@pytest.mark.parametrize("width", ["32", "64"])
def test_a_hostile_guest_harms_itself_alone(width: str, hostile_guests: dict[str, Path]) -> None:
    runs = [run(hostile_guests[width], seed) for seed in SEEDS]
    for seed, ended in zip(SEEDS, runs, strict=True):
        assert ended.problems == [], seed
        assert ended.reason in ("poweroff", "crash", "crashed"), (seed, ended.console[-500:])
    # Most of the harm is survived, or little would be tried.
    assert sum(ended.hypercalls for ended in runs) > 10_000
    assert sum(ended.faults for ended in runs) > 3_000


def test_two_runs_are_equal(hostile_guests: dict[str, Path]) -> None:
    assert run(hostile_guests["32"], 3) == run(hostile_guests["32"], 3)
