"""What happened last in a domain's past: a store to memory, an event, a change of a frame's type.

Each runs the past again from mark to mark (timeline.py), the latest first, and takes the last that it meets;
the domain stands afterwards where it stood. What Xen itself stores no watchpoint sees: it is found by looking
at the memory at each of the domain's exits, so where the value stays the same it is not found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hvcore.debug.condition import ConditionError, Environment
from hvcore.debug.debugger import Debugger
from hvcore.debug.events import (
    KINDS,
    ConsoleEvent,
    Event,
    HypercallEvent,
    PageTableStoreEvent,
    SubcallEvent,
    UnfinishedEvent,
)
from hvcore.debug.points import holds
from hvcore.debug.taps import listen
from hvcore.debug.timeline import Timeline
from hvcore.debug.view import GuestView
from hvcore.page_info import NO_OWNER, PGT_NAMES, PGT_pinned, PGT_validated

if TYPE_CHECKING:
    from hvcore.cpu.inner_stops import Access
    from hvcore.debug.points import Test
    from hvcore.machine import Machine
    from hvcore.refusal import Refusal

_CALLS = (HypercallEvent, SubcallEvent, UnfinishedEvent)
_EXITS = tuple(kind for kind in KINDS if kind is not ConsoleEvent)


class Store(NamedTuple):
    """Bytes were stored: by the instruction at `position`, or, in `event`, by Xen; `event` is None else."""

    position: int
    vcpu_id: int
    before: bytes
    after: bytes
    access: Access | None
    event: Event | None


class FrameUse(NamedTuple):
    """What a machine frame is in use as. `owner` is a domid, or None; `type` one of PGT_NAMES.

    `is_used` is whether it is held to that type; else any may be taken next.
    """

    owner: int | None
    type: str
    is_used: bool
    is_validated: bool
    is_pinned: bool

    def __str__(self) -> str:
        whose = "free" if self.owner is None else f"domain {self.owner}'s"
        flags = (("in use", self.is_used), ("validated", self.is_validated), ("pinned", self.is_pinned))
        return ", ".join([f"{whose}, type {self.type}", *(name for name, is_so in flags if is_so)])


class FrameStep(NamedTuple):
    """Something changed what a frame is in use as, or was refused; the guest's act ended at `position`."""

    position: int
    before: FrameUse
    after: FrameUse
    event: Event | None
    refusals: tuple[Refusal, ...]


def frame_use(machine: Machine, mfn: int) -> FrameUse:
    """What a frame is in use as now. Raises IndexError for one that the machine does not have."""
    frames = machine.host.frames
    pg = mfn - frames.base_mfn
    if not 0 <= pg < frames.nr:
        raise IndexError(f"no machine frame {mfn:#x}")
    owner, flags = frames.owner[pg], frames.flags[pg]
    return FrameUse(
        None if owner == NO_OWNER else owner,
        PGT_NAMES[frames.ptype[pg]],
        frames.tcount[pg] > 0,
        bool(flags & PGT_validated),
        bool(flags & PGT_pinned),
    )


def last_event(
    timeline: Timeline,
    debugger: Debugger,
    kinds: Collection[type[Event]],
    condition: Test | None,
    before: int | None,
) -> Event | None:
    """The last event of these kinds for which the condition holds, which is about the event and the vCPU.

    Raises ConditionError for one that has no value.
    """
    machine = timeline.machine

    def scan(end: int) -> Event | None:
        found: list[Event] = []
        wrong: list[ConditionError] = []

        def heard(event: Event) -> None:
            try:
                if event.ns <= end and (condition is None or holds(machine, condition, event)):
                    found[:] = [event]
            except ConditionError as error:  # which must not end the guest's act half done
                wrong.append(error)

        with listen(machine, heard, kinds):
            debugger.run_until(ns=end)
        if wrong:
            raise wrong[0]
        return found[0] if found else None

    return timeline.search(scan, before)


@dataclass(slots=True)
class _InFrame:
    """A condition: the address is that of this machine frame, as the vCPU that runs sees it."""

    machine: Machine
    address: int
    frame: int | None

    @property
    def text(self) -> str:
        return f"{self.address:#x} in frame {self.frame}"

    def evaluate(self, _env: Environment) -> int:
        return int(_frame_at(self.machine, self.address) == self.frame)


