"""What a disk gives to Debian 6.1, here and in QEMU with virtio-blk: `python -m benchmarks.bench_disk`.

Debian's dd reads and writes MB (128) MiB in requests of 1 MiB, past the guest's cache and through it; its fio
reads 4 KiB at a time from anywhere, READS (4096) times and five times as often, so that its start is not
counted. Rates are by processor time, which a busy machine distorts less than the wall's; `guest` are those
that the guest sees by its own clock. Beside each is the aim, and how many times as long as QEMU it takes,
where QEMU_KERNEL says what that boots (qemu.py). Needs dd and fio, and what `make guests` fetched.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import domainbuilder
from benchmarks import qemu
from benchmarks.guests import CACHE

MB = int(os.environ.get("MB", "128"))
READS = int(os.environ.get("READS", "4096"))
_MEMORY_MIB = 512
_DISK_MIB = 256
_LIMIT = 600.0
_MARK = re.compile(r"=== (\w+)\b")
_SPEED = re.compile(r"([\d.]+) ([kMG])B/s")
_IOPS = re.compile(r"IOPS=([\d.]+)(k?)")
_SCRIPT = """mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm
i=0
while [ ! -b {disk} ] && [ $i -lt 100 ]; do usleep 10000; i=$((i + 1)); done
copy() {{ {dd} bs=1M count={mb} "$@" 2>&1 | tail -n 1; }}
random() {{
    {fio} --name=r --filename={disk} --rw=randread --bs=4k --direct=1 --ioengine=psync --size={size}M \
        --io_size=$1k 2>&1 | grep IOPS
}}
[ -b {disk} ] && echo "=== begin"
copy if={disk} of=/dev/null iflag=direct; echo "=== read"
copy if=/dev/zero of={disk} oflag=direct conv=fsync; echo "=== write"
echo 3 > /proc/sys/vm/drop_caches
copy if={disk} of=/dev/null; echo "=== cached_read"
copy if=/dev/zero of={disk} conv=fsync; echo "=== cached_write"
random {few}; echo "=== first"
random {few}; echo "=== few"
random {many}; echo "=== many"
poweroff -f
"""


class Act(NamedTuple):
    """What is measured: the mark behind it, how much it is, in what, and the aim."""

    mark: str
    title: str
    amount: float
    unit: str
    aim: float


_MEGABYTES = MB * 1.048576
ACTS = (
    Act("read", "sequential read, direct", _MEGABYTES, "MB/s", 150),
    Act("write", "sequential write, direct", _MEGABYTES, "MB/s", 100),
    Act("cached_read", "sequential read, through the cache", _MEGABYTES, "MB/s", 150),
    Act("cached_write", "sequential write, through the cache", _MEGABYTES, "MB/s", 100),
    Act("many", "random reads of 4 KB", 4 * READS, "a second", 5000),
)


def programs(*names: str) -> dict[str, bytes]:
    """Programs of this machine with the libraries that they load, by their paths."""
    found = {}
    for name in names:
        path = shutil.which(name)
        if path is None:
            sys.exit(f"bench_disk: {name} is not installed")
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
        for file in (path, *re.findall(r"(?<=\s)/\S+", listed)):
            found[file.lstrip("/")] = Path(file).read_bytes()
    return found


def ramdisk(modules: dict[str, bytes], disk: str) -> bytes:
    """An initramfs that does it all, and marks on its console where each act ends."""
    files = programs("dd", "fio") | {f"modules/{name}.ko": data for name, data in modules.items()}
    script = (qemu.PREAMBLE + _SCRIPT).format(
        modules=" ".join(modules), disk=disk, dd=shutil.which("dd"), fio=shutil.which("fio"),
        mb=MB, size=_DISK_MIB, few=4 * READS, many=20 * READS,
    )  # fmt: skip
    return domainbuilder.initramfs((CACHE / "busybox-amd64").read_bytes(), script, files)


def ours(folder: Path, disk: Path) -> Iterator[tuple[str, float, str]]:
    """(mark, processor time until then, what the guest printed since the one before)."""
    path, output, told = folder / "xen.cpio", bytearray(), 0
    module = (CACHE / "xen-blkfront-bookworm-amd64.ko").read_bytes()
    path.write_bytes(ramdisk({"xen-blkfront": module}, "/dev/xvda"))
    with domainbuilder.launch(
        CACHE / "vmlinuz-bookworm-amd64",
        memory_mib=_MEMORY_MIB,
        ramdisk=path,
        cmdline="console=hvc0 quiet",
        disks=[f"{disk},raw,xvda,w"],
        console_output=output.extend,
    ) as dom:
        for mark in ("begin", "read", "write", "cached_read", "cached_write", "first", "few", "many"):
            dom.console.expect(rf"=== {mark}\b", timeout=_LIMIT)
            yield mark, time.process_time(), output[told:].decode(errors="replace")
            told = len(output)


def qemus(folder: Path, disk: Path, kernel: Path) -> Iterator[tuple[str, float, str]]:
    """The same in QEMU."""
    path, output = folder / "virtio.cpio", ""
    path.write_bytes(ramdisk(qemu.virtio_modules(kernel, "virtio_blk"), "/dev/vda"))
    drive = ("-drive", f"file={disk},format=raw,if=virtio,cache=writeback")
    with qemu.started(kernel, path, _MEMORY_MIB, drive) as process:
        assert process.stdout is not None
        for line in process.stdout:
            output += line
            found = _MARK.search(line)
            if found:
                yield found[1], qemu.processor_time(process), output
                output = ""


def by_act(marks: Iterator[tuple[str, float, str]]) -> dict[str, tuple[float, str]]:
    """For each mark how long it took, and what the guest says of it; `many` is told without `few`."""
    found: dict[str, tuple[float, str]] = {}
    before = 0.0
    for mark, now, text in marks:
        found[mark] = now - before, text
        before = now
    if "many" in found:
        found["many"] = found["many"][0] - found["few"][0], found["many"][1]
    return found


def guests_figure(text: str) -> str:
    """What dd or fio says in the guest."""
    speed, iops = _SPEED.search(text), _IOPS.search(text)
    if iops:
        return f"{float(iops[1]) * (1000 if iops[2] else 1):.0f}"
    if speed is None:
        return "-"
    return f"{float(speed[1]) * {'k': 0.001, 'M': 1, 'G': 1000}[speed[2]]:.0f}"


def main() -> None:
    """The table."""
    kernel = qemu.kernel_folder()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        disk = folder / "disk.img"
        with disk.open("wb") as file:
            for _ in range(_DISK_MIB):
                file.write(os.urandom(1 << 20))
        here = by_act(ours(folder, disk))
        there = by_act(qemus(folder, disk, kernel)) if kernel else {}
    print(f"{'':38}{'rate':>8}{'guest':>8}{'QEMU':>8}{'ratio':>7}")
    for act in ACTS:
        seconds, text = here[act.mark]
        rate = act.amount / seconds
        beside = f"{'':15}"
        if act.mark in there:
            beside = f"{act.amount / there[act.mark][0]:8.0f}{seconds / there[act.mark][0]:7.2f}"
        verdict = "met" if rate >= act.aim else "MISSED"
        print(f"  {act.title:36}{rate:8.0f}{guests_figure(text):>8}{beside}", end="")
        print(f" {act.unit}, aim {act.aim}: {verdict}")


if __name__ == "__main__":
    main()
