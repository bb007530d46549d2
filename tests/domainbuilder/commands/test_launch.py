"""`domainbuilder launch`: output, exit codes, messages."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import domainbuilder
from domainbuilder.build.image import save_image
from domainbuilder.errors import BuildError
from domainbuilder.launch.launch_options import LaunchOptions
from domainbuilder.launch.observing import Observing
from domainbuilder.launch.run import run_launch
from domainbuilder.launch.running import RunningDomain
from domainbuilder.launch.script import Step
from domainbuilder.reports.launch_report import LaunchReport
from hvcore.backends.vif import Vif
from hvcore.cpu.compiled import core
from tests.domainbuilder.tiny_guest import IDLE, SPIN, UD2, kernel

PROMPT = ("expect", "hello> ")


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


@pytest.fixture
def run(hello: Path, tmp_path: Path) -> Callable[..., int]:
    """The command without its parser; `code` instead of the sample guest."""

    def go(*steps: tuple[str, str], code: bytes | None = None, **changes: object) -> int:
        file = hello
        if code is not None:
            file = tmp_path / "tiny.elf"
            file.write_bytes(kernel(code))
        options = LaunchOptions(
            file=str(file),
            memory_mib=8,
            ramdisk=None,
            cmdline="ticks=1",
            vcpus=1,
            upper_ptwr=False,
            steps=tuple(Step(kind, text) for kind, text in steps),  # type: ignore[arg-type]
            until_match=False,
            timeout=60,
            max_guest_seconds=None,
            console_log=None,
            record=None,
            replay=None,
            plain=False,
            stats=False,
            json=False,
        )
        return int(run_launch(options._replace(**changes)).code)  # type: ignore[arg-type]

    return go


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "domainbuilder", "launch", *map(str, arguments)]
    given: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": 120, **options}
    if "input" in given:
        del given["stdin"]
    return subprocess.run(line, capture_output=True, check=False, **given)


HALT = [PROMPT, ("send", "halt\\n")]


@pytest.mark.parametrize(
    ("steps", "changes", "code", "message"),
    [
        (HALT, {}, 0, "the guest powered off"),
        ([PROMPT, ("send", "reboot\\n")], {}, 0, "reboot"),
        ([*HALT, ("expect", "bye")], {}, 0, "powered off"),
        ([PROMPT], {"until_match": True}, 0, "every expectation was met"),
        ([PROMPT], {}, 0, "idle for good"),
        ([*HALT, ("expect", "no such line")], {}, 1, "expectation 2 of 2: 'no such line' did not appear"),
        ([("expect", "no such line")], {}, 1, "idle for good"),
        ([PROMPT, ("send", "crash\\n")], {}, 3, "reported that it crashed"),
        ([PROMPT, ("send", "crash\\n"), ("expect", "nothing")], {}, 3, "expectation 2 of 2"),
        ([], {"code": UD2}, 3, "Unhandled: vec 6, #UD"),
        ([], {"code": SPIN, "timeout": 0.1}, 4, "wall time ran out"),
        ([], {"code": SPIN, "max_guest_seconds": 0.01}, 4, "used up its own time"),
        ([("expect", "x")], {"code": SPIN, "max_guest_seconds": 0.01}, 4, "expectation 1 of 1"),
        ([], {"code": IDLE}, 4, "idle for good"),
        ([], {}, 4, "idle for good"),  # stdin is at its end
        ([("send", "halt\\n")], {}, 0, "powered off"),
    ],
)
def test_exit_codes(
    run: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    steps: list[tuple[str, str]],
    changes: dict[str, object],
    code: int,
    message: str,
) -> None:
    assert run(*steps, **changes) == code
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith("domainbuilder: ")
    assert message in err.splitlines()[-1]


def test_output_goes_to_stdout_and_the_log_as_it_is(
    run: Callable[..., int], capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    log = tmp_path / "console.log"
    assert run(*HALT, console_log=log) == 0
    out = capfdbinary.readouterr().out
    assert out == log.read_bytes()
    assert out.startswith(b"\r\nHello from a paravirtual guest.\r\n")
    assert out.endswith(b"bye\r\n")


def test_a_crash_is_reported_on_stderr(run: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(code=UD2) == 3
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "Unhandled: vec 6, #UD"
    assert any("=> c0100000:  0f 0b" in line and line.endswith("ud2") for line in lines)
    assert lines[-1].startswith("domainbuilder: ")


def test_a_core_that_has_no_room_leaves_the_report(
    run: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def full(_dom: RunningDomain, path: Path) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(RunningDomain, "dump_core", full)
    with pytest.raises(OSError, match="No space left"):
        run(code=UD2, core=tmp_path / "core")
    said = capfd.readouterr().err
    assert said.startswith("Unhandled: vec 6, #UD")
    assert said.splitlines()[-1].startswith("domainbuilder: the guest did what Xen destroys a domain for")


def test_stats_are_the_same_every_time(run: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    def stats() -> list[str]:
        assert run(*HALT, stats=True) == 0
        text = capfd.readouterr().err
        same, _, host = text.partition("on this host, this time:\n")
        assert "wall time" in host
        assert "peak memory" in host
        assert ("answered by the compiled core" in host) == (core() is not None)
        return same.splitlines()

    first = stats()
    assert first == stats()
    assert any(line.startswith("hypercalls ") for line in first)
    assert any(line.startswith("guest code executed") for line in first)
    assert any(line.startswith("guest time") for line in first)


def test_json_is_one_document(run: Callable[..., int], capfd: pytest.CaptureFixture[str]) -> None:
    steps = [*HALT, ("expect", "bye"), ("expect", "again")]
    assert run(*steps, stats=True, json=True) == 1
    report = LaunchReport.model_validate_json(capfd.readouterr().err)
    assert (report.reason, report.exit_code, report.crash) == ("poweroff", 1, None)
    assert [(e.pattern, e.met) for e in report.expectations] == [
        ("hello> ", True),
        ("bye", True),
        ("again", False),
    ]
    assert report.statistics is not None
    assert report.statistics.hypercalls["sched_op"] > 0
    assert report.statistics.host.peak_rss > 1 << 20
    assert core() is None or report.statistics.host.lanes["rdtsc"].taken > 0


def test_the_schema_in_the_documentation_is_the_models() -> None:
    path = Path(domainbuilder.__file__).parent.parent / "docs" / "launch.schema.json"
    assert json.loads(path.read_text()) == LaunchReport.model_json_schema()


@pytest.mark.parametrize(
    ("steps", "changes", "message"),
    [
        ([("expect", "(")], {}, "no regular expression"),
        ([("send", "\\q")], {}, "escape"),
        ([("send", "x")], {"until_match": True}, "--until-match"),
        ([], {"timeout": -1.0}, "above 0"),
        ([], {"ramdisk": Path("/no/such/ramdisk")}, "No such file"),
        ([], {"memory_mib": 1}, ""),
        ([], {"memory_mib": 1 << 40}, ""),
        ([], {"vcpus": 99}, "vCPUs"),
    ],
)
def test_unusable_input_is_refused_before_anything_runs(
    run: Callable[..., int],
    capfd: pytest.CaptureFixture[str],
    steps: list[tuple[str, str]],
    changes: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(BuildError) as caught:
        run(*steps, **changes)
    assert message in str(caught.value)
    assert capfd.readouterr() == ("", "")


# The command itself.


def test_the_order_of_the_command_line_counts(hello: Path) -> None:
    done = command(
        hello, "--cmdline", "ticks=1", "--expect", "hello> ", "--send=time\\n", "--expect=ns since boot",
        "--expect", "hello> ", "--send", "halt\\n", "--timeout", "60",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"domainbuilder: the guest powered off\n")
    assert b"hello> time\r\n" in done.stdout


def test_stdin_is_what_the_guest_reads(hello: Path) -> None:
    done = command(hello, "--timeout", 60, input=b"about\nhalt\n")
    assert done.returncode == 0
    assert done.stdout.endswith(b"bye\r\n")


def test_more_input_than_the_ring_holds(hello: Path) -> None:
    done = command(hello, "--timeout", 60, input=b"time\n" * 1000 + b"halt\n")
    assert done.returncode == 0
    assert done.stdout.count(b"ns since boot") == 1000


def test_stdin_that_is_closed(hello: Path) -> None:
    line = f"exec <&-; '{sys.executable}' -m domainbuilder launch '{hello}' --timeout 60; echo $?"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "hello> 4"
    assert "Traceback" not in done.stderr


def test_a_built_domain(hello: Path, tmp_path: Path) -> None:
    image = tmp_path / "hello.core"
    save_image(domainbuilder.build(hello, memory_mib=8, cmdline="ticks=2"), image)
    done = command(image, "--expect", "tick 2", "--until-match")
    assert done.returncode == 0, done.stderr
    refused = command(image, "-m", 64)
    assert refused.returncode == 2
    assert b"a built domain has its memory" in refused.stderr


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage" * 100, b"\x7fELF", b"\x7fELF\x02\x01" + b"\x04" * 200, b"\x1f\x8b\x08" + b"x" * 50],
)
def test_files_that_are_no_kernels_are_one_line_and_2(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    done = command(path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(b"domainbuilder: error: ")


def test_an_image_with_damaged_page_tables_is_one_line_and_2(hello: Path, tmp_path: Path) -> None:
    image = domainbuilder.build(hello, memory_mib=8)
    image.memory.write(image.plan.pgtables_pfn, b"\xff" * 32)
    path = tmp_path / "damaged.core"
    save_image(image, path)
    done = command(path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert len(done.stderr.splitlines()) == 1


def test_a_log_that_cannot_be_written_is_one_line_and_2(hello: Path, tmp_path: Path) -> None:
    done = command(hello, "--console-log", tmp_path / "no" / "such" / "directory")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    full = command(hello, "--console-log", "/dev/full", "--timeout", 60)
    assert full.returncode == 2
    assert full.stderr == b"domainbuilder: error: /dev/full: No space left on device\n"


def test_a_reader_that_goes_away(hello: Path) -> None:
    line = f"'{sys.executable}' -m domainbuilder launch '{hello}' --timeout 60 | head -c 20"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert b"Traceback" not in done.stderr


def test_start_up_imports_nothing_that_is_not_needed(hello: Path) -> None:
    code = (
        "import sys\n"
        "from domainbuilder.launch.domain import launch\n"
        f"with launch({str(hello)!r}) as dom:\n"
        "    dom.console.expect('hello> ')\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "hvcore" in loaded
    assert not loaded & {"typer", "pydantic", "capstone", "lief", "elftools", "rich"}


def test_an_interface_and_a_capture(run: Callable[..., int], hello: Path, tmp_path: Path) -> None:
    """The guest has no driver: the file is a section without frames, and what is no interface is refused."""
    capture = tmp_path / "frames.pcapng"
    observing = Observing(pcap=capture)
    assert run(PROMPT, ("send", "halt\n"), vifs=(Vif(),), observing=observing) == 0
    assert capture.read_bytes()[:4].hex() == "0a0d0d0a"
    assert len(capture.read_bytes()) == 28
    with pytest.raises(BuildError, match="invalid script"):
        domainbuilder.launch(hello, vifs=["script=mine"])
