#!/usr/bin/env python3
"""The same Debian kernel and initramfs under real Xen and here, on one machine, one after the other.

Real Xen is Debian's xen-hypervisor-4.17-amd64 in Debian's qemu-system-x86 without acceleration, the kernel
its PV dom0 (`-kernel xen -initrd "vmlinuz arguments,initramfs"`); here it is `domainbuilder launch`. Both
get the same memory for the guest and one vCPU. Told are the seconds from the start of the process to the
first byte on the console, the kernel's banner, /init, and the end after `poweroff`; the processor time
(which a busy machine distorts less); the most resident memory; and ours divided by Xen's.

    scripts/bench_xen.py [--release trixie] [--runs 3] [--json FILE]

Needs: apt-get install qemu-system-x86 xen-hypervisor-4.17-amd64, and `make guests`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DOMAINBUILDER_CACHE") or ROOT / ".cache") / "guests"
MEMORY_MIB = 256
XEN_MIB = 128  # for Xen itself, beside dom0's memory
LIMIT = 300.0  # seconds for one run
POLL = 0.02

# In the order they appear; of Xen's own console lines none has the kernel's banner.
MARKS: tuple[tuple[str, bytes], ...] = (
    ("first byte", b""),
    ("banner", b"Linux version "),
    ("/init", b"=== init"),
)
Run = dict[str, float]


def initramfs_module() -> ModuleType:
    """tests/guests/initramfs.py."""
    path = ROOT / "tests" / "guests" / "initramfs.py"
    spec = importlib.util.spec_from_file_location("initramfs", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def xen_hypervisor() -> Path:
    """Debian's Xen 4.17: the newest in /boot."""
    found = sorted(Path("/boot").glob("xen-4.17*-amd64.gz"))
    if not found or not shutil.which("qemu-system-x86_64"):
        raise SystemExit("real Xen needs: apt-get install qemu-system-x86 xen-hypervisor-4.17-amd64")
    return found[-1]


def xen_command(qemu: str, xen: Path, kernel: Path, initramfs: Path) -> list[str]:
    """Real Xen in QEMU, its console and dom0's on stdout."""
    options = f"console=com1 com1=115200,8n1 dom0_mem={MEMORY_MIB}M,max:{MEMORY_MIB}M dom0_max_vcpus=1"
    return [
        qemu, "-accel", "tcg", "-cpu", "qemu64", "-smp", "1",
        "-m", str(MEMORY_MIB + XEN_MIB), "-display", "none", "-monitor", "none", "-serial", "stdio",
        "-no-reboot", "-nodefaults", "-kernel", str(xen), "-append", options,
        "-initrd", f"{kernel} console=hvc0,{initramfs}",
    ]  # fmt: skip


def our_command(kernel: Path, initramfs: Path) -> list[str]:
    """The same guest here."""
    return [
        sys.executable, "-m", "domainbuilder", "launch", str(kernel), "-m", str(MEMORY_MIB),
        "--ramdisk", str(initramfs), "--cmdline", "console=hvc0",
    ]  # fmt: skip


def measure(command: list[str]) -> Run:
    """Run to the end; seconds to each mark and to the end, and the peak resident memory in MB."""
    started = time.monotonic()
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert child.stdout is not None
    os.set_blocking(child.stdout.fileno(), False)
    output, run = b"", Run()
    while time.monotonic() - started < LIMIT:
        try:
            data = os.read(child.stdout.fileno(), 65536)
        except BlockingIOError:
            time.sleep(POLL)
            continue
        if not data:
            break
        output += data
        for name, mark in MARKS:
            if name not in run and mark in output:
                run[name] = time.monotonic() - started
    else:
        child.kill()
    _pid, status, usage = os.wait4(child.pid, 0)
    run["poweroff"] = time.monotonic() - started
    run["CPU"] = usage.ru_utime + usage.ru_stime
    run["peak RSS"] = usage.ru_maxrss / 1024
    if status or len(run) != len(MARKS) + 3:
        assert child.stderr is not None
        tail = (output[-500:] + child.stderr.read(500)).decode(errors="replace")
        raise SystemExit(f"{command[0]} ended with status {status:#x} before all was seen:\n{tail}")
    return run


def median(runs: list[Run]) -> Run:
    """Of each figure on its own."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def show(xen: Run, ours: Run) -> None:
    """The table, ratios last."""
    print(f"{'':12} {'Xen':>9} {'here':>9} {'ratio':>7}")
    for name in xen:
        unit = "MB" if "RSS" in name else "s"
        print(f"{name:12} {xen[name]:7.2f} {unit:2}{ours[name]:7.2f} {unit:2}{ours[name] / xen[name]:7.2f}")


def main() -> None:
    """Build the initramfs, run both in turn, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", default="bookworm", choices=("bookworm", "trixie"))
    parser.add_argument("--runs", type=int, default=1, help="how often each; the median is told")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="another QEMU than Debian's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    arguments = parser.parse_args()
    kernel, xen = CACHE / f"vmlinuz-{arguments.release}-amd64", xen_hypervisor()
    busybox = CACHE / "busybox-amd64"
    if not kernel.exists() or not busybox.exists():
        raise SystemExit(f"{kernel.name} or {busybox.name} is not in {CACHE}: run `make guests`")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "initramfs.cpio"
        archive.write_bytes(initramfs_module().initramfs("poweroff.sh", busybox.read_bytes()))
        unzipped = Path(folder) / "xen"  # QEMU's multiboot loader takes no gzip
        unzipped.write_bytes(gzip.decompress(xen.read_bytes()))
        theirs = xen_command(arguments.qemu, unzipped, kernel, archive)
        commands = {"xen": theirs, "here": our_command(kernel, archive)}
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for number in range(arguments.runs):
            for name, command in commands.items():
                runs[name].append(measure(command))
                print(f"run {number + 1} {name}: /init {runs[name][-1]['/init']:.2f} s", file=sys.stderr)
    medians = {name: median(of_one) for name, of_one in runs.items()}
    ratios = {name: medians["here"][name] / value for name, value in medians["xen"].items()}
    print(f"{arguments.release}, {MEMORY_MIB} MB, Python {platform.python_version()}, {xen.name}")
    show(medians["xen"], medians["here"])
    if arguments.json is not None:
        document = {"release": arguments.release, "runs": runs, "median": medians, "ratio": ratios}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
