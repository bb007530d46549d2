"""What the frontend of an interface can do wrong: slots, extras, frames, offers, rings and features."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.backends.net import VIF, NetBackend
from hvcore.backends.net_frame import Frame
from hvcore.public.netif import NETIF_RX_ENTRY, NETIF_TX_ENTRY, netif_rx_request, netif_tx_request
from hvcore.public.xenbus import XenbusStateConnected
from tests.hvcore.hostile.frontend_side import REF, Ring

if TYPE_CHECKING:
    from tests.hvcore.hostile.frontends import Hostile

_MORE, _EXTRA = 4, 8
_FEATURES = (
    "feature_sg", "feature_gso_tcpv4", "feature_gso_tcpv6", "feature_no_csum_offload",
    "feature_ipv6_csum_offload", "request_multicast_control", "feature_rx_notify",
)  # fmt: skip
_OTHERS = tuple(
    bytes.fromhex(a) for a in ("00163e000200", "ffffffffffff", "01005e000001", "0180c2000003", "00163e00ffff")
)


def packet(h: Hostile, size: int) -> bytes:
    """A frame with headers that are right, nearly so, or not at all."""
    to, sender = h.pick(_OTHERS), b"\x00\x16\x3e" + h.rng.randbytes(3)
    kind = h.pick((0x0800, 0x0800, 0x0800, 0x86DD, 0x0806, 0x8100, 0xFFFF))
    body = bytes(max(size - 14, 0))
    if kind == 0x0800:
        ip = struct.pack(
            ">BBHHHBBHII", h.pick((0x45, 0x45, 0x45, 0x46, 0x4F, 0x44, 0x65)), 0,
            h.pick((len(body), len(body), 20, 0, 65535)) & 0xFFFF, 7, h.pick((0, 0, 0, 0x2000, 0x1FFF)), 64,
            h.pick((6, 6, 17, 1, 255)), 0, 0x0A000001, 0x0A000002,
        )  # fmt: skip
        body = (ip + _tcp(h) + body)[: len(body)]
    elif kind == 0x86DD:
        ip = struct.pack(
            ">IHBB16s16s",
            0x60000000,
            h.odd_word() & 0xFFFF,
            h.pick((6, 17, 0, 43, 44)),
            64,
            bytes(16),
            bytes(16),
        )
        body = (ip + _tcp(h) + body)[: len(body)]
    return (to + sender + kind.to_bytes(2, "big") + body)[:size]


def _tcp(h: Hostile) -> bytes:
    offset = h.pick((0x50, 0x50, 0x60, 0xF0, 0, 0x40))
    return struct.pack(">HHIIBBHHH", 1, 2, 0xFFFFFF00, 5, offset, h.pick((0x18, 0x99, 0)), 512, 0, 0)


class Netif:
    """One interface as its frontend has it: tx ring, rx ring in the next page."""

    def __init__(self, hostile: Hostile, device: NetBackend, page: int) -> None:
        self.h = hostile
        self.device = device
        self.page = page
        self.ports = [0, 0]
        self._rings()

    def _rings(self) -> None:
        self.tx = Ring(self.h.side, self.page, NETIF_TX_ENTRY)
        self.rx = Ring(self.h.side, self.page + 1, NETIF_RX_ENTRY)

    @property
    def is_at_its_end(self) -> bool:
        """Whether the backend listens no more."""
        return self.device.is_disabled or self.device.state != XenbusStateConnected

    def _plug_in(self) -> None:
        """What ended is ended for good: domain 0 takes it out, and puts a new one in."""
        old, machine = self.device, self.h.w.machine
        assert old.switch is not None
        switch, devid = old.switch, old.devid
        old.remove()
        self.device = NetBackend(old.guest, old.home, old.store, old.vif, devid, switch)
        machine.devices.backends[f"{VIF}{devid}"] = self.device

    def connect(self) -> None:
        """Through the states to rings again, most of the time as it should be."""
        h, r = self.h, self.h.random
        if self.device.is_disabled:
            self._plug_in()
        h.side.tell(self.device, state=6)
        h.side.tell(self.device, state=1)
        for port in set(self.ports):
            h.side.close_port(port)
        is_split = r() < 0.4
        self.ports = [h.side.open_port() for _ in range(2)] if is_split else [h.side.open_port()] * 2
        self._rings()
        for name in ("event-channel", "event-channel-tx", "event-channel-rx"):
            h.forget(self.device, name)
        names = ("event_channel_tx", "event_channel_rx") if is_split else ("event_channel",)
        nodes: dict[str, object] = dict(zip(names, self.ports, strict=False))
        nodes |= {"tx_ring_ref": REF + self.page, "rx_ring_ref": REF + self.page + 1, "request_rx_copy": 1}
        nodes |= {name: int(r() < 0.5) for name in _FEATURES}
        if r() < 0.1:
            nodes[h.pick(tuple(nodes))] = h.odd_text()
        h.side.tell(self.device, **nodes)
        h.side.tell(self.device, state=4)

    # -- acts

    def frames(self) -> None:
        """A frame in one slot or several, with extra slots or without; any part of it may be wrong."""
        h, r = self.h, self.h.random
        size = h.pick((0, 13, 14, 60, 60, 90, 1514, 1514, 4000, 9000, 30000, 65535))
        data = packet(h, size)
        flags = int(r() * 4) if r() < 0.8 else int(r() * 16)
        has_extra = r() < 0.4
        self._put(size, data, flags | _EXTRA * has_extra, has_extra=has_extra)
        self._go()

    def _put(self, size: int, data: bytes, flags: int, *, has_extra: bool) -> None:
        h, r = self.h, self.h.random
        pieces = [data[at : at + 4096] for at in range(0, len(data), 4096)] or [b""]
        first = True
        for i, piece in enumerate(pieces):
            page = h.data_page()
            offset = 0 if r() < 0.95 else int(r() * 5000)
            h.side.store(page, min(offset, 4095), piece[: 4096 - min(offset, 4095)])
            more = _MORE if i + 1 < len(pieces) or r() < 0.02 else 0
            told = size if first else len(piece)
            if r() < 0.03:
                told = h.odd_word() & 0xFFFF
            ref = REF + page if r() < 0.95 else h.ref()
            self.tx.put(netif_tx_request.pack(ref, offset & 0xFFFF, flags | more, h.id() & 0xFFFF, told))
            if first and has_extra:
                self._extras()
            first, flags = False, flags & ~_EXTRA

    def _extras(self) -> None:
        h, r = self.h, self.h.random
        count = h.pick((1, 1, 1, 2, 3, 6))
        for i in range(count):
            kind = h.pick((1, 1, 1, 1, 2, 3, 4)) if r() < 0.97 else h.pick((0, 5, 255))
            u = struct.pack("<HBBH", h.pick((1448, 500, 32, 1, 0, 65535)), h.pick((1, 1, 2, 0, 3)), 0, 0)
            if kind in (2, 3):
                u = b"\x01\x00\x5e\x00\x00" + bytes((h.pick((0, 1, 2)),))
            self.tx.put(struct.pack("<BB6sI", kind, int(i + 1 < count or r() < 0.02), u, 0))

    def slots(self) -> None:
        """Slots of anything, in rows that may not end."""
        h = self.h
        for _ in range(1 + int(h.random() * 24)):
            self.tx.put(
                h.rng.randbytes(12)
                if h.random() < 0.1
                else netif_tx_request.pack(
                    h.ref(),
                    h.pick((0, 0, 4095)),
                    h.pick((4, 4, 4, 0, 8, 12)),
                    1,
                    h.pick((0, 1, 64, 4096, 65535)),
                )
            )
        self._go()

    def offers(self) -> None:
        """Room for what comes; grants may be of nothing, and more offers than a ring holds."""
        h = self.h
        for _ in range(h.pick((1, 4, 16, 64, 300))):
            self.rx.put(netif_rx_request.pack(self.rx.prod & 0xFFFF, h.ref()))
        self._go()

    def arrivals(self) -> None:
        """Frames from somebody else on the switch."""
        h = self.h
        for _ in range(h.pick((1, 1, 4, 20))):
            kind = h.pick((0, 0, 1, 2))
            data = packet(h, h.pick((14, 60, 1514, 9000, 65535)))
            if h.random() < 0.6:
                data = self.device_address() + data[6:]
            size = h.pick((1448, 100, 8)) if kind else 0
            h.wire.frame_in(h.now(), Frame(data, h.random() < 0.5, h.random() < 0.5, kind, size))

    def device_address(self) -> bytes:
        device = self.device
        return bytes.fromhex(device.vif.address(device.guest.domain_id, device.devid).replace(":", ""))

    def index(self) -> None:
        """An index that lies, often while something is under way."""
        if self.h.random() < 0.5:
            self.frames()
        self.h.lie_in_ring(self.page + (self.h.random() < 0.5), self._go)

    def link(self) -> None:
        """Domain 0 takes the link down, and up again."""
        self.device.set_link(up=self.h.random() < 0.8)

    def _go(self) -> None:
        for port in self.ports:
            self.h.side.notify(port)

    def count_answers(self) -> None:
        """What became of the frames."""
        for answer in self.tx.answers(4):
            status = int.from_bytes(answer[2:4], "little", signed=True)
            self.h.counts[{0: "tx okay", -1: "tx error", 1: "tx null"}.get(status, "tx lies")] += 1
        for answer in self.rx.answers(8):
            status = int.from_bytes(answer[6:8], "little", signed=True)
            self.h.counts["rx okay" if status > 0 else "rx error"] += 1
