"""docs/64bit.md's tables beside real Xen, what fills them, and their picture (scripts/plot_bench.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT, PAGE, PICTURE = (
    ROOT / "scripts" / "plot_bench.py",
    ROOT / "docs" / "64bit.md",
    ROOT / "docs" / "bench-xen.svg",
)
SVG = "{http://www.w3.org/2000/svg}"


def plot(folder: Path, *results: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Fill a copy of the page from results, and draw it."""
    page = folder / "page.md"
    if not page.exists():
        page.write_bytes(PAGE.read_bytes())
    paths = []
    for number, result in enumerate(results):
        paths.append(folder / f"{number}.json")
        paths[-1].write_text(json.dumps(result))
    command = [
        sys.executable,
        str(SCRIPT),
        *map(str, paths),
        "--page",
        str(page),
        "-o",
        str(folder / "drawn.svg"),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_picture_is_of_the_page(tmp_path: Path) -> None:
    """When this fails: scripts/plot_bench.py."""
    done = plot(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
    assert (tmp_path / "drawn.svg").read_text() == PICTURE.read_text()
    assert "](bench-xen.svg)" in PAGE.read_text()


def test_results_go_into_their_own_rows(tmp_path: Path) -> None:
    loops = {"hypercall": 0.5, "alu": 0.002}
    wide = {"width": 64, "median": {"xen": loops, "here": {"hypercall": 0.1, "alu": 0.003}}}
    narrow = {"width": 32, "median": {"xen": loops, "here": {"hypercall": 0.4, "alu": 0.001}}}
    marks = {"first byte": 0.1, "/init": 8.0, "CPU": 9.0, "peak RSS": 400.0}
    ours = {"first byte": 0.1, "/init": 2.0, "CPU": 3.0, "peak RSS": 100.0}
    boot = {"release": "trixie", "median": {"xen": marks, "here": ours}}
    done = plot(tmp_path, wide, narrow, boot)
    assert (done.returncode, done.stderr) == (0, "")
    before, after = PAGE.read_text().splitlines(), (tmp_path / "page.md").read_text().splitlines()
    assert len(before) == len(after)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        "| empty hypercall | 0.500 | 0.100 | 0.20 | 4.8 |",
        "| loop of a few instructions, a round | 0.00200 | 0.00300 | 1.50 | 1.9 |",
        "| empty hypercall | 0.500 | 0.400 | 0.80 |",
        "| loop of a few instructions, a round | 0.00200 | 0.00100 | 0.50 |",
        "| trixie to /init | 8.0 s | 2.0 s | 0.25 | 0.65 |",
        "| trixie to poweroff, processor time | 9.0 s | 3.0 s | 0.33 | 0.59 |",
        "| trixie, peak RSS | 400 MB | 100 MB | 0.25 | 0.42 |",
    ]
    texts = [node.text for node in ElementTree.parse(tmp_path / "drawn.svg").iter(f"{SVG}text")]
    drawn = dict(pairwise(texts))
    assert (drawn["empty hypercall"], drawn["empty hypercall, 32 bits"]) == ("0.20", "0.80")
    assert (drawn["loop of a few instructions, a round"], drawn["trixie to /init"]) == ("1.50", "0.25")


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ({"release": "sid", "median": {"xen": {"/init": 1.0}, "here": {"/init": 1.0}}}, "sid to /init"),
        ({"median": {"xen": {"alu": 0.0}, "here": {"alu": 1.0}}}, "alu took no time"),
    ],
)
def test_a_result_without_a_row_or_a_time_changes_nothing(
    tmp_path: Path, result: dict[str, Any], why: str
) -> None:
    done = plot(tmp_path, result)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
    assert not (tmp_path / "drawn.svg").exists()
