"""fleet.run and `domainbuilder matrix`: the same results on every executor, whatever is lost on the way."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import junitparser
import pytest

from domainbuilder import fleet
from domainbuilder.clones import wire
from domainbuilder.errors import BuildError
from domainbuilder.fleet import worker as worker_module
from domainbuilder.fleet.executing import close_workers, run_case
from domainbuilder.fleet.worker import Worker, WorkerLost
from domainbuilder.reports import matrix_report
from tests.domainbuilder.tiny_guest import UD2, kernel
from tests.needs import missing

SEEDS = int(os.environ.get("MATRIX_SEEDS", "2"))
MATRIX = """
seeds = {seeds}
timeout = 300

[[kernel]]
name = "hello"
file = "hello.elf"
cmdline = "ticks={{seed}}"

[[kernel]]
name = "kept"
file = "hello.elf"
until = "^hello> "

[[kernel]]
file = "dies.elf"

[[configuration]]
memory = {memory}
vcpus = [1, 2]

[[script]]
name = "talk"
steps = [{{ send = "about\\n" }}, {{ expect = "command line" }}, {{ run = 0.001 }}, {{ send = "halt\\n" }}]
jitter = 0.02
"""


@pytest.fixture
def matrix_file(tmp_path: Path, sample_guest: Callable[[str], Path]) -> Path:
    (tmp_path / "hello.elf").write_bytes(sample_guest("hello").read_bytes())
    (tmp_path / "dies.elf").write_bytes(kernel(UD2))
    memory = "[8, 16, 24, 32]" if SEEDS > 2 else "[8, 16]"
    path = tmp_path / "matrix.toml"
    path.write_text(MATRIX.format(seeds=SEEDS, memory=memory))
    return path


@pytest.fixture
def matrix(matrix_file: Path) -> fleet.Matrix:
    return fleet.read_matrix(matrix_file)


# --- reading ------------------------------------------------------------------------------------------------


def test_the_product_by_name(matrix: fleet.Matrix) -> None:
    names = [case.name for case in matrix.cases]
    assert len(names) == len(set(names)) == 3 * len({case.configuration for case in matrix.cases}) * SEEDS
    assert names[0] == "hello/8MB-1cpu/talk/0"
    assert names[-1].startswith("dies/")
    assert len(matrix.files) == 2  # one content is one input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "kernel cannot be; found nothing; expected at least one [[kernel]]"),
        ("kernel = 5", "kernel cannot be; found int; expected [[kernel]]"),
        ("seeds = 0\n[[kernel]]\nfile = 'k'", "seeds cannot be; found 0"),
        ("seeds = [1, 1]\n[[kernel]]\nfile = 'k'", "seeds cannot be; found [1, 1]"),
        ("seeds = true\n[[kernel]]\nfile = 'k'", "seeds cannot be; found True"),
        ("timeout = 0\n[[kernel]]\nfile = 'k'", "timeout cannot be; found 0"),
        ("typo = 1", "typo cannot be; found no such key"),
        ("[[kernel]]", "kernel[0].file cannot be; found nothing"),
        ("[[kernel]]\nfile = 'none'", "No such file or directory"),
        ("[[kernel]]\nfile = 'k'\nuntil = '('", "kernel[0].until '(' is no regular expression"),
        ("[[kernel]]\nfile = 'k'\nname = 'a/b'", "kernel[0].name cannot be; found 'a/b'"),
        ("[[kernel]]\nfile = 'k'\n[[kernel]]\nfile = 'k'", "kernel cannot be; found 'k' twice"),
        ("[[kernel]]\nfile = 'k'\n[[configuration]]\nmemory = -1", "configuration[0].memory cannot be"),
        ("[[kernel]]\nfile = 'k'\n[[configuration]]\nvcpus = 'a'", "configuration[0].vcpus cannot be"),
        ("[[kernel]]\nfile = 'k'\n[[script]]\nname = 's'\nsteps = [1]", "script[0].steps[0] cannot be"),
        ("[[kernel]]\nfile = 'k'\n[[script]]\nname = 's'\nsteps = [{run = -1}]", "script[0].steps[0] cannot"),
        ("[[kernel]]\nfile = 'k'\n[[script]]\nname = 's'\njitter = nan", "script[0].jitter cannot be"),
        ("seeds = 1000000\n[[kernel]]\nfile = 'k'\n[[configuration]]\nmemory = [1, 2]", "2,000,000 cases"),
        ("a = ", "no TOML"),
    ],
)
def test_what_is_wrong_with_a_matrix(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "k").write_bytes(b"kernel")
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises((BuildError, FileNotFoundError)) as caught:
        fleet.read_matrix(path)
    assert message in str(caught.value)


# --- running ------------------------------------------------------------------------------------------------


def check(results: list[fleet.Result], matrix: fleet.Matrix) -> None:
    """What has to come of the matrix, on whatever it runs."""
    assert [result.name for result in results] == [case.name for case in matrix.cases]
    for result in results:
        if result.group.startswith("dies/"):
            assert (result.passed, result.outcome) == (False, "crashed")
            assert "RIP" in result.console
        else:
            assert (result.passed, result.outcome, result.detail) == (True, "poweroff", "")
            assert result.guest_ns > 0


class Once:
    """Kills the process of the first worker that is asked for, in the middle of its case."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed = 0
        whole = Worker.run

        def run(worker: Worker, case: fleet.Case, contents: Any) -> fleet.Result:
            if not self.killed:
                self.killed = worker.pid
                threading.Timer(0.05, os.kill, (worker.pid, signal.SIGKILL)).start()
            return whole(worker, case, contents)

        monkeypatch.setattr(Worker, "run", run)


