"""What a guest sends, as xen-netback has it: from the ring to whole frames, and the answers.

The first request of a frame says the size of all, extra slots follow it, then the other fragments. A frame is
on its wire one behind the other, by the guest's clock, and its requests are answered when it is through.

Source: xen/include/public/io/netif.h, and drivers/net/xen-netback of Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.net_frame import ETH_HLEN, Frame, for_offload, payload_of, transport_of
from hvcore.clock import NEVER
from hvcore.common.grant_slices import read_granted
from hvcore.public.netif import (
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    NETIF_TX_ENTRY,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_MAX,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    XEN_NETIF_EXTRA_TYPE_NONE,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
    XEN_NETIF_NR_SLOTS_MIN,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
    NETTXF_more_data,
    netif_extra_info,
    netif_tx_request,
    netif_tx_response,
)
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.backends.back_ring import BackRing
    from hvcore.backends.vif import Vif
    from hvcore.domain import Domain

FATAL_SKB_SLOTS = 20
MAX_MULTICAST = 64  # XEN_NETBK_MCAST_MAX
_MAX_BURST = 131072
# The wire, by the guest's clock: one frame at a time, this long each and for each byte.
_FRAME_NS = 1_000
_BYTES_PER_NS = 4
_GSO_TYPES = (XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6)
_EXTRA = (0, NETIF_RSP_NULL)  # the response to an extra slot
# A guest looks for answers itself when it sends more. So long it is not told of them.
_UNTOLD_NS = 500_000


class TxAnswer(NamedTuple):
    """The responses to a frame's requests and extra slots, (id, status) each, and when they come."""

    when: int
    responses: tuple[tuple[int, int], ...]


Slot = tuple[int, int, int, int, int]  # struct netif_tx_request: gref, offset, flags, id, size


class FatalTxError(Exception):
    """The frontend did what ends its interface: xenvif_fatal_tx_err."""


class NetTx:
    """The sending half of an interface of `guest`, served in `home`. Connected, it has a `ring`."""

    WIRING = frozenset(("ring", "_guest", "_home", "_vif"))

    def __init__(self, guest: Domain, home: Domain, vif: Vif) -> None:
        self._guest = guest
        self._home = home
        self._vif = vif
        self.ring: BackRing | None = None
        self.answers: list[TxAnswer] = []
        self.untold = 0  # responses in the ring of which the guest was not told; it may have seen them
        self.untold_since = 0  # when the first of them was due
        self.multicast: list[bytes] = []  # the addresses that the guest asked for
        self.busy_until = 0
        self.credit = vif.rate
        self.credit_start = 0
        self.credit_due = 0  # when there is more, while a frame waits for it

    def disconnect(self) -> None:
        """No ring any more, and nothing that was on its way."""
        self.ring = None
        self.answers.clear()
        self.untold = 0
        self.multicast.clear()
        self.credit, self.credit_due = self._vif.rate, 0

    def frames(self) -> Iterator[tuple[int, Frame]]:
        """xenvif_tx_build_gops: each frame in the ring as far as credit goes, and when it is through.

        Raises FatalTxError.
        """
        ring = self.ring
        while ring is not None and not self.credit_due:
            waiting = ring.unconsumed()
            if waiting is None or waiting > ring.entries:  # none that was taken can be taken back
                raise FatalTxError
            if not waiting:
                ring.final_check()
                return
            entries = memoryview(ring.peek(waiting))
            while entries and not self._lacks_credit(netif_tx_request.unpack_from(entries)[-1]):
                used, frame = self._take_frame(entries)
                ring.consume(used)
                entries = entries[used * NETIF_TX_ENTRY :]
                if frame is not None:
                    yield self.busy_until, frame

    def _lacks_credit(self, size: int) -> bool:
        """tx_credit_exceeded, for an interface with a rate."""
        if not self._vif.rate:
            return False
        now, period = self._guest.clock.now(), self._vif.rate_usecs * 1000
        if now >= self.credit_start + period:
            self.credit_start = now
            self._add_credit()
        if size > self.credit:
            self.credit_start += period
            self.credit_due = self.credit_start
            return True
        self.credit -= size
        return False

    def _add_credit(self) -> None:
        self.credit = min(self.credit + self._vif.rate, max(_MAX_BURST, self._vif.rate))

    def _take_frame(self, entries: memoryview) -> tuple[int, Frame | None]:
        """How many entries the first frame has, and what goes on of it. Raises FatalTxError."""
        _, _, flags, first_id, _ = netif_tx_request.unpack_from(entries)
        extras, count = _extras(entries[NETIF_TX_ENTRY:]) if flags & NETTXF_extra_info else ({}, 0)
        for kind in (XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL):
            if kind in extras:
                status = self._change_multicast(extras[kind], adds=kind == XEN_NETIF_EXTRA_TYPE_MCAST_ADD)
                self._answer([(first_id, status)], count)
                return 1 + count, None
        slots, is_good = _fragments(entries, count)
        used = count + len(slots)
        _, offset, _, _, size = slots[0]
        if not is_good or size < ETH_HLEN:
            self._answer([(id_, NETIF_RSP_ERROR) for _, _, _, id_, _ in slots], count)
            return used, None
        if offset + size > PAGE_SIZE:
            raise FatalTxError
        gso_type, gso_size = _gso(extras)
        places = [(gref, offset, size) for gref, offset, _, _, size in slots]
        parts = read_granted(self._home, self._guest, places)
        there = [part for part in parts if part is not None]
        data = b"".join(there)
        begin = max(self.busy_until, self._guest.clock.now())
        self.busy_until = begin + _FRAME_NS + len(data) // _BYTES_PER_NS
        if len(there) < len(parts):
            bad = [NETIF_RSP_ERROR if part is None else NETIF_RSP_OKAY for part in parts]
            self._answer([(slot[3], status) for slot, status in zip(slots, bad, strict=True)], count)
            return used, None
        self._answer([(id_, NETIF_RSP_OKAY) for _, _, _, id_, _ in slots], count)
        return used, _whole(data, flags, gso_type, gso_size)

    def _change_multicast(self, data: bytes, *, adds: bool) -> int:
        if adds and len(self.multicast) >= MAX_MULTICAST:
            return NETIF_RSP_ERROR
        if adds:
            self.multicast.append(data)
        elif data in self.multicast:
            self.multicast.remove(data)
        return NETIF_RSP_OKAY

    # -- answers

    def _answer(self, responses: list[tuple[int, int]], extras: int) -> None:
        """Answer a frame, with so many extra slots, when it is through."""
        when = max(self.busy_until, self._guest.clock.now())
        self.answers.append(TxAnswer(when, (responses[0], *(_EXTRA,) * extras, *responses[1:])))

    def respond(self, now: int) -> None:
        """Answer what is through by now. Whether the guest is told, `is_to_tell()` says."""
        ring, due = self.ring, list(takewhile(lambda answer: answer.when <= now, self.answers))
        if ring is not None and due:
            if not self._untold():
                self.untold_since = due[0].when
            ring.respond(netif_tx_response, [each for answer in due for each in answer.responses])
            self.untold = min(self.untold + ring.push_responses(), ring.entries)
            del self.answers[: len(due)]
        if self.credit_due and self.credit_due <= now:
            self.credit_due = 0
            self._add_credit()

    def is_to_tell(self, now: int) -> bool:
        """Whether the guest was not told for so long of answers that it has not seen."""
        if not self._untold() or now < self.untold_since + _UNTOLD_NS:
            return False
        self.untold = 0
        return True

    def _untold(self) -> int:
        """How many answers the guest was neither told of nor has seen, at most."""
        if self.untold and not (self.ring is not None and self.ring.is_awaited(self.untold)):
            self.untold = 0
        return self.untold

    def next_due(self) -> int:
        """When there is something to answer and to tell, or credit again; or NEVER."""
        since = self.untold_since if self._untold() else self.answers[0].when if self.answers else NEVER
        return min(since + _UNTOLD_NS, self.credit_due or NEVER)


