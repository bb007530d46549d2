"""The network backend: what Linux's xen-netback is in domain 0, with xen/include/public/io/netif.h.

A frame is taken when the guest notifies, and is at the switch when a wire would have it there by the guest's
clock. What comes from the switch waits until it is there by the clock of who receives it, and for as many
slots as it needs. Every index, grant, size, offset and extra slot may lie: what xen-netback drops is dropped,
what ends the interface there ends it here, and no more waits for a guest than Linux has memory for.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Container, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from hvcore.backends.back_ring import BackRing
from hvcore.backends.device import Device
from hvcore.backends.libxl_nodes import add_device
from hvcore.backends.net_frame import ETH_HLEN, Frame, filled, for_offload, payload_of, segments, transport_of
from hvcore.backends.net_switch import Port
from hvcore.backends.vif import MTU, Vif
from hvcore.backends.xenbus import FrontendError, XenbusDevice
from hvcore.common.grant_map import map_for_backend, unmap_for_backend
from hvcore.public.errno import EINVAL, EIO, EOPNOTSUPP
from hvcore.public.netif import (
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    NETIF_RX_ENTRY,
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
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETRXF_extra_info,
    NETRXF_more_data,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
    NETTXF_more_data,
    netif_extra_info,
    netif_rx_request,
    netif_rx_response,
    netif_tx_request,
    netif_tx_response,
)
from hvcore.public.xen import PAGE_SIZE
from hvcore.public.xenbus import XenbusStateInitialising, XenbusStateInitWait

if TYPE_CHECKING:
    from hvcore.backends.net_switch import Switch
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain

VIF = "vif"  # the kind of device, and of its timer
FATAL_SKB_SLOTS = 20
MAX_MULTICAST = 64  # XEN_NETBK_MCAST_MAX
MAX_WAITING_FRAMES, MAX_WAITING_BYTES = 1024, 4 << 20
_DRAIN_NS = 10 * 10**9  # rx_drain_timeout_msecs
_MAX_BURST = 131072
# The wire, by the guest's clock: one frame at a time, this long each and for each byte.
_FRAME_NS = 1_000
_BYTES_PER_NS = 1
_NO_SG_LIMIT = ETH_HLEN + 4 + MTU
_GSO_NODES = {XEN_NETIF_GSO_TYPE_TCPV4: "feature-gso-tcpv4", XEN_NETIF_GSO_TYPE_TCPV6: "feature-gso-tcpv6"}
_FEATURES = {
    "feature-sg": 1, "feature-gso-tcpv4": 1, "feature-gso-tcpv6": 1, "feature-ipv6-csum-offload": 1,
    "feature-rx-copy": 1, "feature-rx-flip": 0, "feature-multicast-control": 1,
    "feature-dynamic-multicast-control": 1, "feature-split-event-channels": 1, "multi-queue-max-queues": 1,
    "feature-ctrl-ring": 0, "hotplug-status": "connected",
}  # fmt: skip


class TxAnswer(NamedTuple):
    """A response to a request and its extra slots, and when it comes."""

    when: int
    id: int
    status: int
    extras: int


class Arrival(NamedTuple):
    """A frame of the switch's, and when it is there."""

    when: int
    frame: Frame


_WHEN = attrgetter("when")


class Slot(NamedTuple):
    """struct netif_tx_request."""

    gref: int
    offset: int
    flags: int
    id: int
    size: int


class _FatalError(Exception):
    """The frontend did what ends its interface: xenvif_fatal_tx_err."""


class _RxChannel(Device):
    """The second event channel of an interface that has two: for what the guest receives."""

    WIRING = frozenset((*Device.WIRING, "_heard"))

    def __init__(self, guest: Domain, heard: Callable[[], None]) -> None:
        super().__init__(guest)
        self._heard = heard

    def handle_event(self) -> None:
        """See Device."""
        self._heard()


