"""The benchmarks run; what they measure is nobody's to judge."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench_hypervisor, bench_lint, bench_startup
from linker.lint import Inputs, run
from linker.source import Source

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", bench_hypervisor.CASES)
def test_every_operation_is_measured(name: str) -> None:
    figure = bench_hypervisor.measure(name, operations=640, repeat=2)
    assert figure.name == name
    assert 0 < figure.best_us <= figure.median_us


def test_start_up_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    bench_startup.main(runs=1)
    shown = capsys.readouterr().out
    for title in bench_startup.CASES:
        assert re.search(rf"^{re.escape(title)} +[0-9.]+ +[0-9.]+", shown, flags=re.MULTILINE)


def test_figures_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = bench_hypervisor.Figure("empty hypercall", 1.0, 2.0, 1.4)
    monkeypatch.setattr(bench_hypervisor, "measure", lambda _name: measured)
    bench_hypervisor.main(["--json", "--only", "empty"])
    assert json.loads(capsys.readouterr().out) == {
        "empty hypercall": {"best_us": 1.0, "median_us": 2.0, "real_xen_us": 1.4}
    }


@pytest.mark.parametrize("width", ["32", "64"])
def test_the_bench_guest_times_all_its_loops(width: str, tmp_path: Path) -> None:
    source = (ROOT / "samples" / "bench" / "main.c").read_text()
    loops = re.findall(r'^    \{ "(\w+)", ', source, flags=re.MULTILINE)
    build = [sys.executable, str(ROOT / "samples" / "build.py"), "--bench", "--to", str(tmp_path)]
    subprocess.run(build, check=True, capture_output=True)
    launch = [
        sys.executable,
        "-m",
        "domainbuilder",
        "launch",
        str(tmp_path / f"bench-{width}.elf"),
        "-m",
        "32",
    ]
    done = subprocess.run([*launch, "--cmdline", "scale=1"], check=True, capture_output=True, text=True)
    marks = re.findall(r"^bench (begin|end) (\w+)", done.stdout, flags=re.MULTILINE)
    assert marks == [(mark, name) for name in loops for mark in ("begin", "end")]


def test_linting_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    bench_lint.main([0.01, 0.02])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["0.0", "0.0"]
    assert all(re.fullmatch(r" +[0-9.]+ MB +[0-9]+( +[0-9.]+){3}", row) for row in rows)
    report = run(Inputs(Source("made-up.lds", bench_lint.script(2000))))
    assert (report.usable, report.diagnostics) == (True, ())
