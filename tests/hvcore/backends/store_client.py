"""A guest's end of the store's ring, for tests."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hvcore.backends.libxl_nodes import Rings, add_domain
from hvcore.backends.xenstore import XenstoreBackend
from hvcore.backends.xenstored import Xenstored
from hvcore.common.event_channel import evtchn_send
from hvcore.public import xs_wire as xs
from tests.hvcore.conftest import Guest

REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD, ERROR = 2048, 2052, 2056, 2060, 2072


class Client:
    """The guest's end of the ring."""

    def __init__(self, guest: Guest, store: Xenstored | None = None) -> None:
        self.guest = guest
        self.ring = guest.memory(6)
        self.daemon = store or Xenstored(guest.d.domain_list.__contains__)
        add_domain(self.daemon, guest.d, "guest", Rings(0x100, 1, 0x101, 2))
        self.store = XenstoreBackend(self.ring, guest.d, self.daemon)
        self.port = self.store.connect(guest.d.domain_list[0])
        self.daemon.introduce(guest.d.domain_id, self.store)
        self.received = b""

    def index(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.ring, at)[0])

    def post(self, data: bytes) -> None:
        """Put bytes into the ring, notifying whenever it is full."""
        while data:
            cons, prod = self.index(REQ_CONS), self.index(REQ_PROD)
            room = 1024 - (prod - cons & 0xFFFFFFFF)
            for i, byte in enumerate(data[:room]):
                self.ring[(prod + i) % 1024] = byte
            struct.pack_into("<I", self.ring, REQ_PROD, prod + min(room, len(data)) & 0xFFFFFFFF)
            data = data[room:]
            evtchn_send(self.guest.d.evtchn, self.port)
            self.take()

    def take(self) -> None:
        while (prod := self.index(RSP_PROD)) != (cons := self.index(RSP_CONS)):
            size = prod - cons & 0xFFFFFFFF
            assert size <= 1024
            self.received += bytes(self.ring[1024 + (cons + i) % 1024] for i in range(size))
            struct.pack_into("<I", self.ring, RSP_CONS, prod)
            evtchn_send(self.guest.d.evtchn, self.port)

    def messages(self) -> Iterator[tuple[int, int, int, bytes]]:
        while len(self.received) >= 16:
            kind, req, tx, length = struct.unpack_from("<4I", self.received)
            yield kind, req, tx, self.received[16 : 16 + length]
            self.received = self.received[16 + length :]

    def ask(self, kind: int, payload: bytes, tx: int = 0) -> tuple[bytes | str, list[tuple[bytes, bytes]]]:
        """The answer (the name of the error as str) and the events that came with it."""
        self.post(struct.pack("<4I", kind, 5, tx, len(payload)) + payload)
        answers, events = [], []
        for got, req, tx_id, data in self.messages():
            if got == xs.XS_WATCH_EVENT:
                path, token, end = data.split(b"\0")
                assert end == b""
                events.append((path, token))
            else:
                assert (req, tx_id) == (5, tx)
                assert got in (kind, xs.XS_ERROR)
                answers.append(data[:-1].decode() if got == xs.XS_ERROR else data)
        assert len(answers) == 1
        return answers[0], events


def ask(client: Client, kind: int, payload: bytes, tx: int = 0) -> bytes | str:
    return client.ask(kind, payload, tx)[0]
