"""One thread for all runs that have a deadline: it looks at the clock where nobody else comes to it.

A run looks at the clock itself every tick of its guest's time. A guest can make that last, with what costs it
nothing and this host much; the thread then has the machine told to look at once. It starts with the first run
that has a deadline and ends a while after the last, so that a loop of short runs pays for no threads.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 0.5  # seconds by which a tick may be late for a deadline
_LOOK = 0.1
_IDLE_LOOKS = 20  # after so many with nothing to do the thread ends


class Watchdog:
    """Calls what it is given for a run, from its deadline on, until that has ended."""

    def __init__(self) -> None:
        self._runs: dict[object, tuple[float, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, deadline: float | None, nudge: Callable[[], None]) -> Iterator[None]:
        """While the block runs, and later than `deadline` of time.monotonic(), have `nudge` called."""
        if deadline is None:
            yield
            return
        run = object()
        self._runs[run] = deadline + GRACE, nudge
        try:
            with self._lock:
                if self._thread is None:
                    self._stop = threading.Event()
                    self._thread = threading.Thread(
                        target=self._watch, args=(self._stop,), name="watchdog", daemon=True
                    )
                    self._thread.start()
            yield
        finally:
            del self._runs[run]

    def _watch(self, stop: threading.Event) -> None:
        idle = 0
        while not stop.wait(_LOOK):
            runs, now = list(self._runs.values()), time.monotonic()
            for deadline, nudge in runs:
                if now >= deadline:
                    nudge()
            idle = 0 if runs else idle + 1
            if idle > _IDLE_LOOKS:
                with self._lock:
                    if not self._runs and not stop.is_set():
                        self._thread = None
                        return

    def end(self) -> None:
        """Have no thread, until the next run: a process that forks better has none."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stop.set()
        if thread is not None:
            thread.join()

    def forget(self) -> None:
        """In the child of a fork, which has none of its parent's threads."""
        self._runs.clear()
        self._lock, self._stop, self._thread = threading.Lock(), threading.Event(), None


WATCHDOG = Watchdog()
if sys.version_info >= (3, 12):  # from where on Python warns of a fork beside threads
    os.register_at_fork(before=WATCHDOG.end)
os.register_at_fork(after_in_child=WATCHDOG.forget)
