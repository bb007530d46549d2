"""The keyboard and pointer backend: what QEMU's is beside xenfb, with xen/include/public/io/kbdif.h.

What people do comes as keycodes of Linux and pixels of the framebuffer; the guest is told of the pointer's
place or of its movement, as its frontend asks. Where QEMU drops what the ring has no room for, and a key
stays down, it waits here until the frontend has made room.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from hvcore.backends.event_page import EVENT_SIZE, EventDevice, in_ring, out_ring
from hvcore.backends.vfb import VKBD
from hvcore.given import Key, Pointer
from hvcore.public.kbdif import (
    XENKBD_IN_RING_LEN,
    XENKBD_IN_RING_OFFS,
    XENKBD_OUT_RING_LEN,
    XENKBD_OUT_RING_OFFS,
    XENKBD_TYPE_KEY,
    XENKBD_TYPE_MOTION,
    XENKBD_TYPE_POS,
    xenkbd_key,
    xenkbd_motion,
    xenkbd_position,
)

if TYPE_CHECKING:
    from hvcore.backends.xenfb import VfbBackend
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain

MAX_WAITING = 1024  # events that the ring had no room for; more are dropped
_RAW = 0x7FFF  # the right and lower end of coordinates that are not scaled
_OUT = out_ring(XENKBD_OUT_RING_OFFS, XENKBD_OUT_RING_LEN)
_IN = in_ring(XENKBD_IN_RING_OFFS, XENKBD_IN_RING_LEN)


class VkbdBackend(EventDevice):
    """The keyboard and pointer of one guest, whose picture is that of `screen`."""

    WIRING = frozenset((*EventDevice.WIRING, "screen"))

    def __init__(self, guest: Domain, backend: Domain, store: Xenstored, screen: VfbBackend) -> None:
        self.screen = screen
        self.wants_place = self.wants_raw = False
        self.x = self.y = -1  # where the pointer was
        self.waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        super().__init__(VKBD, guest, backend, store, {}, ("feature-abs-pointer", "feature-raw-pointer"))

    def connect_ring(self) -> None:
        """See XenbusDevice: QEMU's input_initialise."""
        self.connect_page()

    def advertise(self) -> None:
        """See XenbusDevice: all was told before."""

    def frontend_connected(self) -> None:
        """See XenbusDevice: QEMU's input_connected."""
        self.wants_place = bool(self.number("request-abs-pointer", 0))
        self.wants_raw = bool(self.number("request-raw-pointer", 0))

    def close_ring(self) -> None:
        """See XenbusDevice. What waits is lost."""
        self.waiting.clear()
        self.x = self.y = -1
        super().close_ring()

    def handle_event(self) -> None:
        """The frontend has made room, or says something that nobody knows: QEMU's input_event."""
        if not self.page_mfn:
            return
        said = sum(1 for _ in self.events(_OUT))
        if self._push() or said:
            self.notify()

    # -- what people do

    def give(self, given: Key | Pointer) -> None:
        """Tell the guest; nothing where no frontend is connected."""
        if not self.is_connected:
            return
        event = self._key(given) if isinstance(given, Key) else self._pointer(given)
        if len(self.waiting) < MAX_WAITING:
            self.waiting.append(event)
        self.serve()
        if self._push():
            self.notify()

    @property
    def pending_bytes(self) -> int:
        """Of what the ring had no room for yet."""
        return EVENT_SIZE * len(self.waiting)

    def _push(self) -> bool:
        """Move what waits into the ring, as far as there is room: whether any was."""
        waiting = self.waiting
        before = len(waiting)
        while waiting and self.put(_IN, waiting[0]):
            waiting.popleft()
        return len(waiting) < before

    @staticmethod
    def _key(key: Key) -> bytes:
        return xenkbd_key.pack(XENKBD_TYPE_KEY, key.pressed, key.keycode & 0xFFFFFFFF)

    def _pointer(self, pointer: Pointer) -> bytes:
        right, lower = max(self.screen.width - 1, 0), max(self.screen.height - 1, 0)
        x, y = min(max(pointer.x, 0), right), min(max(pointer.y, 0), lower)
        before_x, before_y = (x, y) if self.x < 0 else (self.x, self.y)
        self.x, self.y = x, y
        wheel = max(-128, min(pointer.wheel, 127))
        if not self.wants_place:
            return xenkbd_motion.pack(XENKBD_TYPE_MOTION, x - before_x, y - before_y, wheel)
        if self.wants_raw:
            x, y = x * _RAW // max(right, 1), y * _RAW // max(lower, 1)
        return xenkbd_position.pack(XENKBD_TYPE_POS, x, y, wheel)
