"""Two Debian kernels and a GRUB on one host: each runs as if it were alone, also when another crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.launch.running import RunningDomain
from hvcore.pv.audit import audit

pytestmark = pytest.mark.guest
PROMPT = "guest# "


def company(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], *, crashes: bool
) -> tuple[list[str], list[Statistics]]:
    """How the three ended, and what they counted; with `crashes` the second kernel panics at its prompt."""
    with domainbuilder.Host(memory_mib=640) as host:

        def linux(kernel: str, script: str) -> RunningDomain:
            return host.launch(
                guest_kernel(kernel), 256, ramdisk=ramdisk(script), cmdline="console=hvc0 quiet", timeout=600
            )

        first = linux("vmlinuz-bookworm-amd64", "userland.sh")
        second = linux("vmlinuz-trixie-amd64", "shell.sh")
        grub = host.launch(guest_kernel("grub-i386-xen.bin"), memory_mib=64, timeout=600)
        grub.console.expect("grub> ")
        grub.console.send("halt\n")
        second.console.expect(PROMPT)
        second.console.send("echo c >/proc/sysrq-trigger\n" if crashes else "poweroff -f\n")
        ends = [dom.wait().reason for dom in (second, grub, first)]
        assert audit(first.machine.domain) == []
        return ends, [dom.stats() for dom in (first, second, grub)]


def test_a_crash_is_nothing_to_the_others(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]
) -> None:
    ends, counts = company(guest_kernel, ramdisk, crashes=False)
    assert ends == ["poweroff", "poweroff", "poweroff"]
    ends, others = company(guest_kernel, ramdisk, crashes=True)
    assert ends == ["crash", "poweroff", "poweroff"]
    assert (others[0], others[2]) == (counts[0], counts[2])
    assert others[1] != counts[1]
