"""What going back within a process costs: `python -m benchmarks.bench_rewind [GUEST...]`.

`rewind` of 100 pages that were written to, and of the few that a short execution writes to; then short
executions (a line is typed, the guest answers, back) a second: with the guest's own running time, and without
it. ROUNDS (300) of each; medians, beside the time that a bare Python takes to count to 10,000.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import domainbuilder
from benchmarks.guests import Guest, all_guests
from domainbuilder.launch.running import RunningDomain

ROUNDS = int(os.environ.get("ROUNDS", "300"))
PAGES = 100
_LIMIT = 3600.0  # seconds


def seconds(act: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def count() -> None:
    """The yardstick of this machine, as busy as it is."""
    for _ in range(10_000):
        pass


def measure(dom: RunningDomain, guest: Guest) -> None:
    """One line of the table."""
    here, view = dom.snapshot(), dom.machine.mem.view
    step = len(view) // PAGES & ~4095
    at = range(0, step * PAGES, step)
    hundred, few, whole, outside = [], [], [], []
    for n in range(ROUNDS):
        for page in at:
            view[page + 8 * (n % 500)] = n % 251
        hundred.append(seconds(lambda: dom.rewind(here)))
    inside, run = [0.0], dom.machine.engine.run

    def timed() -> None:
        inside[0] += seconds(run)

    dom.machine.engine.run = timed  # type: ignore[method-assign]
    for n in range(ROUNDS):
        inside[0], started = 0.0, time.perf_counter()
        question, answer = guest.ask(n)
        dom.console.send(question)
        dom.console.expect(answer)
        few.append(seconds(lambda: dom.rewind(here)))
        whole.append(time.perf_counter() - started)
        outside.append(whole[-1] - inside[0])
    del dom.machine.engine.run
    yardstick = statistics.median(seconds(count) for _ in range(50))
    rewinds = [statistics.median(spent) for spent in (hundred, few)]
    print(
        f"{guest.name:12}"
        + "".join(f"{spent * 1e6:12.0f} us ({spent / yardstick:4.2f})" for spent in rewinds)
        + f"{1 / statistics.median(whole):12.0f} {1 / statistics.median(outside):14.0f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    wanted = sys.argv[1:]
    print(f"{'guest':12}{'100 pages':>22}{'a short run':>22}{'runs/s':>12} {'without guest':>14}")
    with all_guests() as guests:
        for guest in guests:
            if wanted and guest.name not in wanted:
                continue
            with domainbuilder.launch(**guest.launch, timeout=_LIMIT) as dom:
                dom.console.expect(guest.prompt)
                measure(dom, guest)


if __name__ == "__main__":
    main()
