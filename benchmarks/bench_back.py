"""What going back in time costs: `python -m benchmarks.bench_back [GUEST...]`.

A boot to the prompt with a past that is kept, stopped at STOPS (100) random times: at each a step back, and
one more. Then, from the end, as many jumps to random times with a step back from there, and searches:
reverse-continue to a breakpoint that is met nowhere, and for an event that was rare. Percentiles of processor
time and of wall time, beside the aim; the memory is that of all copies, at its most.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence

import domainbuilder
from benchmarks.guests import Guest, all_guests
from hvcore.debug.condition import parse_condition
from hvcore.debug.debugger import Debugger
from hvcore.debug.events import HypercallEvent
from hvcore.debug.searches import last_event
from hvcore.debug.timeline import Timeline
from hvcore.machine import BOOT_TIME_NS

STOPS = int(os.environ.get("STOPS", "100"))
SEED = int(os.environ.get("SEED", "1"))
_NOWHERE = 0x1000
_RARE = "result >> 63"  # a call that failed
_AIM_STEP, _AIM_SEARCH, _AIM_MEMORY = 0.3, 1.0, 500 << 20

Spent = tuple[float, float]  # seconds of processor time, and of wall time


def spent(act: Callable[[], object]) -> Spent:
    """How long it takes."""
    processor, wall = time.process_time(), time.perf_counter()
    act()
    return time.process_time() - processor, time.perf_counter() - wall


def row(title: str, times: Sequence[Spent], aim: float | None = None, per: float = 1.0) -> None:
    """One line of the table: the median, the 95th percentile and the most, processor and wall."""
    cells = []
    for kind in (0, 1):
        ordered = sorted(one[kind] / per for one in times)
        at = (len(ordered) // 2, min(len(ordered) * 95 // 100, len(ordered) - 1), len(ordered) - 1)
        cells += [ordered[i] for i in at]
    verdict = "" if aim is None else f"  aim {aim:.1f}: {'met' if cells[1] <= aim else 'MISSED'}"
    print(f"  {title:42}" + "".join(f"{cell:9.3f}" for cell in cells) + verdict, flush=True)


def measure(guest: Guest) -> None:
    """The table of one guest."""
    with domainbuilder.launch(**guest.launch) as dom:
        plain = spent(lambda: dom.console.expect(guest.prompt))
        length = dom.machine.clock.now() - BOOT_TIME_NS
    chance, most = random.Random(SEED), [0]
    times = sorted(chance.randrange(length) for _ in range(STOPS))
    with domainbuilder.launch(**guest.launch) as dom, Debugger(dom.machine) as debugger:
        line = Timeline(debugger)

        def noted(act: Callable[[], object]) -> Spent:
            took = spent(act)
            most[0] = max(most[0], line.memory)
            return took

        forward, first, again = [], [], []
        for at in times:
            forward.append(noted(lambda at=at: debugger.run_until(ns=BOOT_TIME_NS + at)))  # type: ignore[misc]
            first.append(noted(line.step_back))
            again.append(noted(line.step_back))
        forward.append(noted(lambda: debugger.run_until(ns=BOOT_TIME_NS + length)))
        end = debugger.position
        jumps, steps = [], []
        for at in chance.sample(times, len(times)):
            jumps.append(noted(lambda at=at: line.go_to(BOOT_TIME_NS + at)))  # type: ignore[misc]
            steps.append(noted(line.step_back))
        line.go_to(end)
        point = debugger.break_at(_NOWHERE)
        searched = noted(line.continue_back)
        debugger.delete(point)
        line.go_to(end)
        condition = parse_condition(_RARE)
        events = noted(lambda: last_event(line, debugger, (HypercallEvent,), condition, None))
        marks = len(line.positions)
        line.close()
    run = tuple(sum(one[kind] for one in forward) for kind in (0, 1))
    print(f"{guest.name}: {length / 1e9:.2f} s of guest time, {STOPS} stops, seed {SEED}")
    print(
        f"  {'seconds':42}"
        + "".join(f"{name:>9}" for name in ("cpu p50", "p95", "max", "wall p50", "p95", "max"))
    )
    row("boot without a past", [plain])
    row("boot with one, between the stops", [(run[0], run[1])])
    row("step back, at a new place", first, _AIM_STEP)
    row("step back, once more", again, _AIM_STEP)
    row("jump to a random time, from another", jumps)
    row("step back from there", steps, _AIM_STEP)
    row("reverse-continue, a second searched", [searched], _AIM_SEARCH, length / 1e9)
    row("last failed hypercall, a second searched", [events], _AIM_SEARCH, length / 1e9)
    verdict = "met" if most[0] <= _AIM_MEMORY else "MISSED"
    print(f"  memory of copies: {most[0] >> 20} MB at most, {marks} copies at the end  aim 500: {verdict}")


def main() -> None:
    """Print the tables."""
    wanted = sys.argv[1:]
    with all_guests() as guests:
        for guest in guests:
            if not wanted or guest.name in wanted:
                measure(guest)


if __name__ == "__main__":
    main()
