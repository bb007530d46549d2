"""Outputs: never over an input, whole or not at all, whatever ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from domainbuilder.errors import BuildError
from domainbuilder.output import atomic_output, refuse_to_overwrite
from tests.domainbuilder.elfwriter import xen_kernel

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
SCRIPT = "SECTIONS { .text : { *(.text) } }\n"

# What is read and written by one command: {in} and {out} name the same file in one way or another.
COMMANDS = {
    "notes fix": ("notes", "fix", "{in}", "-o", "{out}"),
    "build": ("build", "{in}", "-o", "{out}"),
    "build, the ramdisk": ("build", "kernel", "--ramdisk", "{in}", "-o", "{out}"),
    "launch": ("launch", "{in}", "--console-log", "{out}", "--timeout", "60"),
    "launch, the ramdisk": (
        "launch",
        "kernel",
        "--ramdisk",
        "{in}",
        "--console-log",
        "{out}",
        "--timeout",
        "60",
    ),
    "initramfs": ("initramfs", "{in}", "-o", "{out}"),
    "initramfs, its init": ("initramfs", "kernel", "--init", "{in}", "-o", "{out}"),
    "lint -o": ("lint", "{in}", "-o", "{out}"),
    "lint --svg": ("lint", "--elf", "{in}", "--svg", "{out}"),
    "lint --write-baseline": ("lint", "{in}", "--write-baseline", "{out}"),
}
WAYS = {
    "the same name": "file",
    "another path": "folder/../file",
    "a symbolic link": "symlink",
    "a hard link": "hardlink",
}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_with(tmp_path: Path, contents: bytes) -> Path:
    (tmp_path / "file").write_bytes(contents)
    (tmp_path / "kernel").write_bytes(xen_kernel().build())
    (tmp_path / "folder").mkdir()
    (tmp_path / "symlink").symlink_to("file")
    (tmp_path / "hardlink").hardlink_to(tmp_path / "file")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_no_output_destroys_an_input(name: str, tmp_path: Path) -> None:
    contents = SCRIPT.encode() if name in ("lint -o", "lint --write-baseline") else xen_kernel().build()
    folder_with(tmp_path, contents)
    for way, out in WAYS.items():
        arguments = [one.format(**{"in": "file", "out": out}) for one in COMMANDS[name]]
        done = subprocess.run(
            [sys.executable, "-m", "domainbuilder", *arguments], cwd=tmp_path, env=ENVIRONMENT,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2, (way, done.stderr)
        assert done.stderr == f"domainbuilder: error: {out}: this is an input and would be overwritten\n"
        assert (tmp_path / "file").read_bytes() == contents


def test_a_log_is_not_touched_before_the_inputs_are_accepted(tmp_path: Path) -> None:
    folder_with(tmp_path, b"no kernel")
    (tmp_path / "log").write_bytes(b"yesterday's")
    for arguments in (["file"], ["missing"], ["kernel", "-m", "1"], ["kernel", "--ramdisk", "missing"]):
        done = subprocess.run(
            [sys.executable, "-m", "domainbuilder", "launch", *arguments, "--console-log", "log"],
            cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert (tmp_path / "log").read_bytes() == b"yesterday's"


def test_devices_may_be_both(tmp_path: Path) -> None:
    refuse_to_overwrite(["/dev/null"], ["/dev/null"])
    (tmp_path / "a").touch()
    with pytest.raises(BuildError, match="two outputs are the same file"):
        refuse_to_overwrite([tmp_path / "a", tmp_path / "a"], [])


@pytest.mark.parametrize("nameless", [True, False])
def test_what_fails_leaves_nothing(nameless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not nameless:
        monkeypatch.setattr("domainbuilder.output._nameless", lambda _folder: None)
    target = tmp_path / "out"
    target.write_bytes(b"before")
    target.chmod(0o640)
    with suppress(ZeroDivisionError), atomic_output(target) as fd:
        os.write(fd, b"half")
        if nameless:
            assert names(tmp_path) == ["out"]
        raise ZeroDivisionError
    assert (names(tmp_path), target.read_bytes()) == (["out"], b"before")
    with atomic_output(target) as fd:
        os.write(fd, b"after")
    assert (names(tmp_path), target.read_bytes()) == (["out"], b"after")
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_partial_file(number: signal.Signals, tmp_path: Path) -> None:
    """In the middle of writing, which waits for us."""
    program = (
        "import sys, time\n"
        "from domainbuilder import cli, command_line\n"
        "from domainbuilder.output import atomic_output\n"
        "def write():\n"
        "    with atomic_output(sys.argv[1]) as fd:\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(60)\n"
        "command_line.load = lambda name: write\n"
        "cli.main(['notes'])\n"
    )
    (tmp_path / "out").write_bytes(b"before")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")], env=ENVIRONMENT, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(number)
        child.wait(60)
    assert child.returncode == (-9 if number is signal.SIGKILL else 128 + number)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"before"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_guest_that_runs(
    number: signal.Signals, tmp_path: Path, sample_guest: Callable[[str], Path]
) -> None:
    """Without a terminal: the exit code says which, and what conform unpacks goes away with it."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    log = tmp_path / "log"
    with subprocess.Popen(
        [sys.executable, "-m", "domainbuilder", "launch", str(sample_guest("hello")),
         "--console-log", str(log), "--expect", "never", "--cmdline", "ticks=100000000"],
        env=ENVIRONMENT | {"TMPDIR": str(temporary)}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as child:  # fmt: skip
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(number)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert b"Traceback" not in said
    assert names(temporary) == []


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, sample_guest: Callable[[str], Path]) -> None:
    """A limit on the size of files stands for it: the same error, in the middle of writing."""
    line = 'trap "" XFSZ; ulimit -f 100; exec "$@"'
    for arguments in (["build", sample_guest("hello"), "-o", "out"], ["initramfs", "busybox", "-o", "out"]):
        (tmp_path / "busybox").write_bytes(bytes(1 << 20))
        done = subprocess.run(
            ["bash", "-c", line, "-", sys.executable, "-m", "domainbuilder", *map(str, arguments)],
            cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.startswith("domainbuilder: error: out: ")
        assert len(done.stderr.splitlines()) == 1
        assert names(tmp_path) == ["busybox"]
