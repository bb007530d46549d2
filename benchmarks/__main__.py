"""Wall time and peak memory of whole commands, each run several times, the best and the median told; then
what the hypervisor's services cost a guest (benchmarks/bench_hypervisor.py).

Guests come from `make guests`; what is not there is left out.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import bench_hypervisor, bench_startup
from domainbuilder import guests

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DOMAINBUILDER_CACHE") or ROOT / ".cache") / "guests"
REPEAT = 5
COMMAND = (sys.executable, "-m", "domainbuilder")


def cases() -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is measured: a title and the arguments of the command."""
    hello = str(guests.path("hello"))
    yield "--help", ("--help",)
    yield "notes, a small kernel", ("notes", hello)
    yield "plan, a small kernel", ("plan", hello)
    yield "launch hello to its end", ("launch", hello, "--expect", "hello> ", "--send", "halt\n")
    grub, linux = CACHE / "grub-i386-xen.bin", CACHE / "vmlinuz-bookworm-amd64"
    if linux.exists():
        yield "notes, Debian's bzImage", ("notes", str(linux))
        yield "plan, Debian's bzImage", ("plan", str(linux), "-m", "256")
    if grub.exists():
        yield "launch PV-GRUB to its prompt", ("launch", str(grub), "--expect", "grub> ", "--until-match")
        yield "launch PV-GRUB to its end", ("launch", str(grub), "--expect", "grub> ", "--send", "halt\n")


def measure(arguments: tuple[str, ...]) -> tuple[float, int]:
    """One run: seconds of wall time and peak resident memory in KiB."""
    started = time.perf_counter()
    child = subprocess.Popen((*COMMAND, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _pid, _status, usage = os.wait4(child.pid, 0)
    return time.perf_counter() - started, usage.ru_maxrss


def main() -> None:
    """Print the table."""
    print(f"{'command':34} {'best s':>8} {'median s':>9} {'RSS MB':>8}")
    for title, arguments in cases():
        runs = [measure(arguments) for _ in range(REPEAT)]
        seconds = [run[0] for run in runs]
        memory = max(run[1] for run in runs) / 1024
        print(f"{title:34} {min(seconds):8.3f} {statistics.median(seconds):9.3f} {memory:8.1f}", flush=True)
    print()
    bench_startup.main()
    print()
    bench_hypervisor.main([])


if __name__ == "__main__":
    main()
