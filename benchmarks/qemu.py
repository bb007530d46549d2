"""A Debian 6.1 with virtio in QEMU, without acceleration, for benchmarks to stand beside.

QEMU_KERNEL is a folder where Debian's package linux-image-6.1.* is unpacked, for the modules of virtio; QEMU
is the program, qemu-system-x86_64.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
VIRTIO = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci")

# How an initramfs of a benchmark begins: what it mounts, and the modules that it loads.
PREAMBLE = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
dmesg -n 1
for m in {modules}; do insmod /modules/$m.ko; done
"""


def kernel_folder() -> Path | None:
    """QEMU_KERNEL, where it is set."""
    folder = os.environ.get("QEMU_KERNEL")
    return Path(folder) if folder else None


def virtio_modules(kernel: Path, *more: str) -> dict[str, bytes]:
    """The modules of virtio and `more` behind them, by name, in the order in which they are loaded."""
    return {name: next(kernel.rglob(f"{name}.ko")).read_bytes() for name in (*VIRTIO, *more)}


def started(kernel: Path, ramdisk: Path, memory_mib: int, devices: Iterable[str]) -> subprocess.Popen[str]:
    """A QEMU, whose guest's console is its standard output."""
    command = [
        QEMU, "-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", str(memory_mib), "-display", "none",
        "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nodefaults",
        "-kernel", str(next(kernel.glob("boot/vmlinuz-*"))), "-initrd", str(ramdisk),
        "-append", "console=ttyS0 quiet", *devices,
    ]  # fmt: skip
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def processor_time(process: subprocess.Popen[str]) -> float:
    """Seconds that it has run, threads that have ended as well: clock_getcpuclockid()."""
    return time.clock_gettime(~process.pid << 3 | 2)
