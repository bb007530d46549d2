"""Exceptions of signal handlers and callbacks: kept while the emulator runs, raised when it has stopped.

What is raised in a callback of the emulator gets lost. So an exception waits until the machine has stopped,
unless the run stands where one can be raised at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruptions:
    """The exceptions of one domain's runs; `pause` has the machine stop as soon as it can."""

    def __init__(self, pause: Callable[[], None]) -> None:
        self._pause = pause
        self._waiting: BaseException | None = None
        self._may_raise = False  # the run stands where an exception would not get lost
        self.running = False
        self.has_signals = True  # handlers may have been set

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` here, where that is possible, or out of the run that is under way."""
        if not self.running or self._may_raise:
            raise error
        self.keep(error)

    def keep(self, error: BaseException) -> None:
        """Raise `error` when the machine has stopped, which is to be at once."""
        self._waiting = error
        self._pause()

    def raise_kept(self) -> None:
        """Raise what waits, if something does."""
        error, self._waiting = self._waiting, None
        if error is not None:
            raise error

    @contextmanager
    def run(self) -> Iterator[None]:
        """The machine runs while the block does."""
        self.running, self._waiting = True, None
        try:
            yield
        finally:
            self.running = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """While the block runs, exceptions are not lost: what waits is raised first."""
        self._may_raise = True
        try:
            if self._waiting is not None:
                raise self._waiting
            yield
        finally:
            self._may_raise = False

    @contextmanager
    def of_signals(self) -> Iterator[None]:
        """While the block runs, signal handlers raise where that is not lost."""
        if not self.has_signals or threading.current_thread() is not threading.main_thread():
            yield
            return
        found = {number: signal.getsignal(number) for number in _ENDING_SIGNALS}
        handlers = {number: handler for number, handler in found.items() if callable(handler)}

        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handlers[number](number, frame)
            except BaseException as error:
                self.interrupt(error)

        for number in handlers:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
