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
from functools import partial
from pathlib import Path

from domainbuilder.launch.domain import RunningDomain, launch
from hvcore.backends.disk import Disk
from hvcore.cpu.processor import RIP, RSP
from hvcore.debug.view import GuestView
from hvcore.host import Host
from hvcore.host_state import HostState
from hvcore.machine import BOOT_TIME_NS, Machine, Stop
from hvcore.stats import Stats

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
    ramdisk: Path | None = None
    disks: tuple[Disk, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Stops at random times: pauses, looks, or nothing at all.

    From `first_ns` of the guest's time on they are `gap_ns` apart on average, and farther and farther later.
    With `thread` another thread asks for stops as well, whenever it gets to it. Up to `restores` times the
    host is saved, restored as another one, and goes on there; with `fresh` in a process in which nothing has
    run before (tests/hvcore/fresh.py).
    """

    seed: int
    first_ns: int
    gap_ns: int
    skip_loops: bool = True
    thread: bool = False
    restores: int = 0
    fresh: bool = False


@dataclass(frozen=True)
class Rest:
    """A run that is to go on elsewhere: the host as it stands, and what is known of the run."""

    state: HostState
    subject: Subject
    schedule: Schedule
    random: object  # Random.getstate()
    restores: int
    stops: int
    output: bytes


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
def other_thread(guest: Run) -> Iterator[None]:
    done = threading.Event()

    def nudge() -> None:
        while not done.wait(0.0005):
            guest.m.host.nudge()

    thread = threading.Thread(target=nudge)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Run:
    """A guest on its way; `m` is another machine after each restore."""

    def __init__(self, m: Machine, subject: Subject, schedule: Schedule | None, output: bytearray) -> None:
        """A run that begins, or goes on in a machine of which nothing is armed yet."""
        self.subject = subject
        self.output = output
        self.schedule = schedule
        self.random = random.Random(schedule.seed if schedule else 0)
        self.restores = schedule.restores if schedule else 0
        self.stops = 0
        self.is_over = self.is_to_be_restored = False
        self._arm(m)

    def begin(self) -> None:
        """Arm the first stop."""
        if self.schedule is not None:
            self._arm_stop(self.schedule.first_ns)

    def rest(self) -> Rest:
        """What another process has to know to go on."""
        assert self.schedule is not None
        state = self.m.host.save()
        return Rest(
            state, self.subject, self.schedule, self.random.getstate(), self.restores, self.stops,
            bytes(self.output),
        )  # fmt: skip

    def be(self, rest: Rest) -> None:
        """Go on as that run, which is to be restored, would."""
        self.random.setstate(rest.random)  # type: ignore[arg-type]
        self.restores, self.stops = rest.restores, rest.stops
        self._next_stop()

    def _arm(self, m: Machine) -> None:
        """Take a machine: what is still to be typed, and the end."""
        self.m, subject = m, self.subject
        for at, data in subject.typed:
            if BOOT_TIME_NS + at > m.clock.now():
                m.host.set_timer(at, BOOT_TIME_NS + at, partial(m.input, data))
        m.host.set_timer("limit", BOOT_TIME_NS + subject.limit_ns, self._end)
        if self.schedule is not None:
            m.skip_loops = self.schedule.skip_loops

    def _end(self) -> None:
        self.is_over = True
        self.m.host.pause()

    def _arm_stop(self, after: int) -> None:
        self.m.host.set_timer("stop", self.m.clock.now() + after, self._stop)

    def _next_stop(self) -> None:
        assert self.schedule is not None
        apart = self.random.expovariate(1 / self.schedule.gap_ns)
        self._arm_stop(int(apart * (1 + self.stops / _DENSE) ** 2))

    def _stop(self) -> None:
        self.stops += 1
        kind = self.random.random()
        if self.restores and kind < 0.05:
            self.restores -= 1
            self.is_to_be_restored = True
        if kind < 0.5:
            self.m.host.pause()
        elif kind < 0.6:
            look(self.m)
        elif kind < 0.7:
            self.m.host.nudge()
        self._next_stop()

    def to_the_end(self) -> Stop:
        """Run on and on, and elsewhere when it is time for that."""
        while True:
            stop = self.m.run()
            if stop is not Stop.PAUSED or self.is_over:
                return stop
            if self.is_to_be_restored and self.schedule is not None and self.schedule.fresh:
                return stop
            if self.is_to_be_restored:
                self.is_to_be_restored = False
                old = self.m.host
                self._arm(Host.restore(old.save(), lambda _domid, data: self.output.extend(data)).machines[1])
                old.close()
                self._next_stop()


def launched(subject: Subject, output: bytearray) -> RunningDomain:
    """The guest at its start; what it prints goes to `output`."""
    return launch(
        subject.kernel,
        subject.memory_mib,
        vcpus=subject.vcpus,
        cmdline=subject.cmdline,
        ramdisk=subject.ramdisk,
        disks=subject.disks,
        console_output=output.extend,
    )


def run(subject: Subject, schedule: Schedule | None = None) -> Result:
    """The guest from its start to its end, or to its limit."""
    output = bytearray()
    with launched(subject, output) as dom:
        guest = Run(dom.machine, subject, schedule, output)
        guest.begin()
        started = time.process_time()
        if schedule is not None and schedule.thread:
            with other_thread(guest):
                stop = guest.to_the_end()
        else:
            stop = guest.to_the_end()
        return _end(guest, stop, time.process_time() - started)


def go_on(rest: Rest) -> Result:
    """A run from elsewhere to its end, in this process or in the next."""
    output = bytearray(rest.output)
    host = Host.restore(rest.state, lambda _domid, data: output.extend(data))
    guest = Run(host.machines[1], rest.subject, rest.schedule, output)
    guest.be(rest)
    return _end(guest, guest.to_the_end(), 0)


def _end(guest: Run, stop: Stop, seconds: float) -> Result:
    """What the run comes to, here or where it goes on."""
    if guest.is_to_be_restored:
        from tests.hvcore.fresh import process

        result = process().finish(guest.rest())
    else:
        result = result_of(guest.m, stop, guest.output, guest.stops, seconds)
    guest.m.host.close()
    return result


def result_of(
    m: Machine, stop: Stop, output: bytes | bytearray, stops: int = 0, seconds: float = 0
) -> Result:
    """What a run came to, where it stands."""
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
