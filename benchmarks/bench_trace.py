"""What it costs to write a trace: `python -m benchmarks.bench_trace [FORMAT...]`.

Boots of Debian to its prompt, ROUNDS (5) times in turn without a trace and with one of all classes in each
format, in one process. Processor time, from the launch to the closed file, as medians and minima, and as
ratios to the boots without; the aim is half as much again.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import domainbuilder
from benchmarks.guests import Guest, all_guests
from domainbuilder.launch.tracing import traced
from domainbuilder.trace.formats import FORMATS

ROUNDS = int(os.environ.get("ROUNDS", "5"))
_NONE = "no trace"
_AIM = 1.5


def boot(guest: Guest, path: Path, trace_format: str) -> float:
    """Seconds of processor time of a boot, with a trace of the format or without one."""
    begun = time.process_time()
    with domainbuilder.launch(**guest.launch) as dom:
        with nullcontext() if trace_format == _NONE else traced(dom, path, trace_format=trace_format):
            dom.console.expect(guest.prompt)
        return time.process_time() - begun


def measure(guest: Guest, formats: list[str]) -> None:
    """The table of one guest."""
    times: dict[str, list[float]] = {name: [] for name in (_NONE, *formats)}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace")
        boot(guest, path, _NONE)  # which imports what the others find there
        for _ in range(ROUNDS):
            for name, taken in times.items():
                taken.append(boot(guest, path, name))
                sizes[name] = path.stat().st_size if name != _NONE else 0
                path.unlink(missing_ok=True)
    print(f"{guest.name}, {ROUNDS} boots each in turn, seconds of processor time")
    print(f"  {'':12} {'median':>8} {'ratio':>6} {'best':>8} {'ratio':>6} {'MB':>6}")
    median, best = statistics.median(times[_NONE]), min(times[_NONE])
    for name, taken in times.items():
        middle, least = statistics.median(taken), min(taken)
        verdict = "" if name == _NONE else f"  aim {_AIM}: {'met' if middle / median < _AIM else 'MISSED'}"
        print(
            f"  {name:12} {middle:8.3f} {middle / median:6.2f} {least:8.3f} {least / best:6.2f}"
            f" {sizes[name] / 1e6:6.1f}{verdict}",
            flush=True,
        )


def main() -> None:
    """Print the table of Debian, whose boot makes the most records."""
    formats = sys.argv[1:] or list(FORMATS)
    with all_guests() as guests:
        for guest in guests:
            if guest.name.startswith("Debian"):
                measure(guest, formats)


if __name__ == "__main__":
    main()
