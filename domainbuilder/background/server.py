"""Who serves a domain in the background: it runs the domain, and does what its socket is asked for.

Requests are looked at between two instructions of the guest, and done where it is at rest, which it does not
notice; what reaches it (input, nodes of the store) arrives there. An idle guest waits in real time, and takes
none of the processor's.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from domainbuilder.background.runtime import Place
from domainbuilder.background.verbs import VERBS, Refused
from domainbuilder.background.wire import MOST_BYTES, line
from domainbuilder.errors import BuildError, one_line
from domainbuilder.launch.domain import RunningDomain
from domainbuilder.launch.unix_socket import Peer
from domainbuilder.launch.waiting import Ends
from domainbuilder.xl.domain_config import DomainConfig

if TYPE_CHECKING:
    from domainbuilder.launch.session import Outcome

MOST_CLIENTS = 32
_MOST_WAITING = 1 << 20  # bytes of output that nobody has taken: LIBXL_XENCONSOLE_LIMIT
_MOST_TYPED = 2048  # bytes that the guest has not read yet, beyond which nothing more is read
_PIECE = 1024
_UCRED = struct.Struct("3i")


class Client(Peer):
    """Somebody who is connected. `is_console`: what comes is typed, and what the guest prints goes out."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.is_console = False
        self.request = bytearray()
        self.out = bytearray()

    def send(self, data: bytes) -> None:
        """Have `data` sent as the other end takes it; one who takes none for too long is dropped."""
        self.out += data
        self.flush()
        if len(self.out) > _MOST_WAITING:
            self.close()

    def flush(self) -> None:
        """Send what the other end takes now."""
        while self.out and (taken := self.give(self.out)):
            del self.out[:taken]


class Server:
    """One domain, the place it has, and who talks to it. For the runner it is the domain's input."""

    real_time = True
    open = True

    def __init__(self, place: Place, config: DomainConfig) -> None:
        self.place = place
        self.config = config
        self.dom: RunningDomain | None = None
        self.started = time.time()
        self.is_paused = False
        self.end = ""  # why the domain ends though it does not do so by itself
        self.ended: Outcome | None = None
        self._clients: list[Client] = []
        self._unseen = bytearray()  # what the guest printed while nobody looked
        self.detached = False  # somebody wants something

    # -- what the runner asks: see launch/session.py's Input

    def ends(self) -> Ends[Client | socket.socket]:
        """Where somebody comes, asks, types, or takes what is for him."""
        self._clients = [client for client in self._clients if not client.is_gone]
        full = self.dom is None or self.dom.machine.pending_input >= _MOST_TYPED
        asking = [one for one in self._clients if not (one.is_console and full)]
        return Ends([*asking, self.place.listener], [one for one in self._clients if one.out])

    def read(self) -> bytes:
        """Where somebody wants something, the runner is to come to rest."""
        self.detached = bool(self._ready(0.0))
        return b""

    def printed(self, data: bytes) -> None:
        """The guest printed `data`."""
        consoles = [client for client in self._clients if client.is_console and not client.is_gone]
        for client in consoles:
            client.send(data)
        if not consoles:
            self._unseen += data
            del self._unseen[:-_MOST_WAITING]

    def renamed(self, name: str, uuid: str | None = None) -> None:
        """The domain has that name, and that UUID where there is one: libxl__domain_rename()."""
        assert self.dom is not None
        self.config = replace(self.config, name=name)
        store = self.dom.machine.xenstore
        if uuid is not None:
            store.write("vm", f"/vm/{uuid}")
            store.write(f"/vm/{uuid}/uuid", uuid)
        store.write("name", name)
        store.write(f"{store.read('vm')}/name", name)

    # -- the loop

    def run(self, dom: RunningDomain) -> Outcome | None:
        """Run the domain until it ends, and how; None where it was destroyed."""
        self.dom, self.ended = dom, None
        dom.attach(self)
        while not self.end:
            outcome = None if self.is_paused else dom.wait()
            if outcome is not None and outcome.ended:
                return outcome
            self.serve(wait=self.is_paused)
        return None

    def keep(self, outcome: Outcome) -> None:
        """The domain is over and is kept as it is, until somebody destroys it."""
        self.ended = outcome
        while not self.end:
            self.serve(wait=True)

    def serve(self, *, wait: bool) -> None:
        """Do what is asked for; `wait` until something is."""
        for one in self._ready(None if wait else 0.0):
            if isinstance(one, Client):
                one.flush()
                self._hear(one)
            else:
                self._accept()
        self.detached = False

    def _ready(self, seconds: float | None) -> list[Client | socket.socket]:
        ends = self.ends()
        more, room, _ = select.select(ends.readers, ends.writers, [], seconds)
        return list(dict.fromkeys([*more, *room]))

    def _accept(self) -> None:
        try:
            sock, _ = self.place.listener.accept()
        except OSError:  # gone again
            return
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(raw)[1] not in (os.getuid(), 0):
            sock.close()
            return
        client = Client(sock)
        self._clients = [one for one in self._clients if not one.is_gone]
        if len(self._clients) >= MOST_CLIENTS:
            client.send(line({"error": "too many are connected to this domain"}))
            client.close()
            return
        self._clients.append(client)

    def _hear(self, client: Client) -> None:
        data = client.take(_PIECE)
        if client.is_console:
            if data and self.dom is not None and self.ended is None:
                self.dom.send(data)
            return
        client.request += data
        while b"\n" in client.request and not client.is_console and not client.is_gone:
            text, _, rest = bytes(client.request).partition(b"\n")
            client.request = bytearray(rest)
            self._answer(client, text)
        if len(client.request) > MOST_BYTES:
            client.send(line({"error": f"a request of more than {MOST_BYTES} bytes"}))
            client.close()

    def _answer(self, client: Client, text: bytes) -> None:
        try:
            value = self._do(text)
        except (Refused, BuildError, RuntimeError, ValueError) as error:  # of a path with a NUL, for one
            client.send(line({"error": one_line(error)}))
            return
        except OSError as error:
            client.send(line({"error": f"{error.filename or 'the domain'}: {error.strerror or error}"}))
            return
        client.send(line({"ok": value}))
        if value == "console":
            client.is_console = True
            client.send(bytes(self._unseen))
            self._unseen.clear()
            typed, client.request = bytes(client.request), bytearray()
            if typed and self.dom is not None and self.ended is None:
                self.dom.send(typed)

    def _do(self, text: bytes) -> Any:
        try:
            request = json.loads(text)
            verb = VERBS[request.pop("do")]
        except (ValueError, RecursionError, LookupError, AttributeError, TypeError):
            raise Refused("no request of this protocol") from None
        return verb.do(self, **verb.checked(request))

    def leave(self) -> None:
        """Nobody is served any more."""
        for client in self._clients:
            client.sock.setblocking(True)
            client.sock.settimeout(1.0)
            client.flush()
            client.close()
