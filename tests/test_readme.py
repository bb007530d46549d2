"""README's tour, run as printed: its commands print what README shows, its Python runs."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.needs import missing

pytestmark = pytest.mark.guest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
SESSIONS = [body for kind, body in BLOCKS if not kind and body.startswith("$ ")]
PYTHON = [body for kind, body in BLOCKS if kind == "python"]

# The user's files that README speaks of -> what `make guests` calls them.
FILES = {
    "grub-i386-xen.bin": "grub-i386-xen.bin",
    "gnumach-1.8-xen-486.gz": "gnumach-bookworm-i386.gz",
    "vmlinuz": "vmlinuz-bookworm-amd64",
    "busybox": "busybox-amd64",
}
SCRIPT = """\
SECTIONS {
  . = 0xc0100000;
  .data : { *(.data) *(.data.page_aligned) }
}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, guest_kernel: Callable[[str], Path]) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name, cached in FILES.items():
        (folder / name).symlink_to(guest_kernel(cached))
    (folder / "vmlinux.lds").write_text(SCRIPT)
    return folder


def commands(session: str) -> list[tuple[str, list[str]]]:
    """Each command of a block, with what is shown behind it."""
    found: list[tuple[str, list[str]]] = []
    for line in session.splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


def test_readme_has_a_tour() -> None:
    shown = " ".join(command for session in SESSIONS for command, _ in commands(session))
    for name in ("notes", "notes fix", "plan", "launch", "initramfs", "lint", "conform"):
        assert f"domainbuilder {name} " in f"{shown} "


def wanted(line: str) -> str:
    """A regular expression for a line as shown: figures of time and size are this machine's own."""
    text = re.escape(line.rstrip().removesuffix("...").rstrip())
    text = re.sub(r"\\ (\\ )*", r"\\s+", text)
    return re.sub(r"\d+\\\.\d\d\d\b", r"[0-9.]+", text)


def check_order(shown: list[str], printed: str) -> None:
    """Every line as shown is printed, in that order; "..." stands for any others."""
    at = 0
    for line in shown:
        if line.strip() in ("", "..."):
            continue
        match = re.compile(wanted(line)).search(printed, at)
        assert match, f"{line!r} is not printed"
        at = match.end()


@pytest.mark.parametrize("session", SESSIONS, ids=[session.splitlines()[0] for session in SESSIONS])
def test_commands_print_what_is_shown(session: str, home: Path) -> None:
    for command, shown in commands(session):
        check(command, shown, home)


def check(command: str, shown: list[str], home: Path) -> None:
    command = command.replace("/bin/busybox", "busybox")
    run = command.replace("domainbuilder ", f"'{sys.executable}' -m domainbuilder ", 1)
    typed = [line.split(maxsplit=2) for line in shown if re.match(r"(grub>|/ #) ", line)]
    if "launch" in command and "--expect" not in command:
        child = pexpect.spawn(
            "bash", ["-c", run], cwd=str(home), encoding="utf-8", timeout=240, env=environment()
        )
        log = []
        for line in shown:
            prompt = re.match(r"(grub>|/ #) (.*)", line)
            if prompt:
                child.expect_exact(prompt[1])
                log.append(child.before + prompt[0])
                child.send(prompt[2] + "\r")
        child.expect(pexpect.EOF)
        log.append(child.before)
        check_order(shown, "".join(log))
        return
    assert not typed
    done = subprocess.run(
        ["bash", "-c", run], cwd=home, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == (1 if command.startswith("domainbuilder lint") else 0), done.stderr
    check_order(shown, done.stdout + done.stderr)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}


def test_its_python_runs(home: Path) -> None:
    for body in PYTHON:
        names: dict[str, object] = {}
        with contextlib.chdir(home):
            exec(compile(body, "README.md", "exec"), names)
            for name, value in list(names.items()):
                if name.startswith("test_") and callable(value):
                    value()


def test_what_a_fresh_machine_is_told() -> None:
    """Debian's names of what README asks for."""
    told = re.search(r"`apt install ([^`]+)`", README)
    assert told
    if not shutil.which("apt-cache"):
        missing("apt-cache knows Debian's packages")
    for package in told[1].split():
        shown = subprocess.run(["apt-cache", "show", package], capture_output=True, text=True, check=False)
        assert shown.returncode == 0, package
