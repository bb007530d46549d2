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
from typing import TYPE_CHECKING, TypeVar

from hvcore.clock import NEVER
from hvcore.debug.debugger import Debugger, Stopped
from hvcore.given import Given
from hvcore.machine import Stop

if TYPE_CHECKING:
    from hvcore.cpu.inner_stops import InnerStop
    from hvcore.marks import Mark

BUDGET = 400 << 20
_PERIOD_NS = 20_000_000
_NEAR_NS = 256  # a step back looks at every instruction of so long a stretch, and then of ever longer ones
_CLOSE_NS = 1_000_000  # a mark is made so long before a place that was stepped back to
_FARTHER = 4
_MARK_TIMER, _INPUT_TIMER = ("timeline", "mark"), ("timeline", "input")
_SHARE = 5

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class _Place:
    """A mark: its position, how much was printed and typed by then."""

    position: int
    mark: Mark
    printed: int
    typed: int


@dataclass(slots=True)
class Bookmark:
    """A place that somebody wants to come back to. `number` names it; the place's mark is kept.

    `typed` is all input of the run that it is of; `apart` the position from which on that is another run
    than the one that was gone on with, None where it is the same.
    """

    number: int
    label: str
    place: _Place
    typed: list[tuple[int, Given]]
    apart: int | None = None

    @property
    def position(self) -> int:
        """Debugger.position there."""
        return self.place.position


class _Walk:
    """A Watcher that looks at every instruction up to a position: the last before it, and the one there."""

    def __init__(self, debugger: Debugger, target: int, vcpu: int | None) -> None:
        self._debugger, self._target, self._vcpu = debugger, target, vcpu
        self.before: int | None = None

    def wants_one_block(self) -> bool:
        """See Watcher."""
        return False

    def comes(self) -> None:
        """See Watcher: there is no other domain."""

    goes = comes

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


