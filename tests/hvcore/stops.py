"""Runs of whole guests, with the machine stopped as a schedule says, and what they come to."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from domainbuilder.launch.domain import RunningDomain, launch
from hvcore.cpu.engine import RIP, RSP
from hvcore.debug.view import GuestView
from hvcore.machine import Machine, Stats, Stop

_DENSE = 500  # how many stops are at their densest


@dataclass(frozen=True)
class Subject:
    """A guest to run for `limit_ns` at most; `typed` is what comes at which time after its start."""

    kernel: Path
    limit_ns: int
    memory_mib: int = 32
    vcpus: int = 1
    cmdline: str = ""
    typed: tuple[tuple[int, bytes], ...] = ()
    live_window: bool = True


@dataclass(frozen=True)
class Schedule:
    """Stops at random times: pauses, looks, or nothing at all.

    From `first_ns` of the guest's time on they are `gap_ns` apart on average, and farther and farther later.
    With `thread` another thread asks for stops as well, whenever it gets to it.
    """

    seed: int
    first_ns: int
    gap_ns: int
    skip_loops: bool = True
    thread: bool = False


@dataclass(frozen=True)
class Result:
    """All that a run can be told by."""

    stop: Stop
    stats: Stats
    registers: tuple[str, ...]
    eflags: int
    memory: str
    console: str
    stops: int = field(compare=False)
    seconds: float = field(compare=False)


def look(m: Machine) -> None:
    """What a debugger reads at a stop."""
    m.engine.read_eflags()
    m.stats()
    view = GuestView(m)
    view.walk(m.engine.q[RIP])
    view.walk(m.engine.q[RSP])
    m.engine.save_state()


@contextmanager
def other_thread(m: Machine) -> Iterator[None]:
    done = threading.Event()

    def nudge() -> None:
        while not done.wait(0.0005):
            m.host.nudge()

    thread = threading.Thread(target=nudge)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Stopper:
    """Arms one timer of the host's after another."""

    def __init__(self, m: Machine, schedule: Schedule) -> None:
        self.m = m
        self.random = random.Random(schedule.seed)
        self.gap = schedule.gap_ns
        self.stops = 0
        m.skip_loops = schedule.skip_loops
        self._arm(schedule.first_ns)

    def _arm(self, after: int) -> None:
        self.m.host.set_timer(self, self.m.clock.now() + after, self._stop)

    def _stop(self) -> None:
        self.stops += 1
        kind = self.random.random()
        if kind < 0.5:
            self.m.host.pause()
        elif kind < 0.6:
            look(self.m)
        elif kind < 0.7:
            self.m.host.nudge()
        self._arm(int(self.random.expovariate(1 / self.gap) * (1 + self.stops / _DENSE) ** 2))


def run(subject: Subject, schedule: Schedule | None = None) -> Result:
    """The guest from its start to its end, or to its limit."""
    output = bytearray()
    with launch(
        subject.kernel,
        subject.memory_mib,
        vcpus=subject.vcpus,
        cmdline=subject.cmdline,
        console_output=output.extend,
    ) as dom:
        m = dom.machine
        for at, data in subject.typed:
            m.host.set_timer(at, m.clock.now() + at, lambda data=data: m.input(data))  # type: ignore[misc]
        over: list[bool] = []

        def limit() -> None:
            over.append(True)
            m.host.pause()

        m.host.set_timer("limit", m.clock.now() + subject.limit_ns, limit)
        stopper = Stopper(m, schedule) if schedule is not None else None
        started = time.process_time()
        if schedule is not None and schedule.thread:
            with other_thread(m):
                stop = _to_the_end(m, over)
        else:
            stop = _to_the_end(m, over)
        return _result(
            dom, stop, bytes(output), stopper.stops if stopper else 0, time.process_time() - started
        )


def _to_the_end(m: Machine, over: list[bool]) -> Stop:
    while True:
        stop = m.run()
        if stop is not Stop.PAUSED or over:
            return stop


def _result(dom: RunningDomain, stop: Stop, output: bytes, stops: int, seconds: float) -> Result:
    m = dom.machine
    states = [v.saved_state or b"" for v in m.domain.vcpus]
    states[m.domain.current_id] = m.engine.save_state()
    return Result(
        stop,
        m.stats(),
        tuple(state.hex() for state in states),
        m.engine.read_eflags(),
        hashlib.sha256(m.mem.view).hexdigest(),
        output.decode("utf-8", "replace"),
        stops,
        seconds,
    )


def examples(few: int) -> int:
    """How many schedules a guest gets: STOP_EXAMPLES of the environment, for long runs by hand."""
    return int(os.environ.get("STOP_EXAMPLES", few))
