from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hvcore.common.event_channel import (
    bind_backend,
    do_event_channel_op,
    do_event_channel_op_compat,
    evtchn_send,
)
from hvcore.public import event_channel as ec
from hvcore.public.errno import (
    EBUSY,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOENT,
    ENOSPC,
    ENOSYS,
    EPERM,
    ESRCH,
)
from hvcore.public.xen import DOMID_SELF, VIRQ_CONSOLE, VIRQ_DEBUG, VIRQ_TIMER
from hvcore.vcpu import VPF_blocked

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest


def evtchn(guest: Guest, cmd: int, fmt: str, *fields: int, vcpu: int = 0) -> int:
    return guest.call(do_event_channel_op, cmd, fmt, *fields, vcpu=vcpu)


def bind_ipi(guest: Guest, vcpu: int = 0) -> int:
    assert evtchn(guest, ec.EVTCHNOP_bind_ipi, "II", vcpu, 0) == 0
    return guest.result("II")[1]


def bind_virq(guest: Guest, virq: int, vcpu: int = 0) -> int:
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", virq, vcpu, 0) == 0
    return guest.result("III")[2]


def alloc_unbound(guest: Guest, remote: int = DOMID_SELF) -> int:
    assert evtchn(guest, ec.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, remote, 0) == 0
    return guest.result("HHI")[2]


def status(guest: Guest, port: int) -> tuple[int, ...]:
    assert evtchn(guest, ec.EVTCHNOP_status, "H2xIIIII", DOMID_SELF, port, 0, 0, 0, 0) == 0
    return guest.result("H2xIIIII")[2:]


def pending(guest: Guest, port: int) -> bool:
    return bool(guest.d.shared_info[guest.d.abi.evtchn_pending + port // 8] >> (port % 8) & 1)


def selector(guest: Guest, vcpu: int = 0) -> int:
    word = guest.d.abi.word
    return int.from_bytes(guest.d.vcpus[vcpu].info[word : 2 * word], "little")


def mask(guest: Guest, port: int) -> None:
    guest.d.shared_info[guest.d.abi.evtchn_mask + port // 8] |= 1 << port % 8


def test_ports_are_given_out_from_one_and_reused(guest: Guest) -> None:
    assert [bind_ipi(guest) for _ in range(3)] == [1, 2, 3]
    assert evtchn(guest, ec.EVTCHNOP_close, "I", 2) == 0
    assert bind_ipi(guest) == 2
    assert evtchn(guest, ec.EVTCHNOP_close, "I", 0) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_close, "I", 63) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_close, "I", 0xFFFFFFFF) == -EINVAL


def test_a_send_sets_pending_selector_and_upcall(guest: Guest) -> None:
    ports = [bind_ipi(guest, 1) for _ in range(70)]
    far = ports[-1]
    assert evtchn(guest, ec.EVTCHNOP_send, "I", far) == 0
    assert pending(guest, far)
    assert selector(guest, 1) == 1 << far // guest.d.abi.word_bits
    assert guest.d.vcpus[1].info[0] == 1
    assert guest.v.info[0] == 0
    assert selector(guest) == 0


def test_a_masked_event_waits_for_unmask(guest: Guest) -> None:
    port = bind_ipi(guest)
    mask(guest, port)
    assert evtchn(guest, ec.EVTCHNOP_send, "I", port) == 0
    assert pending(guest, port)
    assert (guest.v.info[0], selector(guest)) == (0, 0)
    assert evtchn(guest, ec.EVTCHNOP_unmask, "I", port) == 0
    assert (guest.v.info[0], selector(guest)) == (1, 1)
    assert evtchn(guest, ec.EVTCHNOP_unmask, "I", 40) == 0  # a port that exists but is free
    assert evtchn(guest, ec.EVTCHNOP_unmask, "I", 5000) == -EINVAL


def test_unmask_raises_nothing_when_the_port_was_not_masked(guest: Guest) -> None:
    port = bind_ipi(guest)
    guest.d.shared_info[guest.d.abi.evtchn_pending] |= 1 << port
    assert evtchn(guest, ec.EVTCHNOP_unmask, "I", port) == 0
    assert guest.v.info[0] == 0


@pytest.mark.parametrize(
    ("port", "answer"), [(0, -EINVAL), (7, -EINVAL), (64, -EINVAL), (0xFFFFFFFF, -EINVAL)]
)
def test_send_on_ports_that_are_not_in_use(guest: Guest, port: int, answer: int) -> None:
    assert evtchn(guest, ec.EVTCHNOP_send, "I", port) == answer


def test_send_on_a_virq_is_refused_and_on_an_unbound_port_lost(guest: Guest) -> None:
    assert evtchn(guest, ec.EVTCHNOP_send, "I", bind_virq(guest, VIRQ_TIMER)) == -EINVAL
    port = alloc_unbound(guest)
    assert evtchn(guest, ec.EVTCHNOP_send, "I", port) == 0
    assert not pending(guest, port)


def test_virq_binding_rules(guest: Guest) -> None:
    timer = bind_virq(guest, VIRQ_TIMER, 1)
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 1, 0) == -EEXIST
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", 24, 0, 0) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", 0xFFFFFFFF, 0, 0) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", VIRQ_CONSOLE, 1, 0) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", VIRQ_DEBUG, 2, 0) == -ENOENT
    guest.d.evtchn.send_guest_vcpu_virq(guest.v, VIRQ_TIMER)
    assert not pending(guest, timer)
    guest.d.evtchn.send_guest_vcpu_virq(guest.d.vcpus[1], VIRQ_TIMER)
    assert pending(guest, timer)
    assert evtchn(guest, ec.EVTCHNOP_close, "I", timer) == 0
    assert not pending(guest, timer)
    assert bind_virq(guest, VIRQ_TIMER, 1) == timer


