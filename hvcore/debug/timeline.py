"""Back in time: marks of the host now and then, and replay from the mark before.

    timeline = Timeline(debugger)
    debugger.go()
    timeline.step_back()
    timeline.continue_back()        # to the last breakpoint or access that was met before

A run is a function of its input, which is noted here as it comes; so what is between two marks is executed
again whenever somebody wants to be there. A position is the time at the head of a block and how many bytes of
it are executed: one number that only grows, by an instruction's length at each instruction. What was printed
is not printed again. Marks are copies of memory: they are thinned out, the older the wider, to stay within
`budget` bytes, and take a fifth of the time at most.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.clock import NEVER
from hvcore.debug.debugger import Debugger, Stopped
from hvcore.machine import Stop

if TYPE_CHECKING:
    from hvcore.cpu.inner_stops import InnerStop
    from hvcore.marks import Mark

BUDGET = 400 << 20
_PERIOD_NS = 20_000_000
_NEAR_NS = 4096  # from where on every instruction is looked at; then from farther and farther
_FARTHER = 16
_MARK_TIMER, _INPUT_TIMER = ("timeline", "mark"), ("timeline", "input")
_SHARE = 5
_SLOW = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class _Place:
    """A mark: its position, what memory it costs, how much was printed and typed by then."""

    position: int
    mark: Mark
    size: int
    printed: int
    typed: int


class _Walk:
    """A Watcher that looks at every instruction up to a position: the last before it, and the one there."""

    def __init__(self, debugger: Debugger, target: int, vcpu: int | None) -> None:
        self._debugger, self._target, self._vcpu = debugger, target, vcpu
        self.before: int | None = None

    def wants_one_block(self) -> bool:
        """See Watcher."""
        return False

    def left(self, stop: InnerStop | None) -> None:
        """See Watcher."""
        machine = self._debugger.machine
        position = self._debugger.position
        if position >= self._target:
            machine.host.pause()
        elif stop is not None:
            if not machine.ro_page_fault.pending and self._vcpu in (None, machine.domain.current_id):
                self.before = position
            machine.engine.pass_instruction()


class Timeline:
    """The past of a debugger's domain, from here on. The domain has its host for itself, and nobody else
    listens to it. `went_back` is called when the domain stands where it stood before: timers of the host's
    holder are to be armed again.
    """

    def __init__(
        self, debugger: Debugger, *, budget: int = BUDGET, went_back: Callable[[], None] = lambda: None
    ) -> None:
        self._debugger, self.machine, self._host = debugger, debugger.machine, debugger.machine.host
        self._budget, self._went_back = budget, went_back
        self._places: list[_Place] = []
        self._inputs: list[tuple[int, bytes]] = []
        self._typed = 0  # how many of them the guest has got
        self._printed = self._most_printed = 0
        self._last_mark = (0.0, 0.0)  # when on the wall's clock, and how long it took
        self._had = (self.machine.typed, self.machine.console.output)
        self.machine.typed, self.machine.console.output = self._note_input, self._print
        self._mark()
        debugger.resumed = self._arm

    def close(self) -> None:
        """Forget the past. What was typed once and lies ahead is typed no more."""
        for key in (_MARK_TIMER, _INPUT_TIMER):
            self._host.timers.stop(key)
        self.machine.typed, self.machine.console.output = self._had
        self._debugger.resumed = lambda: None
        self._places.clear()

    @property
    def begin(self) -> int:
        """The first position that can be gone back to."""
        return self._places[0].position

    @property
    def memory(self) -> int:
        """What the marks take, in bytes."""
        return sum(place.size for place in self._places)

    # -- what happens while the domain runs

    def _print(self, data: bytes) -> None:
        start, self._printed = self._printed, self._printed + len(data)
        new = data[max(self._most_printed - start, 0) :]
        self._most_printed = max(self._most_printed, self._printed)
        if new:
            self._had[1](new)

    def _note_input(self, when: int, data: bytes) -> None:
        if self._inputs[self._typed : self._typed + 1] != [
            (when, data)
        ]:  # it is new, and what was ahead is not
            self._inputs[self._typed :] = [(when, data)]
            self._had[0](when, data)
        self._typed += 1
        self._arm_input()

    def _arm_input(self) -> None:
        if self._typed < len(self._inputs):
            when, data = self._inputs[self._typed]
            self._host.set_timer(_INPUT_TIMER, when, lambda: self.machine.input(data))
        else:
            self._host.timers.stop(_INPUT_TIMER)

    def _arm(self) -> None:
        """The next mark; none where only this would keep an idle host going."""
        clock = self.machine.clock
        due = (clock.now() // _PERIOD_NS + 1) * _PERIOD_NS
        if self.machine.waits():
            due = max(due, clock.next_deadline())
        if due < NEVER:
            self._host.set_timer(_MARK_TIMER, due, self._due)

    def _due(self) -> None:
        when, took = self._last_mark
        is_listened = "bounce" in vars(self.machine.traps)  # a mark would keep who listens
        is_past = self._debugger.position <= self._places[-1].position
        if time.monotonic() - when > _SHARE * took and not is_listened and not is_past:
            self._mark()
        self._arm()

    def _mark(self) -> None:
        position = self._debugger.position
        at = bisect_left(self._places, position, key=lambda place: place.position)
        if self._places[at : at + 1] and self._places[at].position == position:
            return
        started = time.monotonic()
        mark = self._host.mark()
        self._places.insert(at, _Place(position, mark, mark.size, self._printed, self._typed))
        self._last_mark = time.monotonic(), time.monotonic() - started
        while self.memory > self._budget and len(self._places) > 2:
            del self._places[self._superfluous()]

    def _superfluous(self) -> int:
        """Which mark to give up: where the gap that it leaves is smallest for its age."""
        now = self._places[-1].position

        def cost(i: int) -> float:
            before, after = self._places[i - 1].position, self._places[i + 1].position
            return (after - before) / (now - before)

        return min(range(1, len(self._places) - 1), key=cost)

    # -- going back

    def step_back(self, vcpu: int | None = None) -> Stopped:
        """Be where a vCPU (None: any) was about to execute its last instruction; "begin" if there is none."""
        target = self._debugger.position
        with self._replaying():
            found = self._last_instruction(target, vcpu)
            self._go_to(self.begin if found is None else found)
        return self._debugger.stopped_here("begin" if found is None else "step")

    def continue_back(self) -> Stopped:
        """Be where a breakpoint, or an access that is watched, was met last; "begin" if none was."""
        target, debugger = self._debugger.position, self._debugger
        with self._replaying():
            last = None
            for place in reversed([place for place in self._places if place.position < target]):
                last = self._last_stop(place, target)
                if last is not None:
                    break
                target = place.position
            self._go_to(self.begin if last is None else last.position)
        if last is None:
            return debugger.stopped_here("begin")
        return debugger.stopped_here(last.reason, point=last.point, access=last.access)

    def last_write(self, address: int, size: int = 8) -> Stopped:
        """Be where one of `size` bytes at `address` was about to be stored to last; "begin" if nowhere."""
        point = self._debugger.watch(address, size)
        try:
            return self.continue_back()
        finally:
            self._debugger.delete(point)

    def go_to(self, position: int) -> Stopped:
        """Be at a position of the past, or at the first instruction behind it."""
        with self._replaying():
            self._go_to(position)
        return self._debugger.stopped_here("step")

    def _last_instruction(self, target: int, vcpu: int | None) -> int | None:
        for place in reversed([place for place in self._places if place.position < target]):
            near = _NEAR_NS
            while True:
                start = max(target - near, place.position)
                self._rewind(place)
                began = time.monotonic()
                if self._run_to(start) and self._debugger.position < target:
                    if time.monotonic() - began > _SLOW:  # the next step back will begin here
                        self._mark()
                    before = self._walk(target, vcpu)
                    if before is not None:
                        return before
                if start == place.position:
                    break
                near *= _FARTHER
        return None

    def _last_stop(self, place: _Place, target: int) -> Stopped | None:
        self._rewind(place)
        self._debugger.arm_watches()
        last = None
        while True:
            stopped = self._debugger.run_until(ns=target, first_counts=last is None)
            if stopped.reason not in ("breakpoint", "watchpoint") or stopped.position >= target:
                return last
            last = stopped

    def _go_to(self, target: int) -> None:
        place = next((p for p in reversed(self._places) if p.position <= target), self._places[0])
        near = _NEAR_NS
        while True:
            start = max(target - near, place.position)
            self._rewind(place)
            if start <= place.position or (self._run_to(start) and self._debugger.position <= target):
                break
            near *= _FARTHER
        if self._debugger.position < target:
            self._walk(target, None)

    def _rewind(self, place: _Place) -> None:
        host, machine = self._host, self.machine
        host.rewind(place.mark)
        for key, _timer in host.timers.live():
            host.timers.stop(key)
        host.idle, host.attend = host.advance_to, lambda: None
        machine.typed, machine.console.output = self._note_input, self._print
        machine.watcher, machine.skip_loops = self._debugger, False
        machine.engine.set_watches([])
        self._printed, self._typed = place.printed, place.typed
        self._arm_input()

    def _run_to(self, ns: int) -> bool:
        """Run to the first block at or behind that time; False where the domain ends before."""
        machine, host = self.machine, self._host
        if machine.clock.now() >= ns:
            return True
        machine.watcher = None
        host.set_timer(_MARK_TIMER, ns, host.pause)
        return machine.run() is Stop.PAUSED

    def _walk(self, target: int, vcpu: int | None) -> int | None:
        """Instruction by instruction to a position; the last one before it."""
        machine = self.machine
        walk = machine.watcher = _Walk(self._debugger, target, vcpu)
        hook = machine.engine.hook_instructions(1, 0)
        try:
            machine.engine.words.is_passing = 0
            machine.run()
        finally:
            machine.engine.unhook(hook)
            machine.watcher = self._debugger
        return walk.before

    @contextmanager
    def _replaying(self) -> Iterator[None]:
        """What is executed has happened already: nobody types, nobody waits, no limit is looked at."""
        host, machine = self._host, self.machine
        live, skips = (host.idle, host.attend), machine.skip_loops
        hits = [(point, point.hits) for point in self._debugger.points.values()]
        try:
            yield
        finally:
            host.idle, host.attend = live
            machine.watcher, machine.skip_loops = self._debugger, skips
            self._debugger.arm_watches()
            host.timers.stop(_MARK_TIMER)
            for point, count in hits:
                point.hits = count
            self._arm_input()
            self._arm()
            self._went_back()
