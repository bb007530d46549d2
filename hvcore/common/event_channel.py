"""Event channels of the 2-level ABI: xen/common/event_channel.c and event_2l.c.

A port is an index in parallel arrays. Its pending and mask bits live in shared_info, where the guest may
write anything at any time: they are only ever tested and set, never trusted as state. The domain's peers are
itself (loopback) and domain 0, in which the backends stand: a port bound to a backend calls its function when
the guest notifies. FIFO event channels are switched off.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hvcore.common.schedule import vcpu_mark_events_pending, vcpu_unblock
from hvcore.public.errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from hvcore.public.event_channel import (
    EVTCHN_FIFO_CONTROL_BLOCK_SIZE,
    EVTCHN_OP_U,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_bind_pirq,
    EVTCHNOP_bind_vcpu,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_reset,
    EVTCHNOP_reset_cont,
    EVTCHNOP_send,
    EVTCHNOP_set_priority,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    EVTCHNSTAT_closed,
    EVTCHNSTAT_interdomain,
    EVTCHNSTAT_ipi,
    EVTCHNSTAT_pirq,
    EVTCHNSTAT_unbound,
    EVTCHNSTAT_virq,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_ipi,
    evtchn_bind_pirq,
    evtchn_bind_vcpu,
    evtchn_bind_virq,
    evtchn_expand_array,
    evtchn_init_control,
    evtchn_op,
    evtchn_reset,
    evtchn_set_priority,
    evtchn_status,
)
from hvcore.public.xen import (
    DOMID_SELF,
    NR_VIRQS,
    PAGE_SIZE,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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
NR_IRQS_GSI = 24  # the pins of one I/O APIC
NR_PIRQS = NR_IRQS_GSI + 32  # of a domU: DEFAULT_EXTRA_DOMU_IRQS more
DOM0 = 0
DOM0_VALID_EVTCHNS = EVTCHNS_PER_BUCKET

_PER_VCPU_VIRQS = frozenset((VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU))
_STATUS = {
    ECS_FREE: EVTCHNSTAT_closed,
    ECS_RESERVED: EVTCHNSTAT_closed,
    ECS_UNBOUND: EVTCHNSTAT_unbound,
    ECS_INTERDOMAIN: EVTCHNSTAT_interdomain,
    ECS_PIRQ: EVTCHNSTAT_pirq,
    ECS_VIRQ: EVTCHNSTAT_virq,
    ECS_IPI: EVTCHNSTAT_ipi,
}


def virq_is_global(virq: int) -> bool:
    """The virq belongs to the domain (and vCPU 0 binds it) rather than to each vCPU."""
    return virq not in _PER_VCPU_VIRQS


class EvtchnTable:
    """All ports of one domain. `valid_evtchns` ports exist so far; they come in buckets of 64."""

    __slots__ = (
        "_mask_off",
        "_pending_off",
        "_sel_off",
        "_sel_shift",
        "_shared",
        "active_evtchns",
        "backend",
        "domain",
        "max_evtchn_port",
        "notify_vcpu_id",
        "pirq_eoi_map_mfn",
        "pirqs",
        "pollers",
        "remote_dom",
        "remote_port",
        "state",
        "valid_evtchns",
        "virq",
        "virq_to_evtchn",
    )

    def __init__(self, domain: Domain, max_evtchn_port: int = MAX_EVTCHN_PORT) -> None:
        abi = domain.abi
        limit = min(max_evtchn_port + 1, abi.nr_evtchns)
        size = -(-limit // EVTCHNS_PER_BUCKET) * EVTCHNS_PER_BUCKET
        self.domain = domain
        self.max_evtchn_port = limit - 1
        self.valid_evtchns = EVTCHNS_PER_BUCKET
        self.active_evtchns = 0
        self.pollers = 0  # vCPUs in SCHEDOP_poll: the weight of Xen's poll_mask
        self.state = bytearray(size)
        self.notify_vcpu_id = array("H", bytes(2 * size))
        self.remote_dom = array("H", bytes(2 * size))
        self.remote_port = array("I", bytes(4 * size))
        self.virq = bytearray(size)
        self.virq_to_evtchn = array("I", bytes(4 * NR_VIRQS * domain.max_vcpus))
        self.backend: dict[int, Callable[[], None]] = {}
        self.pirqs: set[int] = set()  # interrupt numbers that PHYSDEVOP_get_free_pirq gave out
        self.pirq_eoi_map_mfn: int | None = None  # held as a writable frame
        self.state[0] = ECS_RESERVED
        self._shared = domain.shared_info
        self._pending_off = abi.evtchn_pending
        self._mask_off = abi.evtchn_mask
        self._sel_off = abi.vcpu_pending_sel
        self._sel_shift = abi.word_bits.bit_length() - 1

    # --- the 2-level port operations ----------------------------------------------------------------------

    def set_pending(self, vcpu_id: int, port: int) -> None:
        """Mark `port` pending for a vCPU, and say so in its selector and upcall flag unless it is masked."""
        if self.state[port] <= ECS_RESERVED:
            return
        shared = self._shared
        at = self._pending_off + (port >> 3)
        bit = 1 << (port & 7)
        pending = shared[at]
        if pending & bit:
            return
        shared[at] = pending | bit
        if not shared[self._mask_off + (port >> 3)] & bit:
            self._select(self.domain.vcpus[vcpu_id], port)
        if self.pollers:
            self.check_pollers(port)

    def _select(self, v: Vcpu, port: int) -> None:
        word = port >> self._sel_shift
        at = self._sel_off + (word >> 3)
        bit = 1 << (word & 7)
        selector = v.info[at]
        if not selector & bit:
            v.info[at] = selector | bit
            vcpu_mark_events_pending(v)

    def unmask(self, port: int) -> None:
        """Clear the mask bit of `port`; an event that was held back by it is raised."""
        if self.state[port] <= ECS_RESERVED:
            return
        shared = self._shared
        at = self._mask_off + (port >> 3)
        bit = 1 << (port & 7)
        mask = shared[at]
        if mask & bit:
            shared[at] = mask & ~bit
            if shared[self._pending_off + (port >> 3)] & bit:
                self._select(self.domain.vcpus[self.notify_vcpu_id[port]], port)

    def clear_pending(self, port: int) -> None:
        """Forget a pending event of `port`."""
        if self.state[port] > ECS_RESERVED:
            self._shared[self._pending_off + (port >> 3)] &= ~(1 << (port & 7)) & 0xFF

    def port_poll(self, port: int) -> int:
        """1 when pending, 0 when not, -EINVAL for a port that is not in use."""
        if port >= self.valid_evtchns or self.state[port] <= ECS_RESERVED:
            return -EINVAL
        return self._shared[self._pending_off + (port >> 3)] >> (port & 7) & 1

    def check_pollers(self, port: int) -> None:
        """Wake the vCPUs that may be polling for `port`."""
        for v in self.domain.vcpus:
            waits_for = v.poll_evtchn
            if waits_for is not None and waits_for in (-1, port):
                vcpu_unblock(v)

    # --- ports --------------------------------------------------------------------------------------------

    def allocate_port(self, port: int) -> int:
        """Take `port` out of the free ones: 0, -ENOSPC or -EBUSY."""
        if port > self.max_evtchn_port:
            return -ENOSPC
        if port < self.valid_evtchns:
            if self.state[port] != ECS_FREE:
                return -EBUSY
        else:
            self.valid_evtchns = (port // EVTCHNS_PER_BUCKET + 1) * EVTCHNS_PER_BUCKET
        self.active_evtchns += 1
        return 0

    def get_free_port(self) -> int:
        """The lowest free port, taken; or -ENOSPC."""
        port = self.state.find(ECS_FREE, 0, self.max_evtchn_port + 1)
        if port < 0:
            return -ENOSPC
        return self.allocate_port(port) or port

    def free(self, port: int) -> None:
        """Give `port` back."""
        self.clear_pending(port)
        self.active_evtchns -= 1
        self.state[port] = ECS_FREE
        self.notify_vcpu_id[port] = 0
        self.backend.pop(port, None)

    def bind(self, state: int, vcpu_id: int = 0) -> int:
        """A new port in `state`, or -ENOSPC."""
        port = self.get_free_port()
        if port > 0:
            self.state[port] = state
            self.notify_vcpu_id[port] = vcpu_id
        return port

    def close(self, port: int) -> int:
        """evtchn_close() on the guest's behalf: 0 or -EINVAL."""
        if port >= self.valid_evtchns:
            return -EINVAL
        state = self.state[port]
        if state <= ECS_RESERVED:
            return -EINVAL
        if state == ECS_VIRQ:
            virq = self.virq[port]
            owner = 0 if virq_is_global(virq) else self.notify_vcpu_id[port]
            self.virq_to_evtchn[owner * NR_VIRQS + virq] = 0
        elif state == ECS_INTERDOMAIN and self.remote_dom[port] == self.domain.domain_id:
            peer = self.remote_port[port]
            self.free(port)
            self.state[peer] = ECS_UNBOUND
            self.remote_dom[peer] = self.domain.domain_id
            return 0
        self.free(port)
        return 0

    def send(self, port: int) -> int:
        """evtchn_send(): notify the other end of `port`."""
        if port >= self.valid_evtchns:
            return -EINVAL
        state = self.state[port]
        if state == ECS_INTERDOMAIN:
            notify = self.backend.get(port)
            if notify is not None:
                notify()
            else:
                peer = self.remote_port[port]
                self.set_pending(self.notify_vcpu_id[peer], peer)
            return 0
        if state == ECS_IPI:
            self.set_pending(self.notify_vcpu_id[port], port)
            return 0
        return 0 if state == ECS_UNBOUND else -EINVAL

    # --- what the hypervisor and its backends raise -------------------------------------------------------

    def send_guest_vcpu_virq(self, v: Vcpu, virq: int) -> None:
        """Raise a per-vCPU virq, if the guest has bound it."""
        port = self.virq_to_evtchn[v.vcpu_id * NR_VIRQS + virq]
        if port:
            self.set_pending(v.vcpu_id, port)

    def send_guest_global_virq(self, virq: int) -> None:
        """Raise a virq of the whole domain, if the guest has bound it."""
        port = self.virq_to_evtchn[virq]
        if port:
            self.set_pending(self.notify_vcpu_id[port], port)

    def alloc_backend(self, remote_domid: int, notify: Callable[[], None]) -> int:
        """The next free port, bound to a backend in `remote_domid`: the guest's sends call `notify`.

        Raises RuntimeError when no port is left, which is a mistake of the machine's.
        """
        port = self.bind(ECS_INTERDOMAIN)
        if port < 0:
            raise RuntimeError("no event channel left for a backend")
        self.remote_dom[port] = remote_domid
        self.remote_port[port] = port
        self.backend[port] = notify
        return port

    def notify_from_backend(self, port: int) -> None:
        """notify_via_xen_event_channel(): a backend's event; lost when the guest closed the port since."""
        if port in self.backend:
            self.set_pending(self.notify_vcpu_id[port], port)


