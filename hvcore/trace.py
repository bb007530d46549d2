"""Counts and the last hypercalls of a run: always on, read by --stats and by crash reports."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

_MOST_UNKNOWN = 64
_OTHERS = (1 << 64) - 1


@dataclass(slots=True)
class Trace:
    """What happened. Counters are indexed by hypercall or vector number; `recent` holds the last calls
    as (number, args, result).
    """

    hypercalls: list[int] = field(default_factory=lambda: [0] * 64)
    unknown_hypercalls: dict[int, int] = field(default_factory=dict)
    exceptions: list[int] = field(default_factory=lambda: [0] * 256)
    emulated: dict[str, int] = field(default_factory=dict)
    events_delivered: int = 0
    tlb_flushes: int = 0
    recent: deque[tuple[int, tuple[int, ...], int]] = field(default_factory=lambda: deque(maxlen=16))

    def unknown_hypercall(self, number: int) -> None:
        """Count one call of a number that does not exist; of too many such numbers only the first are told
        apart, the rest count as the largest number there is.
        """
        counts = self.unknown_hypercalls
        if number not in counts and len(counts) >= _MOST_UNKNOWN:
            number = _OTHERS
        counts[number] = counts.get(number, 0) + 1

    def emulate(self, name: str) -> None:
        """Count one emulated privileged instruction."""
        self.emulated[name] = self.emulated.get(name, 0) + 1
