"""A line on the terminal that says what takes so long, gone as soon as there is something else to see."""

from __future__ import annotations

import sys
import threading
import time
from typing import Self

from domainbuilder.closing import Closing

_QUIET_SECONDS = 1.0
_REDRAW_SECONDS = 0.25
_ERASE = "\r\x1b[K"


class Progress(Closing):
    """Shows `phase` on stderr once nothing was heard for a second; silent where stderr is no terminal.

    `heard()` has to be called before the guest's output is written: the line is taken away first. It is not
    shown in the middle of a line of output.
    """

    def __init__(self, phase: str, *, silent: bool = False) -> None:
        self.phase = phase
        self.once = False  # nothing more is shown after the first output: somebody types there
        self._enabled = not silent and sys.stderr.isatty()
        self._started = self._heard = time.monotonic()
        self._line_start = True
        self._shown = False
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._enabled:
            self._thread.start()
        return self

    def close(self) -> None:
        """Show nothing any more."""
        if self._thread.is_alive():
            self._enabled = False
            self._done.set()
            self._thread.join()
            self._erase()

    def heard(self, data: bytes) -> None:
        """The guest printed `data`, which is to be written next."""
        if self._enabled:
            with self._lock:
                self._erase()
                self._enabled = not self.once
                self._heard = time.monotonic()
                self._line_start = data.endswith((b"\n", b"\r"))

    def _erase(self) -> None:
        if self._shown:
            self._shown = False
            sys.stderr.write(_ERASE)
            sys.stderr.flush()

    def _draw(self) -> None:
        while not self._done.wait(_REDRAW_SECONDS):
            with self._lock:
                now = time.monotonic()
                if self._enabled and self._line_start and now - self._heard > _QUIET_SECONDS:
                    self._shown = True
                    sys.stderr.write(f"{_ERASE}[{self.phase}: {now - self._started:.0f} s]")
                    sys.stderr.flush()
