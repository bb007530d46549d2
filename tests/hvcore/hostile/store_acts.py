"""What a domain or a tool can do wrong with xenstore: requests of any kind and length, and the ring."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.backends.xenstore_tools import ToolConnection
from hvcore.public.xs_wire import (
    XENSTORE_REQ,
    XENSTORE_REQ_CONS,
    XENSTORE_REQ_PROD,
    XENSTORE_RING_SIZE,
    XENSTORE_RSP_CONS,
    XENSTORE_RSP_PROD,
    xsd_sockmsg,
)

if TYPE_CHECKING:
    from tests.hvcore.hostile.frontends import Hostile

_NODES = (
    b"device/vbd/51712/state", b"device/vbd/51712/ring-ref", b"device/vif/0/state",
    b"device/vif/0/feature-sg", b"data", b"data/a", b"data/a/b/c", b"device", b"/local/domain/2",
    b"/local/domain/0/backend/vbd/1/51712/state", b"/local/domain/2/data", b"/", b"name", b"memory/target",
    b"control/shutdown", b"@releaseDomain", b"@introduceDomain", b"/vm", b"/libxl",
    b"//", b"", b"data/" + b"x" * 300, b"error", b"console/state", b"/tool",
)  # fmt: skip
_KINDS = (*range(26), 1, 2, 3, 4, 6, 7, 7, 11, 11, 11, 12, 13, 14, 22)
_LENGTHS = (0, 1, 16, 4096, 4097, 0x7FFFFFFF, 0xFFFFFFFF)
_PERMS = (b"n1\0", b"n1\0r2\0", b"b0\0", b"r1\0n0\0", b"x9\0", b"n99999999999\0", b"n1\0" * 9, b"\0")


class StoreRing:
    """The domain's ring of the store."""

    def __init__(self, hostile: Hostile) -> None:
        self.h = hostile
        self.backend = hostile.side.w.machine.xenstore
        self.ring = self.backend.ring  # the guest's own page
        self.port = self.backend.port
        self.rest = bytearray()  # of requests that found no room yet

    def requests(self) -> None:
        """A few requests that are whole, of any kind and about anything."""
        for _ in range(1 + int(self.h.random() * 4)):
            if self.h.random() < 0.9:
                self.take()
            self._post(request(self.h))

    def pieces(self) -> None:
        """A request that comes in pieces, other things between."""
        self.rest += request(self.h)
        self._post(b"", most=1 + int(self.h.random() * len(self.rest)))

    def flood(self) -> None:
        """The same request for as long as it is taken."""
        data = request(self.h)
        for _ in range(40 if len(self.rest) < 8192 else 0):
            self._post(data)
            if self.h.random() < 0.5:
                self.take()

    def ruin(self) -> None:
        """Break the ring, or the protocol: xenstored listens no more."""
        h = self.h
        if h.random() < 0.5:
            at = h.pick((XENSTORE_REQ_PROD, XENSTORE_REQ_CONS, XENSTORE_RSP_PROD, XENSTORE_RSP_CONS))
            struct.pack_into("<I", self.ring, at, h.odd_word())
            h.side.notify(self.port)
        else:
            self._post(xsd_sockmsg.pack(2, 1, 0, h.pick(_LENGTHS[3:])))

    def take(self) -> None:
        """Take what was answered, unread."""
        (prod,) = struct.unpack_from("<I", self.ring, XENSTORE_RSP_PROD)
        struct.pack_into("<I", self.ring, XENSTORE_RSP_CONS, prod)
        self.h.side.notify(self.port)

    def _post(self, data: bytes, most: int = XENSTORE_RING_SIZE) -> None:
        """Put what there is room for into the ring; what is left goes first the next time."""
        self.rest += data
        prod, cons = (
            struct.unpack_from("<I", self.ring, at)[0] for at in (XENSTORE_REQ_PROD, XENSTORE_REQ_CONS)
        )
        size = min(max(XENSTORE_RING_SIZE - (prod - cons & 0xFFFFFFFF), 0), most, len(self.rest))
        for i, byte in enumerate(self.rest[:size]):
            self.ring[XENSTORE_REQ + (prod + i) % XENSTORE_RING_SIZE] = byte
        del self.rest[:size]
        struct.pack_into("<I", self.ring, XENSTORE_REQ_PROD, prod + size & 0xFFFFFFFF)
        self.h.side.notify(self.port)
        self.h.counts["store bytes"] += size


def request(h: Hostile) -> bytes:
    """Header and payload of a request."""
    r = h.random
    kind = h.pick(_KINDS) if r() < 0.95 else h.odd_word()
    payload = h.pick(_NODES) + (b"\0" if r() < 0.95 else b"")
    if kind in (11, 4, 5, 15, 16):  # write, watch, unwatch, and those with words behind
        payload += h.pick((b"1", b"token\0", b"6\0", b"", h.odd_text(), bytes(2000)))
    elif kind == 14:
        payload += h.pick(_PERMS)
    elif kind == 7:
        payload = h.pick((b"T\0", b"F\0", b"T\0", b"X\0", b""))
    if r() < 0.02:
        payload = h.rng.randbytes(int(r() * 200))
    started = tuple(h.store.backend.transactions)
    transaction = h.pick(started) if started and r() < 0.4 else 0 if r() < 0.9 else int(r() * 12)
    return xsd_sockmsg.pack(kind, h.id() & 0xFFFFFFFF, transaction, len(payload)) + payload


class Tool:
    """A tool of domain 0's that is no better, but leaves what domains are made of alone."""

    def __init__(self, hostile: Hostile) -> None:
        self.h = hostile
        self.connection = ToolConnection(hostile.side.w.machine.host.xenstored)

    def requests(self) -> None:
        """As a domain's; one that is too long ends the connection, as the socket's owner does."""
        h, connection = self.h, self.connection
        data = request(h)
        kind = int.from_bytes(data[:4], "little")
        if kind in (11, 12, 13, 14):  # it writes, and may: below a place of its own alone
            data = xsd_sockmsg.pack(kind, 1, 0, 12) + b"/tool/x\0" + h.pick((b"1234", b"n0\0\0", b"a\0b\0"))
        connection.feed(data if h.random() < 0.95 else data[:-1])
        try:
            while (whole := connection.next_request()) is not None:
                connection.answer(whole)
                h.counts["tool"] += 1
        except ValueError:
            self.close()
            self.connection = ToolConnection(connection.store)
        if h.random() < 0.8:
            connection.sent(sum(map(len, connection.pieces())))
        if connection.is_behind:
            self.close()
            self.connection = ToolConnection(connection.store)

    def close(self) -> None:
        self.connection.close()
