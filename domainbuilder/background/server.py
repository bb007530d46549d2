"""The process of a domain in the background: it runs the domain, and does what its socket is asked for.

Requests are looked at between two instructions of the guest, and done where it is at rest, which it does not
notice; what reaches it (input, nodes of the store) arrives there. An idle guest waits in real time, and takes
none of the processor's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from domainbuilder.background.runtime import Place
from domainbuilder.background.verbs import VERBS, Refused
from domainbuilder.background.wire import MOST_BYTES, line, read_line
from domainbuilder.errors import BuildError
from domainbuilder.launch.create import action_of, booted
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.options import vifs_of
from domainbuilder.launch.unix_socket import Peer
from domainbuilder.launch.waiting import Ends
from domainbuilder.xl.config_json import parse_json
from domainbuilder.xl.config_syntax import Source, parse
from domainbuilder.xl.domain_config import DomainConfig, read_config

if TYPE_CHECKING:
    from domainbuilder.launch.session import Outcome

MOST_CLIENTS = 32
_MOST_WAITING = 1 << 20  # bytes of output that nobody has taken: LIBXL_XENCONSOLE_LIMIT
_MOST_TYPED = 2048  # bytes that the guest has not read yet, beyond which nothing more is read
_PIECE = 1024
_MOST_CONFIG = 4 << 20
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
            client.send(line({"error": " ".join(str(error).split())}))
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


def main(descriptor: int) -> None:
    """Run the domain that the socket `descriptor` tells of; say there whether it could be started."""
    signal.signal(signal.SIGTERM, _end)
    sock = socket.socket(fileno=descriptor)
    try:
        told, _ = read_line(sock, _MOST_CONFIG)
        config = _config(told)
        place = Place(config.name)
    except (BuildError, OSError) as error:
        sock.sendall(line({"error": _reason(error)}))
        return
    server = Server(place, config)
    server.is_paused = bool(told["paused"])

    def say(answer: dict[str, Any]) -> None:
        with suppress(OSError):  # once only, and whoever asked may be gone
            sock.sendall(line(answer))
        sock.close()

    try:
        _live(server, config, lambda: say({"ok": server.place.id}), cache=bool(told["cache"]))
    except (BuildError, OSError) as error:
        say({"error": _reason(error)})
        _log(_reason(error))
    finally:
        server.leave()
        place.leave()


def _config(told: dict[str, Any]) -> DomainConfig:
    source = Source("configuration", json.dumps(told["config"]))
    config = read_config(source.name, parse([], parse_json(source))).config
    return config.with_snapshots() if told["snapshot"] else config


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _reason(error: BuildError | OSError) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return " ".join(str(error).split())


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _live(server: Server, config: DomainConfig, started: Callable[[], None], *, cache: bool) -> None:
    """The domain from its start to its end, and again where its configuration says so."""
    while not server.end:
        with booted(config) as (kernel, ramdisk, cmdline):
            dom = launch(
                kernel, config.memory, ramdisk=ramdisk, cmdline=cmdline, vcpus=config.vcpus,
                cap=config.cap if config.cap <= 100 else 0, disks=config.disks,
                vifs=vifs_of(config.vif_texts), name=config.name, console_output=server.printed, cache=cache,
            )  # fmt: skip
        with dom:
            started()
            _log(f"{config.name} is domain {server.place.id}, process {os.getpid()}")
            outcome = server.run(dom)
            if outcome is None:
                _log(f"{config.name} was {server.end}")
                return
            _log(f"{config.name}: {outcome}")
            if outcome.report is not None:
                from domainbuilder.launch.crash_text import render_crash

                sys.stderr.write(render_crash(outcome.report))
            action = action_of(config, outcome.reason)
            if action.startswith("coredump"):
                dom.dump_core(f"{config.name}.core")
            if action == "preserve":
                server.keep(outcome)
            if not action.endswith("restart"):
                return
            _log(f"{config.name} is started again")
