"""`launch --profile`: all of the guest's time, the same every time, and nothing of the run changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.profiling import profiled, sampled
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.profile.stacks import Frame, Stack


def run(guest: Path, period_ns: int, *, vcpus: int = 1) -> tuple[Statistics, list[tuple[Stack, int]]]:
    with domainbuilder.launch(guest, 32, vcpus=vcpus) as dom:
        if not period_ns:
            dom.wait()
            return dom.stats(), []
        with sampled(dom, period_ns) as profile:
            dom.wait()
        assert profile.total == dom.stats().guest_ns
        return dom.stats(), profile.samples()


@pytest.mark.parametrize("period_ns", [1_000, 17_001, 1_000_000, 10**10])
def test_the_sum_is_the_time_and_the_run_is_the_run(
    conformance_guest: Callable[[str], Path], period_ns: int
) -> None:
    for name in ("vcpus-64", "vcpus-32"):
        guest = conformance_guest(name)
        plain, _ = run(guest, 0, vcpus=2)
        stats, samples = run(guest, period_ns, vcpus=2)
        assert stats == plain
        assert run(guest, period_ns, vcpus=2) == (stats, samples)


def test_idle_time_is_told_and_a_prompt_is_idle_for_good(sample_guest: Callable[[str], Path]) -> None:
    """The sampler's own timer keeps nobody awake."""
    with domainbuilder.launch(sample_guest("hello"), 32) as dom, sampled(dom, 1000) as profile:
        assert dom.wait().reason == "idle"
    idle = sum(ns for stack, ns in profile.samples() if stack == (Frame("[idle]"),))
    clock_idle = 29_984_214  # hello sleeps three times, until its timer
    assert abs(idle - clock_idle) < 1_000_000
    assert profile.total == dom.stats().guest_ns


def test_functions_and_lines(debug_hello: Path) -> None:
    _, samples = run(debug_hello, 1000)
    inner = Counter[str]()
    for stack, ns in samples:
        inner[stack[-1].name] += ns
    code = [frame for stack, _ in samples for frame in stack if not frame.name.startswith(("[", "vcpu"))]
    assert {frame.name for frame in code} > {"main"}
    assert any(frame.file.endswith(".c") and frame.line > 0 for frame in code)
    outermost = {stack[1].name for stack, _ in samples if len(stack) > 2 and stack[-1].name != "[Xen]"}
    assert outermost  # there are callers, by the frames of its debug information
    assert inner["[idle]"] > 0


def test_the_command(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "hello.speedscope.json"
    arguments = ["launch", str(sample_guest("hello")), "--expect", "hello> ", "--send", "halt\\n"]
    arguments += ["--profile", str(path), "--profile-every", "10", "--stats"]
    command = [sys.executable, "-m", "domainbuilder", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (profile,) = json.loads(path.read_text())["profiles"]
    assert f"{profile['endValue'] / 1e9:.6f} s" in done.stderr.replace(" ", " ")
    assert sum(profile["weights"]) == profile["endValue"]
    for wrong in (["--profile", str(tmp_path / "x")], ["--profile", str(path), "--profile-every", "0"]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_it_is_written_however_the_run_ends(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "cut.folded"

    def cut() -> None:
        with domainbuilder.launch(sample_guest("hello"), 32) as dom, profiled(dom, path, 1000):
            dom.console.expect("hello> ")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut()
    assert path.read_text().count("\n") > 3
