"""scripts/guests.py: what it does with a full cache, without a network, and without apt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "guests.py"


def run(cache: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DOMAINBUILDER_CACHE": str(cache)}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False, env=environment
    )


def fake(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def names(cache: Path) -> list[str]:
    return [line.split()[0] for line in run(cache, "--list").stdout.splitlines()]


def test_a_full_cache_asks_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "guests"
    folder.mkdir()
    for name in names(tmp_path):
        (folder / name).write_bytes(b"kernel")
    (folder / "record.json").write_text(json.dumps({name: {} for name in names(tmp_path)}))
    done = run(tmp_path, path="")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"all {len(names(tmp_path))} are in" in done.stdout


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "guests").write_text("no folder")
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (2, f"guests: {tmp_path}/guests: File exists\n")


def test_without_apt_it_says_what_it_needs(tmp_path: Path) -> None:
    done = run(tmp_path, path=str(tmp_path))
    assert done.returncode == 2
    assert "needs apt-get and dpkg" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("", "none of apt's sources"),
        ("Packages|main|http://mirror.invalid/debian/", "Could not resolve"),
    ],
)
def test_without_a_mirror_or_a_network_it_says_so(tmp_path: Path, targets: str, message: str) -> None:
    programs = tmp_path / "bin"
    fake(programs, "dpkg", "exit 0")
    refuse = 'echo "E: Could not resolve host" >&2; exit 100'
    body = f'case "$1" in indextargets) echo "{targets}";; *) {refuse};; esac'
    fake(programs, "apt-get", body)
    done = run(tmp_path / "cache", path=f"{programs}:{os.environ['PATH']}")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.guest
def test_what_was_fetched_is_what_is_recorded(guest_kernel: object) -> None:
    assert callable(guest_kernel)
    record = json.loads(guest_kernel("record.json").read_text())
    assert record["grub-i386-xen.bin"]["package"] == "grub-xen-host"
    assert guest_kernel("grub-i386-xen.bin").read_bytes()[:4] == b"\x7fELF"
    assert guest_kernel("gnumach-trixie-i386.gz").read_bytes()[:2] == b"\x1f\x8b"
