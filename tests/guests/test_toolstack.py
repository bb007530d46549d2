"""What `domainbuilder xl` asks of a Debian in the background, and what the guest does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from domainbuilder.background import runtime
from domainbuilder.background.client import ask


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    yield tmp_path
    for domain in runtime.domains():
        os.kill(domain.pid, signal.SIGKILL)


class Shell:
    """The console of a domain in the background."""

    def __init__(self, domain: runtime.Domain) -> None:
        self.sock: socket.socket = runtime.connect(domain)
        self.sock.settimeout(300)
        self.sock.sendall(b'{"do":"console"}\n')
        self.until(b"guest# ")

    def until(self, end: bytes) -> str:
        seen = b""
        while end not in seen:  # a question for the cursor follows a prompt
            piece = self.sock.recv(65536)
            assert piece, seen
            seen += piece
        return seen.decode()

    def run(self, command: str) -> str:
        self.sock.sendall(command.encode() + b"\n")
        return self.until(b"\nguest# ").replace("\r", "")


def memory(shell: Shell) -> int:
    found = re.search(r"^MemTotal: +([0-9]+) kB", shell.run("grep MemTotal /proc/meminfo"), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.guest
def test_memory_and_vcpus_come_and_go(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], home: Path
) -> None:
    kernel, initramfs = guest_kernel("vmlinuz-bookworm-amd64"), ramdisk("shell.sh")
    (home / "debian.cfg").write_text(
        f"name='debian'\nkernel='{kernel}'\nmemory=256\nvcpus=2\n"
        f"ramdisk='{initramfs}'\nextra='console=hvc0 loglevel=3'\nrtc_timeoffset='-3600'\n"
    )

    def xl(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "domainbuilder", "xl", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=home)

    assert xl("create", "--date", "2026-11-30T12:00:00Z", "debian.cfg").returncode == 0
    (domain,) = runtime.domains()
    shell = Shell(domain)
    assert re.search(r"^Mon Nov 30 11:0\d:\d\d UTC 2026$", shell.run("date -u"), re.MULTILINE)
    before = memory(shell)

    assert xl("mem-set", "debian", "128").returncode == 0
    shell.run("sleep 4")
    smaller = before - memory(shell)
    assert 126 << 10 <= smaller <= 128 << 10
    assert ask(domain, "info")["memory_mib"] == 128
    assert xl("mem-set", "debian", "256m").returncode == 0
    shell.run("sleep 4")
    assert (memory(shell), ask(domain, "info")["memory_mib"]) == (before, 256)
    assert "memory_static_max, 262144 KiB" in xl("mem-set", "debian", "257").stderr

    assert xl("vcpu-set", "debian", "1").returncode == 0
    assert "\n1\n" in shell.run("sleep 1; nproc")
    assert xl("vcpu-set", "debian", "2").returncode == 0
    assert "\n2\n" in shell.run("sleep 1; echo 1 >/sys/devices/system/cpu/cpu1/online; nproc")
    assert "however maxcpus is 2" in xl("vcpu-set", "debian", "3").stderr

    assert xl("sysrq", "debian", "h").returncode == 0
    assert "sysrq: HELP" in shell.run("sleep 1; dmesg | tail -n 3")
    assert xl("destroy", "debian").returncode == 0
