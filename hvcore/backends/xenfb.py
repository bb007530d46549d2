"""The framebuffer backend: what QEMU's xenfb is in domain 0, with xen/include/public/io/fbif.h.

A frontend names the frames of its picture by a page directory, once, and draws there. It tells what it has
drawn (XENFB_TYPE_UPDATE), and that the picture has another shape within the same frames (XENFB_TYPE_RESIZE).
Every size, frame and index may lie: what QEMU limits is limited, what it refuses is refused. Who looks reads
the frames, and changes nothing: the guest is advised of one period of refresh, whether somebody looks or not.
What the picture was when the frontend closed is kept, for people.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.event_page import EventDevice, in_ring, out_ring
from hvcore.backends.vfb import VFB, Vfb
from hvcore.backends.xenbus import FrontendError
from hvcore.common.foreign_map import map_foreign, unmap_foreign
from hvcore.public.errno import EINVAL
from hvcore.public.fbif import (
    XENFB_IN_RING_LEN,
    XENFB_IN_RING_OFFS,
    XENFB_OUT_RING_LEN,
    XENFB_OUT_RING_OFFS,
    XENFB_PAGE_DEPTH,
    XENFB_PAGE_HEIGHT,
    XENFB_PAGE_LINE_LENGTH,
    XENFB_PAGE_MEM_LENGTH,
    XENFB_PAGE_PD,
    XENFB_PAGE_PD_LEN,
    XENFB_PAGE_WIDTH,
    XENFB_TYPE_REFRESH_PERIOD,
    XENFB_TYPE_RESIZE,
    XENFB_TYPE_UPDATE,
    xenfb_refresh_period,
    xenfb_resize,
)
from hvcore.public.protocols import XEN_IO_PROTO_ABI
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain

# QEMU goes to 512 MB, all that a page directory can name. A picture of 4096 by 4096 pixels is enough here,
# and bounds what looking at one may take.
MAX_FB_LEN = 64 << 20
MAX_SIDE = 0xFFFF  # pixels: what VNC can say
_REFRESH_MS = 30  # QEMU's while somebody looks (GUI_REFRESH_INTERVAL_DEFAULT)
_DEPTHS = (8, 16, 24, 32)
_OUT = out_ring(XENFB_OUT_RING_OFFS, XENFB_OUT_RING_LEN)
_IN = in_ring(XENFB_IN_RING_OFFS, XENFB_IN_RING_LEN)
_SIGNED = struct.Struct("<i")


class Picture(NamedTuple):
    """What a framebuffer shows: `rows` are its lines, top to bottom, without what is beside them.

    `depth` is bits a pixel: 8 (3 red, 3 green, 2 blue), 16 (5, 6, 5), 24 or 32 (8 each, blue first).
    """

    width: int
    height: int
    depth: int
    rows: bytes


class VfbBackend(EventDevice):
    """The framebuffer of one guest. `updates` counts what the frontend told of having drawn."""

    def __init__(self, guest: Domain, backend: Domain, store: Xenstored, vfb: Vfb) -> None:
        self.vfb = vfb
        self.fb_len = self.offset = self.row_stride = self.depth = self.width = self.height = 0
        self.pixels: list[int] = []  # the frames, mapped
        self.tells_updates = False
        self.told_again = False  # of the state Connected
        self.updates = 0
        self.kept: Picture | None = None  # as the frontend left it
        super().__init__(VFB, guest, backend, store, _nodes(vfb), ("feature-resize",))

    WIRING = frozenset((*EventDevice.WIRING, "vfb"))

    # -- connecting

    def connect_ring(self) -> None:
        """See XenbusDevice: QEMU's fb_initialise."""
        videoram = min(self.number("videoram", 0) << 20, MAX_FB_LEN)
        self.connect_page()
        page = self.page
        self._configure(
            videoram or MAX_FB_LEN,
            _SIGNED.unpack_from(page, XENFB_PAGE_WIDTH)[0],
            _SIGNED.unpack_from(page, XENFB_PAGE_HEIGHT)[0],
            page[XENFB_PAGE_DEPTH],
            self.word(XENFB_PAGE_MEM_LENGTH),
            0,
            _SIGNED.unpack_from(page, XENFB_PAGE_LINE_LENGTH)[0],
        )
        self._map()
        self.tells_updates = bool(self.number("feature-update", 0))

    def advertise(self) -> None:
        """See XenbusDevice: ask for updates, and say how often a picture is looked at."""
        if self.tells_updates:
            self.tell("request-update", 1)
            if self.put(_IN, xenfb_refresh_period.pack(XENFB_TYPE_REFRESH_PERIOD, _REFRESH_MS)):
                self.notify()

    def frontend_connected(self) -> None:
        """See XenbusDevice: frontends of old have to be told of the state Connected again, once."""
        if not self.told_again:
            self.told_again = True
            self.tell("state", self.state)

    def _configure(
        self, limit: int, width: int, height: int, depth: int, fb_len: int, offset: int, row_stride: int
    ) -> None:
        """Take a shape: QEMU's xenfb_configure_fb. Raises FrontendError."""
        fb_len = min(fb_len, limit)
        if depth not in _DEPTHS:
            raise FrontendError(EINVAL, f"a framebuffer of {depth} bits a pixel")
        if not 0 < row_stride <= fb_len:
            raise FrontendError(EINVAL, f"a framebuffer with lines of {row_stride} bytes")
        if not 0 <= offset < fb_len:
            raise FrontendError(EINVAL, f"a picture at offset {offset} of {fb_len}")
        widest, highest = row_stride // (depth // 8), (fb_len - offset) // row_stride
        self.width = min(width if 0 <= width <= widest else widest, MAX_SIDE)
        self.height = min(height if 0 <= height <= highest else highest, MAX_SIDE)
        self.fb_len, self.offset, self.row_stride, self.depth = fb_len, offset, row_stride, depth

    def _map(self) -> None:
        """Map the frames that the page directory names: QEMU's xenfb_map_fb. Raises FrontendError."""
        start, size = self._directory()
        count = -(-self.fb_len // PAGE_SIZE)
        tables = -(-count * size // PAGE_SIZE)
        if tables > XENFB_PAGE_PD_LEN:
            raise FrontendError(EINVAL, f"a framebuffer of {self.fb_len} bytes")
        named = self.page[start : start + tables * size].tobytes()
        entries = bytearray()
        for mfn in _words(named, size):
            if not map_foreign(self.home, self.guest, mfn, writable=False):
                raise FrontendError(EINVAL, f"mapping frame {mfn:#x} of the page directory")
            entries += self.guest.mem.frame(mfn)
            unmap_foreign(self.home, self.guest, mfn, writable=False)
        for mfn in _words(entries[: count * size], size):
            if not map_foreign(self.home, self.guest, mfn, writable=False):
                raise FrontendError(EINVAL, f"mapping frame {mfn:#x} of the framebuffer")
            self.pixels.append(mfn)

    def _directory(self) -> tuple[int, int]:
        """Where in the page the directory is, and the bytes of its words.

        A frontend of old does not say which words it has, and has one directory page: where a second would be
        with 32-bit words is nothing then.
        """
        protocol = self.asked("protocol")
        if protocol is None:
            size = 8 if self.word(XENFB_PAGE_PD[8]) else 4
        else:
            size = 4 if protocol == XEN_IO_PROTO_ABI[4] else 8
        return XENFB_PAGE_PD[size], size

    def close_ring(self) -> None:
        """See XenbusDevice. The last picture is kept."""
        self.kept = self._drawn() or self.kept
        for mfn in self.pixels:
            unmap_foreign(self.home, self.guest, mfn, writable=False)
        self.pixels.clear()
        self.tells_updates = self.told_again = False
        super().close_ring()

    # -- events

    def handle_event(self) -> None:
        """The frontend has drawn, or changed the shape of its picture: QEMU's xenfb_handle_events."""
        if not self.page_mfn:
            return
        for event in self.events(_OUT):
            if event[0] == XENFB_TYPE_UPDATE:
                self.updates += 1
            elif event[0] == XENFB_TYPE_RESIZE:
                self._resize(event)
        self.notify()

    def _resize(self, event: bytes) -> None:
        """Take another shape within the same frames; one that cannot be is ignored."""
        _, width, height, stride, depth, offset = xenfb_resize.unpack_from(event)
        try:
            self._configure(self.fb_len, width, height, depth, self.fb_len, offset, stride)
        except FrontendError:
            return
        self.updates += 1

    # -- the picture

    def picture(self) -> Picture | None:
        """What is to be seen now, or what a frontend that closed has left; None where there was nothing."""
        return self._drawn() or self.kept

    def _drawn(self) -> Picture | None:
        """What is in the frames; None without any, and for a picture without width or height."""
        line, stride, end = self.width * self.depth // 8, self.row_stride, self.height * self.row_stride
        if not line or not 0 < end <= len(self.pixels) * PAGE_SIZE - self.offset or line > stride:
            return None
        first, last = self.offset // PAGE_SIZE, -(-(self.offset + end) // PAGE_SIZE)
        frame = self.guest.mem.frame
        whole = b"".join([frame(mfn) for mfn in self.pixels[first:last]])
        start = self.offset % PAGE_SIZE
        if line == stride:
            rows = whole[start : start + end]
        else:
            rows = b"".join([whole[at : at + line] for at in range(start, start + end, stride)])
        return Picture(self.width, self.height, self.depth, rows)


def _words(data: bytes | bytearray, size: int) -> list[int]:
    """Words of 4 or 8 bytes."""
    return memoryview(bytes(data)).cast("I" if size == 4 else "Q").tolist()


def _nodes(vfb: Vfb) -> dict[str, str]:
    """libxl__set_xenstore_vfb() of tools/libs/light/libxl_console.c."""
    return {
        "vnc": str(int(vfb.vnc)),
        "vnclisten": vfb.vnclisten,
        **({"vncpasswd": vfb.vncpasswd} if vfb.vncpasswd else {}),
        "vncdisplay": str(vfb.vncdisplay),
        "vncunused": str(int(vfb.vncunused)),
        "sdl": "0",
        "opengl": "0",
    }
