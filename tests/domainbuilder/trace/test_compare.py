"""Two runs compared: alike where they are, and parting where they do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.tracing import traced
from domainbuilder.trace.compare import MOST_LINES, Step, compare, line_difference, parting, render


def recorded(guest: Path, path: Path, *, typed: str = "halt\n", cmdline: str = "") -> str:
    with (
        domainbuilder.launch(guest, 32, cmdline=cmdline) as dom,
        traced(dom, path, reason=lambda: "poweroff"),
    ):
        dom.console.expect("hello> ")
        dom.console.send(typed)
        if typed != "halt\n":
            dom.console.expect("hello> ")
            dom.console.send("halt\n")
        dom.wait()
    return str(path)


@pytest.fixture(scope="module")
def runs(sample_guest: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, guest = tmp_path_factory.mktemp("runs"), sample_guest("hello")
    return {
        "a": recorded(guest, folder / "a.jsonl"),
        "again": recorded(guest, folder / "again.pftrace"),
        "longer": recorded(guest, folder / "longer.jsonl", typed="time\n"),
        "other": recorded(guest, folder / "other.jsonl", cmdline="ticks=1"),
    }


def test_a_run_and_itself(runs: dict[str, str]) -> None:
    found = compare(runs["a"], runs["again"], exact=True)
    assert found.is_same
    assert found.counts == ()
    assert render(found).count("no difference") == 2


def test_a_command_more(runs: dict[str, str]) -> None:
    """The runs are the same up to what was typed, which is echoed."""
    found = compare(runs["a"], runs["longer"], exact=True)
    assert found.console is not None
    more = [(who, step.shown) for who, step, _ in found.console.more]
    assert more[0][1].startswith("hello> time")
    assert {who for who, _ in more} == {"B"}  # and then both halt
    assert found.hypercalls is not None
    assert found.hypercalls.alike > 20
    ((_, first, second), *_) = found.counts
    assert second > first
    loose = compare(runs["a"], runs["longer"])
    assert loose.hypercalls is not None
    assert loose.hypercalls.alike >= found.hypercalls.alike


def test_another_command_line(runs: dict[str, str]) -> None:
    found = compare(runs["a"], runs["other"])
    assert found.console is not None
    assert found.console.before[-1].shown.startswith("memory")
    assert any("ticks=1" in step.shown for who, step, _ in found.console.more if who == "B")
    assert found.hypercalls is not None
    names = {name: (first, second) for name, first, second in found.counts}
    assert names["sched_op SCHEDOP_block"] == (3, 1)


def test_one_ends_before_the_other() -> None:
    steps = [Step(i, str(i), i) for i in range(10)]
    found = parting(steps, steps[:4])
    assert found is not None
    assert (found.alike, found.second, len(found.first)) == (4, (), 5)
    assert parting(steps, iter(steps)) is None


def test_which_lines_one_has_more() -> None:
    def steps(text: str) -> list[Step]:
        return [Step(i, line, line) for i, line in enumerate(text.split())]

    assert line_difference(steps("a b c"), steps("a b c")) is None
    found = line_difference(steps("a b loud c d e loud f"), steps("a b c d x e f"))
    assert found is not None
    assert (found.alike, [step.shown for step in found.before]) == (6, ["a", "b"])
    more = [(who, step.shown, since) for who, step, since in found.more]
    assert more == [("A", "loud", 0), ("B", "x", 2), ("A", "loud", 1)]
    quiet = line_difference(steps("1 2 3 4"), steps(""))
    assert quiet is not None
    assert (quiet.alike, len(quiet.more), quiet.beyond) == (0, 4, (0, 0))


def test_of_endless_output_some_is_compared() -> None:
    """Hostile: the same line again and again, and no two alike."""
    one = [Step(i, "y", "y") for i in range(5 * MOST_LINES)]
    other = [Step(i, str(i), i) for i in range(3 * MOST_LINES)]
    found = line_difference(one, other)
    assert found is not None
    assert found.beyond == (4 * MOST_LINES, 2 * MOST_LINES)
    assert len(found.more) == 2 * MOST_LINES


def test_times_of_linux_are_not_compared() -> None:
    from domainbuilder.trace.compare import _lines
    from domainbuilder.trace.record import Record

    one = [Record("print", 1, 0, text="[    0.100000] Linux\r\nlast")]
    other = [Record("print", 9, 0, text="[   12.345678] Lin"), Record("print", 11, 0, text="ux\r\nlast")]
    assert line_difference(_lines(one, exact=False), _lines(other, exact=False)) is None
    assert line_difference(_lines(one, exact=True), _lines(other, exact=True)) is not None


def test_the_command(runs: dict[str, str], tmp_path: Path) -> None:
    def ours(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "domainbuilder", "compare", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert ours(runs["a"], runs["again"]).returncode == 0
    done = ours(runs["a"], runs["longer"])
    assert done.returncode == 1
    assert "they part after" in done.stdout
    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    done = ours(runs["a"], str(empty))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
