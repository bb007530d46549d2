"""event_channel_op: the guest binds, closes, sends, asks: xen/common/event_channel.c.

What a port is, and what the two ABIs do to one, is in event.py, event_2l.py and event_fifo.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.event import (
    ECS_FREE,
    ECS_INTERDOMAIN,
    ECS_IPI,
    ECS_PIRQ,
    ECS_RESERVED,
    ECS_UNBOUND,
    ECS_VIRQ,
    virq_is_global,
)
from hvcore.common.event_2l import Evtchn2l
from hvcore.common.event_fifo import evtchn_fifo_expand_array, evtchn_fifo_init_control
from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.public.errno import (
    EBUSY,
    EEXIST,
    EINVAL,
    ENOENT,
    ENOSYS,
    EPERM,
    ESRCH,
)
from hvcore.public.event_channel import (
    EVTCHN_FIFO_LINK_BITS,
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
    evtchn_set_priority,
    evtchn_status,
)
from hvcore.public.event_channel import evtchn_reset as evtchn_reset_t
from hvcore.public.xen import DOMID_SELF, NR_VIRQS

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.common.event import EvtchnTable
    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

NR_IRQS_GSI = 24  # the pins of one I/O APIC
NR_PIRQS = NR_IRQS_GSI + 32  # of a domU: DEFAULT_EXTRA_DOMU_IRQS more

_STATUS = {
    ECS_FREE: EVTCHNSTAT_closed,
    ECS_RESERVED: EVTCHNSTAT_closed,
    ECS_UNBOUND: EVTCHNSTAT_unbound,
    ECS_INTERDOMAIN: EVTCHNSTAT_interdomain,
    ECS_PIRQ: EVTCHNSTAT_pirq,
    ECS_VIRQ: EVTCHNSTAT_virq,
    ECS_IPI: EVTCHNSTAT_ipi,
}


# --- what others do with ports, too -----------------------------------------------------------------------


def evtchn_close(t: EvtchnTable, port: int) -> int:
    """Close `port` on the guest's behalf: 0 or -EINVAL. A peer that it has waits for the guest again."""
    if not t.is_usable(port):
        return -EINVAL
    state = t.state[port]
    if state == ECS_VIRQ:
        virq = t.virq[port]
        owner = 0 if virq_is_global(virq) else t.notify_vcpu_id[port]
        t.virq_to_evtchn[owner * NR_VIRQS + virq] = 0
    t.free(port)
    if state == ECS_INTERDOMAIN:
        rt, rport = _peer(t, port)
        rt.state[rport] = ECS_UNBOUND
        rt.remote_dom[rport] = t.domain.domain_id
    return 0


def _peer(t: EvtchnTable, port: int) -> tuple[EvtchnTable, int]:
    """The other end of an interdomain channel."""
    return t.domain.domain_list[t.remote_dom[port]].evtchn, t.remote_port[port]


def evtchn_send(t: EvtchnTable, port: int) -> int:
    """Notify the other end of `port`: 0 or -EINVAL."""
    if port >= len(t.state):
        return -EINVAL
    state = t.state[port]
    if state == ECS_INTERDOMAIN:
        rd = t.domain.domain_list[t.remote_dom[port]]
        if rd.domain_id and rd is not t.domain:
            _meet(rd, t.domain)
        rd.evtchn.notify(t.remote_port[port])
        return 0
    if state == ECS_IPI:
        t.set_pending(t.notify_vcpu_id[port], port)
        return 0
    return 0 if state == ECS_UNBOUND else -EINVAL


def _meet(rd: Domain, sender: Domain) -> None:
    """A domain that waits learns of an event when it is sent: no earlier by its own clock, either.

    Domain 0 has no time of its own, but that of whom it served last.
    """
    for v in rd.vcpus:
        if v.is_initialised and not v.pause_flags:
            return
    rd.clock.advance_to(sender.clock.now())


def evtchn_reset(t: EvtchnTable) -> int:
    """Close every port and go back to two levels: 0. Nothing preempts it."""
    for port in range(1, t.valid_evtchns):
        if not t.active_evtchns:
            break
        evtchn_close(t, port)
    t.port_ops.destroy()
    t.port_ops = Evtchn2l(t)
    return 0


def _bind_ends(t: EvtchnTable, port: int, rt: EvtchnTable, rport: int) -> None:
    """Make one channel of two ports."""
    for near, nport, far, fport in ((t, port, rt, rport), (rt, rport, t, port)):
        near.remote_dom[nport] = far.domain.domain_id
        near.remote_port[nport] = fport
        near.state[nport] = ECS_INTERDOMAIN


