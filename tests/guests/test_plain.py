"""Real kernels in the plain profile, where Python does everything: the same run, to the byte.

PLAIN_GUEST_SECONDS=4.5 in the environment takes Linux to its driver core (40 s of a core) instead of past its
search for PCI.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.launch.domain import launch
from domainbuilder.launch.run_stats import Statistics

pytestmark = pytest.mark.guest
GUEST_SECONDS = float(os.environ.get("PLAIN_GUEST_SECONDS", "0.066"))


def run(kernel: Path, *, plain: bool, **options: object) -> tuple[Statistics, str, str]:
    with launch(kernel, plain=plain, timeout=1800, **options) as dom:  # type: ignore[arg-type]
        dom.wait()
        return dom.stats(), dom.console.transcript, dom.memory_sha256()


def test_linux(guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]) -> None:
    """Port I/O in the middle of its code, of every kind that Linux has: Xen's ports, and others."""
    linux = guest_kernel("vmlinuz-bookworm-amd64")
    options = {"ramdisk": ramdisk("shell.sh"), "memory_mib": 256, "max_guest_seconds": GUEST_SECONDS}
    fast, slow = (run(linux, plain=plain, cmdline="console=hvc0", **options) for plain in (False, True))
    assert fast == slow
    assert {"in", "out"} <= fast[0].emulated.keys()


def test_gnu_mach(guest_kernel: Callable[[str], Path]) -> None:
    mach = guest_kernel("gnumach-trixie-i386.gz")
    assert run(mach, plain=False) == run(mach, plain=True)
