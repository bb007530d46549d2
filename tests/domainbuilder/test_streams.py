"""Every command with its standard streams closed, full, unread, or ASCII-only: the exit code it documents."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.domainbuilder.elfwriter import xen_kernel

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = "SECTIONS { .text : { *(.text) } .data : { *(.data) } }\n"

# Name -> arguments; {hello}, {script}, {kernel}, {odd} are files, {out} is one to be written.
COMMANDS = {
    "help": ("--help",),
    "version": ("--version",),
    "help of a command": ("launch", "--help"),
    "usage": ("launch",),
    "notes": ("notes", "{hello}"),
    "notes, a strange name": ("notes", "{odd}"),
    "notes as JSON": ("notes", "--format", "json", "{odd}"),
    "notes fix": ("notes", "fix", "{kernel}", "-o", "{out}"),
    "no kernel": ("notes", "{script}"),
    "plan": ("plan", "{hello}"),
    "plan as JSON": ("plan", "--format", "json", "{hello}", "--cmdline", "naïve"),
    "plan as SVG": ("plan", "--format", "svg", "{hello}"),
    "build": ("build", "{hello}", "-o", "{out}"),
    "launch, expecting": ("launch", "{hello}", "--expect", "hello> ", "--until-match", "--stats"),
    "launch": ("launch", "{hello}", "--timeout", "60", "--format", "json"),
    "conform": ("conform", "callbacks"),
    "conform's list": ("conform", "--list"),
    "no disk": ("pygrub", "{script}"),
    "lint": ("lint", "{script}"),
    "lint as JSON": ("lint", "--format", "json", "{script}"),
    "lint's rules": ("lint", "--explain", "all"),
    "lint diff": ("lint", "diff", "{hello}", "{hello}"),
    "lint format": ("lint", "format", "{script}"),
}
UNREAD = (
    "help",
    "help of a command",
    "notes",
    "plan as JSON",
    "launch, expecting",
    "launch",
    "conform's list",
    "lint's rules",
)
SILENT = {"usage", "no kernel", "no disk"}  # nothing for stdout: that it cannot be written is no matter

# Name -> how a shell starts the command, its environment, and whether stdout can take what there is.
STATES: dict[str, tuple[str, dict[str, str], bool]] = {
    "stdin closed": ('"$@" <&-', {}, True),
    "stdout closed": ('"$@" >&-', {}, False),
    "stderr closed": ('"$@" 2>&-', {}, True),
    "all closed": ('"$@" <&- >&- 2>&-', {}, False),
    "stdout full": ('"$@" >/dev/full', {}, False),
    "stderr full": ('"$@" 2>/dev/full', {}, True),
    "ASCII-only": ('"$@"', {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}, True),
    "TERM=dumb": ('"$@"', {"TERM": "dumb"}, True),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, sample_guest: Callable[[str], Path]) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "kernel").write_bytes(xen_kernel().build())
    (folder / "s.lds").write_text(SCRIPT)
    odd = os.fsencode(folder) + b"/na\xefve \xe2\x82\xac"
    Path(os.fsdecode(odd)).write_bytes(xen_kernel().build())
    return {
        "hello": str(sample_guest("hello")),
        "kernel": str(folder / "kernel"),
        "script": str(folder / "s.lds"),
        "odd": os.fsdecode(odd),
        "out": str(folder / "out"),
    }


def start(
    name: str, files: dict[str, str], line: str = '"$@"', env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    arguments = [one.format(**files) for one in COMMANDS[name]]
    return subprocess.run(
        ["bash", "-c", line, "-", sys.executable, "-m", "domainbuilder", *arguments],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_codes_and_no_traceback(name: str, files: dict[str, str]) -> None:
    usual = start(name, files)
    assert usual.returncode in ({2} if name in SILENT else {0, 1, 4}), usual.stderr
    for state, (line, env, takes) in STATES.items():
        done = start(name, files, line, env)
        expected = usual.returncode if takes or name in SILENT else 2
        assert done.returncode == expected, (state, done.stderr)
        assert b"Traceback" not in done.stderr, (state, done.stderr)
        assert b"Exception ignored" not in done.stderr, (state, done.stderr)
        if expected == 2 and name not in SILENT and state.startswith("stdout"):
            assert b"domainbuilder: error: stdout: " in done.stderr, state


@pytest.mark.parametrize("name", UNREAD)
def test_a_reader_that_has_gone(name: str, files: dict[str, str]) -> None:
    """The command ends as it would have; a guest that nobody watches and nothing is expected of ends."""
    usual = 0 if name == "launch" else start(name, files).returncode
    done = start(name, files, '{ sleep 0.5; "$@"; } | true; exit ${PIPESTATUS[0]}')
    assert done.returncode == usual, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Broken" not in done.stderr
    unheard = '{ sleep 0.5; "$@" 3>&2 2>&1 >&3 3>&-; } 2>/dev/null | true; exit ${PIPESTATUS[0]}'
    assert start(name, files, unheard).returncode == start(name, files).returncode


def test_a_guest_is_not_lost_because_stderr_is(files: dict[str, str]) -> None:
    done = start("launch, expecting", files, '"$@" 2>/dev/full')
    assert done.returncode == 0
    assert done.stdout.endswith(b"hello> ")


def test_nothing_is_opened_in_the_place_of_a_stream(files: dict[str, str], tmp_path: Path) -> None:
    """With stdout closed the kernel would be descriptor 1, and the guest's output would be written there."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(Path(files["hello"]).read_bytes())
    before = kernel.read_bytes()
    done = start("launch, expecting", files | {"hello": str(kernel)}, '"$@" <&- >&- 2>&-')
    assert done.returncode == 2
    assert kernel.read_bytes() == before


def test_documents_are_utf8_whatever_the_locale(files: dict[str, str]) -> None:
    ascii_only = STATES["ASCII-only"][1]
    done = start("plan as JSON", files, env=ascii_only)
    assert "naïve" in done.stdout.decode("utf-8")


@pytest.mark.parametrize("how", ["-", "a pipe"])
def test_kernels_and_ramdisks_through_pipes(how: str, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"r" * 5000)
    name = {"-": "- <'{}'", "a pipe": "<(cat '{}')"}[how]
    run = f"'{sys.executable}' -m domainbuilder"
    hello = name.format(files["hello"])
    script = (
        f"{run} notes {hello} && {run} plan {hello} --ramdisk <(cat '{tmp_path / 'initrd'}') && "
        f"{run} launch {hello} --expect 'hello> ' --until-match"
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, check=False, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "PV 32-bit PAE" in done.stdout
    assert "0x1388" in done.stdout or "mod_len          0x2000" in done.stdout
    assert done.stdout.endswith("hello> ")


def test_colour_is_for_terminals_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    from domainbuilder import streams

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert streams.colour(Terminal())  # type: ignore[arg-type]
    monkeypatch.setenv("TERM", "dumb")
    assert not streams.colour(Terminal())  # type: ignore[arg-type]
