"""A domain beside a hostile one: what it reads, sends and receives has to be right."""

from __future__ import annotations

import struct
from random import Random
from typing import TYPE_CHECKING

from hvcore.backends.block import BlockBackend
from hvcore.backends.net import NetBackend
from hvcore.backends.net_frame import Frame
from hvcore.public.blkif import BLKIF_RING_ENTRY
from hvcore.public.netif import (
    NETIF_RX_ENTRY,
    NETIF_TX_ENTRY,
    NETRXF_more_data,
    netif_rx_request,
    netif_tx_request,
)
from hvcore.public.protocols import XEN_IO_PROTO_ABI
from tests.hvcore.hostile.frontend_side import REF, Ring, Side

if TYPE_CHECKING:
    from tests.hvcore.hostile.world import World
    from tests.hvcore.wire import Wire

_DISK, _TX, _RX, _OUT, _DATA, _IN = 0, 1, 2, 3, 4, 8
_OFFERED = 64


class Neighbour:
    """Its disk and interface, connected. `problems()` uses both: what was wrong; empty if nothing was."""

    def __init__(self, world: World, wire: Wire, rng: Random) -> None:
        self.w = world
        self.wire = wire
        self.rng = rng
        self.side = side = Side(world)
        devices = world.machine.devices.backends
        self.disk = next(d for d in devices.values() if isinstance(d, BlockBackend))
        self.vif = next(d for d in devices.values() if isinstance(d, NetBackend))
        self.word = world.abi.word
        self.ring = Ring(side, _DISK, BLKIF_RING_ENTRY[self.word])
        self.disk_port, self.vif_port = side.open_port(), side.open_port()
        side.tell(
            self.disk,
            ring_ref=REF + _DISK,
            event_channel=self.disk_port,
            protocol=XEN_IO_PROTO_ABI[self.word],
        )
        side.tell(self.disk, state=3)
        self.tx, self.rx = Ring(side, _TX, NETIF_TX_ENTRY), Ring(side, _RX, NETIF_RX_ENTRY)
        refs = {"tx_ring_ref": REF + _TX, "rx_ring_ref": REF + _RX, "event_channel": self.vif_port}
        side.tell(self.vif, **refs, request_rx_copy=1, feature_sg=1)
        side.tell(self.vif, state=4)
        self.number = 0

    def problems(self, now: int) -> list[str]:
        """Write and read, send and receive, at the time of who acted before it or later."""
        world = self.w
        world.enter()
        world.pass_time(max(now - world.machine.clock.now(), 0) + 1_000_000)
        self.number += 1
        found = [*self._disk_problems(), *self._send_problems(), *self._receive_problems()]
        if world.machine.xenstore.read("name") != "guest":
            found.append("the neighbour's name is another's")
        return [*found, *world.problems()]

    def _disk_problems(self) -> list[str]:
        data = self.rng.randbytes(4096)
        sector = int(self.rng.random() * (self.disk.sectors - 8))
        self.side.store(_DATA, 0, data)
        statuses = [self._ask(1, sector, _DATA), self._ask(3, 0, None), self._ask(0, sector, _DATA + 1)]
        found = [] if statuses == [0, 0, 0] else [f"the neighbour's disk answers {statuses}"]
        return (
            found if self.side.load(_DATA + 1, 0, 4096) == data else [*found, "the neighbour's data is lost"]
        )

    def _ask(self, operation: int, sector: int, page: int | None) -> int | None:
        """The status of a request."""
        segments = b"" if page is None else struct.pack("<IBBH", REF + page, 0, 7, 0)
        head = struct.pack("<BBH", operation, page is not None, 0) + bytes(self.word - 4)
        self.ring.put(head + struct.pack("<QQ", self.number, sector) + segments)
        self.side.notify(self.disk_port)
        self.w.pass_time(1_000_000)
        answers = [struct.unpack("<QBxh", answer) for answer in self.ring.answers(12)]
        return answers[0][2] if [a[:2] for a in answers] == [(self.number, operation)] else None

    def _send_problems(self) -> list[str]:
        data = b"\xff" * 6 + self.address + b"\x88\xb5" + self.rng.randbytes(60)
        self.side.store(_OUT, 0, data)
        self.tx.put(netif_tx_request.pack(REF + _OUT, 0, 0, self.number & 0xFFFF, len(data)))
        self.wire.frames.clear()
        self.side.notify(self.vif_port)
        self.w.pass_time(1_000_000)
        answers = [(self.number & 0xFFFF).to_bytes(2, "little") + bytes(2)]
        if list(self.tx.answers(4)) != answers or [f.data for f in self.wire.frames] != [data]:
            return [f"the neighbour's frame does not arrive: {self.wire.frames}"]
        return []

    @property
    def address(self) -> bytes:
        """Of its interface."""
        return bytes.fromhex(self.vif.vif.address(self.w.d.domain_id, 0).replace(":", ""))

    def _receive_problems(self) -> list[str]:
        while self._received():  # what the other one sent to it
            pass
        data = self.address + b"\x00\x16\x3e\0\0\1" + b"\x88\xb5" + self.rng.randbytes(60)
        self.wire.frame_in(self.w.machine.clock.now(), Frame(data))
        self.w.pass_time(1_000_000)
        found = self._received()
        return (
            [] if data in found else [f"the neighbour is not told of its frame, but of {len(found)} others"]
        )

    def _received(self) -> list[bytes]:
        """Offer all pages there are, and the frames that come into one each."""
        for _ in range(max(_OFFERED - (self.rx.prod - self.rx.seen), 0)):
            number = self.rx.prod % _OFFERED
            self.rx.put(netif_rx_request.pack(number, REF + _IN + number))
        self.side.notify(self.vif_port)
        self.w.pass_time(1_000_000)
        found, is_first = [], True
        for answer in self.rx.answers(8):
            id_, offset, flags, status = struct.unpack("<HHHh", answer)
            if is_first:
                found.append(self.side.load(_IN + id_, offset, max(status, 0)))
            is_first = not flags & NETRXF_more_data
        return found
