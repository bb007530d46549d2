"""Virtual time and the timers that hang on it.

Time is a pure function of the guest's own acts: each byte of guest code executed takes `NS_PER_BYTE`
nanoseconds, an exit to Xen and a `rdtsc` a little more, and an idle machine jumps to its next timer. No wall
clock enters.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

TSC_PER_NS = 2  # a 2 GHz time stamp counter: tsc_to_system_mul 0x80000000, tsc_shift 0
NS_PER_BYTE = 1
NS_PER_EXIT = 100  # an exception or hypercall: no guest may have them for nothing
NS_PER_RDTSC = 1000
NEVER = 1 << 63


class Clock:
    """Nanoseconds of system time since boot. `cell[0]` is the engine's budget cell, counting down; `cell[1]`
    how much of what was counted down was not code.
    """

    __slots__ = ("_heap", "_live", "_seq", "cell", "horizon")

    def __init__(self, cell: memoryview, start_ns: int = 0) -> None:
        self.cell = cell
        self.horizon = start_ns + cell[0] * NS_PER_BYTE  # the time at which the budget is used up
        self._heap: list[tuple[int, int, object]] = []
        self._live: dict[object, tuple[int, int, Callable[[], None]]] = {}
        self._seq = 0

    def now(self) -> int:
        """NOW(): system time in nanoseconds."""
        return self.horizon - self.cell[0] * NS_PER_BYTE

    def spend(self, ns: int) -> None:
        """Let Xen's own work take `ns` nanoseconds of the vCPU's turn."""
        self.cell[0] -= ns // NS_PER_BYTE
        self.cell[1] += ns // NS_PER_BYTE

    def turn_is_over(self) -> bool:
        """hypercall_preempt_check(): whether the budget is used up, and long work is to be put off."""
        return self.cell[0] < 0

    def advance_to(self, when: int) -> None:
        """Jump forward to `when`; the budget that is left stays as it is."""
        now = self.horizon - self.cell[0] * NS_PER_BYTE
        if when > now:
            self.horizon += when - now

    def set_budget(self, bytes_: int) -> None:
        """Let the guest run for `bytes_` more bytes of code before the engine returns."""
        now = self.horizon - self.cell[0] * NS_PER_BYTE
        self.cell[0] = bytes_
        self.horizon = now + bytes_ * NS_PER_BYTE

    def use_up_budget(self) -> None:
        """Let the turn be over now; no time passes by that."""
        self.set_budget(-1)

    def set_timer(self, key: object, when: int, action: Callable[[], None]) -> None:
        """Arm (or move) the timer named `key` to fire `action` at `when`; ties fire in order of arming."""
        self._seq += 1
        self._live[key] = (when, self._seq, action)
        heapq.heappush(self._heap, (when, self._seq, key))
        if len(self._heap) > 64 + 4 * len(self._live):  # mostly timers that were moved or stopped
            self._heap = [(due, seq, name) for name, (due, seq, _) in self._live.items()]
            heapq.heapify(self._heap)
        left = when - self.now()
        if left < self.cell[0] * NS_PER_BYTE:
            self.set_budget(max(left, 0) // NS_PER_BYTE)

    def stop_timer(self, key: object) -> None:
        """Disarm; unknown keys are ignored."""
        self._live.pop(key, None)

    def expires(self, key: object) -> int | None:
        """When the timer `key` is to fire, or None."""
        live = self._live.get(key)
        return live[0] if live else None

    def next_deadline(self) -> int:
        """The earliest armed deadline, or NEVER."""
        heap = self._heap
        while heap:
            when, seq, key = heap[0]
            live = self._live.get(key)
            if live is not None and live[1] == seq:
                return when
            heapq.heappop(heap)
        return NEVER

    def run_due(self) -> int:
        """Fire what is due by now, in deadline order; the number fired."""
        fired = 0
        while self.next_deadline() <= self.now():
            _, _, key = heapq.heappop(self._heap)
            fired += 1
            self._live.pop(key)[2]()
        return fired
