"""Debian's kernel does what domain 0 writes to its nodes: memory, vCPUs, SysRq, the end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from hvcore.pv.audit import audit
from tests.needs import find_tool

PAGES_PER_MIB = 256


@pytest.mark.guest
def test_debian_does_what_its_nodes_say(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    """The balloon goes down and up to the page, a vCPU goes and comes back, xenstore-write ends it."""
    with domainbuilder.launch(
        guest_kernel("vmlinuz-bookworm-amd64"), memory_mib=192, ramdisk=ramdisk("shell.sh"), vcpus=2,
        cmdline="console=hvc0 loglevel=4", timeout=300,
    ) as dom:  # fmt: skip
        domain, console = dom.machine.domain, dom.console

        def said(command: str) -> str:
            console.expect(r"guest# ")
            console.send(f"{command}; echo END''\n")
            return console.expect(r"(?s)END''\r?\n(.*?)END\r?\n")[1].strip()

        def mem_total() -> int:
            return int(said("awk '/MemTotal/ { print $2 }' /proc/meminfo"))

        began, calls = mem_total(), dom.stats().hypercalls["memory_op"]
        assert (said("nproc"), domain.tot_pages) == ("2", 192 * PAGES_PER_MIB)
        dom.set_memory_target(128)
        dom.set_vcpus(1)
        dom.run_for(3.0)
        assert domain.tot_pages == 128 * PAGES_PER_MIB
        assert (began - mem_total(), said("nproc")) == (64 << 10, "1")
        assert dom.stats().hypercalls["memory_op"] > calls
        dom.set_memory_target(192)
        dom.set_vcpus(2)
        dom.run_for(3.0)
        assert domain.tot_pages == 192 * PAGES_PER_MIB
        # Linux brings back a processor that it is given again only when it is told to (udev does).
        assert said("echo 1 > /sys/devices/system/cpu/cpu1/online; nproc") == "2"
        assert mem_total() == began
        dom.sysrq("s")
        console.expect(r"sysrq: Emergency Sync")
        assert audit(domain) == []
        # Linux runs this, as systemd or an init of busybox has it.
        said(r"mkdir -p /sbin; printf '#!/bin/sh\nexec /bin/poweroff -f\n' >/sbin/poweroff")
        said("chmod +x /sbin/poweroff")
        with dom.serve_xenstore(tmp_path / "store"):
            tool = subprocess.Popen(
                [find_tool("xenstore-write"), "/local/domain/1/control/shutdown", "poweroff"],
                env={**os.environ, "XENSTORED_PATH": str(tmp_path / "store")},
            )
            assert dom.wait().reason == "poweroff"
            assert tool.wait() == 0
