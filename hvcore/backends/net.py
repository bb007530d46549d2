"""The network backend: what Linux's xen-netback is in domain 0, with xen/include/public/io/netif.h.

One interface with its two halves, net_tx.py and net_rx.py. A frame is taken when the guest notifies, and is
at the switch when a wire would have it there by the guest's clock. Every index, grant, size, offset and extra
slot may lie: what xen-netback drops is dropped, what ends the interface there ends it here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from hvcore.backends.back_ring import BackRing
from hvcore.backends.device import Device
from hvcore.backends.libxl_nodes import add_device
from hvcore.backends.net_frame import Frame
from hvcore.backends.net_rx import BadRingError, NetRx
from hvcore.backends.net_switch import Port
from hvcore.backends.net_tx import FatalTxError, NetTx
from hvcore.backends.vif import MTU, Vif
from hvcore.backends.xenbus import FrontendError, XenbusDevice
from hvcore.clock import NEVER
from hvcore.public.errno import EINVAL, EIO, EOPNOTSUPP
from hvcore.public.netif import (
    NETIF_RX_ENTRY,
    NETIF_TX_ENTRY,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
)
from hvcore.public.xenbus import XenbusStateInitialising, XenbusStateInitWait

if TYPE_CHECKING:
    from hvcore.backends.net_switch import Switch
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain

VIF = "vif"  # the kind of device, and of its timer
# Frames are handed on when the guest notifies, or so long after the last time: a flood wakes the guest once
# for many frames, as a network card does that moderates its interrupts.
_HOLD_NS = 250_000
_GSO_NODES = {XEN_NETIF_GSO_TYPE_TCPV4: "feature-gso-tcpv4", XEN_NETIF_GSO_TYPE_TCPV6: "feature-gso-tcpv6"}
_FEATURES = {
    "feature-sg": 1, "feature-gso-tcpv4": 1, "feature-gso-tcpv6": 1, "feature-ipv6-csum-offload": 1,
    "feature-rx-copy": 1, "feature-rx-flip": 0, "feature-multicast-control": 1,
    "feature-dynamic-multicast-control": 1, "feature-split-event-channels": 1, "multi-queue-max-queues": 1,
    "feature-ctrl-ring": 0, "hotplug-status": "connected",
}  # fmt: skip


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
        self.held_until = 0
        self.tx = NetTx(guest, backend, vif)
        self.rx = NetRx(guest, backend)
        self.rx_channel: _RxChannel | None = None
        switch.plug(self)
        _add_nodes(store, guest, vif, devid)
        super().__init__(VIF, devid, guest, backend, store)
        for name, value in _FEATURES.items():
            self.tell(name, value)
        self.switch_state(XenbusStateInitWait)

    def owners(self) -> Iterator[tuple[str, object]]:
        """See XenbusDevice."""
        yield from (("tx", self.tx), ("rx", self.rx))
        parts = {"tx-ring": self.tx.ring, "rx-ring": self.rx.ring, "channel": self.rx_channel}
        yield from ((name, part) for name, part in parts.items() if part is not None)

    def prepare(self, saved: Container[str]) -> None:
        """See XenbusDevice."""
        mem, frame = self.guest.mem, self.guest.shared_info_mfn
        if "tx-ring" in saved:
            self.tx.ring = BackRing(mem, [frame], NETIF_TX_ENTRY)
        if "rx-ring" in saved:
            self.rx.ring = BackRing(mem, [frame], NETIF_RX_ENTRY)
        if "channel" in saved:
            self.rx_channel = _RxChannel(self.guest, self.handle_event)

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
        self.rx.can_sg = bool(self.number("feature-sg", 0))
        self.rx.gso_mask = sum(1 << kind for kind, node in _GSO_NODES.items() if self.number(node, 0))
        self.rx.ip_csum = not self.number("feature-no-csum-offload", 0)
        self.rx.ipv6_csum = bool(self.number("feature-ipv6-csum-offload", 0))
        refs = [self.number("tx-ring-ref"), self.number("rx-ring-ref")]
        is_split = None not in (self.asked("event-channel-tx"), self.asked("event-channel-rx"))
        port = self.number("event-channel-tx" if is_split else "event-channel")
        tx, rx = self.map_frames(refs)
        rings = BackRing(self.guest.mem, [tx], NETIF_TX_ENTRY), BackRing(self.guest.mem, [rx], NETIF_RX_ENTRY)
        if any(ring.unconsumed() is None for ring in rings):
            raise FrontendError(EIO, "a ring holds more requests than it has room for")
        self.bind(port)
        if is_split:
            self.rx_channel = _RxChannel(self.guest, self.handle_event)
            rport = self.number("event-channel-rx")
            rc = self.rx_channel.connect_to(self.home, rport)
            if rc:
                raise FrontendError(-rc, f"binding port {rport}")
        self.tx.ring, self.rx.ring = rings

    def advertise(self) -> None:
        """See XenbusDevice: all was told before."""

    def close_ring(self) -> None:
        """See XenbusDevice. Frames that wait are lost."""
        if self.rx_channel is not None:
            self.rx_channel.disconnect()
            self.rx_channel = None
        self.tx.disconnect()
        self.rx.disconnect()
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
            self.rx.drop_waiting()

    def _disable(self) -> None:
        self.is_disabled = True
        self.rx.drop_waiting()

    # -- frames

    def handle_event(self) -> None:
        """The guest notified: it sends, or has made room; and what is due by now need not wait."""
        self._serve_rings()
        self._arm()

    def _serve_rings(self) -> None:
        now = self.guest.clock.now()
        self.tx.respond(now)
        try:
            if self.is_up and not self.is_disabled:
                for when, frame in self.tx.frames():
                    self.frame_in(when, frame)
            if self.rx.deliver(now):
                self.held_until = now + _HOLD_NS
                (self.rx_channel or self).notify()
        except (FatalTxError, BadRingError):
            self._disable()

    def answer_due(self) -> None:
        """See XenbusDevice."""
        self.serve()
        self._serve_rings()
        if self.tx.is_to_tell(self.guest.clock.now()):
            self.notify()
        self._arm()

    def frame_out(self, when: int, frame: Frame) -> None:
        """See Port: the frame waits until it is there by this guest's clock."""
        if self.rx.ring is not None and not self.is_disabled and self.is_up and self._wants(frame.data):
            self.rx.queue(when, frame)
            self._arm()

    def _wants(self, data: bytes) -> bool:
        """Whether the guest wants a frame: a multicast, where it asks for some, only if it asked for that."""
        to = data[:6]
        if not to[0] & 1 or to == b"\xff" * 6 or not self.number("request-multicast-control", 0):
            return True
        return to in self.tx.multicast

    def _arm(self) -> None:
        """Be called when something is due. What waits for slots is due when the guest notifies."""
        clock, key = self.guest.clock, (VIF, self.devid)
        due = self.tx.next_due()
        try:
            due = min(due, max(self.rx.next_due(clock.now()), self.held_until))
        except BadRingError:
            self._disable()
        armed = clock.expires(key)
        if due < (NEVER if armed is None else armed):  # one that comes too early finds nothing, which is less
            clock.set_timer(key, due, self.answer_due)


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
