"""What a command costs until it does something: `python -m benchmarks.bench_startup`.

Processor time of the command and of what it starts, as a multiple of `python -c pass` in the same
installation; medians. What to aim at: --help 2.5, notes 4, launch until the guest's first prompt 8.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys

from domainbuilder import guests

RUNS = 11
# As on a user's machine: the bytecode of the first run serves the others.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
HELLO = str(guests.path("hello"))
CASES = {
    "--help": (2.5, ("--help",)),
    "--version": (None, ("--version",)),
    "notes, a small kernel": (4, ("notes", HELLO)),
    "plan, a small kernel": (None, ("plan", HELLO)),
    "launch to the first prompt": (8, ("launch", HELLO, "--expect", "hello> ", "--until-match")),
}


def processor_seconds(command: tuple[str, ...], runs: int = RUNS) -> float:
    """The median of that many runs, in user and system mode together."""
    seconds = []
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=True, env=ENVIRONMENT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(seconds)


def main(runs: int = RUNS) -> None:
    """Print the table."""
    python = processor_seconds((sys.executable, "-c", "pass"), runs)
    print(f"{'command':30}{'ms':>8}{'times python -c pass':>24}{'aim':>6}")
    print(f"{'python -c pass':30}{python * 1000:8.1f}{1:24.1f}")
    for title, (aim, arguments) in CASES.items():
        spent = processor_seconds((sys.executable, "-m", "domainbuilder", *arguments), runs)
        print(f"{title:30}{spent * 1000:8.1f}{spent / python:24.1f}{aim or '':>6}", flush=True)


if __name__ == "__main__":
    main()
