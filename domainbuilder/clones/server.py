"""What runs in a clone's process: it does what is asked of it over its socket, until the other end is gone.

The process shares nothing with the one it was forked from that either could notice: no terminal, no pipe and
no socket, no signal handler, no buffered output. It ends at once when its holder does, also in the middle
of a run: the kernel signals the end of the socket. Clones of its own, if they live longer, are waited for, so
that every process is reaped by the one that made it.
"""

from __future__ import annotations

import fcntl
import gc
import os
import re
import signal
import socket
import stat
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, ClassVar, NoReturn

from domainbuilder.clones.process import HELD
from domainbuilder.clones.values import to_plain
from domainbuilder.clones.wire import Closed, Kind, decode, receive, send
from domainbuilder.errors import BuildError
from domainbuilder.launch.rehearsal import rehearsals
from domainbuilder.launch.running import RunningDomain
from domainbuilder.launch.snapshot import Snapshot
from domainbuilder.launch.transcript import Search

_MOST_DESCRIPTORS = 1024  # looked at where there is no /proc
_S_IFMT, _S_IFCHR = 0o170000, stat.S_IFCHR
_STREAMS = (stat.S_IFIFO, stat.S_IFSOCK)
_SIGNALS = [int(number) for number in signal.valid_signals()]


class _Paused(Exception):
    """The holder does not want to wait any more."""


class _Begun(Exception):
    """From here on it is the process of a clone's clone."""


class Server:
    """`domains` by their numbers, in the process of the clone that `sock` leads to.

    `handled` are the signals that the holder handles.
    """

    def __init__(self, sock: socket.socket, domains: dict[int, RunningDomain], handled: list[int]) -> None:
        self._sock = sock
        self._handled = handled
        self._domains = domains
        self._busy: RunningDomain | None = None  # which runs
        self._printing = False  # a frame is under way
        self._pause = False  # was asked for meanwhile
        self._has_clones = False
        self._snapshots: dict[int, Snapshot] = {}

    def serve(self, timeout: float | None) -> NoReturn:
        """Do what is asked until nobody is left who could ask; `timeout` as in RunningDomain.fork()."""
        self._settle(timeout)
        while True:
            try:
                kind, data = receive(self._sock)
                if kind is Kind.REQUEST:
                    self._answer(*decode(data.decode()))
            except Closed:
                self._leave()

    # -- the process

    def _settle(self, timeout: float | None) -> None:
        """Begin as a process of one's own."""
        gc.freeze()  # the holder's objects are not collected here: to look at them would copy their pages
        signal.set_wakeup_fd(-1)
        for number in self._handled:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's, which is for the holder
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # clones are reaped by the kernel
        signal.signal(signal.SIGIO, self._on_socket)
        part_from_streams({self._sock.fileno()})
        for domid, dom in self._domains.items():
            dom.become_clone(partial(self._print, domid), timeout)

    def _leave(self) -> NoReturn:
        """The end of the process, with no trace of Python's end: that is the parent's."""
        if self._has_clones:
            with suppress(BaseException):
                self._sock.close()
                for dom in self._domains.values():
                    dom.close()
                os.waitpid(-1, 0)  # it fails when the last clone of this one has gone
        os._exit(0)

    def _on_socket(self, _number: int, _frame: FrameType | None) -> None:
        """The socket has something for a clone in the middle of a run: a pause, or its end."""
        try:
            there = self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            there = b""
        if not there:
            os._exit(0)
        if self._printing:
            self._pause = True
        elif self._busy is not None:
            dom, self._busy = self._busy, None
            dom.interrupt(_Paused())

    # -- requests

    def _answer(self, number: int, name: str, domid: int, arguments: dict[str, Any]) -> None:
        before = time.process_time()
        try:
            value = self._fork(**arguments) if name == "fork" else self._do(name, domid, arguments)
        except Closed:
            raise
        except _Begun:
            return
        except _Paused:
            send(self._sock, Kind.ANSWER, [number, None, 0.0])
        except BuildError as error:
            send(self._sock, Kind.FAILURE, [number, "BuildError", str(error)])
        except RuntimeError as error:
            send(self._sock, Kind.FAILURE, [number, "RuntimeError", str(error)])
        except OSError as error:
            send(self._sock, Kind.FAILURE, [number, "OSError", error.strerror or str(error)])
        except BaseException:
            send(self._sock, Kind.FAILURE, [number, "", traceback.format_exc()])
        else:
            send(self._sock, Kind.ANSWER, [number, value, time.process_time() - before])
        if not self._domains:
            self._leave()

    def _do(self, name: str, domid: int, arguments: dict[str, Any]) -> Any:
        if domid not in self._domains:
            raise RuntimeError("the domain was closed")
        return self._OPERATIONS[name](self, self._domains[domid], **arguments)

    def _run(self, dom: RunningDomain, search: list[Any] | None, timeout: float | None) -> Any:
        """Run `dom`; its outcome, or what was found."""
        wanted = None
        if search is not None:
            pattern, flags, offset = search
            wanted = Search(re.compile(pattern, flags), dom.transcript, offset)
        descriptor = self._sock.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        self._busy, self._pause = dom, False
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC)
            self._on_socket(0, None)  # what came before signals did
            outcome = dom.run_until(wanted, timeout)
        finally:
            self._busy = None
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        match = wanted.match if wanted is not None and outcome is None else None
        if wanted is not None and match is not None:
            return ["found", match.string, match.start(), wanted.consumed]
        assert outcome is not None
        return ["ended", outcome.reason, outcome.detail, to_plain(outcome.report)]

    def _print(self, domid: int, data: bytes) -> None:
        self._printing = True
        try:
            send(self._sock, Kind.OUTPUT, raw=domid.to_bytes(1) + data)
        finally:
            self._printing = False
        if self._pause:
            self._pause = False
            raise _Paused

    def _snapshot(self, dom: RunningDomain, number: int, forgotten: list[int]) -> None:
        for old in forgotten:
            self._snapshots.pop(old, None)
        self._snapshots[number] = dom.snapshot()

    def _rewind(self, dom: RunningDomain, number: int) -> None:
        dom.rewind(self._snapshots[number])

    def _close(self, dom: RunningDomain) -> Any:
        """Destroy `dom`; its last counts."""
        stats = to_plain(dom.stats())
        if len(self._domains) > 1:
            dom.close()
        del self._domains[dom.domain_id]
        return stats

    def _fork(self, domids: list[int], timeout: float | None) -> int:
        """A clone of this clone, which serves the socket that comes next: its process."""
        _, (descriptor, *_), _, _ = socket.recv_fds(self._sock, 1, 1)
        sock = socket.socket(fileno=descriptor)
        domains = [self._domains[domid] for domid in domids]
        rehearsals(domains[0].machine.host).begin(domains)
        self._handled = handled_signals()
        pid = HELD.fork()
        if pid:
            sock.close()
            self._has_clones = True
            return pid
        self._sock.close()
        self._has_clones = False
        self._snapshots.clear()
        self._sock = sock
        self._domains = {domid: self._domains[domid] for domid in domids}
        self._settle(timeout)
        raise _Begun

    # Made once: functions of each server's own would be pages of each clone's own.
    _OPERATIONS: ClassVar[dict[str, Callable[..., Any]]] = {
        "run": _run,
        "send": lambda _, dom, text: dom.send(text.encode("latin-1")),
        "stats": lambda _, dom: to_plain(dom.stats()),
        "look": lambda _, dom: to_plain(dom.look()),
        "record": lambda _, dom, reason: to_plain(dom.input_record(reason)),
        "digest": lambda _, dom: dom.memory_sha256(),
        "screenshot": lambda _, dom: dom.screenshot().decode("latin-1"),
        "snapshot": _snapshot,
        "rewind": _rewind,
        "close": _close,
    }