class NetBackend(XenbusDevice, Port):
    """One network interface of one guest."""

    WIRING = frozenset((*XenbusDevice.WIRING, "vif", "name", "switch", "tx", "rx", "rx_channel"))

    def __init__(
        self, guest: Domain, backend: Domain, store: Xenstored, vif: Vif, devid: int, switch: Switch
    ) -> None:
        self.vif = vif
        self.name = f"vif{guest.domain_id}.{devid}"
        self.is_up = True
        self.is_disabled = False  # for good: the frontend did what cannot be
        self.can_sg = self.ip_csum = self.ipv6_csum = False
        self.gso_mask = 0
        self.multicast: list[bytes] = []
        self.answers: list[TxAnswer] = []
        self.waiting: list[Arrival] = []
        self.waiting_bytes = 0
        self.dropped = 0  # frames from the switch that found no room
        self.busy_until = 0
        self.credit = vif.rate
        self.credit_start = 0
        self.credit_due = 0  # when there is more, while a frame waits for it
        self.tx: BackRing | None = None
        self.rx: BackRing | None = None
        self.rx_channel: _RxChannel | None = None
        switch.plug(self)
        _add_nodes(store, guest, vif, devid)
        super().__init__(VIF, devid, guest, backend, store)
        for name, value in _FEATURES.items():
            self.tell(name, value)
        self.switch_state(XenbusStateInitWait)

    def owners(self) -> Iterator[tuple[str, object]]:
        """See XenbusDevice."""
        parts = {"tx": self.tx, "rx": self.rx, "channel": self.rx_channel}
        yield from ((name, part) for name, part in parts.items() if part is not None)

    def prepare(self, saved: Container[str]) -> None:
        """See XenbusDevice."""
        mem, frame = self.guest.mem, self.guest.shared_info_mfn
        if "tx" in saved:
            self.tx = BackRing(mem, [frame], NETIF_TX_ENTRY)
        if "rx" in saved:
            self.rx = BackRing(mem, [frame], NETIF_RX_ENTRY)
        if "channel" in saved:
            self.rx_channel = _RxChannel(self.guest, self._receive)

    def restored(self) -> None:
        """See XenbusDevice."""
        super().restored()
        if self.rx_channel is not None and self.rx_channel.backend_port:
            self.rx_channel.reconnect(self.home)

    # -- connecting

    def connect_ring(self) -> None:
        """See XenbusDevice: connect() of xen-netback."""
        if self.number("multi-queue-num-queues", 1) != 1:
            raise FrontendError(EINVAL, "guest requested more queues than there are")
        if not self.number("request-rx-copy", 0):
            raise FrontendError(EOPNOTSUPP, "the frontend does not ask for rx-copy")
        self.can_sg = bool(self.number("feature-sg", 0))
        self.gso_mask = sum(1 << kind for kind, node in _GSO_NODES.items() if self.number(node, 0))
        self.ip_csum = not self.number("feature-no-csum-offload", 0)
        self.ipv6_csum = bool(self.number("feature-ipv6-csum-offload", 0))
        refs = [self.number("tx-ring-ref"), self.number("rx-ring-ref")]
        is_split = None not in (self.asked("event-channel-tx"), self.asked("event-channel-rx"))
        port = self.number("event-channel-tx" if is_split else "event-channel")
        tx, rx = self.map_frames(refs)
        rings = BackRing(self.guest.mem, [tx], NETIF_TX_ENTRY), BackRing(self.guest.mem, [rx], NETIF_RX_ENTRY)
        if any(ring.unconsumed() is None for ring in rings):
            raise FrontendError(EIO, "a ring holds more requests than it has room for")
        self.bind(port)
        if is_split:
            self.rx_channel = _RxChannel(self.guest, self._receive)
            rport = self.number("event-channel-rx")
            rc = self.rx_channel.connect_to(self.home, rport)
            if rc:
                raise FrontendError(-rc, f"binding port {rport}")
        self.tx, self.rx = rings

    def advertise(self) -> None:
        """See XenbusDevice: all was told before."""

    def close_ring(self) -> None:
        """See XenbusDevice. Frames that wait are lost."""
        if self.rx_channel is not None:
            self.rx_channel.disconnect()
        self.tx = self.rx = self.rx_channel = None
        self.answers.clear()
        self._drop_waiting()
        self.multicast.clear()
        self.credit, self.credit_due = self.vif.rate, 0
        self.guest.clock.stop_timer((VIF, self.devid))
        super().close_ring()

    def close(self) -> None:
        """See XenbusDevice."""
        if self.switch is not None:
            self.switch.unplug(self)

    def set_link(self, *, up: bool) -> None:
        """`ip link set vif1.0 down` in domain 0, and up: what is down takes nothing from either side."""
        self.is_up = up
        if up:
            self.serve()
            self.handle_event()
        else:
            self._drop_waiting()

    def _drop_waiting(self) -> None:
        self.waiting.clear()
        self.waiting_bytes = 0

    def _disable(self) -> None:
        self.is_disabled = True
        self._drop_waiting()

    # -- from the guest

    def handle_event(self) -> None:
        """The guest notified: take what it sends, and give it what it has made room for."""
        self._send()
        self._receive()

    def _send(self) -> None:
        """xenvif_tx_build_gops: every frame in the ring, as far as credit goes."""
        ring = self.tx
        while ring is not None and self.is_up and not self.is_disabled and not self.credit_due:
            waiting = ring.unconsumed()
            if waiting is None or waiting > ring.entries:  # none that was taken can be taken back
                self._disable()
                return
            if not waiting and not ring.final_check():
                break
            if self._lacks_credit(Slot(*netif_tx_request.unpack(ring.peek_request())).size):
                break
            try:
                self._take_frame(ring, waiting)
            except _FatalError:
                self._disable()
                return
        self._arm()

    def _lacks_credit(self, size: int) -> bool:
        """tx_credit_exceeded, for an interface with a rate."""
        if not self.vif.rate:
            return False
        now, period = self.guest.clock.now(), self.vif.rate_usecs * 1000
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
        self.credit = min(self.credit + self.vif.rate, max(_MAX_BURST, self.vif.rate))

    def _take_frame(self, ring: BackRing, waiting: int) -> None:
        """One frame with its extra slots and fragments. Raises _FatalError."""
        first = Slot(*netif_tx_request.unpack(ring.next_request()))
        extras = _extras(ring, waiting - 1) if first.flags & NETTXF_extra_info else []
        by_type = {kind: data for kind, _, data in extras}
        for kind in (XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL):
            if kind in by_type:
                status = self._change_multicast(by_type[kind], adds=kind == XEN_NETIF_EXTRA_TYPE_MCAST_ADD)
                self._answer(first.id, status, len(extras))
                return
        slots, is_good = _fragments(ring, first, waiting - 1 - len(extras))
        if not is_good or slots[0].size < ETH_HLEN:
            for i, slot in enumerate(slots):
                self._answer(slot.id, NETIF_RSP_ERROR, 0 if i else len(extras))
            return
        if slots[0].offset + slots[0].size > PAGE_SIZE:
            raise _FatalError
        gso = by_type.get(XEN_NETIF_EXTRA_TYPE_GSO)
        size, kind = (int.from_bytes(gso[:2], "little"), gso[2]) if gso is not None else (0, 0)
        if gso is not None and (not size or kind not in _GSO_NODES):
            raise _FatalError
        parts = [self._read(slot) for slot in slots]
        data = b"".join(part for part in parts if part is not None)
        begin = max(self.busy_until, self.guest.clock.now())
        self.busy_until = begin + _FRAME_NS + len(data) // _BYTES_PER_NS
        for i, (slot, part) in enumerate(zip(slots, parts, strict=True)):
            status = NETIF_RSP_ERROR if part is None else NETIF_RSP_OKAY
            self._answer(slot.id, status, 0 if i else len(extras))
        if None not in parts:
            self._pass_on(data, first.flags, kind, size)

    def _pass_on(self, data: bytes, flags: int, gso_type: int, gso_size: int) -> None:
        """xenvif_tx_submit: a blank checksum has to be one of a packet that has one."""
        is_blank = bool(flags & NETTXF_csum_blank)
        is_known = is_blank or bool(flags & NETTXF_data_validated)
        frame = Frame(data, is_blank, is_known, gso_type, gso_size)
        if gso_type:
            frame = for_offload(frame)
            if payload_of(frame) is None:
                return
        elif is_blank and transport_of(data) is None:
            return
        self.frame_in(self.busy_until, frame)

    def _read(self, slot: Slot) -> bytes | None:
        """The bytes that a request names; None where its grant gives none."""
        handle, mfn = map_for_backend(self.home, self.guest, slot.gref, readonly=True)
        if handle < 0:
            return None
        data = bytes(self.guest.mem.frame(mfn)[slot.offset : slot.offset + slot.size])
        unmap_for_backend(self.home, handle)
        return data

    def _change_multicast(self, data: bytes, *, adds: bool) -> int:
        if adds and len(self.multicast) >= MAX_MULTICAST:
            return NETIF_RSP_ERROR
        if adds:
            self.multicast.append(data)
        elif data in self.multicast:
            self.multicast.remove(data)
        return NETIF_RSP_OKAY

    def _answer(self, id_: int, status: int, extras: int) -> None:
        when = max(self.busy_until, self.guest.clock.now())
        self.answers.append(TxAnswer(when, id_, status, extras))

    # -- to the guest

    def frame_out(self, when: int, frame: Frame) -> None:
        """See Port: the frame waits until it is there by this guest's clock."""
        if self.rx is None or self.is_disabled or not self.is_up or not self._wants(frame.data):
            return
        for piece in self._adapted(frame):
            size = len(piece.data)
            if len(self.waiting) >= MAX_WAITING_FRAMES or self.waiting_bytes + size > MAX_WAITING_BYTES:
                self.dropped += 1
                continue
            insort(self.waiting, Arrival(when, piece), key=_WHEN)
            self.waiting_bytes += size
        self._arm()

    def _wants(self, data: bytes) -> bool:
        """Whether the guest wants a frame: a multicast, where it asks for some, only if it asked for that."""
        to = data[:6]
        if not to[0] & 1 or to == b"\xff" * 6 or not self.number("request-multicast-control", 0):
            return True
        return to in self.multicast

    def _adapted(self, frame: Frame) -> list[Frame]:
        """The frame as a guest with these features can take it."""
        if frame.gso_type and not (self.can_sg and self.gso_mask >> frame.gso_type & 1):
            return segments(frame)
        if frame.is_blank:
            where = transport_of(frame.data)
            if not (self.ip_csum if where is None or where.version == 4 else self.ipv6_csum):
                frame = filled(frame)
        return [frame] if self.can_sg or len(frame.data) <= _NO_SG_LIMIT else []

    def _receive(self) -> None:
        """xenvif_rx_action: give the guest what is there by now, as far as it has room."""
        rx, now = self.rx, self.guest.clock.now()
        if rx is None:
            return
        before = rx.rsp_prod
        while self.waiting and self.waiting[0].when <= now:
            frame = self.waiting[0].frame
            is_late = self.waiting[0].when + _DRAIN_NS < now
            if not is_late and not self._has_room(rx, frame):
                break
            self.waiting.pop(0)
            self.waiting_bytes -= len(frame.data)
            if not is_late:
                self._put(rx, frame)
        if rx.rsp_prod != before and rx.publish():
            (self.rx_channel or self).notify()
        self._arm()

    def _has_room(self, rx: BackRing, frame: Frame) -> bool:
        """xenvif_rx_ring_slots_available."""
        there = rx.unconsumed()
        if there is None:
            self._disable()
            return False
        if there >= -(-len(frame.data) // PAGE_SIZE) + bool(frame.gso_type):
            return True
        rx.wait_for_more()
        return False

    def _put(self, rx: BackRing, frame: Frame) -> None:
        """xenvif_rx_skb: a frame over so many slots, the extra one behind the first."""
        data = frame.data
        for at in range(0, len(data), PAGE_SIZE):
            part = data[at : at + PAGE_SIZE]
            flags = NETRXF_more_data if at + PAGE_SIZE < len(data) else 0
            if not at:
                flags |= (NETRXF_csum_blank | NETRXF_data_validated) if frame.is_blank else 0
                flags |= NETRXF_data_validated if frame.is_validated else 0
                flags |= NETRXF_extra_info if frame.gso_type else 0
            id_, gref = netif_rx_request.unpack(rx.next_request())
            rx.push(netif_rx_response.pack(id_, 0, flags, self._write(gref, part)))
            if not at and frame.gso_type:
                rx.next_request()
                u = frame.gso_size.to_bytes(2, "little") + bytes((frame.gso_type, 0, 0, 0))
                rx.push(netif_extra_info.pack(XEN_NETIF_EXTRA_TYPE_GSO, 0, u))

    def _write(self, gref: int, data: bytes) -> int:
        """Copy to a granted page: how much, or the negative GNTST_* of a grant that cannot be had."""
        handle, mfn = map_for_backend(self.home, self.guest, gref, readonly=False)
        if handle < 0:
            return handle
        self.guest.mem.frame(mfn)[: len(data)] = data
        self.guest.engine.wrote_frame(mfn)
        unmap_for_backend(self.home, handle)
        return len(data)

    # -- time

    def _arm(self) -> None:
        """Be called when something is due. What waits for slots is due when the guest notifies."""
        due = [self.answers[0].when] if self.answers else []
        if self.credit_due:
            due.append(self.credit_due)
        if self.waiting and self.rx is not None:
            head = self.waiting[0]
            if head.when > self.guest.clock.now() or self._has_room(self.rx, head.frame):
                due.append(head.when)
        if due:
            self.guest.clock.set_timer((VIF, self.devid), min(due), self.answer_due)

    def answer_due(self) -> None:
        """The timer: answer what is sent by now, give the guest what is there by now."""
        ring, now = self.tx, self.guest.clock.now()
        if ring is None:
            return
        self.serve()
        before = ring.rsp_prod
        while self.answers and self.answers[0].when <= now:
            answer = self.answers.pop(0)
            ring.push(netif_tx_response.pack(answer.id, answer.status))
            for _ in range(answer.extras):
                ring.push(netif_tx_response.pack(0, NETIF_RSP_NULL))
        if ring.rsp_prod != before and ring.publish():
            self.notify()
        if self.credit_due and self.credit_due <= now:
            self.credit_due = 0
            self._add_credit()
        self.handle_event()


def _extras(ring: BackRing, waiting: int) -> list[tuple[int, int, bytes]]:
    """xenvif_get_extras: (type, flags, data) of each. Raises _FatalError."""
    found: list[tuple[int, int, bytes]] = []
    while True:
        if len(found) >= waiting:
            raise _FatalError
        kind, flags, data = netif_extra_info.unpack_from(ring.next_request())
        if not XEN_NETIF_EXTRA_TYPE_NONE < kind < XEN_NETIF_EXTRA_TYPE_MAX:
            raise _FatalError
        found.append((kind, flags, data))
        if not flags & XEN_NETIF_EXTRA_FLAG_MORE:
            return found


def _fragments(ring: BackRing, first: Slot, waiting: int) -> tuple[list[Slot], bool]:
    """xenvif_count_requests: the slots of a frame, and whether they make one. Raises _FatalError.

    The first request says the size of all; the slot returned for it has its own.
    """
    slots, is_good, left, flags = [first], True, first.size, first.flags
    while flags & NETTXF_more_data:
        count = len(slots) - 1
        if count >= waiting or count >= FATAL_SKB_SLOTS:
            raise _FatalError
        slot = Slot(*netif_tx_request.unpack(ring.next_request()))
        is_good = is_good and count < XEN_NETIF_NR_SLOTS_MIN and slot.size <= left
        left = left - slot.size & 0xFFFF
        if slot.offset + slot.size > PAGE_SIZE:
            raise _FatalError
        slots.append(slot)
        flags = slot.flags
    return [first._replace(size=left), *slots[1:]], is_good


def _add_nodes(store: Xenstored, guest: Domain, vif: Vif, devid: int) -> None:
    """libxl__set_xenstore_nic() of tools/libs/light/libxl_nic.c."""
    mac = vif.address(guest.domain_id, devid)
    back = {
        "frontend-id": str(guest.domain_id),
        "online": "1",
        "state": str(XenbusStateInitialising),
        "script": f"/etc/xen/scripts/{vif.script}",
        "mac": mac,
        **({"ip": vif.ip} if vif.ip else {}),
        **({"rate": f"{vif.rate},{vif.rate_usecs}"} if vif.rate else {}),
        **({"mtu": str(vif.mtu)} if vif.mtu != MTU else {}),
        "bridge": vif.bridge,
        "handle": str(devid),
        "type": "vif",
        "hotplug-status": "",
    }
    front = {
        "backend-id": "0",
        "state": str(XenbusStateInitialising),
        "handle": str(devid),
        "mac": mac,
        "trusted": str(int(vif.trusted)),
    }
    add_device(store, guest.domain_id, VIF, devid, back, front, {"mtu": str(vif.mtu)})