def _without_first(count: int, output: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """`output`, which so many bytes do not come to."""
    left = count

    def write(data: bytes) -> None:
        nonlocal left
        skipped = min(left, len(data))
        left -= skipped
        if skipped < len(data):
            output(data[skipped:])

    return write


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
        self._inputs: list[tuple[int, Given]] = []
        self._typed = 0  # how many of them the guest has got
        self._printed = self._most_printed = 0
        self._last_mark = (0.0, 0.0)  # when by the processor's time, and how much it took
        self._farthest = 0  # how far it came before it went back
        self._busy_ns, self._idle_since = -1, NEVER  # since when nothing but time passes, in a replay
        self._is_changed = False  # somebody has written to the guest where it stands
        self.bookmarks: dict[int, Bookmark] = {}
        self._next_bookmark = 1
        self._had = (self.machine.typed, self.machine.console.output)
        self.machine.typed, self.machine.console.output = self._note_input, self._print
        self._mark()
        debugger.resumed = self.resumed

    def close(self) -> None:
        """Forget the past. What was typed once and lies ahead is typed no more; with nothing of that, and
        nothing written, what was printed is still not printed again.
        """
        for key in (_MARK_TIMER, _INPUT_TIMER):
            self._host.timers.stop(key)
        typed, output = self._had
        ahead = self._most_printed - self._printed
        if ahead and self._typed == len(self._inputs) and not self._is_changed:
            output = _without_first(ahead, output)
        self.machine.typed, self.machine.console.output = typed, output
        self._debugger.resumed = lambda: None
        self._places.clear()
        self.bookmarks.clear()

    @property
    def begin(self) -> int:
        """The first position that can be gone back to."""
        return self._places[0].position

    @property
    def positions(self) -> list[int]:
        """Where there are marks."""
        return [place.position for place in self._places]

    @property
    def farthest(self) -> int:
        """The last position that can be gone to."""
        return max(self._farthest, self._debugger.position)

    @property
    def memory(self) -> int:
        """What the marks take, in bytes."""
        kept = {id(place): place for place in self._places}
        kept.update((id(mark.place), mark.place) for mark in self.bookmarks.values())
        return self._host.pages.size + sum(place.mark.size for place in kept.values())

    @property
    def is_listened(self) -> bool:
        """Whether somebody listens to the domain, who would be told again of what is executed again."""
        machine = self.machine
        ours = self._note_input, self._print
        return bool(machine.listeners) or (machine.typed, machine.console.output) != ours

    # -- what happens while the domain runs

    def _print(self, data: bytes) -> None:
        start, self._printed = self._printed, self._printed + len(data)
        new = data[max(self._most_printed - start, 0) :]
        self._most_printed = max(self._most_printed, self._printed)
        if new:
            self._had[1](new)

    def _note_input(self, when: int, given: Given) -> None:
        if self._inputs[self._typed : self._typed + 1] != [(when, given)]:
            self._forget_ahead()
            self._inputs.append((when, given))
            self._had[0](when, given)
        self._typed += 1
        self._arm_input()

    def _arm_input(self) -> None:
        if self._typed < len(self._inputs):
            when, given = self._inputs[self._typed]
            self._host.set_timer(_INPUT_TIMER, when, lambda: self.machine.input(given))
        else:
            self._host.timers.stop(_INPUT_TIMER)

    def changed(self) -> None:
        """Somebody has written to the guest: what is ahead is not what was, and it begins with that."""
        self._is_changed = True

    def _forget_ahead(self) -> None:
        """From here on the run is another one."""
        here = self._debugger.position
        for bookmark in self.bookmarks.values():
            if bookmark.position > here and bookmark.apart is None:
                bookmark.apart = here
                bookmark.typed = list(self._inputs)
        self._farthest = here
        del self._inputs[self._typed :]
        self._most_printed = self._printed
        self._places = [place for place in self._places if place.position <= here]

    def _settle(self) -> None:
        """What was written is in a mark at its position, in place of one without."""
        if self._is_changed:
            self._is_changed = False
            self._forget_ahead()
            here = self._debugger.position
            self._places = [place for place in self._places if place.position < here] or self._places[:1]
            self._places.append(self._place())

    def resumed(self) -> None:
        """The domain is about to go on: the next mark is due."""
        self._settle()
        self._arm()

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
        is_past = self._debugger.position <= self._places[-1].position
        if time.process_time() - when > _SHARE * took and not self.is_listened and not is_past:
            self._mark()  # which would keep who listens
        self._arm()

    def _mark(self) -> None:
        position = self._debugger.position
        at = bisect_left(self._places, position, key=lambda place: place.position)
        if self._places[at : at + 1] and self._places[at].position == position:
            return
        started = time.process_time()
        is_first = not self._places  # which copies everything, others what was written since
        self._places.insert(at, self._place())
        ended = time.process_time()
        self._last_mark = ended, 0.0 if is_first else ended - started
        self._thin_out()

    def _thin_out(self) -> None:
        while self.memory > self._budget and len(self._places) > 2:
            del self._places[self._superfluous()]

    def _place(self) -> _Place:
        return _Place(self._debugger.position, self._host.mark(), self._printed, self._typed)

    def _superfluous(self) -> int:
        """Which mark to give up: where the gap that it leaves is smallest for its age."""
        now = self._places[-1].position

        def cost(i: int) -> float:
            before, after = self._places[i - 1].position, self._places[i + 1].position
            return (after - before) / (now - before)

        return min(range(1, len(self._places) - 1), key=cost)

    # -- bookmarks

    def bookmark(self, label: str = "") -> Bookmark | None:
        """Keep where the domain stands, which somebody calls that.

        None where the memory for bookmarks is taken by those that there are.
        """
        self._settle()
        number, here = self._next_bookmark, self._debugger.position
        known = [place for place in self._places if place.position == here]
        bookmark = Bookmark(number, label, known[0] if known else self._place(), list(self._inputs))
        self.bookmarks[number] = bookmark
        self._thin_out()
        if self.memory > self._budget:
            del self.bookmarks[number]
            return None
        self._next_bookmark += 1
        return bookmark

    def return_to(self, bookmark: Bookmark) -> Stopped:
        """Be where a bookmark was set, in the run that it is of; what was typed later is typed again."""
        self._settle()
        for other in self.bookmarks.values():
            if bookmark.apart is not None and other.apart is None and other.position > bookmark.apart:
                other.apart, other.typed = bookmark.apart, list(self._inputs)
        with self._replaying():
            if bookmark.apart is not None:
                self._farthest = bookmark.position
                self._places = [place for place in self._places if place.position <= bookmark.apart]
                self._inputs, bookmark.apart = list(bookmark.typed), None
                self._most_printed = bookmark.place.printed
            self._rewind(bookmark.place)
            self._keep(bookmark.place)
        return self._debugger.stopped_here("step")

    def _keep(self, place: _Place) -> None:
        at = bisect_left(self._places, place.position, key=lambda known: known.position)
        if not (self._places[at : at + 1] and self._places[at].position == place.position):
            self._places.insert(at, place)

    # -- going back

    def step_back(self, vcpu: int | None = None, before: int | None = None) -> Stopped:
        """Be where a vCPU (None: any) was about to execute its last instruction before a position (None:
        this one); "begin" if there is none.
        """
        target = self._debugger.position if before is None else before
        with self._replaying():
            found = self._last_instruction(target, vcpu)
            self._go_to(self.begin if found is None else found)
        return self._debugger.stopped_here("begin" if found is None else "step")

    def continue_back(self, before: int | None = None) -> Stopped:
        """Be where a breakpoint, or an access that is watched, was met last before a position (None: this
        one); "begin" if none was.
        """
        with self._replaying():
            last = self._last(self._last_stop, before)
            self._go_to(self.begin if last is None else last.position)
        if last is None:
            return self._debugger.stopped_here("begin")
        return self._debugger.stopped_here(last.reason, point=last.point, access=last.access)

    def search(self, scan: Callable[[int], Found | None], before: int | None = None) -> Found | None:
        """What `scan` finds last before a position (None: this one); the domain stands where it stood.

        scan(end) runs the domain from wherever it is put to the position `end`, by the debugger, and returns
        the last of what it is to find on the way.
        """
        here = self._place()
        with self._replaying():
            try:
                return self._last(scan, before)
            finally:
                self._rewind(here)

    def _last(self, scan: Callable[[int], Found | None], before: int | None) -> Found | None:
        target = self._debugger.position if before is None else before
        for place in reversed([place for place in self._places if place.position < target]):
            self._rewind(place)
            self._debugger.arm_watches()
            found = scan(target)
            if found is not None:
                return found
            target = place.position
        return None

    def go_to(self, position: int) -> Stopped:
        """Be at a position of the past, or at the first instruction behind it."""
        with self._replaying():
            self._go_to(position)
        return self._debugger.stopped_here("step")

    def _come_close(self, target: int) -> None:
        """Have a mark shortly before a position, which this step back and the next ones begin at."""
        place = next((p for p in reversed(self._places) if p.position < target), None)
        if place is None or target - place.position <= 4 * _CLOSE_NS:
            return
        self._rewind(place)
        came = self._run_to(target - _CLOSE_NS) and self._debugger.position < target
        if came and self.machine.clock.busy_ns != self._busy_ns:  # where it idles there is nothing to look at
            self._mark()

    def _last_instruction(self, target: int, vcpu: int | None) -> int | None:
        self._come_close(target)
        for place in reversed([place for place in self._places if place.position < target]):
            near, end = _NEAR_NS, target
            while True:
                start = max(end - near, place.position)
                self._rewind(place)
                if self._run_to(start) and self._debugger.position < target:
                    before = self._walk(target, vcpu)
                    if before is not None:
                        return before
                if start == place.position:
                    break
                if self._idle_since < end == target:  # once: others may run while this vCPU sleeps
                    near, end = _NEAR_NS, self._idle_since
                else:
                    near *= _FARTHER
        return None

    def _pass_idle_time(self, when: int) -> None:
        """See Host.idle; it may be called several times while nothing is executed."""
        busy = self.machine.clock.busy_ns
        if busy != self._busy_ns:
            self._busy_ns, self._idle_since = busy, self.machine.clock.now()
        self._host.advance_to(when)

    def _last_stop(self, target: int) -> Stopped | None:
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
        host.idle, host.attend = self._pass_idle_time, lambda: None
        self._busy_ns, self._idle_since = -1, NEVER
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
        machine.watcher, machine.skip_loops = None, True
        host.set_timer(_MARK_TIMER, ns, host.pause)
        try:
            return machine.run() is Stop.PAUSED
        finally:
            machine.skip_loops = False

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
        self._settle()
        self._farthest = self.farthest
        host, machine = self._host, self.machine
        holder, skips = (host.idle, host.attend), machine.skip_loops
        hits = [(point, point.hits) for point in self._debugger.points.values()]
        try:
            yield
        finally:
            host.idle, host.attend = holder
            machine.skip_loops = skips
            for point, count in hits:
                point.hits = count
            machine.watcher = self._debugger
            self._debugger.arm_watches()
            host.timers.stop(_MARK_TIMER)
            self._arm_input()
            self._arm()
            self._went_back()