def handled_signals() -> list[int]:
    """The signals that Python functions handle: told before a fork, for looking copies a clone's pages."""
    return [number for number in _caught() if callable(signal.getsignal(number))]


def _caught() -> list[int]:
    """The signals that anything handles; all of them, where there is no /proc."""
    try:
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return _SIGNALS
    try:
        mask = int(os.read(status, 4096).partition(b"SigCgt:")[2].split(None, 1)[0], 16)
    finally:
        os.close(status)
    return [number for number in _SIGNALS if mask >> number - 1 & 1]


def _descriptors() -> Iterator[int]:
    """Those that are in use, one by one: a list of a thousand would be ten pages of a clone's own."""
    try:
        with os.scandir("/proc/self/fd") as there:
            for entry in there:
                yield int(entry.name)
    except OSError:
        yield from range(_MOST_DESCRIPTORS)


def part_from_streams(kept: set[int]) -> None:
    """Put /dev/null in the place of every pipe, socket and terminal but `kept` and stderr.

    Their numbers stay in use, so that whoever holds one finds nothing there, and not somebody else's file.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in _descriptors():
        if descriptor in kept or descriptor == 2:
            continue
        try:
            kind = os.fstat(descriptor).st_mode & _S_IFMT
            if descriptor == 0 or kind in _STREAMS or (kind == _S_IFCHR and os.isatty(descriptor)):
                os.dup2(null, descriptor, inheritable=descriptor <= 2)
        except OSError:
            pass
    os.close(null)
