"""Hostile frontends beside an honest neighbour; `FRONTEND_ACTS=1000000` for so many acts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hvcore.backends.block_image import RawImage
from hvcore.backends.net_switch import Switch
from tests.hvcore.hostile import frontends
from tests.hvcore.hostile.shards import Failure

ROOT = Path(__file__).resolve().parents[3]
ACTS = int(os.environ.get("FRONTEND_ACTS", "10000"))
SHARDS = 2


@pytest.mark.parametrize("shard", range(1, SHARDS + 1))
def test_nothing_breaks_and_the_neighbour_notices_nothing(shard: int) -> None:
    arguments = ("--seed", "2007", "--count", str(ACTS), "--shard", f"{shard}/{SHARDS}")
    done = subprocess.run(
        [sys.executable, "-m", "tests.hvcore.hostile.frontends", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = {name: int(n) for name, n in re.findall(r"'([\w ]+)': (\d+)", done.stdout)}
    # Not all of it is refused, or nothing would be tried.
    least = ACTS // SHARDS // 100
    for name in ("block okay", "block error", "block unknown", "tx okay", "tool", "done"):
        assert counts[name] > least, f"{name}: {counts}"
    assert counts["updates"] > 10
    assert counts["pictures"] > least // 10
    assert counts["rx okay"] > least // 10
    assert counts["store bytes"] > 1000 * least


def test_a_round_is_the_same_every_time(tmp_path: Path) -> None:
    first, again = (frontends.run_round(7, 1, str(tmp_path), acts=300) for _ in range(2))
    assert first == again
    assert first != frontends.run_round(8, 1, str(tmp_path), acts=300)


def test_what_reaches_the_neighbour_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that loses a write, a switch that loses a frame: the looks at the neighbour do look."""
    monkeypatch.setattr(RawImage, "write", lambda *_: None)
    with pytest.raises(Failure, match=r"neighbour's data is lost[\s\S]*again: .*--seed 7 --round 1$"):
        frontends.run_round(7, 1, str(tmp_path), acts=20)
    monkeypatch.undo()
    monkeypatch.setattr(Switch, "forward", lambda *_: None)
    with pytest.raises(Failure, match="frame does not arrive"):
        frontends.run_round(7, 1, str(tmp_path), acts=20)