def test_here_with_a_process_that_is_killed(matrix: fleet.Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fleet.run(matrix, workers=2)
    check(plain, matrix)
    assert {result.attempts for result in plain} == {1}
    told: list[fleet.Result] = []
    once = Once(monkeypatch)
    again = fleet.run(matrix, workers=2, tell=told.append)
    assert once.killed
    assert again == plain
    assert sorted(result.name for result in told) == sorted(result.name for result in plain)  # once each
    assert sum(result.attempts for result in again) == len(again) + 1


def test_what_is_lost_every_time_has_failed(matrix: fleet.Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_worker: Worker, _case: fleet.Case, _contents: Any) -> fleet.Result:
        raise WorkerLost("gone")

    monkeypatch.setattr(Worker, "run", lose)
    some = fleet.Matrix(matrix.cases[:2], matrix.files)
    for result in fleet.run(some, workers=1, retries=2):
        assert (result.passed, result.outcome, result.attempts) == (False, "error", 3)
        assert result.detail == "the process that ran it was lost, 3 times"


def test_inputs_are_sent_once_to_a_process(matrix: fleet.Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    whole = wire.send

    def count(sock: Any, kind: Any, value: Any = None, raw: bytes | None = None) -> None:
        if raw is not None:
            sent.append(len(raw))
        whole(sock, kind, value, raw)

    monkeypatch.setattr(worker_module, "send", count)
    check(fleet.run(matrix, workers=1), matrix)
    assert sorted(sent) == sorted(path.stat().st_size for path in matrix.files.values())


def test_any_executor_will_do(matrix: fleet.Matrix) -> None:
    submitted: list[str] = []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **more: Any) -> Future[Any]:
            submitted.append(args[0][0][0])
            return super().submit(fn, *args, **more)

    some = fleet.Matrix(matrix.cases[:4], matrix.files)
    with Counting(1) as executor:
        results = fleet.run(some, executor, workers=1)
        close_workers()
    assert all(result.passed for result in results)
    assert submitted == ["hello"] * 4


def test_a_file_that_changes_meanwhile(matrix: fleet.Matrix, matrix_file: Path) -> None:
    (matrix_file.parent / "dies.elf").write_bytes(b"other")
    with pytest.raises(BuildError, match="has changed meanwhile"):
        fleet.run(matrix)


def test_what_cannot_be_run_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "k").write_bytes(b"no kernel")
    (tmp_path / "m.toml").write_text("[[kernel]]\nfile = 'k'")
    (result,) = fleet.run(fleet.read_matrix(tmp_path / "m.toml"), workers=1)
    assert (result.passed, result.outcome) == (False, "error")
    assert "\n" not in result.detail


