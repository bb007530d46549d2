"""A sampling profile by the guest's own time: `launch --profile`.

At each multiple of the period the stack is looked at, and the time since the last look is its. Time is
virtual, so a run has one profile, whatever the host does, and no look takes any of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domainbuilder.launch.call_chain import CallChain
from domainbuilder.output import write_whole
from domainbuilder.profile.stacks import Frame, Profile, Stack, encoder_of
from hvcore.clock import CELL_IDLE, CELL_SPENT
from hvcore.debug.periodic import Periodic

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain

PERIOD_NS = 1_000_000
_MOST_KEPT = 1 << 18
IDLE, XEN, USER = Frame("[idle]"), Frame("[Xen]"), Frame("[user]")


@contextmanager
def profiled(
    dom: RunningDomain, path: str | os.PathLike[str], period_ns: int = PERIOD_NS
) -> Iterator[Profile]:
    """Profile what the domain does in the block, and write it to `path`, however the block ends.

    The file's name says the format: folded stacks (.folded, .txt), speedscope (.json), pprof (.pb.gz).
    Raises BuildError, OSError.
    """
    encode = encoder_of(path)
    with sampled(dom, period_ns) as profile:
        try:
            yield profile
        finally:
            profile.close()
            write_whole(path, encode(profile))


@contextmanager
def sampled(dom: RunningDomain, period_ns: int = PERIOD_NS) -> Iterator[Sampler]:
    """Sample what the domain does in the block; at its end the profile's total is the time that passed."""
    sampler = Sampler(dom, period_ns)
    with dom.watching(Periodic(dom.machine, "profile", period_ns, sampler.look, before_idle=True)):
        try:
            yield sampler
        finally:
            sampler.close()


class Sampler(Profile):
    """Looks at the stack, and gives it the time since the last look; idle time and Xen's are told apart."""

    def __init__(self, dom: RunningDomain, period_ns: int) -> None:
        super().__init__(dom.plan.kernel if dom.plan is not None else "", period_ns)
        self._machine = machine = dom.machine
        self._names = dom.names()
        self._chain = CallChain(machine, self._names)
        self._frames: dict[int, Frame] = {}
        self._vcpus = [Frame(f"vcpu{v.vcpu_id}") for v in machine.domain.vcpus]
        self._last = self._now()
        self._is_open = True

    def look(self) -> None:
        """Account for the time since the last look."""
        (then, idled, spent), now = self._last, self._now()
        self._last = now
        idle, xen = now[1] - idled, now[2] - spent
        self.add((IDLE,), idle)
        busy = now[0] - then - idle
        if busy:
            stack = self._stack()
            self.add((*stack, XEN), min(xen, busy))
            self.add(stack, busy - min(xen, busy))

    def close(self) -> None:
        """The last look."""
        if self._is_open:
            self._is_open = False
            self.look()

    def _now(self) -> tuple[int, int, int]:
        clock = self._machine.clock
        return clock.now(), clock.cell[CELL_IDLE], clock.cell[CELL_SPENT]

    def _stack(self) -> Stack:
        vcpu = self._vcpus[self._machine.domain.current_id]
        found = self._chain.addresses()
        return (vcpu, *map(self._frame, reversed(found))) if found else (vcpu, USER)

    def _frame(self, address: int) -> Frame:
        frame = self._frames.get(address)
        if frame is None:
            if len(self._frames) >= _MOST_KEPT:
                self._frames.clear()
            name = self._names(address).rpartition("+")[0] or "[unknown]"
            file, _, line = self._names.line(address).rpartition(":")
            frame = self._frames[address] = Frame(name, file, int(line) if line.isdigit() else 0)
        return frame
