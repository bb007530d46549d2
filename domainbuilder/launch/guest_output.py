"""What a guest prints, on its way to stdout and to a log."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from domainbuilder import streams
from domainbuilder.launch.terminal import write_all
from domainbuilder.progress import Progress
from domainbuilder.streams import STDOUT


class ReaderGone(Exception):
    """Nobody reads the guest's output any more, and nothing else was wanted of it."""


class GuestOutput:
    """Guest output on its way to stdout, as it is, and to the log."""

    def __init__(self, progress: Progress, *, needed: bool) -> None:
        self._progress = progress
        self._log: BinaryIO | None = None
        self._needed = needed
        self._last = b"\n"

    def log_to(self, path: Path, stack: ExitStack) -> None:
        """Write it to `path`, too, which is emptied now that the inputs are known to be good."""
        self._log = stack.enter_context(path.open("wb", buffering=0))

    def __call__(self, data: bytes) -> None:
        self._progress.heard(data)
        self._last = data[-1:]
        try:
            write_all(STDOUT, data, "stdout")
        except BrokenPipeError:
            streams.silence(STDOUT)
            if self._needed:
                raise ReaderGone from None
        except OSError:
            streams.silence(STDOUT)
            raise
        if self._log is not None:
            write_all(self._log.fileno(), data, self._log.name)

    def end_line(self) -> None:
        """Begin a new line on a terminal that shows both the guest's output and our messages."""
        if self._last not in (b"\n", b"\r") and sys.stderr.isatty() and os.isatty(STDOUT):
            sys.stderr.write("\n")
