"""What a guest receives, as xen-netback has it: from frames that wait to the slots of the ring.

What comes from the switch waits until it is there by the guest's clock, and for as many slots as it needs. No
more waits than Linux has memory for.

Source: xen/include/public/io/netif.h, and drivers/net/xen-netback of Linux.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.net_frame import ETH_HLEN, Frame, filled, segments, transport_of
from hvcore.backends.vif import MTU
from hvcore.clock import NEVER
from hvcore.common.grant_slices import write_granted
from hvcore.public.netif import (
    XEN_NETIF_EXTRA_TYPE_GSO,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETRXF_extra_info,
    NETRXF_more_data,
    netif_extra_info,
    netif_rx_request,
    netif_rx_response,
)
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.backends.back_ring import BackRing
    from hvcore.domain import Domain

MAX_WAITING_FRAMES, MAX_WAITING_BYTES = 1024, 4 << 20
_DRAIN_NS = 10 * 10**9  # rx_drain_timeout_msecs
_NO_SG_LIMIT = ETH_HLEN + 4 + MTU


class Arrival(NamedTuple):
    """A frame of the switch's, and when it is there."""

    when: int
    frame: Frame


_WHEN = attrgetter("when")


class BadRingError(Exception):
    """A ring claims more requests than it holds."""


class NetRx:
    """The receiving half of an interface of `guest`, served in `home`. Connected, it has a `ring`.

    `can_sg`, `gso_mask`, `ip_csum` and `ipv6_csum` are what the frontend can take.
    """

    WIRING = frozenset(("ring", "_guest", "_home"))

    def __init__(self, guest: Domain, home: Domain) -> None:
        self._guest = guest
        self._home = home
        self.ring: BackRing | None = None
        self.can_sg = self.ip_csum = self.ipv6_csum = False
        self.gso_mask = 0
        self.waiting: deque[Arrival] = deque()
        self.waiting_bytes = 0
        self.dropped = 0  # frames that found no room

    def disconnect(self) -> None:
        """No ring any more. Frames that wait are lost."""
        self.ring = None
        self.drop_waiting()

    def drop_waiting(self) -> None:
        """Nobody takes what waits."""
        self.waiting.clear()
        self.waiting_bytes = 0

    def queue(self, when: int, frame: Frame) -> None:
        """Have a frame wait that is there at `when`, as the guest can take it."""
        for piece in self._adapted(frame):
            size, waiting = len(piece.data), self.waiting
            if len(waiting) >= MAX_WAITING_FRAMES or self.waiting_bytes + size > MAX_WAITING_BYTES:
                self.dropped += 1
            else:
                insort(waiting, Arrival(when, piece), key=_WHEN)
                self.waiting_bytes += size

    def _adapted(self, frame: Frame) -> list[Frame]:
        if frame.gso_type and not (self.can_sg and self.gso_mask >> frame.gso_type & 1):
            return segments(frame)
        if frame.is_blank and not (self.ip_csum and self.ipv6_csum):
            where = transport_of(frame.data)
            if not (self.ip_csum if where is None or where.version == 4 else self.ipv6_csum):
                frame = filled(frame)
        return [frame] if self.can_sg or len(frame.data) <= _NO_SG_LIMIT else []

    def deliver(self, now: int) -> bool:
        """xenvif_rx_action: give the guest what is there by now, as far as it has room.

        Whether it wants to be told. Raises BadRingError.
        """
        ring, waiting = self.ring, self.waiting
        if ring is None:
            return False
        before = ring.rsp_prod
        while waiting and waiting[0].when <= now:
            frame = waiting[0].frame
            is_late = waiting[0].when + _DRAIN_NS < now
            if not is_late and not self._has_room(ring, frame):
                break
            waiting.popleft()
            self.waiting_bytes -= len(frame.data)
            if not is_late:
                self._put(ring, frame)
        return ring.rsp_prod != before and ring.publish()

    def next_due(self, now: int) -> int:
        """When the first frame is there; NEVER where it waits for slots. Raises BadRingError."""
        if self.ring is None or not self.waiting:
            return NEVER
        head = self.waiting[0]
        return head.when if head.when > now or self._has_room(self.ring, head.frame) else NEVER

    def _has_room(self, ring: BackRing, frame: Frame) -> bool:
        """xenvif_rx_ring_slots_available."""
        there = ring.unconsumed()
        if there is None:
            raise BadRingError
        if there >= _slots_of(frame):
            return True
        ring.wait_for_more()
        return False

    def _put(self, ring: BackRing, frame: Frame) -> None:
        """xenvif_rx_skb: a frame over so many slots, the extra one behind the first."""
        requests = list(netif_rx_request.iter_unpack(ring.peek(_slots_of(frame))))
        ring.consume(len(requests))
        if frame.gso_type:
            del requests[1]
        view = memoryview(frame.data)
        parts = [view[at : at + PAGE_SIZE] for at in range(0, len(view), PAGE_SIZE)]
        places = [(gref, part) for (_, gref), part in zip(requests, parts, strict=True)]
        statuses = write_granted(self._home, self._guest, places)
        flags = [NETRXF_more_data] * (len(parts) - 1) + [0]
        flags[0] |= (NETRXF_csum_blank | NETRXF_data_validated) if frame.is_blank else 0
        flags[0] |= NETRXF_data_validated if frame.is_validated else 0
        flags[0] |= NETRXF_extra_info if frame.gso_type else 0
        responses = [
            (id_, 0, flag, status) for (id_, _), flag, status in zip(requests, flags, statuses, strict=True)
        ]
        if frame.gso_type:
            ring.respond(netif_rx_response, responses[:1])
            u = frame.gso_size.to_bytes(2, "little") + bytes((frame.gso_type, 0, 0, 0))
            ring.respond(netif_extra_info, [(XEN_NETIF_EXTRA_TYPE_GSO, 0, u)])
            del responses[0]
        ring.respond(netif_rx_response, responses)


def _slots_of(frame: Frame) -> int:
    return -(-len(frame.data) // PAGE_SIZE) + bool(frame.gso_type)
