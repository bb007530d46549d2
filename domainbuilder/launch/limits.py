"""How long a domain may run: by wall time, in all and in one call, and by the guest's own time."""

from __future__ import annotations

import time

from hvcore.clock import NEVER


class Limits:
    """`timeout` seconds of wall time from `started` on (time.monotonic()), None: as long as it likes.

    `deadline` is when the run under way has to end by that clock, `guest_ns` when it has to by the guest's.
    `passed` says which of them was passed, in words; it is empty until then.
    """

    def __init__(self, started: float, timeout: float | None) -> None:
        self.started = started
        self.guest_ns = NEVER
        self.passed = ""
        self._timeout = timeout
        self._end = None if timeout is None else started + timeout
        self.deadline = self._end

    def count_anew(self, timeout: float | None) -> Limits:
        """Those of a copy of the domain, which begins now; None: with as many seconds as were given here."""
        copy = Limits(time.monotonic(), self._timeout)
        if timeout is not None:
            copy._end = copy.deadline = copy.started + timeout
        copy.guest_ns = self.guest_ns
        return copy

    def begin(self, timeout: float | None) -> None:
        """A run begins, which has `timeout` seconds for itself, too."""
        own = None if timeout is None else time.monotonic() + timeout
        self.deadline = min((end for end in (self._end, own) if end is not None), default=None)
        self.passed = ""

    def check(self, guest_ns: int) -> bool:
        """Whether one is passed, now or before; `guest_ns` is the guest's clock."""
        if guest_ns >= self.guest_ns:
            self.passed = "the guest has used up its own time"
        elif self.deadline is not None and time.monotonic() >= self.deadline:
            self.passed = "wall time ran out"
        return bool(self.passed)

    def patience(self, seconds: float | None) -> float | None:
        """So many seconds (None: without end), but not beyond the deadline."""
        if self.deadline is None or seconds == 0:
            return seconds
        left = max(self.deadline - time.monotonic(), 0.0)
        return left if seconds is None else min(seconds, left)