def test_a_global_virq_follows_bind_vcpu(guest: Guest) -> None:
    port = bind_virq(guest, VIRQ_CONSOLE)
    assert evtchn(guest, ec.EVTCHNOP_bind_vcpu, "II", port, 1) == 0
    assert guest.d.evtchn.notify_vcpu_id[port] == 1
    assert evtchn(guest, ec.EVTCHNOP_close, "I", port) == 0
    assert bind_virq(guest, VIRQ_CONSOLE) == port


def test_bind_vcpu_refusals(guest: Guest) -> None:
    ipi = bind_ipi(guest)
    timer = bind_virq(guest, VIRQ_TIMER)
    assert evtchn(guest, ec.EVTCHNOP_bind_vcpu, "II", ipi, 1) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_bind_vcpu, "II", timer, 1) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_bind_vcpu, "II", 5000, 1) == -EINVAL
    assert evtchn(guest, ec.EVTCHNOP_bind_vcpu, "II", 5000, 2) == -ENOENT
    assert evtchn(guest, ec.EVTCHNOP_bind_vcpu, "II", alloc_unbound(guest), 1) == 0


def test_loopback_interdomain(guest: Guest) -> None:
    far = alloc_unbound(guest)
    assert evtchn(guest, ec.EVTCHNOP_bind_interdomain, "H2xII", DOMID_SELF, far, 0) == 0
    near = guest.result("H2xII")[2]
    assert pending(guest, near)  # conservatively
    assert status(guest, near) == (ec.EVTCHNSTAT_interdomain, 0, guest.d.domain_id, far)
    assert evtchn(guest, ec.EVTCHNOP_send, "I", near) == 0
    assert pending(guest, far)
    assert evtchn(guest, ec.EVTCHNOP_close, "I", near) == 0
    assert status(guest, far)[0] == ec.EVTCHNSTAT_unbound
    assert status(guest, near)[0] == ec.EVTCHNSTAT_closed
    assert evtchn(guest, ec.EVTCHNOP_bind_interdomain, "H2xII", guest.d.domain_id, far, 0) == 0


def test_interdomain_refusals(guest: Guest) -> None:
    for_dom0 = alloc_unbound(guest, 0)
    ipi = bind_ipi(guest)
    for domid, port, answer in [
        (DOMID_SELF, for_dom0, -EINVAL),
        (DOMID_SELF, ipi, -EINVAL),
        (DOMID_SELF, 3000, -EINVAL),
        (0, 1, -EINVAL),
        (77, 1, -ESRCH),
    ]:
        assert evtchn(guest, ec.EVTCHNOP_bind_interdomain, "H2xII", domid, port, 0) == answer
    assert bind_ipi(guest) == ipi + 1  # nothing leaked
    assert evtchn(guest, ec.EVTCHNOP_alloc_unbound, "HHI", 0, DOMID_SELF, 0) == -EPERM
    assert evtchn(guest, ec.EVTCHNOP_alloc_unbound, "HHI", 5, DOMID_SELF, 0) == -ESRCH


def test_a_backend_port_calls_its_backend(guest: Guest) -> None:
    calls: list[int] = []
    dom0 = guest.d.domain_list[0]
    port, far = bind_backend(guest.d, dom0, lambda: calls.append(1))
    assert status(guest, port) == (ec.EVTCHNSTAT_interdomain, 0, 0, far)
    assert evtchn(guest, ec.EVTCHNOP_send, "I", port) == 0
    assert calls == [1]
    assert evtchn_send(dom0.evtchn, far) == 0
    assert pending(guest, port)
    assert evtchn(guest, ec.EVTCHNOP_close, "I", port) == 0
    assert evtchn_send(dom0.evtchn, far) == 0
    assert not pending(guest, port)


