"""The user's end of a console: a raw terminal as `xl console` makes it, or bytes from a pipe."""

from __future__ import annotations

import os
import select
import signal
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from domainbuilder.launch.waiting import Ends

ESCAPE = b"\x1d"  # Ctrl-], as in xl console
_CHUNK = 1024
_ENDING_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class FileInput:
    """Console input from a file descriptor. An end of file ends the input, not the guest."""

    real_time = False
    detached = False

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.open = True

    def ends(self) -> Ends[int]:
        """What to wait for."""
        return Ends([self.fd] if self.open else [])

    def read(self) -> bytes:
        """What is there; empty where nothing is."""
        try:
            if not select.select([self.fd], [], [], 0)[0]:
                return b""
            data = os.read(self.fd, _CHUNK)
        except (OSError, ValueError):  # closed, or hung up
            data = b""
        self.open = bool(data)
        return data


class TerminalInput(FileInput):
    """Console input from a terminal, until Ctrl-] is typed. Time passes for the guest as for the user."""

    real_time = True

    def read(self) -> bytes:
        """As FileInput.read; what is typed behind Ctrl-] is lost, as is a terminal that goes away."""
        typed, escape, _ = super().read().partition(ESCAPE)
        if escape or not self.open:
            self.detached, self.open = True, False
        return typed


def _raw(mode: list[Any]) -> list[Any]:
    """cfmakeraw(3): the guest's output reaches the terminal as it is, too."""
    iflag, oflag, cflag, lflag, ispeed, ospeed, cc = mode
    iflag &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    oflag &= ~termios.OPOST
    lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    cc = list(cc)
    cc[termios.VMIN], cc[termios.VTIME] = 1, 0
    return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]


@contextmanager
def raw_terminal(fd: int, interrupt: Callable[[BaseException], None]) -> Iterator[None]:
    """The terminal `fd` in raw mode for as long as the block runs, however it ends.

    SIGTERM, SIGHUP and SIGQUIT are to end the block: `interrupt` has to see to it that its argument, a
    SystemExit(128 + number), is raised in there. SIGTSTP gives the terminal back until SIGCONT.
    """
    saved = termios.tcgetattr(fd)
    raw = _raw(saved)

    def restore() -> None:
        with suppress(termios.error, OSError):
            termios.tcsetattr(fd, termios.TCSANOW, saved)

    def end(number: int, _frame: FrameType | None) -> None:
        interrupt(SystemExit(128 + number))

    def go_on(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTSTP, stop)
        with suppress(termios.error, OSError):
            if os.tcgetpgrp(fd) == os.getpgrp():
                termios.tcsetattr(fd, termios.TCSANOW, raw)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # returns when continued, or at once where nobody could continue us
        go_on(number, frame)

    handlers = {**dict.fromkeys(_ENDING_SIGNALS, end), signal.SIGTSTP: stop, signal.SIGCONT: go_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        termios.tcsetattr(fd, termios.TCSANOW, raw)
        yield
    finally:
        restore()
        for number, handler in before.items():
            signal.signal(number, handler)


def write_all(fd: int, data: bytes, name: str | None = None) -> None:
    """Write every byte at once, also to a descriptor that someone made non-blocking.

    Raises OSError, which gives the file `name`.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])
        except OSError as error:
            raise OSError(error.errno, error.strerror, name) from error
