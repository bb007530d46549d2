"""A deadline for code that cannot look at the clock: a regular expression that backtracks for ever."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_LOOK = 0.02  # seconds of this process's own time between two looks at the clock


class TimeIsUp(Exception):
    """Raised in the block of `until`, by a signal handler."""


@contextmanager
def until(deadline: float | None, here: Callable[[], bool]) -> Iterator[None]:
    """While the block runs and `here` says so, TimeIsUp ends it at `deadline`, of time.monotonic().

    None is no deadline.

    Python's regular expressions hold the interpreter lock, and let signal handlers run now and then. So it is
    a signal, that of the timer which counts the process's own time: what else uses timers has SIGALRM
    (pytest's timeouts, for one). Signals are handled in the main thread; in others the block goes on.
    """
    if deadline is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop() -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)

    def look(_number: int, _frame: FrameType | None) -> None:
        if here() and time.monotonic() >= deadline:
            stop()
            raise TimeIsUp

    before = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, _LOOK, _LOOK)
    try:
        yield
    finally:
        stop()
