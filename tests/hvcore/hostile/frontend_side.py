"""The guest's side of devices in a World: pages, entries of the grant table, channels, nodes, rings."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.event_channel import evtchn_send
from hvcore.public.event_channel import EVTCHNOP_alloc_unbound, EVTCHNOP_close, evtchn_alloc_unbound
from hvcore.public.grant_table import GTF_permit_access
from hvcore.public.ring import RING_ENTRIES, RING_REQ_PROD, RING_RSP_PROD
from hvcore.public.xen import DOMID_SELF, PAGE_SIZE, Hypercall
from tests.hvcore.hostile.world import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hvcore.backends.xenbus import XenbusDevice
    from tests.hvcore.hostile.world import World

PAGES = 80
REF = 8  # the reference of page 0 of a side's; the others follow


class Side:
    """What a guest has for its devices. Its pages are numbers below PAGES."""

    def __init__(self, world: World) -> None:
        self.w = world
        start_info = world.image.start_info
        rings = (start_info.store_mfn, start_info.console_mfn)
        free = [m for m in world.mapped if m.writable and m.mfn not in rings]
        self.pages = free[-PAGES - 8 : -8]
        self.args = free[-4].va
        for page in range(PAGES):
            self.grant(REF + page, self.pages[page].mfn)

    def store(self, page: int, offset: int, data: bytes) -> None:
        """A store of the guest's, which may go on in the next page; lost where it may not be written."""
        while data:
            room = PAGE_SIZE - offset
            self.w.store(self.pages[page].va + offset, data[:room])
            page, offset, data = page + 1, 0, data[room:]

    def load(self, page: int, offset: int, size: int) -> bytes:
        """What is in a page, whether or not it is still mapped."""
        return bytes(self.w.d.mem.frame(self.pages[page].mfn)[offset : offset + size])

    def grant(self, ref: int, frame: int, flags: int = GTF_permit_access, domid: int = 0) -> None:
        """An entry of the grant table, which is the guest's to write, in the layout that it has now."""
        table = self.w.d.grant_table
        size = 8 if table.version == 1 else 16
        frames, at = divmod(ref * size, PAGE_SIZE)
        if frames < len(table.shared):
            entry = struct.pack("<HHI", flags, domid, frame & 0xFFFFFFFF)
            if size == 16:
                entry = struct.pack("<HHIQ", flags, domid, 0, frame & (1 << 64) - 1)
            self.w.d.mem.frame(table.shared[frames])[at : at + size] = entry

    def open_port(self) -> int:
        """A port for a backend to bind to."""
        self.w.store(self.args, evtchn_alloc_unbound.pack(DOMID_SELF, 0, 0))
        if self.w.call(Hypercall.event_channel_op, (EVTCHNOP_alloc_unbound, self.args, 0, 0, 0, 0)):
            return 0
        port: int = evtchn_alloc_unbound.unpack(self.w.d.guest.copy_from(self.args, 8))[2]
        return port

    def close_port(self, port: int) -> None:
        if port:
            self.w.store(self.args, words(port))
            self.w.call(Hypercall.event_channel_op, (EVTCHNOP_close, self.args, 0, 0, 0, 0))

    def notify(self, port: int) -> None:
        if port < self.w.d.evtchn.valid_evtchns:
            evtchn_send(self.w.d.evtchn, port)

    def tell(self, device: XenbusDevice, **nodes: object) -> None:
        """Write nodes of the frontend's side, as the guest may, but not by the store's ring."""
        store, domid = device.store, self.w.d.domain_id
        for name, value in nodes.items():
            data = value if isinstance(value, bytes) else str(value).encode()
            store.tree.write(None, f"{device.front}/{name.replace('_', '-')}", data, domid)
        store.run()


class Ring:
    """The frontend's end of a ring in some pages: it puts requests there, and looks at the answers."""

    def __init__(self, side: Side, page: int, entry: int, pages: int = 1) -> None:
        self.side = side
        self.page = page
        self.entry = entry
        self.entries = 1 << ((pages * PAGE_SIZE - RING_ENTRIES) // entry).bit_length() - 1
        self.prod = self.seen = 0
        side.store(page, 0, words(0, 1, 0, 1) + bytes(RING_ENTRIES - 16))

    def put(self, entry: bytes) -> None:
        """One more request, whatever is there."""
        self._store(RING_ENTRIES + self.prod % self.entries * self.entry, entry)
        self.prod = self.prod + 1 & 0xFFFFFFFF
        self.side.store(self.page, RING_REQ_PROD, words(self.prod))

    def _store(self, at: int, data: bytes) -> None:
        self.side.store(self.page + at // PAGE_SIZE, at % PAGE_SIZE, data)

    def answers(self, size: int) -> Iterator[bytes]:
        """The first `size` bytes of each answer that has come, as many as there can be."""
        (prod,) = struct.unpack("<I", self.side.load(self.page, RING_RSP_PROD, 4))
        for _ in range(min(prod - self.seen & 0xFFFFFFFF, self.entries)):
            at = RING_ENTRIES + self.seen % self.entries * self.entry
            page, offset = self.page + at // PAGE_SIZE, at % PAGE_SIZE
            data = self.side.load(page, offset, size)
            if len(data) < size:
                data += self.side.load(page + 1, 0, size - len(data))
            self.seen = self.seen + 1 & 0xFFFFFFFF
            yield data
        self.seen = prod
        self.side.store(self.page, 12, words(prod + 1))
