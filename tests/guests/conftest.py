"""Boots of real kernels with an initramfs of the tests' own."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.domain import Outcome
from domainbuilder.launch.run_stats import Statistics
from hvcore.pv.audit import audit
from tests.guests.initramfs import initramfs
from tests.needs import find_tool, missing

HERE = Path(__file__).resolve().parent
MEMORY_MIB = 256
GUEST_SECONDS = 60.0  # of the guest's own time, which a busy host does not shorten: the guard
HUNG = 1500.0  # seconds of wall time, for a hypervisor that no longer moves


def _compile(width: int, folder: Path) -> bytes:
    program = folder / f"probe{width}"
    options = [f"-m{width}", "-msse2", "-O1", "-static", "-no-pie", "-s", "-Wall", "-Werror"]
    done = subprocess.run(
        ["gcc", *options, HERE / "probe.c", "-o", program], capture_output=True, text=True, check=False
    )
    if done.returncode:
        missing(f"probe.c does not compile for {width} bits (gcc-multilib?): {done.stderr[-300:]}")
    return program.read_bytes()


@pytest.fixture(scope="session")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """probe.c as 64-bit and 32-bit programs for an initramfs."""
    find_tool("gcc")
    folder = tmp_path_factory.mktemp("probes")
    return {f"probe{width}": _compile(width, folder) for width in (64, 32)}


@pytest.fixture(scope="session")
def ramdisk(
    guest_kernel: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`ramdisk("userland.sh", {"name": b"program"})`: the path of an initramfs with that script as /init."""

    def build(init: str, more: dict[str, bytes] | None = None) -> Path:
        path = tmp_path_factory.mktemp("initramfs") / "initramfs.cpio"
        path.write_bytes(initramfs(init, guest_kernel("busybox-amd64").read_bytes(), more))
        return path

    return build


@dataclass(frozen=True)
class Boot:
    """A boot from its first byte to its end. `sections` are the lines between the script's "=== NAME"."""

    text: str
    sections: dict[str, list[str]]
    outcome: Outcome
    stats: Statistics
    audit: list[str]

    def section(self, name: str) -> list[str]:
        """The lines of a section; none where the guest did not come that far."""
        return self.sections.get(name, [])


def sections(text: str) -> dict[str, list[str]]:
    parts = re.split(r"^=== (\w+)\n", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.splitlines() for part in parts[2::2]), strict=True))


@pytest.fixture(scope="session")
def boot() -> Callable[..., Boot]:
    """`boot(kernel, ramdisk, cmdline, vcpus=1)`: run it to its end, and audit the domain's frames then."""

    def run(kernel: Path, ramdisk: Path, cmdline: str, vcpus: int = 1) -> Boot:
        output = bytearray()
        with domainbuilder.launch(
            kernel,
            memory_mib=MEMORY_MIB,
            ramdisk=ramdisk,
            cmdline=f"console=hvc0 {cmdline}",
            vcpus=vcpus,
            timeout=HUNG,
            max_guest_seconds=GUEST_SECONDS,
            console_output=output.extend,
        ) as dom:
            outcome = dom.wait()
            problems = audit(dom.machine.domain)
            text = output.decode(errors="replace")
            return Boot(text, sections(text), outcome, dom.stats(), problems)

    return run
