"""Two Debian 6.1 on one switch: DHCP, ping, TCP both ways; tshark finds every checksum right."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

import domainbuilder
from domainbuilder.launch.running import RunningDomain
from hvcore.backends.net import NetBackend
from hvcore.debug.pcapng import PcapngWriter
from hvcore.host import Host
from hvcore.machine import Machine
from hvcore.pv.audit import audit
from tests.needs import find_tool

BYTES = int(os.environ.get("NET_BYTES", "100000"))
Ends = tuple[list[str], list[tuple[int, bytes]], bytes]


@pytest.mark.guest
def test_two_debians_on_one_switch(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], tmp_path: Path
) -> None:
    """`NET_BYTES` for that many bytes each way. The second run is the first again, to the byte.

    It is saved with frames under way, and goes on in a host that is restored.
    """
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
    assert run(guest_kernel("vmlinuz-bookworm-amd64"), path, capture, restores=True) == first


def tshark(capture: Path, *options: str) -> str:
    command = [find_tool("tshark"), "-n", "-r", str(capture), *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(kernel: Path, path: Path, capture: Path, *, restores: bool = False) -> Ends:
    outputs = bytearray(), bytearray()
    with domainbuilder.Host(memory_mib=520) as host, capture.open("wb") as file:
        writer = PcapngWriter(file)
        host.host.switch("xenbr0").taps.append(writer.frame)
        domains = [
            host.launch(
                kernel, 256, ramdisk=path, cmdline=f"console=hvc0 quiet net={role} bytes={BYTES}",
                timeout=1500, vifs=[""], console_output=output.extend,
            )
            for role, output in zip(("server", "client"), outputs, strict=True)
        ]  # fmt: skip
        if restores:
            return file_and(go_on_restored(domains, outputs, writer), outputs, file, capture)
        for dom in reversed(domains):
            assert dom.wait().reason == "poweroff", outputs
        return file_and([end_of(dom.machine) for dom in domains], outputs, file, capture)


def file_and(
    ends: list[tuple[int, bytes]], outputs: tuple[bytearray, bytearray], file: BinaryIO, capture: Path
) -> Ends:
    file.flush()
    return [o.decode().replace("\r\n", "\n") for o in outputs], ends, capture.read_bytes()


def end_of(machine: Machine) -> tuple[int, bytes]:
    """When a domain ended, with how many hypercalls of each kind."""
    assert machine.shutdown_reason == "poweroff"
    assert audit(machine.domain) == []
    return machine.clock.now(), bytes(machine.domain.trace.hypercalls)


def go_on_restored(
    domains: list[RunningDomain], outputs: tuple[bytearray, bytearray], writer: PcapngWriter
) -> list[tuple[int, bytes]]:
    """Save the host with frames under way, and run what is restored of it to its end."""
    domains[1].console.expect("3 packets received")
    host = domains[1].machine.host
    host.idle = host.advance_to
    backends = [dom.machine.devices.backends["vif0"] for dom in domains]
    while not any(isinstance(b, NetBackend) and b.rx.waiting and b.tx.answers for b in backends):
        host.set_timer("look", host.now() + 5_000, host.pause)
        host.run()
    again = Host.restore(host.save(), lambda domid, data: outputs[domid - 1].extend(data))
    try:
        again.switch("xenbr0").taps.append(writer.frame)
        while not all(m.is_over for m in again.machines.values()):
            again.run()
        return [end_of(m) for m in again.machines.values()]
    finally:
        again.close()
