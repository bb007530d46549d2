"""Virtual time and the timers that hang on it.

Time is a pure function of the guest's own acts: a byte of guest code takes a nanosecond, an exit to Xen and a
`rdtsc` a little more, and an idle machine jumps to its next timer. No wall clock enters, and no stop.

The engine leaves the guest at the first block of code at whose head the horizon is reached: the earliest of
what the guest, the host or the run loop wants to be looked at. Only the guest's own acts decide when its turn
ends, and only that is seen by the guest. All of it is a block of words (`CELL_*`) that native code shares.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

TURN_NS = 10_000_000  # turns end where system time is a multiple of it, if nothing ends them before
TSC_PER_NS = 2  # a 2 GHz time stamp counter: tsc_to_system_mul 0x80000000, tsc_shift 0
NS_PER_EXIT = 100  # an exception or hypercall: no guest may have them for nothing
NS_PER_RDTSC = 1000
NEVER = 1 << 63

# The words. Now is HORIZON - LEFT.
CELL_LEFT = 0  # nanoseconds to the horizon; code, and whatever else takes time, is taken from it
CELL_SPENT = 1  # how much of what was taken so far was not code
CELL_LIMIT = 2  # the engine leaves where LEFT is no more than this: 0, or OUT
CELL_HORIZON = 3  # unsigned
CELL_TURN_END = 4  # unsigned: when the guest's turn is over
CELL_IDLE = 5  # how much time passed in jumps
CELL_WORDS = 6

OUT = 1 << 62  # the limit of one who wants the engine out at the next block, whatever is left


class Timers:
    """Deadlines by key, each with what is to be done then; ties fire in order of arming."""

    __slots__ = ("_heap", "_live", "_seq")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, object]] = []
        self._live: dict[object, tuple[int, int, Callable[[], None]]] = {}
        self._seq = 0

    def set(self, key: object, when: int, action: Callable[[], None]) -> None:
        """Arm (or move) the timer named `key`."""
        self._seq += 1
        self._live[key] = (when, self._seq, action)
        heapq.heappush(self._heap, (when, self._seq, key))
        if len(self._heap) > 64 + 4 * len(self._live):  # mostly timers that were moved or stopped
            self._heap = [(due, seq, name) for name, (due, seq, _) in self._live.items()]
            heapq.heapify(self._heap)

    def stop(self, key: object) -> None:
        """Disarm; unknown keys are ignored."""
        self._live.pop(key, None)

    def expires(self, key: object) -> int | None:
        """When the timer `key` is to fire, or None."""
        live = self._live.get(key)
        return live[0] if live else None

    def live(self) -> list[tuple[object, tuple[int, int, Callable[[], None]]]]:
        """All that are armed, in the order of arming."""
        return sorted(self._live.items(), key=lambda item: item[1][1])

    def next_deadline(self) -> int:
        """The earliest armed deadline, or NEVER."""
        heap, live = self._heap, self._live
        while heap:
            when, seq, key = heap[0]
            if key in live and live[key][1] == seq:
                return when
            heapq.heappop(heap)
        return NEVER

    def run_due(self, now: Callable[[], int]) -> int:
        """Fire what is due, in deadline order; the number fired."""
        fired = 0
        while self._heap and self.next_deadline() <= now():
            _, _, key = heapq.heappop(self._heap)
            _, _, action = self._live.pop(key)
            action()
            fired += 1
        return fired


class Clock:
    """Nanoseconds of system time since boot. `cell` is the block of words, of which LEFT may be set already.

    `timers` are the guest's: what they do reaches it, and they end its turn.
    """

    __slots__ = ("_start", "_words", "cell", "timers")

    def __init__(self, cell: memoryview, start_ns: int = 0) -> None:
        self.cell = cell
        self._words = cell.cast("B").cast("Q")
        self._start = start_ns
        self.timers = Timers()
        self._words[CELL_HORIZON] = self._words[CELL_TURN_END] = start_ns + cell[CELL_LEFT]

    def detach(self) -> None:
        """Stand still, in words of its own, while another clock has the engine's."""
        self._move(memoryview(bytearray(8 * CELL_WORDS)).cast("q"))

    def attach(self, cell: memoryview) -> None:
        """Go on in the engine's words. The limit there stays: it is no domain's."""
        limit = cell[CELL_LIMIT]
        self._move(cell)
        cell[CELL_LIMIT] = limit

    def _move(self, cell: memoryview) -> None:
        cell[:CELL_WORDS] = self.cell[:CELL_WORDS]
        self.cell = cell
        self._words = cell.cast("B").cast("Q")

    def restart(self) -> None:
        """Forget what time has passed: the clock is as it was made, with nothing left of the turn."""
        cell, words = self.cell, self._words
        cell[CELL_LEFT] = cell[CELL_SPENT] = cell[CELL_IDLE] = 0
        words[CELL_HORIZON] = words[CELL_TURN_END] = self._start

    def now(self) -> int:
        """NOW(): system time in nanoseconds."""
        return self._words[CELL_HORIZON] - self.cell[CELL_LEFT]

    @property
    def code_bytes(self) -> int:
        """Bytes of guest code executed, and left out by working out what they would have done."""
        return self.busy_ns - self.cell[CELL_SPENT]

    @property
    def busy_ns(self) -> int:
        """How much of the time that passed was not idle."""
        return self.now() - self._start - self.cell[CELL_IDLE]

    def spend(self, ns: int) -> None:
        """Let Xen's own work take `ns` nanoseconds of the vCPU's turn."""
        self.cell[CELL_LEFT] -= ns
        self.cell[CELL_SPENT] += ns

    def leave_out(self, code_bytes: int) -> None:
        """Let the time of code pass that need not be executed."""
        self.cell[CELL_LEFT] -= code_bytes

    def advance_to(self, when: int) -> None:
        """Jump forward to `when`: nothing runs until then."""
        passed = when - self.now()
        if passed > 0:
            self.cell[CELL_LEFT] -= passed
            self.cell[CELL_IDLE] += passed

    # -- as plain values

    WIRING = frozenset(("_words", "cell", "timers"))  # saved by name, or no state

    def save(self) -> dict[str, Any]:
        """Time, and the timers that are armed: (kind, number, deadline). The horizon is nobody's state."""
        cell = self.cell
        timers = [[*key, when] for key, (when, _, _) in self.timers.live()]  # type: ignore[misc]
        return {
            "start": self._start, "now": self.now(), "spent": cell[CELL_SPENT], "idle": cell[CELL_IDLE],
            "turn_end": self.turn_end, "timers": timers,
        }  # fmt: skip

    def restore(self, saved: dict[str, Any], action: Callable[[str, int], Callable[[], None]]) -> None:
        """Put back what `save()` gave; `action` says what the timer (kind, number) does."""
        cell, words = self.cell, self._words
        self._start = saved["start"]
        cell[CELL_LEFT], words[CELL_HORIZON] = 0, saved["now"]
        cell[CELL_SPENT], cell[CELL_IDLE] = saved["spent"], saved["idle"]
        self.timers = Timers()
        for kind, number, when in saved["timers"]:
            self.timers.set((kind, number), when, action(kind, number))
        words[CELL_TURN_END] = saved["turn_end"]

    # -- the horizon, and the turn

    def set_horizon(self, when: int) -> None:
        """Let the engine come back at the first block at or after `when`; no time passes by that."""
        words = self._words
        left = when - words[CELL_HORIZON] + self.cell[CELL_LEFT]
        words[CELL_HORIZON] = when
        self.cell[CELL_LEFT] = left

    def look_at(self, when: int) -> None:
        """Have the engine come back at `when`, if it would not earlier; the guest does not see it."""
        if when < self._words[CELL_HORIZON]:
            self.set_horizon(max(when, self.now()))

    def begin_turn(self, end: int) -> None:
        """A turn that lasts until `end`, unless the guest does what ends it earlier."""
        self._words[CELL_TURN_END] = end

    def end_turn(self) -> None:
        """Let the turn be over now; no time passes by that."""
        now = self.now()
        self._words[CELL_TURN_END] = min(self._words[CELL_TURN_END], now)
        self.look_at(now)

    @property
    def turn_end(self) -> int:
        """When the turn is over."""
        return self._words[CELL_TURN_END]

    def turn_is_over(self) -> bool:
        """hypercall_preempt_check(): whether long work is to be put off."""
        words = self._words
        return words[CELL_HORIZON] - self.cell[CELL_LEFT] >= words[CELL_TURN_END]

    # -- timers

    def set_timer(self, key: object, when: int, action: Callable[[], None]) -> None:
        """Arm (or move) a timer of the guest's."""
        self.timers.set(key, when, action)
        if when < self._words[CELL_TURN_END]:
            self._words[CELL_TURN_END] = max(when, 0)
            self.look_at(when)

    def stop_timer(self, key: object) -> None:
        """Disarm a timer of the guest's; unknown keys are ignored."""
        self.timers.stop(key)

    def expires(self, key: object) -> int | None:
        """When the guest's timer `key` is to fire, or None."""
        return self.timers.expires(key)

    def next_deadline(self) -> int:
        """The earliest deadline of the guest's timers, or NEVER."""
        return self.timers.next_deadline()

    def run_due(self) -> int:
        """Fire the guest's timers that are due by now; the number fired."""
        return self.timers.run_due(self.now)