def _frame_at(machine: Machine, address: int) -> int | None:
    at = GuestView(machine).walk(address & machine.domain.abi.word_mask).machine_address
    return None if at is None else at >> 12


def last_store(
    timeline: Timeline, debugger: Debugger, address: int, size: int, before: int | None
) -> Store | None:
    """The last store to one of `size` bytes at `address`, in the frame that is there now."""
    machine = timeline.machine
    where = GuestView(machine).walk(address & machine.domain.abi.word_mask).machine_address
    frame = None if where is None else where >> 12
    in_memory = memoryview(b"") if where is None else _memory(machine, where, size)
    point = debugger.watch(address, size, condition=_InFrame(machine, address, frame))

    def scan(end: int) -> Store | None:
        found: list[Store] = []
        seen = [bytes(in_memory)]

        def heard(event: Event) -> None:
            now = bytes(in_memory)
            if now != seen[0] and event.ns <= end:
                found[:] = [Store(event.ns, event.vcpu_id, seen[0], now, None, event)]
                seen[0] = now

        with listen(machine, heard, _EXITS):
            while True:
                stopped = debugger.run_until(ns=end)
                if stopped.reason != "watchpoint" or stopped.position >= end:
                    break
                now = bytes(in_memory)
                if stopped.point is point:
                    found[:] = [Store(stopped.position, stopped.vcpu_id, seen[0], now, stopped.access, None)]
                seen[0] = now
        return found[0] if found else None

    try:
        return timeline.search(scan, before)
    finally:
        debugger.delete(point)


def _memory(machine: Machine, at: int, size: int) -> memoryview:
    """The machine's memory from that address on, within the page."""
    start = at - (machine.mem.base_mfn << 12)
    return machine.mem.view[start : min(start + size, (start | 0xFFF) + 1)]


class _FrameWatch:
    """Looks at a frame whenever something of the guest's may have changed it."""

    def __init__(self, machine: Machine, mfn: int, end: int) -> None:
        self._machine, self._mfn, self._end = machine, mfn, end
        self._use = frame_use(machine, mfn)
        self._faults = self._last_fault()
        self._store: PageTableStoreEvent | None = None
        self.found: FrameStep | None = None

    def _last_fault(self) -> object:
        faults = self._machine.domain.trace.refused_faults
        return faults[-1] if faults else None

    def heard(self, event: Event) -> None:
        """An event: of a call it is the end."""
        refusals: tuple[Refusal, ...] = ()
        if isinstance(event, HypercallEvent):
            refusals = event.refusals + tuple(why for entry in event.entries for why in entry.refusals)
        self._look(event if isinstance(event, _CALLS) else self._store, refusals)
        if isinstance(event, PageTableStoreEvent):
            self._store = event

    def entered(self) -> None:
        """A hypercall begins: what has changed by now is not its doing."""
        self._look(self._store, ())

    def _look(self, event: Event | None, refusals: tuple[Refusal, ...]) -> None:
        use, fault = frame_use(self._machine, self._mfn), self._last_fault()
        if fault is not self._faults and fault is not None:
            self._faults, refusals = fault, refusals + fault.refusals  # type: ignore[attr-defined]
        about = tuple(why for why in refusals if self._mfn in why.values)
        position = event.ns if event is not None else self._machine.clock.now()
        if (use != self._use or about) and position <= self._end:
            self.found = FrameStep(position, self._use, use, event, refusals if about else ())
        self._use = use

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs."""
        traps = self._machine.traps
        with listen(self._machine, self.heard, _EXITS):
            enter = traps.hypercall

            def hypercall() -> None:
                self.entered()
                enter()

            traps.hypercall = hypercall
            try:
                yield
            finally:
                traps.hypercall = enter


def last_frame_step(timeline: Timeline, debugger: Debugger, mfn: int, before: int | None) -> FrameStep | None:
    """What changed a frame's owner or type last, or was refused for what it is in use as."""
    machine = timeline.machine
    frame_use(machine, mfn)

    def scan(end: int) -> FrameStep | None:
        watch = _FrameWatch(machine, mfn, end)
        with watch.listening():
            debugger.run_until(ns=end)
        return watch.found

    return timeline.search(scan, before)
