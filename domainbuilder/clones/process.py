"""The processes of clones as their holder has them: asked over a socket, and reaped when they have ended."""

from __future__ import annotations

import os
import signal
import socket
import threading
import weakref
from contextlib import suppress
from typing import Any, Protocol

from domainbuilder.clones.wire import Closed, Kind, decode, receive, send
from domainbuilder.errors import BuildError

_ERRORS: dict[str, type[Exception]] = {
    "BuildError": BuildError, "RuntimeError": RuntimeError, "OSError": OSError,
}  # fmt: skip


class CloneLost(Exception):
    """The process of a clone has ended, and nobody here ended it."""


class _Held:
    """The processes of clones that this process holds.

    A clone has none of them. Were it to close their sockets one object after the other, it would copy the
    pages that these are in: half a page for each clone that is alive. So it closes them by their numbers.
    """

    def __init__(self) -> None:
        self.forking = threading.Lock()  # one fork at a time: another thread would find the domain rehearsing
        self.pids: set[int] = set()  # of those that have to be reaped here
        self._processes: dict[int, weakref.ref[Process]] = {}  # by descriptor
        self._sockets = bytearray()  # by descriptor: whether it leads to a clone
        self._thread = 0  # which makes a clone
        self._of_holder: object = None  # what is there in a clone, and not looked at

    def add(self, process: Process, sock: socket.socket) -> None:
        """There is a process more, at the other end of the socket."""
        number = sock.fileno()
        self._sockets.extend(bytes(max(number + 1 - len(self._sockets), 0)))
        self._sockets[number] = 1
        self._processes[number] = weakref.ref(process, lambda _: self.close(sock))

    def close(self, sock: socket.socket) -> None:
        """Close a process's socket, if it is not closed, and by no fork another's."""
        number = sock.fileno()
        if 0 <= number < len(self._sockets) and self._sockets[number]:
            self._sockets[number] = 0
            self._processes.pop(number, None)
            sock.close()
        elif number >= 0:
            sock.detach()

    def fork(self) -> int:
        """os.fork() for a clone."""
        self._thread = threading.get_ident()
        try:
            return os.fork()
        finally:
            self._thread = 0

    def become_child(self) -> None:
        """Behind a fork, in the child: it holds nothing."""
        of_holder = self._processes, self.pids, self._of_holder
        if self._thread == threading.get_ident():
            at = self._sockets.find(1)
            while at >= 0:
                end = self._sockets.find(0, at)
                os.closerange(at, end if end >= 0 else len(self._sockets))
                at = self._sockets.find(1, end) if end >= 0 else -1
            self._of_holder = of_holder
        else:  # a fork of somebody else's, who may go on to ask a Clone
            for process in [there() for there in self._processes.values()]:
                if process is not None:
                    process.forsake()
        self.forking, self.pids, self._processes = threading.Lock(), set(), {}
        self._sockets = bytearray()

    def reap(self, pid: int | None = None) -> str:
        """Reap those that have ended, and wait for `pid`; how that ended, as far as it is known."""
        how = ""
        for child in [pid] if pid is not None else self._ended():
            try:
                found, status = os.waitpid(child, 0 if child == pid else os.WNOHANG)
            except ChildProcessError:  # reaped by others, or by the kernel
                found, status = child, 0
            if found:
                self.pids.discard(child)
                how = _how(status)
        return how

    def _ended(self) -> list[int]:
        """Those that may have ended: none where no child of this process has."""
        with suppress(ChildProcessError):
            if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return []
        return list(self.pids)


def _how(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"with status {os.WEXITSTATUS(status)}"


HELD = _Held()
os.register_at_fork(after_in_child=HELD.become_child)


class Printing(Protocol):
    """A domain of a clone, which is told what it prints there."""

    def printed(self, data: bytes, *, tell: bool) -> None:
        """It has printed `data`."""


class Process:
    """The process of a clone, at the other end of a socket. Several threads may ask, one after the other."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.pid = pid
        self.clones: weakref.WeakValueDictionary[int, Printing] = weakref.WeakValueDictionary()  # by domain
        self._sock = sock
        self._lock = threading.Lock()
        self._number = 0
        self.spent = 0.0  # of the processor's time, on the last answer
        self._has_clones = False
        self.snapshots = 0  # how many were made
        self.forgotten: list[int] = []  # snapshots that nobody has any more, by number
        HELD.add(self, sock)

    @property
    def gone(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._sock.fileno() < 0

    def ask(self, name: str, domid: int, passed: socket.socket | None = None, **arguments: Any) -> Any:
        """What the clone answers. Raises CloneLost, and what went wrong there.

        Whatever is raised here while the clone runs (by a signal, by who is given its output) ends the run.
        """
        with self._lock:
            if self.gone:
                raise RuntimeError("the domain was closed")
            self._number += 1
            try:
                send(self._sock, Kind.REQUEST, [self._number, name, domid, arguments])
                if passed is not None:
                    self._pass(passed)
                kind, rest = self._answer(tell=True)
            except Closed:
                raise self._lost() from None
            except BaseException:
                self._pause()
                raise
        if kind is Kind.ANSWER:
            value, self.spent = rest
            return value
        error, message = rest
        raise _ERRORS[error](message) if error else CloneLost(f"an error in the clone:\n{message}")

    def _answer(self, *, tell: bool) -> tuple[Kind, list[Any]]:
        """The answer to the last request. What is printed meanwhile is noted, and told if it shall be."""
        while True:
            kind, data = receive(self._sock)
            if kind is not Kind.OUTPUT:
                number, *rest = decode(data.decode())
                if number == self._number:
                    return kind, rest
            elif clone := self.clones.get(data[0]):
                clone.printed(data[1:], tell=tell)

    def _pass(self, passed: socket.socket) -> None:
        try:
            socket.send_fds(self._sock, [b"\0"], [passed.fileno()])
        except OSError as error:
            raise Closed from error
        self._has_clones = True

    def _pause(self) -> None:
        """Nobody waits for the answer any more: have it at once, so that the next request can be made."""
        try:
            send(self._sock, Kind.PAUSE)
            self._answer(tell=False)
        except BaseException:  # a second signal: whoever sends it wants an end
            HELD.close(self._sock)

    def _lost(self) -> CloneLost:
        HELD.close(self._sock)
        how = HELD.reap(self.pid) if self.pid in HELD.pids else ""
        return CloneLost(f"the clone's process, {self.pid}, has ended {how}".rstrip())

    def end(self) -> None:
        """The last domain is closed, and the process ends: be there until it has, if nothing holds it up."""
        HELD.close(self._sock)
        if self.pid in HELD.pids and not self._has_clones:
            HELD.reap(self.pid)

    def forsake(self) -> None:
        """In another process, to which this one's socket came by a fork."""
        HELD.close(self._sock)
