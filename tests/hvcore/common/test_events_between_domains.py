"""Event channels from one domain to another. Expected values: xen/common/event_channel.c of Xen 4.17."""

from __future__ import annotations

from functools import partial

import pytest

from hvcore.common.event_channel import bind_backend, do_event_channel_op, evtchn_send
from hvcore.public import event_channel as ec
from hvcore.public.errno import EINVAL, EPERM, ESRCH
from hvcore.public.xen import DOMID_SELF
from hvcore.vcpu import VPF_blocked
from tests.hvcore.conftest import ABIS, Guest

Pair = tuple[Guest, Guest]


@pytest.fixture(params=[(x, y) for x in ABIS for y in ABIS], ids=["32-32", "32-64", "64-32", "64-64"])
def pair(request: pytest.FixtureRequest) -> Pair:
    a = Guest(request.param[0], 2, domains=3)
    return a, Guest(request.param[1], 2, beside=a)


def evtchn(guest: Guest, cmd: int, fmt: str, *fields: int) -> int:
    return guest.call(do_event_channel_op, cmd, fmt, *fields)


def alloc_unbound(guest: Guest, remote: int) -> int:
    assert evtchn(guest, ec.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, remote, 0) == 0
    return guest.result("HHI")[2]


def bind(guest: Guest, remote: int, port: int) -> int:
    """The local port, or -errno."""
    rc = evtchn(guest, ec.EVTCHNOP_bind_interdomain, "H2xII", remote, port, 0)
    return rc or guest.result("H2xII")[2]


def status(guest: Guest, port: int) -> tuple[int, ...]:
    assert evtchn(guest, ec.EVTCHNOP_status, "H2xIIIII", DOMID_SELF, port, 0, 0, 0, 0) == 0
    return guest.result("H2xIIIII")[2:]


def channel(a: Guest, b: Guest) -> tuple[int, int]:
    # a port that b does not have, so that the numbers of the ends differ
    alloc_unbound(a, DOMID_SELF)
    here = alloc_unbound(a, b.d.domain_id)
    there = bind(b, a.d.domain_id, here)
    assert there != here
    b.d.evtchn.clear_pending(there)  # a bind raises the new port
    return here, there


def test_a_channel_goes_both_ways(pair: Pair) -> None:
    a, b = pair
    here, there = channel(a, b)
    assert status(a, here) == (ec.EVTCHNSTAT_interdomain, 0, b.d.domain_id, there)
    assert status(b, there) == (ec.EVTCHNSTAT_interdomain, 0, a.d.domain_id, here)
    assert evtchn(a, ec.EVTCHNOP_send, "I", here) == 0
    assert (a.d.evtchn.is_pending(here), b.d.evtchn.is_pending(there)) == (False, True)
    assert evtchn(b, ec.EVTCHNOP_send, "I", there) == 0
    assert a.d.evtchn.is_pending(here)


def test_an_event_wakes_the_vcpu_of_the_other_domain(pair: Pair) -> None:
    a, b = pair
    here, there = channel(a, b)
    assert evtchn(b, ec.EVTCHNOP_bind_vcpu, "II", there, 1) == 0
    sleeper = b.d.vcpus[1]
    sleeper.pause_flags, sleeper.is_initialised = VPF_blocked, True
    sleeper.info[1] = 0
    assert evtchn(a, ec.EVTCHNOP_send, "I", here) == 0
    assert sleeper.pause_flags == 0


def test_a_port_waits_for_one_domain_alone(pair: Pair) -> None:
    a, b = pair
    c = Guest(b.d.abi, 1, beside=a)
    port = alloc_unbound(a, b.d.domain_id)
    assert bind(c, a.d.domain_id, port) == -EINVAL
    assert bind(a, DOMID_SELF, port) == -EINVAL
    assert bind(b, a.d.domain_id, port + 1) == -EINVAL
    assert bind(b, a.d.domain_id, 5000) == -EINVAL
    assert bind(b, 17, port) == -ESRCH
    assert b.d.evtchn.active_evtchns == 0  # nothing leaked
    assert bind(b, a.d.domain_id, port) > 0
    assert bind(b, a.d.domain_id, port) == -EINVAL  # it is bound


def test_the_end_that_stays_waits_again(pair: Pair) -> None:
    a, b = pair
    here, there = channel(a, b)
    assert evtchn(b, ec.EVTCHNOP_close, "I", there) == 0
    assert status(a, here)[:3] == (ec.EVTCHNSTAT_unbound, 0, b.d.domain_id)
    assert evtchn(a, ec.EVTCHNOP_send, "I", here) == 0  # lost
    again = bind(b, a.d.domain_id, here)
    assert b.d.evtchn.is_pending(again)  # what was lost may have been for it
    assert evtchn(b, ec.EVTCHNOP_reset, "H", DOMID_SELF) == 0
    assert status(a, here)[0] == ec.EVTCHNSTAT_unbound


def test_what_one_may_not_do_to_others(pair: Pair) -> None:
    a, b = pair
    here, _ = channel(a, b)
    query = ec.EVTCHNOP_status, "H2xIIIII"
    assert evtchn(b, *query, a.d.domain_id, here, 0, 0, 0, 0) == -EPERM
    assert evtchn(b, *query, a.d.domain_id, 64, 0, 0, 0, 0) == -EINVAL
    assert evtchn(b, ec.EVTCHNOP_alloc_unbound, "HHI", a.d.domain_id, DOMID_SELF, 0) == -EPERM
    assert evtchn(b, ec.EVTCHNOP_reset, "H", a.d.domain_id) == -EPERM


def test_two_domains_have_backends_of_their_own(pair: Pair) -> None:
    a, b = pair
    dom0 = a.d.domain_list[0]
    heard: list[str] = []
    ends = [bind_backend(g.d, dom0, partial(heard.append, name)) for g, name in ((a, "a"), (b, "b"))]
    assert [near for near, _ in ends] == [1, 1]
    assert evtchn(b, ec.EVTCHNOP_send, "I", 1) == 0
    assert evtchn(a, ec.EVTCHNOP_send, "I", 1) == 0
    assert heard == ["b", "a"]
    assert evtchn_send(dom0.evtchn, ends[1][1]) == 0
    assert (a.d.evtchn.is_pending(1), b.d.evtchn.is_pending(1)) == (False, True)
