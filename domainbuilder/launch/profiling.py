"""A sampling profile by the guest's own time: `launch --profile`.

At each multiple of the period the stack is looked at, and the time since the last look is its. Time is
virtual, so a run has one profile, whatever the host does, and no look takes any of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domainbuilder.launch.registers import GPRS
from domainbuilder.output import write_whole
from domainbuilder.profile.stacks import Frame, Profile, Stack, encoder_of
from domainbuilder.symbols.backtrace import callers
from hvcore.clock import CELL_IDLE, CELL_SPENT
from hvcore.cpu.processor import CS, RIP, SS
from hvcore.debug.periodic import Periodic
from hvcore.debug.view import GuestView

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain

PERIOD_NS = 1_000_000
_STACK_BYTES = 4096  # read at once; a deeper frame is read by itself
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
        self._word = machine.domain.abi.word
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
        machine = self._machine
        engine = machine.engine
        vcpu = self._vcpus[machine.domain.current_id]
        if not machine.traps.guest_kernel_mode():
            return vcpu, USER
        mask = machine.domain.abi.word_mask
        registers = {name: engine.q[i] & mask for i, name in enumerate(GPRS)}
        registers["rip"] = engine.q[RIP] & mask
        if engine.segment_base(CS) or engine.segment_base(SS):
            return vcpu, self._frame(registers["rip"] + engine.segment_base(CS) & mask)
        found = callers(
            registers,
            word=self._word,
            read=_StackReader(GuestView(machine), registers["rsp"]),
            in_code=self._names.in_code,
            symbols=self._names.symbols,
            stubs=self._names.stubs,
        )
        # A return address may be behind the end of its function, whose last act the call was.
        return (
            vcpu,
            *(self._frame(address - 1) for address in reversed(found)),
            self._frame(registers["rip"]),
        )

    def _frame(self, address: int) -> Frame:
        frame = self._frames.get(address)
        if frame is None:
            if len(self._frames) >= _MOST_KEPT:
                self._frames.clear()
            name = self._names(address).rpartition("+")[0] or "[unknown]"
            file, _, line = self._names.line(address).rpartition(":")
            frame = self._frames[address] = Frame(name, file, int(line) if line.isdigit() else 0)
        return frame


class _StackReader:
    """Guest memory, of which the top of the stack is read at once."""

    def __init__(self, view: GuestView, stack: int) -> None:
        self._view, self._start = view, stack
        self._bytes = view.read(stack, _STACK_BYTES)

    def __call__(self, address: int, size: int) -> bytes:
        at = address - self._start
        if at >= 0 and at + size <= len(self._bytes):
            return self._bytes[at : at + size]
        return self._view.read(address, size)
