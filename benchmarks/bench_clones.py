"""What clones cost: `python -m benchmarks.bench_clones [GUEST...]`.

CLONES (20) copies of each guest live at a time, and each answers a command of its own; then SEQUENTIAL (0)
come and go one after the other, and what they leave is counted. Medians; a fork is also told as a multiple
of os.fork() of a Python that holds nothing, and an answer as the processor time of the clone's process,
which a busy machine does not change.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import domainbuilder
from benchmarks.guests import Guest, all_guests
from domainbuilder.clones.clone import Clone
from domainbuilder.launch.running import RunningDomain

CLONES = int(os.environ.get("CLONES", "20"))
_LIMIT = 3600.0  # seconds
SEQUENTIAL = int(os.environ.get("SEQUENTIAL", "0"))
BARE = """
import os, statistics, time
def fork():
    started = time.perf_counter()
    pid = os.fork()
    if not pid:
        os._exit(0)
    spent = time.perf_counter() - started
    os.waitpid(pid, 0)
    return spent
print(statistics.median(fork() for _ in range(50)))
"""


def private_bytes(pid: int) -> int:
    """What of a process's memory is its own alone."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split("\n")
    return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("Private_"))


def processor_ms(pid: int) -> float:
    """What a process has used of a processor, whatever else the machine was busy with."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6


def open_things() -> tuple[int, int]:
    """Descriptors of this process, and its children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return len(os.listdir("/proc/self/fd")), len(children)  # noqa: PTH208


def alive_together(dom: RunningDomain, guest: Guest, bare: float) -> None:
    """So many clones, each with a question of its own, and the time from its fork to its answer."""
    forks, answers, clones = [], [], []
    started = time.perf_counter()
    for n in range(CLONES):
        question, answer = guest.ask(n)
        at = time.perf_counter()
        clone = dom.fork()
        forks.append(time.perf_counter() - at)
        clone.console.send(question)
        clone.console.expect(answer)
        answers.append(time.perf_counter() - at)
        clones.append(clone)
    total = time.perf_counter() - started  # and what is looked at in between would be the clones' to keep
    used = [processor_ms(clone.pid) for clone in clones]
    memory = statistics.median(private_bytes(clone.pid) for clone in clones)
    for clone in clones:
        clone.close()
    fork = statistics.median(forks)
    print(
        f"{guest.name:12} {CLONES:6} {fork * 1e3:8.2f} {min(forks) * 1e3:8.2f} {fork / bare:9.1f} "
        f"{statistics.median(answers) * 1e3:10.1f} {statistics.median(used):7.1f} "
        f"{memory / 1e6:11.2f} {total:8.2f}",
        flush=True,
    )


def one_after_the_other(dom: RunningDomain, guest: Guest) -> None:
    """They come and go; what is there before and behind them."""
    dom.fork().close()
    before, memory = open_things(), private_bytes(os.getpid())
    started = time.perf_counter()
    for n in range(SEQUENTIAL):
        with dom.fork() as clone:
            use(clone, guest, n)
    spent = time.perf_counter() - started
    more = private_bytes(os.getpid()) - memory
    print(
        f"{guest.name:12} {SEQUENTIAL} one after the other: {spent / SEQUENTIAL * 1e3:.1f} ms each; "
        f"descriptors and children {before} before, {open_things()} behind; "
        f"{more / 1e6:+.2f} MB in the holder",
        flush=True,
    )


def use(clone: Clone, guest: Guest, n: int) -> None:
    """A question and its answer."""
    question, answer = guest.ask(n)
    clone.console.send(question)
    clone.console.expect(answer)


def undisturbed(dom: RunningDomain, guest: Guest) -> None:
    """A clone and its parent are asked the same: equal counts, equal memory."""
    with dom.fork() as clone:
        for each in (clone, dom):
            question, answer = guest.ask(0)
            each.console.send(question)
            each.console.expect(answer)
        same = (clone.stats(), clone.memory_sha256()) == (dom.stats(), dom.memory_sha256())
    print(f"{guest.name:12} counts and memory of an undisturbed clone are its parent's: {same}", flush=True)


def main() -> None:
    """Print the table."""
    wanted = sys.argv[1:]
    bare = float(subprocess.run([sys.executable, "-c", BARE], capture_output=True, check=True).stdout)
    print(f"os.fork() of a bare Python: {bare * 1e3:.2f} ms")
    print(
        f"{'guest':12} {'clones':>6} {'fork ms':>8} {'best ms':>8} {'of bare':>9} {'answer ms':>10} "
        f"{'cpu ms':>7} {'private MB':>11} {'all s':>8}"
    )
    with all_guests() as guests:
        for guest in guests:
            if wanted and guest.name not in wanted:
                continue
            with domainbuilder.launch(**guest.launch, timeout=_LIMIT) as dom:
                dom.console.expect(guest.prompt)
                alive_together(dom, guest, bare)
                if SEQUENTIAL:
                    one_after_the_other(dom, guest)
                undisturbed(dom, guest)


if __name__ == "__main__":
    main()