def alloc_backend(d: Domain, remote_domid: int, notify: Callable[[], None]) -> int:
    """`d.evtchn.alloc_backend(...)`."""
    return d.evtchn.alloc_backend(remote_domid, notify)


def send_guest_vcpu_virq(v: Vcpu, virq: int) -> None:
    """`d.evtchn.send_guest_vcpu_virq(...)`."""
    v.domain.evtchn.send_guest_vcpu_virq(v, virq)


def send_guest_global_virq(d: Domain, virq: int) -> None:
    """`d.evtchn.send_guest_global_virq(...)`."""
    d.evtchn.send_guest_global_virq(virq)


def domain_by_any_id(d: Domain, domid: int) -> int | None:
    """The number of a living domain: the caller's own for DOMID_SELF, None where there is no such domain."""
    if domid == DOMID_SELF:
        return d.domain_id
    return domid if domid in (DOM0, d.domain_id) else None


# --- event_channel_op -------------------------------------------------------------------------------------


def _alloc_unbound(v: Vcpu, arg: int) -> int:
    d = v.domain
    dom, remote_dom, _ = d.guest.unpack(evtchn_alloc_unbound, arg)
    target = domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    if target != d.domain_id:
        return -EPERM
    t = d.evtchn
    port = t.bind(ECS_UNBOUND)
    if port < 0:
        return port
    t.remote_dom[port] = d.domain_id if remote_dom == DOMID_SELF else remote_dom
    d.guest.pack(evtchn_alloc_unbound, arg, dom, remote_dom, port)
    return 0


