"""The event channels of a domain, as the rest of the hypervisor uses them: xen/include/xen/event.h.

A port is an index in parallel arrays, `struct evtchn` of Xen. Where its pending and mask bits stand depends
on the ABI that the domain chose, and is the business of `port_ops` (event_2l.py or event_fifo.py). A port's
peer is (domain, port), of any domain of the machine. A backend's port is one of domain 0, and has a consumer:
it is called where another port would become pending.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

from hvcore.common.event_2l import Evtchn2l
from hvcore.common.schedule import vcpu_unblock
from hvcore.public.errno import EACCES, EBUSY, EINVAL, ENOSPC, ENOSYS
from hvcore.public.event_channel import EVTCHN_FIFO_PRIORITY_MIN
from hvcore.public.xen import (
    NR_VIRQS,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

ECS_FREE = 0
ECS_RESERVED = 1
ECS_UNBOUND = 2
ECS_INTERDOMAIN = 3
ECS_PIRQ = 4
ECS_VIRQ = 5
ECS_IPI = 6

EVTCHNS_PER_BUCKET = 64  # a page of 64-byte struct evtchn
MAX_EVTCHN_PORT = 1023  # libxl's `event_channels` default

_PER_VCPU_VIRQS = frozenset((VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU))


def virq_is_global(virq: int) -> bool:
    """The virq belongs to the domain (and vCPU 0 binds it) rather than to each vCPU."""
    return virq not in _PER_VCPU_VIRQS


class EvtchnPortOps(Protocol):
    """struct evtchn_port_ops: what an ABI does to a port that a guest uses (its state is above RESERVED)."""

    has_priority: bool

    @property
    def nr_channels(self) -> int:
        """max_evtchns(): ports below this can be expressed."""

    def init(self, port: int) -> None:
        """`port` comes into use."""

    def set_pending(self, v: Vcpu, port: int) -> None:
        """An event of `port` for `v`."""

    def clear_pending(self, port: int) -> None:
        """Forget an event of `port`."""

    def unmask(self, port: int) -> None:
        """Clear the mask of `port` and raise what it held back."""

    def is_pending(self, port: int) -> bool:
        """An event of `port` waits for the guest."""

    def is_masked(self, port: int) -> bool:
        """The guest does not want to hear of `port`."""

    def is_busy(self, port: int) -> bool:
        """`port`, closed or not, cannot be given out yet."""

    def destroy(self) -> None:
        """Give back what the ABI holds: another takes its place."""

    def held_frames(self) -> list[int]:
        """The guest's frames that are held as writable ones, each as often as it is."""


