"""One thread for all runs that have a deadline: it looks at the clock where nobody else comes to it.

A run looks at the clock itself every tick of its guest's time. A guest can make that last, with what costs it
nothing and this host much; the thread then has the machine told to look at once. It starts with the first run
that has a deadline and ends a while after the last, so that a loop of short runs pays for no threads, and
sleeps until somebody's time is up. It is a bare thread: what comes with threading.Thread would copy thirty
pages of a clone, each of which has one.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GRACE = 0.5  # seconds by which a tick may be late for a deadline
_LOOK = 0.1  # between two nudges of a run whose time is up
_IDLE = 2.0  # the longest sleep, and behind one with nothing to do the thread ends


class Watchdog:
    """Calls what it is given for a run, from its deadline on, until that has ended."""

    def __init__(self) -> None:
        self._runs: dict[object, tuple[float, Callable[[], None]]] = {}
        self._lock = threading.Lock()
        self._bell: threading.Lock | None = None  # what the thread sleeps on, where there is one
        self._ended = threading.Lock()  # held by it
        self._wakes = 0.0  # when it does, if nobody rings

    @property
    def is_there(self) -> bool:
        """Whether there is a thread."""
        return self._bell is not None

    @contextmanager
    def over(self, deadline: float | None, nudge: Callable[[], None]) -> Iterator[None]:
        """While the block runs, and later than `deadline` of time.monotonic(), have `nudge` called."""
        if deadline is None:
            yield
            return
        run, due = object(), deadline + GRACE
        self._runs[run] = due, nudge
        try:
            with self._lock:
                if self._bell is None:
                    self._begin()
                elif due < self._wakes:
                    self._ring(self._bell)
            yield
        finally:
            del self._runs[run]

    def _begin(self) -> None:
        bell, ended = threading.Lock(), threading.Lock()
        bell.acquire()
        ended.acquire()
        _thread.start_new_thread(self._watch, (bell, ended))  # RuntimeError where no more can be had
        self._bell, self._ended, self._wakes = bell, ended, 0.0

    def _ring(self, bell: threading.Lock) -> None:
        if bell.locked():
            bell.release()

    def _watch(self, bell: threading.Lock, ended: threading.Lock) -> None:
        try:
            was_idle = False
            while True:
                runs, now = list(self._runs.values()), time.monotonic()
                for due, nudge in runs:
                    if now >= due:
                        nudge()
                with self._lock:
                    dues = [due for due, _ in list(self._runs.values())]
                    if self._bell is not bell:
                        return
                    if was_idle and not dues:
                        self._bell = None
                        return
                    was_idle = not dues
                    self._wakes = min([now + _IDLE, *(max(due, now + _LOOK) for due in dues)])
                bell.acquire(timeout=max(self._wakes - now, 0))
        finally:
            ended.release()

    def end(self) -> None:
        """Have no thread, until the next run: a process that forks better has none."""
        with self._lock:
            bell, self._bell = self._bell, None
            if bell is not None:
                self._ring(bell)
        if bell is not None:
            with self._ended:
                pass

    def forget(self) -> None:
        """In the child of a fork, which has none of its parent's threads."""
        self._runs.clear()
        self._lock, self._bell = threading.Lock(), None


WATCHDOG = Watchdog()
if sys.version_info >= (3, 12):  # from where on Python warns of a fork beside threads
    os.register_at_fork(before=WATCHDOG.end)
os.register_at_fork(after_in_child=WATCHDOG.forget)