def _bind_interdomain(v: Vcpu, arg: int) -> int:
    d = v.domain
    remote_dom, rport, _ = d.guest.unpack(evtchn_bind_interdomain, arg)
    target = domain_by_any_id(d, remote_dom)
    if target is None:
        return -ESRCH
    t = d.evtchn
    lport = t.get_free_port()
    if lport < 0:
        return lport
    # A port of domain 0 would have to wait for us there: the backends' do not, they were bound by it.
    if (
        target != d.domain_id
        or rport >= t.valid_evtchns
        or t.state[rport] != ECS_UNBOUND
        or t.remote_dom[rport] != d.domain_id
    ):
        t.active_evtchns -= 1
        return -EINVAL
    for port, peer in ((lport, rport), (rport, lport)):
        t.remote_dom[port] = d.domain_id
        t.remote_port[port] = peer
        t.state[port] = ECS_INTERDOMAIN
    t.set_pending(t.notify_vcpu_id[lport], lport)  # notifications may have been lost while it was unbound
    d.guest.pack(evtchn_bind_interdomain, arg, remote_dom, rport, lport)
    return 0


def _bind_virq(v: Vcpu, arg: int) -> int:
    d = v.domain
    virq, vcpu, _ = d.guest.unpack(evtchn_bind_virq, arg)
    if virq >= NR_VIRQS or (virq_is_global(virq) and vcpu != 0):
        return -EINVAL
    if vcpu >= len(d.vcpus):
        return -ENOENT
    t = d.evtchn
    slot = vcpu * NR_VIRQS + virq
    if t.virq_to_evtchn[slot]:
        return -EEXIST
    port = t.bind(ECS_VIRQ, vcpu)
    if port < 0:
        return port
    t.virq[port] = virq
    t.virq_to_evtchn[slot] = port
    d.guest.pack(evtchn_bind_virq, arg, virq, vcpu, port)
    return 0


