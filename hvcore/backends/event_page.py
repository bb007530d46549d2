"""A device that shares a page of events with its frontend: what QEMU's vfb and vkbd backends have in common.

The page is named by its machine frame (`page-ref`), and has two rings of events of 40 bytes, whose indices
only grow. The frontend may write anything there at any time: an event is read once, and a ring that claims
to hold more than it has room for is left alone, as QEMU leaves it. A frontend that cannot be connected to is
told nothing, and may try again: QEMU's backends stay in state InitWait.
Source: xen/include/public/io/fbif.h and kbdif.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.libxl_nodes import add_device
from hvcore.backends.xenbus import FrontendError, XenbusDevice
from hvcore.common.foreign_map import map_foreign, unmap_foreign
from hvcore.public.errno import EINVAL
from hvcore.public.kbdif import (
    XENKBD_IN_EVENT_SIZE,
    XENKBD_PAGE_IN_CONS,
    XENKBD_PAGE_IN_PROD,
    XENKBD_PAGE_OUT_CONS,
    XENKBD_PAGE_OUT_PROD,
)
from hvcore.public.xenbus import XenbusStateConnected, XenbusStateInitialising, XenbusStateInitWait

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain

EVENT_SIZE = XENKBD_IN_EVENT_SIZE
_WORD, _LARGEST = 0xFFFFFFFF, (1 << 64) - 1


class EventRing(NamedTuple):
    """One of the page's rings: where its indices are, where its events begin, how many it has room for."""

    cons: int
    prod: int
    start: int
    length: int


def in_ring(start: int, length: int) -> EventRing:
    """A ring from the backend to the frontend."""
    return EventRing(XENKBD_PAGE_IN_CONS, XENKBD_PAGE_IN_PROD, start, length)


def out_ring(start: int, length: int) -> EventRing:
    """A ring from the frontend to the backend."""
    return EventRing(XENKBD_PAGE_OUT_CONS, XENKBD_PAGE_OUT_PROD, start, length)


class EventDevice(XenbusDevice):
    """The backend of a device with such a page; `features` are told before the frontend begins."""

    def __init__(
        self,
        kind: str,
        guest: Domain,
        backend: Domain,
        store: Xenstored,
        nodes: Mapping[str, str],
        features: tuple[str, ...],
    ) -> None:
        back = {"frontend-id": str(guest.domain_id), "online": "1", "state": str(XenbusStateInitialising)}
        front = {"backend-id": str(backend.domain_id), "state": str(XenbusStateInitialising)}
        add_device(store, guest.domain_id, kind, 0, back | dict(nodes), front)
        super().__init__(kind, 0, guest, backend, store)
        self.page_mfn = 0  # of the page, mapped; 0 where there is none
        for name in features:
            self.tell(name, 1)
        self.switch_state(XenbusStateInitWait)

    def fatal(self, error: FrontendError) -> None:
        """See XenbusDevice: an error node, and nothing else."""
        self.tell_error(error)

    def answer_due(self) -> None:
        """See XenbusDevice: there is no timer."""

    # -- the page

    def connect_page(self) -> None:
        """Map the page and take the backend's end of the channel: QEMU's common_bind. FrontendError."""
        mfn = min(self.digits("page-ref"), _LARGEST)
        port = self.number("event-channel")
        if not map_foreign(self.home, self.guest, mfn, writable=True):
            raise FrontendError(EINVAL, f"mapping frame {mfn:#x}")
        self.page_mfn = mfn
        self.bind(port)

    def close_ring(self) -> None:
        """See XenbusDevice."""
        super().close_ring()
        if self.page_mfn:
            unmap_foreign(self.home, self.guest, self.page_mfn, writable=True)
            self.page_mfn = 0

    @property
    def is_connected(self) -> bool:
        """Whether events go to and fro."""
        return self.state == XenbusStateConnected and bool(self.page_mfn)

    @property
    def page(self) -> memoryview:
        """The page, where one is mapped."""
        return self.guest.mem.frame(self.page_mfn)

    def word(self, at: int) -> int:
        """A word of the page, read once."""
        return int.from_bytes(self.page[at : at + 4], "little")

    def _set_word(self, at: int, value: int) -> None:
        self.page[at : at + 4] = (value & _WORD).to_bytes(4, "little")

    def events(self, ring: EventRing) -> Iterator[bytes]:
        """What waits in the ring, a copy each; the ring is empty then."""
        prod, cons = self.word(ring.prod), self.word(ring.cons)
        if prod - cons & _WORD > ring.length:
            return
        for index in range(cons, cons + (prod - cons & _WORD)):
            at = ring.start + (index & _WORD) % ring.length * EVENT_SIZE
            yield bytes(self.page[at : at + EVENT_SIZE])
        self._set_word(ring.cons, prod)

    def put(self, ring: EventRing, event: bytes) -> bool:
        """Put an event into the ring: whether there was room."""
        prod = self.word(ring.prod)
        if prod - self.word(ring.cons) & _WORD >= ring.length:
            return False
        at = ring.start + prod % ring.length * EVENT_SIZE
        self.page[at : at + EVENT_SIZE] = event.ljust(EVENT_SIZE, b"\0")
        self._set_word(ring.prod, prod + 1)
        return True
