#!/usr/bin/env python3
"""What Xen's services cost a guest, here and under real Xen: the guest samples/bench, timed from outside.

The guest says on its console when a loop begins and when it ends; told is the processor time between those
lines for one call of the loop, which a busy machine distorts less than the wall's, and ours divided by Xen's.
Real Xen is the newest of /boot in Debian's QEMU without acceleration, the guest its PV dom0. Of several runs
the median is told.

    scripts/bench_services.py [--runs 3] [--scale 100] [--width 64] [--only NAME...] [--no-xen] [--json FILE]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench_xen import ROOT, xen_hypervisor

_LINE = re.compile(rb"bench (begin|end) (\w+)(?: (\d+))?\r*\n")
_LIMIT = 600.0  # seconds for one run
Costs = dict[str, float]  # microseconds for one call


def bench_guest(folder: Path, width: int) -> Path:
    """The guest, built."""
    command = [sys.executable, str(ROOT / "samples" / "build.py"), "--bench", "--to", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / f"bench-{width}.elf"


def xen_command(qemu: str, xen: Path, guest: Path, arguments: str) -> list[str]:
    """Real Xen in QEMU, its console on stdout."""
    options = "console=com1 com1=115200,8n1 dom0_mem=64M,max:64M dom0_max_vcpus=1"
    return [
        qemu, "-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", "384", "-display", "none",
        "-monitor", "none", "-serial", "stdio", "-no-reboot", "-nodefaults", "-kernel", str(xen),
        "-append", options, "-initrd", f"{guest} {arguments}",
    ]  # fmt: skip


def our_command(guest: Path, arguments: str) -> list[str]:
    """The same guest here."""
    return [sys.executable, "-m", "domainbuilder", "launch", str(guest), "-m", "64", "--cmdline", arguments]


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process have run."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def lines(command: list[str], last: set[str]) -> Iterator[tuple[float, bytes]]:
    """What the guest prints to the end of the loops `last`, each line with the processor time until then."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT, bufsize=0)
    assert child.stdout is not None
    started, rest = time.monotonic(), b""
    try:
        while data := os.read(child.stdout.fileno(), 65536):
            now = processor_time(child.pid)
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                yield now, line + b"\n"
            last -= {
                found[2].decode()
                for line in whole
                if (found := _LINE.search(line + b"\n")) and found[1] == b"end"
            }
            if not last or time.monotonic() - started > _LIMIT:
                return
    finally:
        child.kill()
        child.wait()


def measure(command: list[str], last: set[str]) -> Costs:
    """One run of the loops, to the end of `last`."""
    costs: Costs = {}
    begun, count = 0.0, 1
    for now, line in lines(command, set(last)):
        found = _LINE.search(line)
        if found is None:
            continue
        if found[1] == b"begin":
            begun, count = now, int(found[3])
        else:
            costs[found[2].decode()] = (now - begun) / count * 1e6
    if missing := last - costs.keys():
        raise SystemExit(f"not seen to end: {', '.join(sorted(missing))}")
    return costs


def median(runs: list[Costs]) -> Costs:
    """Of each figure on its own."""
    return {name: statistics.median(run[name] for run in runs if name in run) for name in runs[0]}


def show(xen: Costs, ours: Costs) -> None:
    """The table, ratios last."""
    print(f"{'one':20} {'Xen us':>10} {'here us':>10} {'ratio':>7}")
    for name, cost in ours.items():
        theirs = xen.get(name)
        ratio = f"{theirs:10.4f} {cost:10.4f} {cost / theirs:7.2f}" if theirs else f"{'':10} {cost:10.4f}"
        print(f"{name:20} {ratio}")


def main() -> None:
    """Build the guest, run it in turn here and there, tell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1, help="how often each; the median is told")
    parser.add_argument("--scale", type=int, default=100, help="percent of the full number of calls")
    parser.add_argument("--width", type=int, default=64, choices=(32, 64))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these loops alone")
    parser.add_argument("--xen", type=Path, help="another hypervisor than that of /boot")
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="another QEMU for that")
    parser.add_argument("--no-xen", action="store_true", help="this hypervisor alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        guest = bench_guest(Path(folder), arguments.width)
        scale = " ".join([f"scale={arguments.scale}", *(["only", *arguments.only] if arguments.only else [])])
        commands = {"here": our_command(guest, scale)}
        if not arguments.no_xen:
            unzipped = Path(folder) / "xen"  # QEMU's multiboot loader takes no gzip
            raw = (arguments.xen or xen_hypervisor()).read_bytes()
            unzipped.write_bytes(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
            commands["xen"] = xen_command(arguments.qemu, unzipped, guest, scale)
        runs: dict[str, list[Costs]] = {name: [] for name in commands}
        for _ in range(arguments.runs):
            for name, command in commands.items():
                runs[name].append(measure(command, set(arguments.only) or {"memory"}))
    medians = {name: median(found) for name, found in runs.items()}
    show(medians.get("xen", {}), medians["here"])
    if arguments.json is not None:
        document = {"width": arguments.width, "runs": runs, "median": medians}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