def test_a_backend_waits_for_the_guest_that_closed_its_end(guest: Guest) -> None:
    calls: list[int] = []
    dom0 = guest.d.domain_list[0]
    closed, far = bind_backend(guest.d, dom0, lambda: calls.append(1))
    bind = ec.EVTCHNOP_bind_interdomain, "H2xII", 0, far, 0
    assert evtchn(guest, *bind) == -EINVAL  # it is bound
    assert evtchn(guest, ec.EVTCHNOP_close, "I", closed) == 0
    assert bind_ipi(guest) == closed
    assert evtchn(guest, *bind) == 0
    near = guest.result("H2xII")[2]
    assert near != closed
    assert status(guest, near) == (ec.EVTCHNSTAT_interdomain, 0, 0, far)
    guest.d.evtchn.clear_pending(near)
    assert evtchn_send(dom0.evtchn, far) == 0
    assert pending(guest, near)
    assert evtchn(guest, ec.EVTCHNOP_send, "I", near) == 0
    assert calls == [1]
    assert evtchn(guest, *bind) == -EINVAL


def test_status_of_others(guest: Guest) -> None:
    call = ec.EVTCHNOP_status, "H2xIIIII"
    assert evtchn(guest, *call, 0, 1, 0, 0, 0, 0) == -EPERM
    assert evtchn(guest, *call, 9, 1, 0, 0, 0, 0) == -ESRCH
    assert evtchn(guest, *call, DOMID_SELF, 64, 0, 0, 0, 0) == -EINVAL
    port = bind_virq(guest, VIRQ_DEBUG, 1)
    assert status(guest, port)[:3] == (ec.EVTCHNSTAT_virq, 1, VIRQ_DEBUG)
    assert status(guest, 0)[0] == ec.EVTCHNSTAT_closed


def test_ports_run_out_at_libxls_limit(guest: Guest) -> None:
    assert [bind_ipi(guest) for _ in range(1023)] == list(range(1, 1024))
    assert evtchn(guest, ec.EVTCHNOP_bind_ipi, "II", 0, 0) == -ENOSPC
    assert evtchn(guest, ec.EVTCHNOP_alloc_unbound, "HHI", DOMID_SELF, 0, 0) == -ENOSPC


def test_reset_closes_everything(guest: Guest) -> None:
    bind_backend(guest.d, guest.d.domain_list[0], lambda: None)
    bind_ipi(guest)
    bind_virq(guest, VIRQ_TIMER)
    assert evtchn(guest, ec.EVTCHNOP_reset, "H", DOMID_SELF) == 0
    assert guest.d.evtchn.active_evtchns == 0
    assert bind_virq(guest, VIRQ_TIMER) == 1
    assert evtchn(guest, ec.EVTCHNOP_reset, "H", 0) == -EPERM
    assert evtchn(guest, ec.EVTCHNOP_reset, "H", 5) == -ESRCH
    assert evtchn(guest, ec.EVTCHNOP_reset_cont, "H", DOMID_SELF) == -EBUSY


def test_pirqs_and_unknown_operations_are_refused(guest: Guest) -> None:
    assert evtchn(guest, ec.EVTCHNOP_bind_pirq, "III", 3, 0, 0) == -EPERM
    assert evtchn(guest, ec.EVTCHNOP_bind_pirq, "III", 1 << 20, 0, 0) == -EINVAL
    assert evtchn(guest, 15, "I", 0) == -ENOSYS


def test_bad_pointers_are_efault(guest: Guest) -> None:
    from hvcore.errors import GuestError

    for cmd in range(15):
        with pytest.raises(GuestError) as e:
            do_event_channel_op(guest.v, cmd, 0x7FFF0000)
        assert e.value.errno == EFAULT


def test_the_compat_call_takes_command_and_argument_in_one(guest: Guest) -> None:
    def op(_v: object, _cmd: int, arg: int) -> int:
        return do_event_channel_op_compat(guest.v, arg)

    assert guest.call(op, 0, "III16x", ec.EVTCHNOP_bind_ipi, 0, 0) == 0
    assert guest.result("III")[2] == 1
    assert guest.call(op, 0, "II20x", ec.EVTCHNOP_reset, DOMID_SELF) == -ENOSYS


def test_an_event_unblocks_its_vcpu(guest: Guest) -> None:
    other = guest.d.vcpus[1]
    other.pause_flags = VPF_blocked
    port = bind_ipi(guest, 1)
    assert evtchn(guest, ec.EVTCHNOP_send, "I", port) == 0
    assert other.pause_flags == 0
