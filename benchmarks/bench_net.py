"""TCP between two Debian 6.1, here and in two QEMUs with virtio-net: `python -m benchmarks.bench_net`.

One connection carries MB (200) MiB from one guest to the other, by a program that writes and reads 128 KB at
a time (tcp.c). Rates are by processor time, that of both guests together, from the first byte to the last;
`guest` is what the sender sees by its own clock, and `times` is how many times as long as here it takes.
Where QEMU_KERNEL says what QEMU boots (qemu.py), two run, with a socket between them. That carries neither
segmentation nor checksums for later, so its guests do both, by frames of 1,500 bytes and of 65,000 (MTU).
Needs gcc, and what `make guests` fetched.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import domainbuilder
from benchmarks import qemu
from benchmarks.guests import CACHE

MB = int(os.environ.get("MB", "200"))
AIM = 100  # MB/s of one processor for both guests: 200 on an idle core each
_PORT = 5002  # of this machine's loopback
_MEMORY_MIB = 256
_LIMIT = 600.0
_SCRIPT = """i=0
while [ ! -d /sys/class/net/eth0 ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
ip link set eth0 mtu {mtu} up
ip addr add 10.0.0.{number}/24 dev eth0
tcp {arguments}
poweroff -f
"""
_SECONDS = re.compile(r"=== end ([\d.]+) s")


class Taken(NamedTuple):
    """What it took: seconds of processor time, and of the sender's clock."""

    processor: float
    guest: float


def compiled(folder: Path) -> bytes:
    """tcp.c, for the guests."""
    source, program = Path(__file__).with_name("tcp.c"), folder / "tcp"
    subprocess.run(["gcc", "-O2", "-static", "-s", "-o", program, source], check=True)
    return program.read_bytes()


def ramdisks(folder: Path, program: bytes, modules: dict[str, bytes], mtu: int) -> list[Path]:
    """The initramfs of who receives, and of who sends."""
    files = {"bin/tcp": program} | {f"modules/{name}.ko": data for name, data in modules.items()}
    paths = []
    for number, arguments in ((1, ""), (2, f"10.0.0.1 {MB}")):
        script = (qemu.PREAMBLE + _SCRIPT).format(
            modules=" ".join(modules), mtu=mtu, number=number, arguments=arguments
        )
        path = folder / f"{number}.cpio"
        path.write_bytes(domainbuilder.initramfs((CACHE / "busybox-amd64").read_bytes(), script, files))
        paths.append(path)
    return paths


def ours(folder: Path, program: bytes) -> Taken:
    """Two domains of one host, and of one process."""
    modules = {"xen-netfront": (CACHE / "xen-netfront-bookworm-amd64.ko").read_bytes()}
    with domainbuilder.Host(memory_mib=2 * _MEMORY_MIB + 8) as host:
        _receiver, sender = (
            host.launch(
                CACHE / "vmlinuz-bookworm-amd64",
                _MEMORY_MIB,
                ramdisk=ramdisk,
                cmdline="console=hvc0 quiet",
                vifs=[""],
            )
            for ramdisk in ramdisks(folder, program, modules, 1500)
        )
        sender.console.expect("=== begin", timeout=_LIMIT)
        begun = time.process_time()
        seconds = sender.console.expect(_SECONDS.pattern, timeout=_LIMIT)[1]
        return Taken(time.process_time() - begun, float(seconds))


def qemus(folder: Path, program: bytes, kernel: Path, mtu: int) -> Taken:
    """The same in two QEMUs."""
    modules = qemu.virtio_modules(kernel, "failover", "net_failover", "virtio_net")
    processes = []
    for number, ramdisk in enumerate(ramdisks(folder, program, modules, mtu), 1):
        side = f"{'listen' if number == 1 else 'connect'}=127.0.0.1:{_PORT}"
        card = f"virtio-net-pci,netdev=n,mac=52:54:00:00:00:0{number},host_mtu={mtu}"
        devices = ("-netdev", f"socket,id=n,{side}", "-device", card)
        processes.append(qemu.started(kernel, ramdisk, _MEMORY_MIB, devices))
        time.sleep(1)  # who connects wants the other to listen
    try:
        return _watched(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _watched(processes: list[subprocess.Popen[str]]) -> Taken:
    def taken() -> float:
        return sum(map(qemu.processor_time, processes))

    begun = 0.0
    sender = processes[1].stdout
    assert sender is not None
    for line in sender:
        if "=== begin" in line:
            begun = taken()
        elif found := _SECONDS.search(line):
            return Taken(taken() - begun, float(found[1]))
    sys.exit("bench_net: QEMU ended early")


def main() -> None:
    """The table."""
    kernel = qemu.kernel_folder()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the QEMUs, too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compiled(folder)
        here = ours(folder, program)
        rows = [("here", here)]
        if kernel:
            rows += [
                (f"QEMU, frames of {mtu:,} bytes", qemus(folder, program, kernel, mtu))
                for mtu in (1500, 65000)
            ]
    amount = MB * 1.048576
    print(f"{'':30}{'rate':>8}{'guest':>8}{'times':>7}")
    for title, taken in rows:
        rate = amount / taken.processor
        print(
            f"  {title:28}{rate:8.0f}{amount / taken.guest:8.0f}{taken.processor / here.processor:7.2f}",
            end="",
        )
        print(f" MB/s{f', aim {AIM}: ' + ('met' if rate >= AIM else 'MISSED') if taken is here else ''}")


if __name__ == "__main__":
    main()