def _bind_pirq(v: Vcpu, arg: int) -> int:
    pirq = v.domain.guest.unpack(evtchn_bind_pirq, arg)[0]
    return -EINVAL if pirq >= NR_PIRQS else -EPERM


def _bind_ipi(v: Vcpu, arg: int) -> int:
    d = v.domain
    vcpu, _ = d.guest.unpack(evtchn_bind_ipi, arg)
    if vcpu >= len(d.vcpus):
        return -ENOENT
    port = d.evtchn.bind(ECS_IPI, vcpu)
    if port < 0:
        return port
    d.guest.pack(evtchn_bind_ipi, arg, vcpu, port)
    return 0


def _close(v: Vcpu, arg: int) -> int:
    d = v.domain
    return d.evtchn.close(d.guest.read_u32(arg))


def _send(v: Vcpu, arg: int) -> int:
    d = v.domain
    return d.evtchn.send(d.guest.read_u32(arg))


def _status(v: Vcpu, arg: int) -> int:
    d = v.domain
    dom, port, _, _, u0, u1 = d.guest.unpack(evtchn_status, arg)
    target = domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    t = d.evtchn
    if target != d.domain_id:
        return -EINVAL if port >= DOM0_VALID_EVTCHNS else -EPERM
    if port >= t.valid_evtchns:
        return -EINVAL
    state = t.state[port]
    if state in (ECS_UNBOUND, ECS_INTERDOMAIN):
        u0 = u0 & ~0xFFFF | t.remote_dom[port]
        if state == ECS_INTERDOMAIN:
            u1 = t.remote_port[port]
    elif state == ECS_VIRQ:
        u0 = t.virq[port]
    d.guest.pack(evtchn_status, arg, dom, port, _STATUS[state], t.notify_vcpu_id[port], u0, u1)
    return 0


