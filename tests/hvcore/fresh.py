"""Runs that go on in a process of their own: `python -m tests.hvcore.fresh`, once for all of them.

That process has all modules and no host. Each run gets a fork of it, in which nothing has run before it: no
translated code, no address of the process that it comes from. Requests and answers are pickles behind
their lengths.
"""

from __future__ import annotations

import atexit
import os
import pickle
import struct
import subprocess
import sys
from functools import cache
from typing import IO

from tests.hvcore.stops import Rest, Result, go_on

_LENGTH = struct.Struct("<Q")


class Process:
    """The process, as the tests have it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.hvcore.fresh"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self._process.kill)

    def finish(self, rest: Rest) -> Result:
        """The run to its end. Raises EOFError where it died there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        _write(self._process.stdin, pickle.dumps(rest))
        answer = _read(self._process.stdout)
        if not answer:
            raise EOFError("the run ended in the other process, which says why")
        result = pickle.loads(answer)
        assert isinstance(result, Result)
        return result


@cache
def process() -> Process:
    """The one of these tests."""
    return Process()


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(_LENGTH.pack(len(data)) + data)
    file.flush()


def _read(file: IO[bytes]) -> bytes:
    head = file.read(_LENGTH.size)
    return file.read(*_LENGTH.unpack(head)) if head else b""


def main() -> None:
    """Until the tests are over."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while request := _read(requests):
        pid = os.fork()
        if not pid:
            _write(answers, pickle.dumps(go_on(pickle.loads(request))))
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            _write(answers, b"")


if __name__ == "__main__":
    main()