def bind_backend(d: Domain, backend: Domain, consumer: Callable[[], None]) -> tuple[int, int]:
    """A channel from the guest's next free port to the next one of `backend`, whose events go to `consumer`.

    The ports of both ends. Raises RuntimeError when one of the domains has none left.
    """
    port, rport = d.evtchn.bind(ECS_UNBOUND), backend.evtchn.bind(ECS_UNBOUND)
    if port < 0 or rport < 0:
        raise RuntimeError("no event channel left for a backend")
    _bind_ends(d.evtchn, port, backend.evtchn, rport)
    backend.evtchn.consumers[rport] = consumer
    return port, rport


def bind_backend_to(d: Domain, port: int, backend: Domain, consumer: Callable[[], None]) -> int:
    """evtchn_bind_interdomain() of a backend to a port that `d` has waiting for it: its port, or -errno."""
    lport = _bind_to_waiting(backend, d.evtchn, port)
    if lport >= 0:
        backend.evtchn.consumers[lport] = consumer
    return lport


def _bind_to_waiting(ld: Domain, rt: EvtchnTable, rport: int) -> int:
    """A port of `ld` bound to the port `rport` of `rt`, which waits for that domain; or -errno."""
    t = ld.evtchn
    lport = t.get_free_port()
    if lport < 0:
        return lport
    waits = rport < rt.valid_evtchns and rt.state[rport] == ECS_UNBOUND
    if not waits or rt.remote_dom[rport] != ld.domain_id:
        t.active_evtchns -= 1
        return -EINVAL
    _bind_ends(t, lport, rt, rport)
    t.port_ops.init(lport)
    return lport


# --- event_channel_op -------------------------------------------------------------------------------------


def _alloc_unbound(v: Vcpu, arg: int) -> int:
    d = v.domain
    dom, remote_dom, _ = d.guest.unpack(evtchn_alloc_unbound, arg)
    target = rcu_lock_domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    if target is not d:
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
    rd = rcu_lock_domain_by_any_id(d, remote_dom)
    if rd is None:
        return -ESRCH
    t = d.evtchn
    lport = _bind_to_waiting(d, rd.evtchn, rport)
    if lport < 0:
        return lport
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
    return evtchn_close(d.evtchn, d.guest.read_u32(arg))


def _send(v: Vcpu, arg: int) -> int:
    d = v.domain
    return evtchn_send(d.evtchn, d.guest.read_u32(arg))


def _status(v: Vcpu, arg: int) -> int:
    d = v.domain
    dom, port, _, _, u0, u1 = d.guest.unpack(evtchn_status, arg)
    target = rcu_lock_domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    t = target.evtchn
    if port >= t.valid_evtchns:
        return -EINVAL
    if target is not d:
        return -EPERM
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
    (dom,) = d.guest.unpack(evtchn_reset_t, arg)
    target = rcu_lock_domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    if target is not d:
        return -EPERM
    return evtchn_reset(d.evtchn)


def _reset_cont(v: Vcpu, arg: int) -> int:
    """The continuation of a reset; none of ours is ever preempted, so there is nothing to continue."""
    d = v.domain
    (dom,) = d.guest.unpack(evtchn_reset_t, arg)
    target = rcu_lock_domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    return -EPERM if target is not d else -EBUSY


def _init_control(v: Vcpu, arg: int) -> int:
    d = v.domain
    gfn, offset, vcpu, _ = d.guest.unpack(evtchn_init_control, arg)
    if vcpu >= len(d.vcpus):
        return -ENOENT
    rc = evtchn_fifo_init_control(d.evtchn, d.vcpus[vcpu], gfn, offset)
    if not rc:
        d.guest.pack(evtchn_init_control, arg, gfn, offset, vcpu, EVTCHN_FIFO_LINK_BITS)
    return rc


def _expand_array(v: Vcpu, arg: int) -> int:
    d = v.domain
    (gfn,) = d.guest.unpack(evtchn_expand_array, arg)
    return evtchn_fifo_expand_array(d.evtchn, gfn)


def _set_priority(v: Vcpu, arg: int) -> int:
    d = v.domain
    port, priority = d.guest.unpack(evtchn_set_priority, arg)
    return -EINVAL if port >= d.evtchn.valid_evtchns else d.evtchn.set_priority(port, priority)


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
