"""A guest that does harm from its own ring (samples/hostile): real faults, real stores, the real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
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


@pytest.fixture(scope="module")
def hostile(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    builder = samples_builder()
    sources = (*builder.RUNTIME, "hostile/main.c")
    samples = tuple(
        builder.Sample(f"hostile-{width.name}", sources, width) for width in (builder.I386, builder.X86_64)
    )
    folder = tmp_path_factory.mktemp("hostile")
    return {path.stem.removeprefix("hostile-"): path for path in builder.build(samples, folder)}


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
def test_a_hostile_guest_harms_itself_alone(width: str, hostile: dict[str, Path]) -> None:
    runs = [run(hostile[width], seed) for seed in SEEDS]
    for seed, ended in zip(SEEDS, runs, strict=True):
        assert ended.problems == [], seed
        assert ended.reason in ("poweroff", "crash", "crashed"), (seed, ended.console[-500:])
    # Most of the harm is survived, or little would be tried.
    assert sum(ended.hypercalls for ended in runs) > 10_000
    assert sum(ended.faults for ended in runs) > 3_000


def test_two_runs_are_equal(hostile: dict[str, Path]) -> None:
    assert run(hostile["32"], 3) == run(hostile["32"], 3)
