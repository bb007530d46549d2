"""domainbuilder cache, launch --resume-at, launch --keep, restore NAME."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent.parent


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command, with a cache folder of its own."""

    def call(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        command = [sys.executable, "-m", "domainbuilder", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, input=stdin, cwd=tmp_path
        )

    return call


Run = Callable[..., subprocess.CompletedProcess[str]]


def counts(stderr: str) -> list[str]:
    """The lines that two runs of the same inputs have in common."""
    return stderr.partition("on this host")[0].splitlines()


def test_resume_at(run: Run, sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    line = (
        "launch",
        sample_guest("hello"),
        "-m",
        "16",
        "--timeout",
        "60",
        "--stats",
        "--resume-at",
        "^hello> ",
    )
    talk = ("--send", r"about\n", "--expect", "command line", "--send", r"halt\n")
    log = tmp_path / "log"
    first = run(*line, *talk)
    second = run(*line, *talk, "--console-log", log)
    third = run(*line, stdin="about\nhalt\n")
    assert [first.returncode, second.returncode, third.returncode] == [0, 0, 0]
    assert first.stdout == second.stdout == log.read_bytes().decode().replace("\r\n", "\n")
    assert counts(first.stderr) == counts(second.stderr)
    assert third.stdout.startswith(first.stdout[: first.stdout.index("hello> ")])
    missed = run(*line[:-1], "never")
    assert missed.returncode == 1
    assert "'never' did not appear" in missed.stderr


def test_what_is_kept_is_listed_and_cleared(run: Run, sample_guest: Callable[[str], Path]) -> None:
    assert run("cache").stdout == "0 kept, 0.0 MB\n"
    hello = sample_guest("hello")
    for place in ("^hello> ", "tick 1"):
        assert run("launch", hello, "-m", "16", "--resume-at", place, "--send", r"halt\n").returncode == 0
    assert run("launch", hello, "--until", "tick 2", "--keep", "ticking").returncode == 0
    table = run("cache").stdout.splitlines()
    assert len(table) == 4
    assert table[0].split()[:2] == ["named", "ticking"]
    assert "hello.elf, 16 MB, 1 vCPU" in table[1]
    assert "'tick 1'" in table[1]
    report = json.loads(run("cache", "--format", "json").stdout)
    assert [entry["kind"] for entry in report["entries"]] == ["named", "domain", "domain"]
    assert report["bytes"] == sum(entry["bytes"] for entry in report["entries"])
    name = report["entries"][1]["name"]
    assert run("cache", "clear", name).stdout.startswith("1 removed, ")
    again = run("cache", "clear", name)
    assert (again.returncode, again.stderr) == (
        2, f"domainbuilder: error: nothing is kept by that name; found {name}\n"
    )  # fmt: skip
    assert run("cache", "clear").stdout.startswith("1 removed, ")
    assert run("cache").stdout.splitlines()[0].split()[:2] == ["named", "ticking"]
    assert run("cache", "clear", "--all").stdout.startswith("1 removed, ")
    assert run("cache").stdout == "0 kept, 0.0 MB\n"


def test_a_domain_kept_by_a_name_goes_on(
    run: Run, sample_guest: Callable[[str], Path], tmp_path: Path
) -> None:
    kept = run("launch", sample_guest("hello"), "-m", "16", "--until", "^hello> ", "--keep", "prompt")
    assert kept.returncode == 0
    gone_on = run("restore", "prompt", "--send", r"halt\n")
    assert gone_on.returncode == 0
    assert gone_on.stdout.endswith("halt\nbye\n")
    (tmp_path / "prompt").write_text("a file of that name comes first")
    assert run("restore", "prompt").returncode == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume-at", "("), "--resume-at '(' is no regular expression"),
        (("--resume-at", "a", "--no-cache"), "--no-cache wants none"),
        (("--resume-at", "a", "--record", "r"), "tells of a run from its start"),
        (("--until", "a"), "both or neither"),
        (("--keep", "a"), "both or neither"),
        (("--until", "a", "--keep", "../a"), "no name to keep a domain by"),
        (("--until", "a", "--keep", "a", "--save-at", "b", "-o", "c"), "two places for the same"),
    ],
)
def test_what_does_not_go_together(
    run: Run, sample_guest: Callable[[str], Path], options: tuple[str, ...], message: str
) -> None:
    done = run("launch", sample_guest("hello"), *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
