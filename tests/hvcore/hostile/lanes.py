"""Lanes against Python, at random and for as long as one likes: `python -m tests.hvcore.hostile.lanes`.

Two kinds of rounds take turns, each in both widths. *Acts* are random ones of a vCPU with random registers,
segments, flags, page tables and clocks (lane_acts.py), compared after each. *Guests* are whole runs of the
hostile guest (samples/hostile), compared at their end: memory, console, counts, time. A round is made again
from its seed alone. What lanes took and what they left to Python is printed at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from hvcore.abi import PV32_PAE, PV64, Abi
from hvcore.cpu import state_window as sw
from hvcore.cpu.compiled import core, describe
from tests.hvcore.hostile.lane_acts import ActingCpu, state_of
from tests.hvcore.lane_cpu import Outcome
from tests.hvcore.test_address_spaces import CODE
from tests.hvcore.test_lanes import Run, run
from tests.hvcore.tlb_audit import errors_of
from tests.loading import load

ROOT = Path(__file__).resolve().parents[3]
ACTS = 150  # upon one pair of vCPUs, whose memory is soon in disorder
GUEST_ACTS = 4000
GUEST_MIB = 8
GUEST_NS = 200_000_000  # for some fault without end

Lanes = Counter[tuple[str, bool]]  # by lane, and whether it took the exit
Round = Callable[[int, Lanes], list[str]]


def acts(abi: Abi) -> Round:
    """Rounds of acts upon a pair of vCPUs."""

    def one(seed: int, lanes: Lanes) -> list[str]:
        cpus = [ActingCpu(abi, lanes=with_lanes) for with_lanes in (True, False)]
        try:
            return _differences(cpus, seed)
        finally:
            count(lanes, cpus[0].lanes.counts())
            for cpu in cpus:
                cpu.engine.close()

    return one


def _differences(cpus: list[ActingCpu], seed: int) -> list[str]:
    for number in range(ACTS):
        mine, python = (cpu.act_of(Random(seed * ACTS + number)) for cpu in cpus)
        if mine != python:
            code = cpus[0].get(CODE << 12, "16s")[0].hex()
            fields = differing(mine, python)
            places = [at for at in range(len(mine.processor)) if mine.processor[at] != python.processor[at]]
            return [f"act {number}, code {code}: {fields}, state at {places[:16]} (CRs at {sw.CR})",
                    *(f"  lanes:  {line}" for line in state_of(mine)),
                    *(f"  python: {line}" for line in state_of(python))]  # fmt: skip
    return errors_of(cpus[0].engine, levels=cpus[0].abi.pt_levels)


def guests(width: str, folder: Path) -> Round:
    """Rounds of whole hostile guests."""
    builder = load(ROOT / "samples" / "build.py")
    samples = [sample for sample in builder.hostile() if sample.width.name == width]
    kernel = Path(builder.build(samples, folder)[0])

    def one(seed: int, lanes: Lanes) -> list[str]:
        command = f"seed={seed} acts={GUEST_ACTS}"
        python, _ = run(kernel, lanes=False, cmdline=command, memory_mib=GUEST_MIB, guest_ns=GUEST_NS)
        mine, counts = run(kernel, lanes=True, cmdline=command, memory_mib=GUEST_MIB, guest_ns=GUEST_NS)
        count(lanes, counts)
        return differing(mine, python)

    return one


def differing(mine: Outcome | Run, python: Outcome | Run) -> list[str]:
    """The names of the fields that are not equal."""
    return [name for name in mine._fields if getattr(mine, name) != getattr(python, name)]


def count(lanes: Lanes, counts: dict[str, tuple[int, int]]) -> None:
    """Add what the lanes of one run took and left."""
    for name, (taken, left) in counts.items():
        lanes[name, True] += taken
        lanes[name, False] += left


def kinds(only: str, folder: Path) -> dict[str, Round]:
    """The rounds that are wanted, by name. Guests are a hundred times as long as acts."""
    found: dict[str, Round] = {}
    if only in ("", "acts"):
        found |= {"acts-32": acts(PV32_PAE), "acts-64": acts(PV64)}
    if only in ("", "guests"):
        found |= {f"guests-{width}": guests(width, folder) for width in ("32", "64")}
    return found


def take_turns(rounds: dict[str, Round], seed: int, enough: Callable[[], bool]) -> Iterator[tuple[str, int]]:
    """Names and seeds of the rounds to make: each kind has as much time as the others."""
    spent = dict.fromkeys(rounds, 0.0)
    seeds = dict.fromkeys(rounds, seed)
    while not enough():
        name = min(spent, key=spent.__getitem__)
        started = time.monotonic()
        yield name, seeds[name]
        spent[name] += time.monotonic() - started
        seeds[name] += 1


def main() -> int:
    """Fuzz, say what was done, and give 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first round of each kind; later ones count up"
    )
    parser.add_argument("--only", choices=("acts", "guests"), default="")
    parser.add_argument("--rounds", type=int, default=0, help="end after so many, however long they take")
    arguments = parser.parse_args()
    if core() is None:
        print(f"there are no lanes to try: {describe()}", file=sys.stderr)
        return 2
    done: Counter[str] = Counter()
    lanes: Lanes = Counter()
    differ = 0
    with tempfile.TemporaryDirectory() as folder:
        rounds = kinds(arguments.only, Path(folder))
        end = time.monotonic() + arguments.seconds
        enough = lambda: time.monotonic() > end or 0 < arguments.rounds <= done.total()  # noqa: E731
        for name, seed in take_turns(rounds, arguments.seed, enough):
            found = rounds[name](seed, lanes)
            done[name] += 1
            if found:
                differ += 1
                print(f"{name} seed {seed} differs:", *found, sep="\n  ", flush=True)
    print_lanes(lanes)
    print(f"core {describe()}; rounds {dict(done)} from seed {arguments.seed} on: {differ} differ")
    return 1 if differ else 0


def print_lanes(lanes: Lanes) -> None:
    """A table of what lanes took and left."""
    print(f"{'lane':20} {'taken':>10} {'left':>10}")
    for name in sorted({name for name, _ in lanes}):
        print(f"{name:20} {lanes[name, True]:10} {lanes[name, False]:10}")


if __name__ == "__main__":
    sys.exit(main())
