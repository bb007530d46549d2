"""Random acts by the hundred thousand, in rounds that can each be run alone, over any number of processes.

Work comes in rounds of ROUND acts, each in a world of its own and from a seed of its own (made of the run's
seed and the round's number), so that a shard is simply every Nth round, and a failing round can be run
alone: `--seed S --round R`.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable

ROUND = 2500  # acts on one world
CHECK_EVERY = 500  # acts between two looks at everything
RSS_GROWTH = 96 << 20

RunRound = Callable[[int, int, str], Counter[str]]


class Failure(AssertionError):
    """What broke, and how to see it again."""


def run_acts(act: Callable[[], None], count: int, problems: Callable[[], list[str]], again: str) -> None:
    """So many acts, with a look at everything now and then and at the end. Raises Failure."""
    done = 0
    try:
        for done in range(1, count + 1):
            act()
            if not done % CHECK_EVERY or done == count:
                found = problems()
                assert not found, "\n".join(found[:20])
    except Exception as error:
        raise Failure(f"act {done}: {error!r}\nagain: python -m {again}") from error


def run_shard(run_round: RunRound, seed: int, count: int, shard: int, shards: int) -> Counter[str]:
    """Every `shards`-th round of `count` acts in all; the counts. Raises Failure."""
    total: Counter[str] = Counter()
    rounds = range(shard - 1, -(-count // ROUND), shards)
    with tempfile.TemporaryDirectory() as folder:
        before = 0
        for i, number in enumerate(rounds):
            total += run_round(seed, number, folder)
            if i == min(4, len(rounds) - 1):
                before = rss()
    grown = rss() - before
    if grown > RSS_GROWTH:
        raise Failure(f"the process has grown by {grown >> 20} MB")
    return total


def rss() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def main(purpose: str, run_round: RunRound) -> int:
    """The command line of a module that has such rounds."""
    parser = argparse.ArgumentParser(description=purpose)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100_000, help="acts over all shards")
    parser.add_argument("--shard", default="1/1", metavar="I/N")
    parser.add_argument("--round", type=int, help="only this round")
    arguments = parser.parse_args()
    shard, shards = map(int, arguments.shard.split("/"))
    started = time.perf_counter()
    try:
        if arguments.round is not None:
            with tempfile.TemporaryDirectory() as folder:
                counts = run_round(arguments.seed, arguments.round, folder)
        else:
            counts = run_shard(run_round, arguments.seed, arguments.count, shard, shards)
    except Failure as failure:
        traceback.print_exception(failure.__cause__)
        print(failure, file=sys.stderr)
        return 1
    seconds = time.perf_counter() - started
    print(f"{dict(counts)} in {seconds:.1f} s, {rss() >> 20} MB")
    return 0
