"""xenstored's socket for a domain that runs: xenstore-ls, xenstore-write and their kin talk to its store.

    with launch("vmlinuz", memory_mib=256) as dom, dom.serve_xenstore("/tmp/guest.xs"):
        dom.wait()                  # meanwhile: XENSTORED_PATH=/tmp/guest.xs xenstore-ls

Tools are served while the domain runs: what only reads at once, what changes something where the guest stands
between two blocks of its code. The guest sees what they write, and nothing else of them.
"""

from __future__ import annotations

import select
import socket
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from domainbuilder.closing import Closing
from domainbuilder.errors import BuildError, Where
from domainbuilder.launch.unix_socket import Peer, listen_at
from domainbuilder.launch.waiting import Ends
from hvcore.backends.xenstore_tools import ToolConnection, ToolRequest
from hvcore.debug.periodic import Periodic

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hvcore.machine import Machine

_POLL_NS = 10_000_000  # of the guest's time: how often a running domain looks for tools
_MOST_CLIENTS = 32
_MOST_REQUESTS = 256  # at a time; the others are answered when the guest has run on
_LINGER = 0.001  # seconds that a tool has for its next request before the guest runs on
_CHUNK = 8192
_MOST_UNREAD = 65536  # bytes: a tool that has not taken so many is not listened to


def socket_path(text: str) -> str:
    """The path of `unix:PATH`, or of PATH. Raises BuildError."""
    path = text.removeprefix("unix:")
    if not path:
        raise BuildError("--xenstore wants unix:PATH", found=text)
    return path


class Served(Protocol):
    """What the server wants of a domain's holder, which is RunningDomain."""

    machine: Machine

    def check_nobody_repeats(self, what: str) -> None:
        """Raise BuildError for a run that is to be had again from its input alone."""

    def watching(self, timer: Periodic) -> AbstractContextManager[None]:
        """Let `timer` look while the block lasts."""

    def serve_tools(self, server: XenstoreServer | None) -> None:
        """Have tools heard while the domain is idle."""


class _Client(Peer):
    """A tool that is connected. `is_waiting`: for a request to be answered where the guest stands."""

    def __init__(self, sock: socket.socket, connection: ToolConnection) -> None:
        super().__init__(sock)
        self.connection = connection
        self.is_waiting = False

    @property
    def is_heard(self) -> bool:
        """Whether more may come from it: it has nothing to wait for, and takes what it is told."""
        return not self.is_waiting and sum(map(len, self.connection.pieces())) < _MOST_UNREAD

    def receive(self) -> None:
        """Take what has come."""
        data = self.take(_CHUNK)
        if data:
            self.connection.feed(data)

    def flush(self) -> None:
        """Send what it takes now; who takes nothing for too long is dropped."""
        while self.connection.out and not self.is_gone:
            taken = self.give(next(self.connection.pieces()))
            if taken:
                self.connection.sent(taken)
            elif self.connection.is_behind:
                self.close()
            else:
                break

    def close(self) -> None:
        """See Peer."""
        if not self.is_gone:
            self.connection.close()
        super().close()


class XenstoreServer(Closing):
    """A socket at `path` for the store of a domain's host, as long as the block lasts, or the domain.

    Raises BuildError where nobody can listen there, and for a run that is recorded, replayed or has a past
    kept: what tools write is not part of those.
    """

    def __init__(self, dom: Served, path: str) -> None:
        dom.check_nobody_repeats("tools write to the store")
        self._dom = dom
        self.path = path
        try:
            self._listener = listen_at(path)
        except (OSError, UnicodeError, ValueError) as error:
            message = f"xenstore's tools cannot be listened for: {error}"
            raise BuildError(message, where=Where(path)) from error
        self._listener.setblocking(False)
        self._clients: list[_Client] = []
        self._left = _MOST_REQUESTS
        self._watching = ExitStack()
        periodic = Periodic(dom.machine, "xenstore", _POLL_NS, self._poll, before_idle=True)
        self._watching.enter_context(dom.watching(periodic))
        dom.serve_tools(self)

    def close(self) -> None:
        """Nobody is served any more, and the socket is gone."""
        if self._listener.fileno() >= 0:
            self.forsake()
            with suppress(OSError):
                Path(self.path).unlink()

    def forsake(self) -> None:
        """Let go of the socket, which is another process's too."""
        self._watching.close()
        self._dom.serve_tools(None)
        self._listener.close()
        for client in self._clients:
            client.close()
        self._clients.clear()

    @property
    def has_clients(self) -> bool:
        """Whether somebody is connected."""
        return bool(self._clients)

    # -- while the domain is idle

    def ends(self) -> Ends[socket.socket | _Client]:
        """Where tools come, ask, and take their answers."""
        return Ends(self._readable(), self._writable())

    def _readable(self) -> list[socket.socket | _Client]:
        return [self._listener, *(client for client in self._clients if client.is_heard)]

    def _writable(self) -> list[_Client]:
        return [client for client in self._clients if client.connection.out]

    # -- while it runs

    def _poll(self) -> None:
        """Look who has come, and what is wanted."""
        self._left = _MOST_REQUESTS
        self._serve(0.0)

    def _serve(self, seconds: float) -> None:
        """Answer until nobody asks for so long, or the guest is to run on."""
        while self._left > 0:
            came, able, _ = select.select(self._readable(), self._writable(), [], seconds)
            if not came and not able:
                break
            for one in came:
                if isinstance(one, _Client):
                    one.receive()
                    self._answer(one)
                else:
                    self._accept()
            for client in able:
                client.flush()
                self._answer(client)
            self._drop_gone()
            seconds = _LINGER

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= _MOST_CLIENTS:
            sock.close()
            return
        self._clients.append(_Client(sock, ToolConnection(self._dom.machine.xenstore.store)))

    def _answer(self, client: _Client) -> None:
        """Answer what it has asked; what a guest may notice, where that stands."""
        while client.is_heard and not client.is_gone:
            try:
                request = client.connection.next_request()
            except ValueError:
                client.close()
                return
            if request is None:
                break
            self._left -= 1
            if request.is_unseen:
                client.connection.answer(request)
                client.flush()
            else:
                client.is_waiting = True
                self._dom.machine.host.ask(partial(self._change, client, request))

    def _change(self, client: _Client, request: ToolRequest) -> None:
        """The guest stands."""
        client.is_waiting = False
        if client.is_gone:
            return
        client.connection.answer(request)
        for one in list(self._clients):
            one.flush()
        self._answer(client)
        self._drop_gone()
        self._serve(_LINGER)

    def _drop_gone(self) -> None:
        self._clients = [client for client in self._clients if not client.is_gone]
