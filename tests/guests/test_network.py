"""Two Debian 6.1 on one switch: DHCP, ping, TCP both ways; tshark finds every checksum right."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.run_stats import Statistics
from hvcore.debug.pcapng import PcapngWriter
from hvcore.pv.audit import audit
from tests.needs import find_tool

BYTES = int(os.environ.get("NET_BYTES", "100000"))
Ends = tuple[list[str], list[Statistics], bytes]


@pytest.mark.guest
def test_two_debians_on_one_switch(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    """`NET_BYTES` for that many bytes each way. The second run is the first again, to the byte."""
    path = ramdisk("net.sh", {"xen-netfront.ko": guest_kernel("xen-netfront-bookworm-amd64.ko").read_bytes()})
    capture = tmp_path / "capture.pcapng"
    first = run(guest_kernel("vmlinuz-bookworm-amd64"), path, capture)
    server, client = first[0]
    assert "leased 10.0.0.20" in client
    assert "3 packets transmitted, 3 packets received" in client
    sums = re.findall(r"^[0-9a-f]{64} \w+$", client, re.MULTILINE)
    assert len(sums) == 2
    assert sums == re.findall(r"^[0-9a-f]{64} \w+$", server, re.MULTILINE)
    checks = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    bad = "ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0"
    assert tshark(capture, *checks, "-Y", bad) == ""
    good = tshark(capture, *checks, "-Y", "tcp.checksum.status == 1").splitlines()
    assert len(good) > 20
    assert run(guest_kernel("vmlinuz-bookworm-amd64"), path, capture) == first


def tshark(capture: Path, *options: str) -> str:
    command = [find_tool("tshark"), "-n", "-r", str(capture), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(kernel: Path, path: Path, capture: Path) -> Ends:
    outputs = bytearray(), bytearray()
    with domainbuilder.Host(memory_mib=520) as host, capture.open("wb") as file:
        host.host.switch("xenbr0").taps.append(PcapngWriter(file).frame)
        domains = [
            host.launch(
                kernel, 256, ramdisk=path, cmdline=f"console=hvc0 quiet net={role} bytes={BYTES}",
                timeout=1500, vifs=[""], console_output=output.extend,
            )
            for role, output in zip(("server", "client"), outputs, strict=True)
        ]  # fmt: skip
        for dom in reversed(domains):
            assert dom.wait().reason == "poweroff", outputs
            assert audit(dom.machine.domain) == []
        counts = [dom.stats() for dom in domains]
    return [o.decode().replace("\r\n", "\n") for o in outputs], counts, capture.read_bytes()
