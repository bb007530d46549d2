"""What the frontends of a framebuffer and its keyboard can do wrong: frames, shapes, events, indices."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.given import Key, Pointer
from hvcore.public.xenbus import XenbusStateConnected

if TYPE_CHECKING:
    from hvcore.backends.event_page import EventDevice
    from hvcore.backends.xenfb import VfbBackend
    from hvcore.backends.xenkbd import VkbdBackend
    from tests.hvcore.hostile.frontends import Hostile

_DEPTHS = (32, 32, 32, 24, 16, 8, 0, 15, 255)
_SIDES = (0, 1, 16, 64, 64, 100, 800, -1, 0x7FFFFFFF, -0x80000000)
_STRIDES = (256, 256, 256, 1, 4, 4095, 4096, 0, -1, 0x7FFFFFFF)
_LENGTHS = (16384, 16384, 16384, 1, 4096, 32768, 1 << 20, 0, 64 << 20, 0x7FFFFFFF, 0xFFFFFFFF)
_PIXELS = 8  # pages, and as many of a directory's words are true


class Screen:
    """Both devices; the page that vfb shares is `page`, then the directory, then vkbd's, then the picture."""

    def __init__(self, hostile: Hostile, vfb: VfbBackend, vkbd: VkbdBackend, page: int) -> None:
        self.h = hostile
        self.vfb, self.vkbd, self.page = vfb, vkbd, page
        self.ports = [0, 0]

    @property
    def device(self) -> EventDevice:
        """Either."""
        return self.h.pick((self.vfb, self.vkbd))

    @property
    def is_at_its_end(self) -> bool:
        """Whether a backend listens no more."""
        return any(device.state != XenbusStateConnected for device in (self.vfb, self.vkbd))

    def _mfn(self, page: int) -> int:
        return self.h.side.pages[page].mfn

    def connect(self) -> None:
        """Through the states to a picture again, most of the time as it should be."""
        h, r = self.h, self.h.random
        bits = h.pick((32, 64))
        self._draw_page(bits)
        for i, device in enumerate((self.vfb, self.vkbd)):
            h.side.tell(device, state=h.pick((5, 6, 6)))
            h.side.tell(device, state=6)
            h.side.tell(device, state=1)
            h.side.close_port(self.ports[i])
            self.ports[i] = h.side.open_port()
            page = self._mfn(self.page + 2 * i)
            nodes: dict[str, object] = {"page_ref": page, "event_channel": self.ports[i]}
            if not i:
                nodes |= {"protocol": f"x86_{bits}-abi", "feature_update": int(r() < 0.8)}
                nodes |= {"videoram": h.pick((0, 0, 1, 2, 1 << 20, -1))}
            if r() < 0.1:
                nodes[h.pick(tuple(nodes))] = h.odd_text()
            if r() < 0.1:
                nodes["page_ref"] = h.fuzzer.frame()
            h.side.tell(device, **nodes)
            h.side.tell(device, state=h.pick((3, 4)))
            h.side.tell(
                device, state=4, request_abs_pointer=h.pick((0, 1, 1)), request_raw_pointer=h.pick((0, 1))
            )

    def _draw_page(self, bits: int) -> None:
        h, r = self.h, self.h.random
        shape = (64, 64, 256, 16384, 32) if r() < 0.7 else self._shape()
        code, at = ("I", 36) if bits == 32 else ("Q", 40)
        head = bytes(16) + struct.pack("<iiiIB", *shape)
        entry = self._mfn(self.page + 1) if r() < 0.95 else h.fuzzer.frame()
        mask = (1 << bits) - 1
        h.side.store(self.page, 0, head.ljust(at, b"\0") + struct.pack(f"<{code}", entry & mask))
        frames = [self._mfn(self.page + 3 + i) for i in range(_PIXELS)]
        if r() < 0.1:
            frames[h.pick(range(_PIXELS))] = h.fuzzer.frame() & mask
        h.side.store(self.page + 1, 0, struct.pack(f"<{_PIXELS}{code}", *frames))
        h.side.store(self.page + 2, 0, bytes(16))

    def _shape(self) -> tuple[int, int, int, int, int]:
        h = self.h
        return h.pick(_SIDES), h.pick(_SIDES), h.pick(_STRIDES), h.pick(_LENGTHS), h.pick(_DEPTHS)

    # -- acts

    def events(self) -> None:
        """Updates, other shapes, anything; more of them than the ring has room for."""
        h = self.h
        (prod,) = struct.unpack("<I", h.side.load(self.page, 12, 4))
        count = h.pick((1, 1, 3, 51, 52))
        for _ in range(min(count, 51)):
            kind = h.pick((2, 2, 3, 3, 3, 1, 0, 255))
            width, height, stride, length, depth = self._shape()
            fields = (
                (width, height, stride, depth, length & 0x7FFFFFFF) if kind == 3 else (h.pick(_SIDES),) * 5
            )
            event = struct.pack("<B3x5i", kind, *fields)
            h.side.store(self.page, 2048 + prod % 51 * 40, event)
            prod = prod + 1 & 0xFFFFFFFF
        h.side.store(self.page, 12, (prod + (count > 51) & 0xFFFFFFFF).to_bytes(4, "little"))
        h.side.notify(self.ports[0])

    def used(self) -> None:
        """Somebody types and points, and looks; the frontend takes what is told, or does not."""
        h = self.h
        for _ in range(h.pick((1, 4, 60))):
            self.vkbd.give(
                Key(int(h.random() * 0x300), h.random() < 0.5)
                if h.random() < 0.6
                else Pointer(h.pick(_SIDES), h.pick(_SIDES), h.pick((0, 1, -1)))
            )
        if h.random() < 0.5:
            h.side.store(self.page + 2, 0, h.side.load(self.page + 2, 4, 4))
            h.side.notify(self.ports[1])
        picture = self.vfb.picture()
        if picture is not None:
            assert len(picture.rows) == picture.width * picture.depth // 8 * picture.height
            h.counts["pictures"] += 1

    def index(self) -> None:
        """An index that lies."""
        which = self.h.random() < 0.5
        self.h.lie_in_ring(self.page + 2 * which, lambda: self.h.side.notify(self.ports[which]))

    def count_answers(self) -> None:
        """How many events came to the frontend, as its rings say."""
        self.h.counts["updates"] = max(self.h.counts["updates"], self.vfb.updates)
