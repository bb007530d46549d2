"""What the frontend of a disk can do wrong: requests, indirect pages, rings, features that say anything."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.public.blkif import BLKIF_RING_ENTRY
from hvcore.public.protocols import XEN_IO_PROTO_ABI
from hvcore.public.xenbus import XenbusStateConnected
from tests.hvcore.hostile.frontend_side import REF, Ring

if TYPE_CHECKING:
    from hvcore.backends.block import BlockBackend
    from tests.hvcore.hostile.frontends import Hostile

_OPERATIONS = (0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 4, 5, 6, 7, 255)
_COUNTS = (0, 1, 1, 1, 2, 2, 3, 8, 11, 11, 12, 255)
_INDIRECT_COUNTS = (0, 1, 1, 2, 11, 12, 32, 255, 256, 257, 512, 65535)
_ORDERS = (None, None, 0, 1, 2, 4, 5, 64, -1)
_MAX_U64 = (1 << 64) - 1


class Vbd:
    """One disk as its frontend has it; its ring is in pages from `page` on."""

    def __init__(self, hostile: Hostile, device: BlockBackend, page: int) -> None:
        self.h = hostile
        self.device = device
        self.page = page
        self.port = 0
        self.word = hostile.side.w.abi.word
        self.ring = Ring(hostile.side, page, BLKIF_RING_ENTRY[self.word])

    def connect(self) -> None:
        """Through the states to a ring again, most of the time as it should be."""
        h, r = self.h, self.h.random
        h.side.tell(self.device, state=6)
        h.side.tell(self.device, state=1)
        h.side.close_port(self.port)
        self.port = h.side.open_port()
        order = h.pick(_ORDERS) if r() < 0.3 else h.pick((None, 0, 1, 2))
        self.word = h.pick((4, 8))
        pages = 1 << (order or 0) if order in (None, 0, 1, 2) else 1
        self.ring = Ring(h.side, self.page, BLKIF_RING_ENTRY[self.word], pages)
        nodes: dict[str, object] = {"ring_ref": REF + self.page}
        if order is not None:
            nodes = {"ring_page_order": order}
            nodes |= {f"ring_ref{i}": REF + self.page + i for i in range(pages)}
        nodes |= {"event_channel": self.port, "protocol": XEN_IO_PROTO_ABI[self.word]}
        nodes |= {"feature_persistent": int(r() < 0.5), "multi_queue_num_queues": 1}
        if order is None:
            h.forget(self.device, "ring-page-order")
        if r() < 0.1:
            nodes[h.pick(tuple(nodes))] = h.odd_text()
        h.side.tell(self.device, **nodes)
        h.side.tell(self.device, state=h.pick((3, 4, 4)))
        h.side.notify(self.port)

    @property
    def is_at_its_end(self) -> bool:
        """Whether the backend listens no more."""
        return self.device.is_halted or self.device.state != XenbusStateConnected

    # -- acts

    def requests(self) -> None:
        """A few requests, any of which may be right."""
        for _ in range(1 + int(self.h.random() * 3)):
            self._request()
        self._go()

    def _request(self) -> None:
        h = self.h
        operation, count = h.pick(_OPERATIONS), h.pick(_COUNTS)
        if operation == 5:
            self._put(operation, h.pick((0, 1)), struct.pack("<QQQ", h.id(), self._sector(), self._sector()))
        elif operation == 6:
            self._indirect()
        else:
            segments = b"".join(self._segment() for _ in range(min(count, 11)))
            self._put(operation, count, struct.pack("<QQ", h.id(), self._sector()) + segments)

    def _put(self, first: int, second: int, rest: bytes) -> None:
        """An entry; the protocol of a 64-bit guest has a hole in front of the id."""
        handle = self.h.pick((0, 0, 51712, 65535))
        head = struct.pack("<BBH", first, second, handle)
        self.ring.put((head + bytes(self.word - 4) + rest)[: self.ring.entry])

    def _indirect(self) -> None:
        h = self.h
        count = h.pick(_INDIRECT_COUNTS)
        page = h.data_page()
        for at in range(0, min(count, 512), 64):
            h.side.store(page, at * 8, b"".join(self._segment() for _ in range(min(count - at, 64))))
        refs = struct.pack("<8I", REF + page, *[h.ref() for _ in range(7)])
        head = struct.pack("<BBH", 6, h.pick((0, 1, 0, 1, 0, 1, 2, 5, 6)), count)
        middle = struct.pack("<QQH", h.id(), self._sector(), 0) + bytes(2)
        self.ring.put((head + bytes(self.word - 4) + middle + refs)[: self.ring.entry])

    def _segment(self) -> bytes:
        h = self.h
        r = h.random()
        first, last = (0, 7) if r < 0.95 else (int(h.random() * 10), int(h.random() * 10))
        return struct.pack("<IBBH", h.ref(), first, last, 0)

    def _sector(self) -> int:
        h, sectors = self.h, self.device.sectors
        r = h.random()
        if r < 0.8:
            return int(h.random() * max(sectors, 1))
        return (
            h.pick((0, 1, sectors - 1, sectors, sectors + 1, 1 << 32, 1 << 55, _MAX_U64 - 7, _MAX_U64))
            & _MAX_U64
        )

    def bytes_in_entries(self) -> None:
        """Anything at all where requests are, before or while they are taken."""
        h = self.h
        size = 1 + int(h.random() * 64)
        h.side.store(self.page, 64 + int(h.random() * 3900), h.rng.randbytes(size))
        if h.random() < 0.3:  # and as many as there can be of them
            self.ring.prod = self.ring.prod + self.ring.entries & 0xFFFFFFFF
            h.side.store(self.page, 0, self.ring.prod.to_bytes(4, "little"))
        self._go()

    def index(self) -> None:
        """An index that lies, often while something is under way."""
        if self.h.random() < 0.5:
            self.requests()
        self.h.lie_in_ring(self.page, self._go)

    def _go(self) -> None:
        self.h.side.notify(self.port)

    def count_answers(self) -> None:
        """What became of the requests."""
        for answer in self.ring.answers(12):
            status = int.from_bytes(answer[10:12], "little", signed=True)
            self.h.counts[
                {0: "block okay", -1: "block error", -2: "block unknown"}.get(status, "block lies")
            ] += 1