def _extras(entries: memoryview) -> tuple[dict[int, bytes], int]:
    """xenvif_get_extras: the data of extra slots by type, and how many slots. Raises FatalTxError."""
    found: dict[int, bytes] = {}
    for at in range(0, len(entries), NETIF_TX_ENTRY):
        kind, flags, data = netif_extra_info.unpack_from(entries, at)
        if not XEN_NETIF_EXTRA_TYPE_NONE < kind < XEN_NETIF_EXTRA_TYPE_MAX:
            raise FatalTxError
        found[kind] = data
        if not flags & XEN_NETIF_EXTRA_FLAG_MORE:
            return found, at // NETIF_TX_ENTRY + 1
    raise FatalTxError


def _fragments(entries: memoryview, extras: int) -> tuple[list[Slot], bool]:
    """xenvif_count_requests: the slots of a frame, and whether they make one. Raises FatalTxError.

    The first request says the size of all; the slot returned for it has its own.
    """
    first: Slot = netif_tx_request.unpack_from(entries)
    gref, offset, flags, id_, left = first
    slots, is_good = [first], True
    rest = netif_tx_request.iter_unpack(entries[(1 + extras) * NETIF_TX_ENTRY :])
    while flags & NETTXF_more_data:
        slot: Slot | None = next(rest, None)
        if slot is None or len(slots) > FATAL_SKB_SLOTS:
            raise FatalTxError
        _, at, flags, _, size = slot
        is_good = is_good and len(slots) <= XEN_NETIF_NR_SLOTS_MIN and size <= left
        left = left - size & 0xFFFF
        if at + size > PAGE_SIZE:
            raise FatalTxError
        slots.append(slot)
    slots[0] = (gref, offset, first[2], id_, left)
    return slots, is_good


def _gso(extras: dict[int, bytes]) -> tuple[int, int]:
    """xenvif_set_skb_gso: type and size of segments, zeros where it is one. Raises FatalTxError."""
    data = extras.get(XEN_NETIF_EXTRA_TYPE_GSO)
    if data is None:
        return 0, 0
    size, kind = int.from_bytes(data[:2], "little"), data[2]
    if not size or kind not in _GSO_TYPES:
        raise FatalTxError
    return kind, size


def _whole(data: bytes, flags: int, gso_type: int, gso_size: int) -> Frame | None:
    """xenvif_tx_submit: the frame; None where a blank checksum or segments are of no packet that has them."""
    is_blank = bool(flags & NETTXF_csum_blank)
    frame = Frame(data, is_blank, is_blank or bool(flags & NETTXF_data_validated), gso_type, gso_size)
    if gso_type:
        frame = for_offload(frame)
        return frame if payload_of(frame) is not None else None
    return None if is_blank and transport_of(data) is None else frame