def test_on_a_dask_cluster_of_which_a_worker_is_killed(matrix: fleet.Matrix) -> None:
    if importlib.util.find_spec("distributed") is None:
        missing("dask.distributed is not installed")
    from domainbuilder.fleet.dask import cluster, run_on

    here = fleet.run(matrix, workers=2)
    with cluster(None, 2) as client:
        pids = list(client.run(os.getpid).values())
        killed: list[int] = []

        def kill_one(_result: fleet.Result) -> None:
            if not killed:
                killed.append(pids[0])
                os.kill(pids[0], signal.SIGKILL)

        there = run_on(client, matrix, tell=kill_one)
        assert killed
    check(there, matrix)
    assert there == here


# --- reports and the command


def results() -> list[fleet.Result]:
    good = fleet.Result("k/c/s/0", "k/c/s", True, "poweroff", "", "", 1_000_000, 5, 6, 7, 0.5)
    bad = fleet.Result("k/c/s/1", "k/c/s", False, "idle", "'x' did not appear", "last\x01\n", attempts=2)
    return [good, bad, fleet.Result("k/c/t/0", "k/c/t", False, "error", "no kernel")]


def test_reports() -> None:
    document = json.loads(matrix_report.as_json(results()))
    assert (document["exit_code"], document["passed"], document["failed"]) == (1, 1, 2)
    assert document["runs"][1]["detail"] == "'x' did not appear"
    suite = next(iter(junitparser.JUnitXml.fromstring(matrix_report.as_junit(results()).encode())))
    assert (suite.tests, suite.failures, suite.errors) == (3, 1, 1)
    text = matrix_report.as_text(results())
    assert "k/c/s                           1/2" in text
    assert text.endswith("3 runs: 1 passed, 2 failed; 1 tried again, whose process was lost\n")


def test_the_command(matrix_file: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "domainbuilder", "matrix", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    named = run(str(matrix_file), "--list", "--only", "hello/*/0").stdout.split()
    assert named[0] == "hello/8MB-1cpu/talk/0"
    junit = matrix_file.parent / "out.xml"
    done = run(str(matrix_file), "--only", "hello/8MB*", "--format", "json", "--junit", str(junit), "-j", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["failed"] == 0
    assert next(iter(junitparser.JUnitXml.fromfile(io.BytesIO(junit.read_bytes())))).failures == 0
    assert run(str(matrix_file), "--only", "dies/8MB-1cpu/*").returncode == 1
    for arguments, message in (
        (("--only", "none"), "no run has such a name"),
        (("--executor", "slurm"), "there is no such executor"),
        (("--junit", str(matrix_file)), "is an input"),
    ):
        refused = run(str(matrix_file), *arguments)
        assert refused.returncode == 2
        assert message in refused.stderr


def test_a_worker_ends_with_whoever_has_it() -> None:
    worker = Worker()
    pid = worker.pid
    worker._sock.close()
    for _ in range(1000):
        if worker._process.poll() is not None:
            break
        time.sleep(0.01)
    assert worker._process.returncode == 0
    worker.close()
    assert not Path(f"/proc/{pid}").exists()


def test_a_case_that_runs_here_is_the_same(matrix: fleet.Matrix, tmp_path: Path) -> None:
    from domainbuilder.clones.values import from_plain, to_plain

    case = matrix.cases[0]
    contents = matrix.files[case.inputs[0]].read_bytes()
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / case.inputs[0]).write_bytes(contents)
    here = worker_module.run_case(case, tmp_path / "inputs")
    try:
        assert from_plain(fleet.Result, run_case(to_plain(case), contents)) == here
    finally:
        close_workers()
