"""The standard streams as commands find them: closed, full, ASCII-only, or with nobody at the other end.

`prepare` puts two classes in the places of sys.stdout and sys.stderr, so that whoever prints need not care:

- A character that the encoding lacks is written as an escape, \\xe9.
- stdout whose reader has gone (`| head`) takes what else is printed and drops it: the command ends as it
  would have ended. Other failures, a full disk, are an OSError that names stdout.
- stderr never fails. What cannot be written there is lost, and nothing else is.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sys
from contextlib import suppress
from typing import TextIO

STDIN, STDOUT, STDERR = 0, 1, 2


class _Output(io.TextIOWrapper):
    """A stream whose failures `_failed` judges."""

    def write(self, text: str, /) -> int:
        if text == "":  # Typer's way to find out what kind of stream this is, which has to cost nothing
            return 0
        try:
            return super().write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, _error: OSError) -> None:
        """What is buffered goes nowhere, so that it does not fail again when Python ends."""
        silence(self.fileno())
        with suppress(OSError):
            super().flush()


class _Stdout(_Output):
    def _failed(self, error: OSError) -> None:
        super()._failed(error)
        if not isinstance(error, BrokenPipeError):
            raise OSError(error.errno, error.strerror, "stdout") from error


class _Stderr(_Output):
    pass


def silence(fd: int) -> None:
    """Make a descriptor one that takes everything and keeps nothing."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def prepare() -> None:
    """Make descriptors 0 to 2 exist, and sys.stdout and sys.stderr what the module says.

    A descriptor that was closed would be the next file's to be opened, and a guest's output would end up in
    there. It becomes /dev/null, open for reading: what is written to it fails, as it does where it is closed.
    """
    for fd in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDONLY), True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _wrapped(_Stdout, sys.stdout, STDOUT)
        setattr(sys, "__stdout__", sys.stdout)  # noqa: B010 (final to the type checker, not to Python)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _wrapped(_Stderr, sys.stderr, STDERR)
        setattr(sys, "__stderr__", sys.stderr)  # noqa: B010


def _wrapped(kind: type[_Output], stream: TextIO | None, fd: int) -> TextIO:
    if isinstance(stream, kind):
        return stream
    encoding, eager, through = "utf-8", fd == STDERR, False
    if isinstance(stream, io.TextIOWrapper):
        encoding, eager, through = stream.encoding, stream.line_buffering, stream.write_through
        stream.flush()
        buffer = stream.detach()
    else:  # it was closed when Python started
        buffer = open(fd, "wb", closefd=False)  # noqa: SIM115 (a descriptor, for good)
    return kind(buffer, encoding, "backslashreplace", line_buffering=eager, write_through=through)


def tell_error(text: str) -> None:
    """Say on stderr what is wrong, in the one line that all commands have for it."""
    from domainbuilder.visible import visible  # few commands fail

    print(f"domainbuilder: error: {visible(text)}", file=sys.stderr)


def require_stdout() -> None:
    """Raise OSError where stdout was closed: before a guest runs whose output would go nowhere."""
    if fcntl.fcntl(STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdout")


def document(text: str) -> None:
    """Print JSON, XML or SVG: UTF-8 whatever the locale says."""
    if isinstance(sys.stdout, _Stdout) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def colour(stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`: a terminal, which can, and nobody minds."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