def _bind_vcpu(v: Vcpu, arg: int) -> int:
    d = v.domain
    port, vcpu = d.guest.unpack(evtchn_bind_vcpu, arg)
    if vcpu >= len(d.vcpus):
        return -ENOENT
    t = d.evtchn
    if port >= t.valid_evtchns:
        return -EINVAL
    state = t.state[port]
    if state in (ECS_UNBOUND, ECS_INTERDOMAIN) or (state == ECS_VIRQ and virq_is_global(t.virq[port])):
        t.notify_vcpu_id[port] = vcpu
        return 0
    return -EINVAL


def _unmask(v: Vcpu, arg: int) -> int:
    d = v.domain
    port = d.guest.read_u32(arg)
    if port >= d.evtchn.valid_evtchns:
        return -EINVAL
    d.evtchn.unmask(port)
    return 0


def _reset(v: Vcpu, arg: int) -> int:
    d = v.domain
    (dom,) = d.guest.unpack(evtchn_reset, arg)
    target = domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    if target != d.domain_id:
        return -EPERM
    for port in range(1, d.evtchn.valid_evtchns):
        d.evtchn.close(port)
    return 0


def _reset_cont(v: Vcpu, arg: int) -> int:
    """The continuation of a reset; none of ours is ever preempted, so there is nothing to continue."""
    d = v.domain
    (dom,) = d.guest.unpack(evtchn_reset, arg)
    target = domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    return -EPERM if target != d.domain_id else -EBUSY


def _init_control(v: Vcpu, arg: int) -> int:
    d = v.domain
    _gfn, offset, vcpu, _ = d.guest.unpack(evtchn_init_control, arg)
    if vcpu >= len(d.vcpus):
        return -ENOENT
    if offset > PAGE_SIZE - EVTCHN_FIFO_CONTROL_BLOCK_SIZE or offset & 7:
        return -EINVAL
    return -EOPNOTSUPP


def _expand_array(v: Vcpu, arg: int) -> int:
    v.domain.guest.unpack(evtchn_expand_array, arg)
    return -EOPNOTSUPP


def _set_priority(v: Vcpu, arg: int) -> int:
    d = v.domain
    port, _ = d.guest.unpack(evtchn_set_priority, arg)
    return -EINVAL if port >= d.evtchn.valid_evtchns else -ENOSYS


_EVTCHN_OPS: dict[int, Callable[[Vcpu, int], int]] = {
    EVTCHNOP_bind_interdomain: _bind_interdomain,
    EVTCHNOP_bind_virq: _bind_virq,
    EVTCHNOP_bind_pirq: _bind_pirq,
    EVTCHNOP_close: _close,
    EVTCHNOP_send: _send,
    EVTCHNOP_status: _status,
    EVTCHNOP_alloc_unbound: _alloc_unbound,
    EVTCHNOP_bind_ipi: _bind_ipi,
    EVTCHNOP_bind_vcpu: _bind_vcpu,
    EVTCHNOP_unmask: _unmask,
    EVTCHNOP_reset: _reset,
    EVTCHNOP_init_control: _init_control,
    EVTCHNOP_expand_array: _expand_array,
    EVTCHNOP_set_priority: _set_priority,
    EVTCHNOP_reset_cont: _reset_cont,
}


def do_event_channel_op(v: Vcpu, cmd: int, arg: int) -> int:
    """HYPERVISOR_event_channel_op."""
    op = _EVTCHN_OPS.get(cmd & 0xFFFFFFFF)
    return op(v, arg) if op else -ENOSYS


def do_event_channel_op_compat(v: Vcpu, uop: int) -> int:
    """The event_channel_op of before 3.2: one struct with the command in front."""
    (cmd,) = v.domain.guest.unpack(evtchn_op, uop)
    return do_event_channel_op(v, cmd, uop + EVTCHN_OP_U) if cmd <= EVTCHNOP_unmask else -ENOSYS