class EvtchnTable:
    """All ports of one domain. `valid_evtchns` ports exist so far; they come in buckets of 64."""

    __slots__ = (
        "active_evtchns",
        "consumers",
        "domain",
        "fifo_lastq",
        "max_evtchn_port",
        "notify_vcpu_id",
        "pending",
        "pirq_eoi_map_mfn",
        "pirqs",
        "pollers",
        "port_ops",
        "priority",
        "remote_dom",
        "remote_port",
        "state",
        "virq",
        "virq_to_evtchn",
    )

    WIRING = frozenset(("domain", "consumers", "port_ops"))

    def __init__(self, domain: Domain, max_evtchn_port: int = MAX_EVTCHN_PORT) -> None:
        self.domain = domain
        self.max_evtchn_port = max_evtchn_port
        self.active_evtchns = 0
        self.pollers = 0  # vCPUs in SCHEDOP_poll: the weight of Xen's poll_mask
        # struct evtchn. The last three are for FIFO: an event that waits for its event word; the priority;
        # the queue that the port was on last.
        self.state = bytearray()
        self.notify_vcpu_id = array("H")
        self.remote_dom = array("H")
        self.remote_port = array("I")
        self.virq = bytearray()
        self.pending = bytearray()
        self.priority = bytearray()
        self.fifo_lastq = array("I")
        self.virq_to_evtchn = array("I", bytes(4 * NR_VIRQS * domain.max_vcpus))
        self.consumers: dict[int, Callable[[], None]] = {}  # of ports that are a backend's, for good
        self.pirqs: set[int] = set()  # interrupt numbers that PHYSDEVOP_get_free_pirq gave out
        self.pirq_eoi_map_mfn: int | None = None  # held as a writable frame
        self.port_ops: EvtchnPortOps = Evtchn2l(self)
        self._add_bucket()
        self.state[0] = ECS_RESERVED

    @property
    def valid_evtchns(self) -> int:
        """Ports below this exist."""
        return len(self.state)

    def _add_bucket(self) -> None:
        for field in (self.state, self.virq, self.pending, self.priority):
            field.extend(bytes(EVTCHNS_PER_BUCKET))
        for words in (self.notify_vcpu_id, self.remote_dom, self.remote_port, self.fifo_lastq):
            words.frombytes(bytes(EVTCHNS_PER_BUCKET * words.itemsize))

    # --- what is done to a port, whatever the ABI ---------------------------------------------------------

    def is_usable(self, port: int) -> bool:
        """evtchn_usable(): the port exists and the guest uses it."""
        return port < len(self.state) and self.state[port] > ECS_RESERVED

    def notify(self, port: int) -> None:
        """An event for `port`, which exists: to its consumer, or to the vCPU that it is bound to."""
        consumer = self.consumers.get(port)
        if consumer is not None:
            consumer()
        else:
            self.set_pending(self.notify_vcpu_id[port], port)

    def set_pending(self, vcpu_id: int, port: int) -> None:
        """Raise `port`, which exists, for a vCPU."""
        if self.state[port] > ECS_RESERVED:
            self.port_ops.set_pending(self.domain.vcpus[vcpu_id], port)

    def clear_pending(self, port: int) -> None:
        """Forget a pending event of `port`, which exists."""
        if self.state[port] > ECS_RESERVED:
            self.port_ops.clear_pending(port)

    def unmask(self, port: int) -> None:
        """Unmask `port`, which exists; an event that was held back is raised."""
        if self.state[port] > ECS_RESERVED:
            self.port_ops.unmask(port)

    def is_pending(self, port: int) -> bool:
        """An event of `port` waits for the guest."""
        return self.is_usable(port) and self.port_ops.is_pending(port)

    def is_masked(self, port: int) -> bool:
        """The guest has `port` masked, or does not use it."""
        return not self.is_usable(port) or self.port_ops.is_masked(port)

    def set_priority(self, port: int, priority: int) -> int:
        """evtchn_port_set_priority() of a port that exists: 0, -ENOSYS, -EACCES or -EINVAL."""
        if not self.port_ops.has_priority:
            return -ENOSYS
        if self.state[port] <= ECS_RESERVED:
            return -EACCES
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            return -EINVAL
        self.priority[port] = priority  # for events to come; one that is linked stays where it is
        return 0

    def port_poll(self, port: int) -> int:
        """1 when pending, 0 when not, -EINVAL for a port that is not in use."""
        return int(self.port_ops.is_pending(port)) if self.is_usable(port) else -EINVAL

    def check_pollers(self, port: int) -> None:
        """Wake the vCPUs that may be polling for `port`."""
        for v in self.domain.vcpus:
            waits_for = v.poll_evtchn
            if waits_for is not None and waits_for in (-1, port):
                vcpu_unblock(v)

    def held_frames(self) -> Iterator[int]:
        """The guest's frames that event channels hold as writable ones, each as often as they do."""
        if self.pirq_eoi_map_mfn is not None:
            yield self.pirq_eoi_map_mfn
        yield from self.port_ops.held_frames()

    # --- ports come and go --------------------------------------------------------------------------------

    def allocate_port(self, port: int) -> int:
        """Take `port` out of the free ones: 0, -ENOSPC or -EBUSY."""
        if port > self.max_evtchn_port or port >= self.port_ops.nr_channels:
            return -ENOSPC
        if port < self.valid_evtchns:
            if self.state[port] != ECS_FREE or self.port_ops.is_busy(port):
                return -EBUSY
        else:
            while port >= self.valid_evtchns:
                self._add_bucket()
        self.active_evtchns += 1
        return 0

    def get_free_port(self) -> int:
        """The lowest port that is free and not busy, taken; or -ENOSPC."""
        port = self.state.find(ECS_FREE)
        while port >= 0:
            rc = self.allocate_port(port)
            if rc != -EBUSY:
                return rc or port
            port = self.state.find(ECS_FREE, port + 1)
        port = self.valid_evtchns
        return self.allocate_port(port) or port

    def free(self, port: int) -> None:
        """Give `port` back."""
        self.clear_pending(port)
        self.active_evtchns -= 1
        self.state[port] = ECS_FREE
        self.notify_vcpu_id[port] = 0

    def bind(self, state: int, vcpu_id: int = 0) -> int:
        """A new port in `state`, or -ENOSPC."""
        port = self.get_free_port()
        if port > 0:
            self.state[port] = state
            self.notify_vcpu_id[port] = vcpu_id
            self.port_ops.init(port)
        return port

    # --- what the hypervisor and its backends raise -------------------------------------------------------

    def send_guest_vcpu_virq(self, v: Vcpu, virq: int) -> None:
        """Raise a per-vCPU virq, if the guest has bound it."""
        port = self.virq_to_evtchn[v.vcpu_id * NR_VIRQS + virq]
        if port:
            self.set_pending(v.vcpu_id, port)
