"""Live migration between two processes of one machine, over a socket: precopy, then the suspended rest.

The stream is that of a save. Its pages are sent while the guest runs, again those that it wrote meanwhile,
and at last, when it has suspended, those that are left. The domain is here until the other process has it and
was told to go on: whatever goes wrong before leaves the guest where it is. Disks are let go of just before
that word, and opened there behind it; where they cannot be, they are opened here again.
Sources: send_memory_live() and simple_precopy_policy() in tools/libs/guest/xg_sr_save.c, migrate_receive() in
tools/xl/xl_migrate.c of Xen 4.17.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from domainbuilder.errors import SavedError, Where
from domainbuilder.inputs import SOCKET_PREFIX, names_socket
from domainbuilder.launch.unix_socket import listen_at
from domainbuilder.saved.p2m import P2m, guest_p2m
from domainbuilder.saved.started import received
from domainbuilder.saved.stream_devices import check_devices
from domainbuilder.saved.stream_read import Source, read_stream
from domainbuilder.saved.stream_restore import Restorer
from domainbuilder.saved.stream_save import StreamSaver
from domainbuilder.saved.suspend import suspend
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from domainbuilder.launch.options import Chosen
    from domainbuilder.launch.running import RunningDomain

SPP_MAX_ITERATIONS, SPP_TARGET_DIRTY_COUNT = 5, 50
_NS_PER_PAGE = 10_000  # that the guest runs for each page sent: a link of 400 MB/s
_READY, _GO, _HERE = b"ready\n", b"go\n", b"here\n"
_ANSWER_SECONDS = 120.0
_LAST_WORD_SECONDS = 1.0
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Migration:
    """How one went: the pages of each round, the last of them sent while the guest was suspended."""

    rounds: tuple[int, ...]
    sent_bytes: int
    seconds: float
    downtime_seconds: float

    def __str__(self) -> str:
        rounds = ", ".join(f"{pages:,}" for pages in self.rounds)
        return (
            f"{len(self.rounds)} rounds of {rounds} pages, {self.sent_bytes >> 20:,} MB "
            f"in {self.seconds:.2f} s, downtime {1000 * self.downtime_seconds:.0f} ms"
        )


# --- from here ----------------------------------------------------------------------------------------------


def migrate(dom: RunningDomain, address: str) -> Migration:
    """Move the domain to the process that listens at `address`; it is closed here when it goes on there.

    Raises SavedError where that comes to nothing: nobody listens, the guest does not suspend, the other side
    has no room for it. Then the guest goes on here. RuntimeError as RunningDomain.save does.
    """
    dom.check_can_be_saved()
    check_devices(dom.machine)
    with _connected(address) as sock, sock.makefile("rb") as answers:
        sender = _Sender(dom, sock, answers, address)
        try:
            return sender.send()
        except OSError as error:
            why = sender.last_word() or error.strerror
            sender.keep()
            raise SavedError(f"the other side is gone: {why}", where=Where(address)) from error
        except BaseException:
            sender.keep()
            raise


def _connected(address: str) -> socket.socket:
    if not names_socket(address):
        raise SavedError("a domain is moved to a socket of this machine", found=address, expected="unix:PATH")
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(address.removeprefix(SOCKET_PREFIX))
    except OSError as error:
        sock.close()
        raise SavedError(f"nobody takes a domain there: {error.strerror}", where=Where(address)) from error
    return sock


class _Sender:
    """One migration, from its first page on."""

    def __init__(self, dom: RunningDomain, sock: socket.socket, answers: BinaryIO, address: str) -> None:
        self.dom, self.sock, self.answers, self.address = dom, sock, answers, address
        self.machine = dom.machine
        self.pages = dom.machine.host.pages
        self.has_disks = True
        self.saver = StreamSaver(dom.machine, guest_p2m(dom.machine), is_suspended=False)
        self.sent_types = bytearray(len(self.saver.p2m.mfns))
        self.sent_bytes = 0
        self.rounds: list[int] = []

    def send(self) -> Migration:
        started = time.monotonic()
        self._write(self.saver.begin())
        mark = self.pages.set_mark()
        dirty: Iterable[int] = range(len(self.saver.p2m.mfns))
        while True:
            count = self._round(dirty, live=True)
            outcome = self.dom.run_for(count * _NS_PER_PAGE / 1e9)
            if outcome is not None:
                raise SavedError(
                    f"the guest was to be moved, and stopped: {outcome}", where=Where(self.address)
                )
            found = self._dirty(mark)
            if len(found) < SPP_TARGET_DIRTY_COUNT or len(self.rounds) >= SPP_MAX_ITERATIONS:
                break
            dirty, mark = found, self.pages.set_mark()
        suspend(self.dom)
        stopped = time.monotonic()
        check_devices(self.machine)
        self._check_p2m(guest_p2m(self.machine))
        self._round(sorted({*self._dirty(mark), *self.saver.deferred}), live=False)
        self._write(self.saver.end())
        self._hand_over()
        now = time.monotonic()
        self.dom.close()
        return Migration(tuple(self.rounds), self.sent_bytes, now - started, now - stopped)

    def keep(self) -> None:
        """The guest goes on here, if it had suspended. Raises OSError where its disks are not to be had."""
        if not self.has_disks:
            self.machine.devices.reopen_disks()
        outcome = self.dom.outcome
        if not self.dom.closed and outcome is not None and outcome.reason == "suspend":
            self.dom.resume()

    def _round(self, pfns: Iterable[int], *, live: bool) -> int:
        todo = list(pfns)
        if live:
            self.saver.deferred.difference_update(todo)
        for pfn in todo:
            self.sent_types[pfn] = self.saver.type_of(pfn)
        self._write(self.saver.pages(todo, live=live))
        self.rounds.append(len(todo))
        return len(todo)

    def _dirty(self, mark: object) -> list[int]:
        """The frames that were written since the mark, or are of another type than when they were sent.

        A table that is one no longer, or is one now, counts as written: alloc_page_type() marks it so.
        """
        mem, mfns, m2p = self.machine.mem, self.saver.p2m.mfns, self.saver.m2p
        found = {pfn for pfn, kind in enumerate(self.sent_types) if self.saver.type_of(pfn) != kind}
        runs = self.pages.written(mark)  # type: ignore[arg-type]
        for start, end in runs if runs is not None else [(0, len(mem.view))]:
            for mfn in range(mem.base_mfn + (start >> PAGE_SHIFT), mem.base_mfn + (end >> PAGE_SHIFT)):
                pfn = m2p[mfn]
                if pfn < len(mfns) and mfns[pfn] == mfn:
                    found.add(pfn)
        return sorted(found)

    def _check_p2m(self, now: P2m) -> None:
        before = self.saver.p2m
        if now.frames != before.frames or len(now.mfns) != len(before.mfns):
            raise SavedError("p2m generation count changed. Migration aborted.", where=Where(self.address))
        self.saver.p2m = now

    def _write(self, pieces: Iterable[bytes]) -> None:
        waiting, size = [], 0
        for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if size >= _PIECE:
                self.sock.sendall(b"".join(waiting))
                waiting, size, self.sent_bytes = [], 0, self.sent_bytes + size
        self.sock.sendall(b"".join(waiting))
        self.sent_bytes += size

    def _hand_over(self) -> None:
        """Hear that the other side has the domain, let go of its disks, and have it go on there."""
        self.sock.settimeout(_ANSWER_SECONDS)
        self._hear(_READY, "has not taken the domain")
        self._let_go_of_disks()
        self.sock.sendall(_GO)
        self.sock.settimeout(None)  # from here on the domain is there, unless that process says no, or ends
        self._hear(_HERE, "could not go on with the domain")

    def _let_go_of_disks(self) -> None:
        devices = self.machine.devices
        try:
            devices.flush_disks()
        except OSError as error:
            raise SavedError(f"a disk cannot be written: {error}", where=Where(self.address)) from error
        self.has_disks = False
        devices.close_disks()

    def _hear(self, expected: bytes, otherwise: str) -> None:
        answer = self.answers.readline(1000)
        if answer != expected:
            why = answer.decode("utf-8", "replace").strip() or "no answer"
            raise SavedError(f"the other side {otherwise}: {why}", where=Where(self.address))

    def last_word(self) -> str:
        """Why the other side has gone, if it has said so."""
        self.sock.settimeout(_LAST_WORD_SECONDS)
        with suppress(OSError):
            return self.answers.readline(1000).decode("utf-8", "replace").strip()
        return ""


# --- to here ------------------------------------------------------------------------------------------------


def receive(address: str, started: float, options: Chosen) -> RunningDomain:
    """Listen at `address` for one domain, and take it over, ready to go on here.

    `options.timeout` is for the waiting, too. Raises SavedError for a stream that is none, or a sender that
    does not come, or thinks better of it.
    """
    with _accepted(address, options.timeout) as sock, sock.makefile("rb") as file:
        sock.settimeout(options.timeout or _ANSWER_SECONDS)
        restorer = Restorer(address, options.parsed_disks, options.parsed_vifs, disks_follow=True)
        try:
            read_stream(Source(address, file.read), restorer)
            dom = received(restorer, started, options)
        except SavedError as error:
            _say(sock, error.reason)
            raise
        except TimeoutError:
            raise SavedError("the sender says nothing more", where=Where(address)) from None
        try:
            _take_over(sock, file, address)
            restorer.open_disks(dom.machine)
        except BaseException as error:
            _say(sock, str(error))
            dom.close()
            raise
        _say(sock, _HERE.decode())
        return dom


def _take_over(sock: socket.socket, file: BinaryIO, address: str) -> None:
    """The domain is ready here: hear that it is to go on. Raises SavedError."""
    with suppress(OSError):
        sock.sendall(_READY)
        if file.readline(100) == _GO:
            return
    raise SavedError("the sender has kept the domain", where=Where(address))


def _say(sock: socket.socket, line: str) -> None:
    """One line to the sender, if that is still there."""
    with suppress(OSError):
        sock.sendall(f"{' '.join(line.split())[:900]}\n".encode())


def _accepted(address: str, timeout: float | None) -> socket.socket:
    path = Path(address.removeprefix(SOCKET_PREFIX))
    if path.exists():  # whoever listens there takes one sender: it must not be asked
        raise SavedError(f"cannot listen: {os.strerror(errno.EADDRINUSE)}", where=Where(address))
    try:
        listener = listen_at(os.fspath(path))
    except OSError as error:
        raise SavedError(f"cannot listen: {error.strerror or error}", where=Where(address)) from error
    with listener:
        listener.settimeout(timeout)
        try:
            return listener.accept()[0]
        except TimeoutError:
            raise SavedError("no domain has come", where=Where(address)) from None
        finally:
            path.unlink(missing_ok=True)
