"""The line to GDB: where it is listened for, and packets as they come and go over a socket."""

from __future__ import annotations

import ipaddress
import re
import select
import socket
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from domainbuilder.errors import BuildError, Where
from domainbuilder.launch.unix_socket import listen_at
from hvcore.debug.gdb.packets import Acknowledged, Damaged, Interrupted, Packet, PacketReader, packet

_CHUNK = 1 << 16
_MOST_WAITING = 256  # packets of a client that does not wait for answers
_SEND_TIMEOUT = 10  # seconds
_PORT = re.compile(r"(?:(?P<host>\[[^\]]*\]|[^:\[\]]*):)?(?P<port>[0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a unix socket, or a TCP port of a host's."""

    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_local(self) -> bool:
        """Whether nobody from outside of this machine gets there."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """As GDB's `target remote` takes it."""
        return self.path if self.path is not None else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`PORT`, `HOST:PORT` or `unix:PATH`; other text is the path of a unix socket. Raises BuildError."""
    match = _PORT.match(text)
    if match is not None:
        port = int(match["port"])
        if port > 0xFFFF:
            raise BuildError("that is no TCP port", found=match["port"], expected="0-65535")
        return Address(host=match["host"] or "127.0.0.1", port=port)
    path = text.removeprefix("unix:")
    if not path:
        raise BuildError("--gdb wants [HOST:]PORT or unix:PATH", found=text)
    return Address(path=path)


def _listen(address: Address) -> socket.socket:
    """A listening socket; that of a path is for its owner alone (mode 0600)."""
    try:
        if address.path is None:
            host = address.host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, address.port))
            listener.listen(1)
        else:
            return listen_at(address.path)
    except (OSError, OverflowError, UnicodeError, ValueError) as error:
        raise BuildError(f"GDB cannot be listened for: {error}", where=Where(str(address))) from error
    return listener


class GdbLine:
    """One GDB at a time, of those that come to an address. `wants_no_acks`: it has said so.

    `interrupted` is set by Ctrl-C, and cleared by who obeys it.
    """

    def __init__(self, address: Address) -> None:
        self._listener = _listen(address)
        port = self._listener.getsockname()[1] if address.path is None else 0
        self.address = address if address.path is not None else Address(host=address.host, port=port)
        self._client: socket.socket | None = None
        self._reader = PacketReader()
        self._waiting: deque[bytes] = deque()
        self._last = b""
        self.interrupted = False
        self.wants_no_acks = False

    def close(self) -> None:
        """Listen no more."""
        self.hang_up()
        self._listener.close()
        if self.address.path is not None:
            with suppress(OSError):
                Path(self.address.path).unlink()

    @property
    def is_up(self) -> bool:
        """Whether there is a GDB."""
        return self._client is not None

    @property
    def has_packets(self) -> bool:
        """Whether next_packet() has one."""
        return bool(self._waiting)

    def next_packet(self) -> bytes | None:
        """What GDB has said first of what was not taken yet."""
        return self._waiting.popleft() if self._waiting else None

    def receive(self, seconds: float) -> bool:
        """Take what comes within so many seconds, a GDB or something of its; whether something did."""
        source = self._client or self._listener
        try:
            if not select.select([source], [], [], seconds)[0]:
                return False
            if self._client is None:
                self._accept()
                return True
            data = self._client.recv(_CHUNK)
        except (OSError, ValueError):
            data = b""
        if not data:
            self.hang_up()
            return True
        for item in self._reader.feed(data):
            self._take(item)
        return True

    def _accept(self) -> None:
        self._client, _ = self._listener.accept()
        if self._client.family != socket.AF_UNIX:
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.settimeout(_SEND_TIMEOUT)
        self._reader = PacketReader()
        self._waiting.clear()
        self.interrupted = self.wants_no_acks = False

    def _take(self, item: Packet | Damaged | Acknowledged | Interrupted) -> None:
        acknowledges = not self.wants_no_acks
        if isinstance(item, Packet):
            if acknowledges:
                self._write(b"+")
            if len(self._waiting) >= _MOST_WAITING:
                self.hang_up()
            else:
                self._waiting.append(item.data)
        elif isinstance(item, Damaged):
            if acknowledges:
                self._write(b"-")
        elif isinstance(item, Acknowledged):
            if not item.good and acknowledges:
                self._write(self._last)
        else:
            self.interrupted = True

    def send(self, data: bytes) -> None:
        """Answer GDB, or tell it of a stop."""
        self._last = packet(data)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        if self._client is None:
            return
        try:
            self._client.sendall(data)
        except OSError:
            self.hang_up()

    def hang_up(self) -> None:
        """Send GDB away, or note that it has gone."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        self._waiting.clear()
        self.interrupted = False
