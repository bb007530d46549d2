"""docs/backwards.md, as it is printed: the real gdb goes from a sample kernel's crash back to its bug."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.domainbuilder.launch.test_gdb import TIMEOUT, gdb, launched
from tests.needs import find_tool

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "backwards.md").read_text(encoding="utf-8")
SESSION = "\n".join(re.findall(r"```\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def kernel(samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ziglang")
    builder = samples_builder()
    (path,) = builder.build((builder.backwards(),), tmp_path_factory.mktemp("backwards"), debug=True)
    return Path(path)


def steps() -> Iterator[tuple[str, list[str]]]:
    """Each command that the page gives to gdb, and the lines that it shows of the answer."""
    for part in re.split(r"^\(gdb\) ", SESSION, flags=re.MULTILINE)[1:]:
        command, *lines = part.strip("\n").split("\n")
        yield command, [line for line in lines if line.strip() and not line.startswith("$ ")]


def test_the_session_is_what_gdb_says(kernel: Path) -> None:
    find_tool("gdb")
    line = [sys.executable, "-m", "domainbuilder", "gdb", str(kernel), "--batch"]
    for command, _ in steps():
        line += ["--ex", f"echo \\n(gdb) {command}\\n", "--ex", command]
    done = subprocess.run(
        line, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    said = re.split(r"^\(gdb\) ", done.stdout, flags=re.MULTILINE)[1:]
    told = list(steps())
    assert len(said) == len(told) > 14, done.stdout + done.stderr
    for (command, lines), answer in zip(told, said, strict=True):
        assert answer.startswith(command)
        assert set(lines) <= set(answer.split("\n")), f"{command}: {answer}"


def test_the_run_is_what_the_page_shows(kernel: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", str(kernel)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    shown = SESSION[SESSION.index("tick 2:") : SESSION.index("$ domainbuilder gdb")].strip()
    assert done.stdout.replace("\r", "").startswith(shown)
    assert done.returncode == 3


def test_it_stands_at_the_crash_and_goes_back(kernel: Path, tmp_path: Path) -> None:
    with launched(tmp_path, kernel, "--stop-at", "crash") as (process, path):
        assert process.stderr is not None
        while "it stands where it crashed" not in (line := process.stderr.readline()):
            assert line
        text = gdb(
            path, "print ticks", "watch -location tasks[1].run", "reverse-continue", "print ticks",
            "delete", "continue", program=kernel,
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert "$1 = 18" in text
    assert "$2 = 10" in text
    assert "SIGABRT" in text.rsplit("$2", 1)[1]
    assert stdout.count("unexpected trap 14") == 1  # nothing is printed twice
    assert "crashed after" in stderr
    assert process.returncode == 3


def test_where_nothing_crashes_it_just_ends(tmp_path: Path, sample_guest: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "domainbuilder", "launch", sample_guest("hello"), "--send", "halt\\n",
            "--gdb", f"unix:{tmp_path / 'sock'}", "--stop-at", "crash",
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Hello from a paravirtual guest." in done.stdout
    assert not (tmp_path / "sock").exists()
    refused = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", sample_guest("hello"), "--stop-at", "crash"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "go with --gdb" in refused.stderr
