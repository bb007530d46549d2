"""A million random acts: each shard is a process of its own, so that its memory is its own too."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hvcore.hostile import fuzz
from tests.hvcore.hostile.shards import Failure
from tests.hvcore.hostile.world import World

ROOT = Path(__file__).resolve().parents[3]
ACTS = 1_020_000  # rounds are whole: not less than a million in all
SHARDS = 8


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.hvcore.hostile.fuzz", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.parametrize("shard", range(1, SHARDS + 1))
def test_nothing_breaks(shard: int) -> None:
    done = run("--seed", 2007, "--count", ACTS, "--shard", f"{shard}/{SHARDS}")
    assert done.returncode == 0, done.stderr
    counts = {name: int(n) for name, n in re.findall(r"'(\w+)': (\d+)", done.stdout)}
    # Not all of it is refused, or nothing would be tried.
    assert counts["done"] > 0.15 * (counts["done"] + counts["refused"])
    assert sum(counts.values()) >= 1_000_000 // SHARDS
    assert counts["linear"] > 1000 // SHARDS


def test_a_round_is_the_same_every_time(tmp_path: Path) -> None:
    first, again = (fuzz.run_round(7, 4, str(tmp_path), acts=400) for _ in range(2))
    assert first == again
    assert first != fuzz.run_round(8, 4, str(tmp_path), acts=400)


def test_what_breaks_is_told_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that goes wrong is noticed: the looks at everything do look."""
    put_page = World.write_cr3

    def lose_a_reference(world: World, mfn: int) -> int:
        world.mm.count[world.mapped[0].mfn - world.mm.base] += 1
        return put_page(world, mfn)

    monkeypatch.setattr(World, "write_cr3", lose_a_reference)
    with pytest.raises(Failure, match=r"count \d+, recounted \d+[\s\S]*again: .*--seed 7 --round 1$"):
        fuzz.run_round(7, 1, str(tmp_path))
