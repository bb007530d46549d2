"""A kernel with recursive page tables: random address spaces, alike in all kinds of tables, right counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import domainbuilder
from hvcore.pv.audit import audit

pytest.importorskip("ziglang")

OPS, SEEDS = 8000, (1, 2, 3)
ENDED = re.compile(r"recursive: (\d+) acts, (\d+) forks, (\d+) ends, (\d+) pages copied on write")


@pytest.fixture(scope="module")
def kernels(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    builder = samples_builder()
    made = builder.build(builder.recursive(), tmp_path_factory.mktemp("recursive"))
    return {path.stem.removeprefix("recursive-"): path for path in made}


def run(kernel: Path, seed: int) -> tuple[str, tuple[int, ...]]:
    output = bytearray()
    with domainbuilder.launch(
        kernel, memory_mib=16, cmdline=f"ops={OPS} seed={seed}", timeout=120, console_output=output.extend
    ) as dom:
        reason = dom.wait().reason
        d = dom.machine.domain
        assert audit(d) == []
        linear = sorted(set(d.mm.linear_pt_count))
        assert linear == ([-1, 0, 1] if d.abi.pt_levels == 3 else [0])  # a table that names itself is none
    found = ENDED.search(output.decode())
    assert found, output.decode()[-300:]
    return reason, tuple(map(int, found.groups()))


@pytest.mark.parametrize("seed", SEEDS)
def test_address_spaces_come_and_go(kernels: dict[str, Path], seed: int) -> None:
    """What the guest does depends on the seed alone; it compares each table that it sees with its model."""
    results = {kind: run(kernel, seed) for kind, kernel in kernels.items()}
    assert set(results) == {"32", "64", "two-level"}
    assert len(set(results.values())) == 1
    reason, (acts, forks, ends, copies) = results["64"]
    assert (reason, acts) == ("poweroff", OPS)
    assert min(forks, ends) > OPS // 50
    assert copies > OPS // 10
