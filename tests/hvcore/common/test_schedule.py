from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore.common.event_channel import do_event_channel_op
from hvcore.common.schedule import (
    do_sched_op,
    do_sched_op_compat,
    do_set_timer_op,
    schedule_in,
    schedule_out,
    vcpu_runstate_get,
    vcpu_set_periodic_timer,
)
from hvcore.errors import GuestError
from hvcore.public import sched
from hvcore.public.errno import EFAULT, EINVAL, ENOSPC, ENOSYS, EPERM, ESRCH
from hvcore.public.event_channel import EVTCHNOP_bind_ipi, EVTCHNOP_bind_virq, EVTCHNOP_send
from hvcore.public.xen import VIRQ_TIMER, VMASST_TYPE_runstate_update_flag
from hvcore.vcpu import RUNSTATE_blocked, RUNSTATE_running, VPF_blocked

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest

PORTS = 0x3000


def sched_op(guest: Guest, cmd: int, fmt: str = "", *fields: int) -> int:
    return guest.call(do_sched_op, cmd, fmt, *fields)


def poll(guest: Guest, ports: list[int], timeout: int = 0, at: int = PORTS) -> int:
    if at < 1 << 16:
        guest.d.guest.copy_to(at, struct.pack(f"<{len(ports)}I", *ports))
    fmt = "IIQ" if guest.d.abi.word == 4 else "QI4xQ"
    return sched_op(guest, sched.SCHEDOP_poll, fmt, at, len(ports), timeout)


def bind_timer(guest: Guest) -> int:
    assert guest.call(do_event_channel_op, EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 0, 0) == 0
    return guest.result("III")[2]


def bind_ipi(guest: Guest) -> int:
    assert guest.call(do_event_channel_op, EVTCHNOP_bind_ipi, "II", 0, 0) == 0
    return guest.result("II")[1]


def test_block_unmasks_and_sleeps(guest: Guest) -> None:
    assert sched_op(guest, sched.SCHEDOP_block) == 0
    assert guest.v.info[1] == 0
    assert guest.v.pause_flags == VPF_blocked
    assert guest.reschedules == 1


def test_block_does_not_sleep_over_a_pending_event(guest: Guest) -> None:
    guest.v.info[0] = 1
    assert sched_op(guest, sched.SCHEDOP_block) == 0
    assert guest.v.pause_flags == 0


def test_yield_gives_up_the_turn(guest: Guest) -> None:
    assert sched_op(guest, sched.SCHEDOP_yield) == 0
    assert (guest.v.pause_flags, guest.reschedules) == (0, 1)


@pytest.mark.parametrize("reason", [*range(6), 200])
def test_shutdown_reasons(guest: Guest, reason: int) -> None:
    assert sched_op(guest, sched.SCHEDOP_shutdown, "I", 0x100 | reason) == 0
    assert guest.d.shutdown_code == reason
    assert guest.d.is_shutting_down
    assert guest.reschedules == 1


def test_a_shutdown_code_set_before_wins(guest: Guest) -> None:
    assert sched_op(guest, sched.SCHEDOP_shutdown_code, "I", sched.SHUTDOWN_crash) == 0
    assert not guest.d.is_shutting_down
    assert sched_op(guest, sched.SCHEDOP_shutdown, "I", sched.SHUTDOWN_poweroff) == 0
    assert guest.d.shutdown_code == sched.SHUTDOWN_crash


def test_remote_shutdown_and_pinning_are_for_others(guest: Guest) -> None:
    assert sched_op(guest, sched.SCHEDOP_remote_shutdown, "H2xI", guest.d.domain_id, 0) == -EPERM
    assert sched_op(guest, sched.SCHEDOP_remote_shutdown, "H2xI", 0, 0) == -EPERM
    assert sched_op(guest, sched.SCHEDOP_remote_shutdown, "H2xI", 40, 0) == -ESRCH
    assert sched_op(guest, sched.SCHEDOP_remote_shutdown, "H2xI", 0x7FF0, 0) == -ESRCH
    assert sched_op(guest, sched.SCHEDOP_pin_override, "i", 0) == -EPERM
    assert sched_op(guest, 8) == -ENOSYS
    assert not guest.d.is_shutting_down


def test_sched_op_compat(guest: Guest) -> None:
    assert do_sched_op_compat(guest.v, sched.SCHEDOP_poll, 0) == -ENOSYS
    assert do_sched_op_compat(guest.v, sched.SCHEDOP_block, 0) == 0
    assert guest.v.pause_flags == VPF_blocked
    assert do_sched_op_compat(guest.v, sched.SCHEDOP_shutdown, 3) == 0
    assert guest.d.shutdown_code == sched.SHUTDOWN_crash


def test_poll_wakes_on_its_port_only(guest: Guest) -> None:
    mine, other = bind_ipi(guest), bind_ipi(guest)
    for port in (mine, other):  # masked: a poll sees the pending bit, not the upcall
        guest.d.shared_info[guest.d.abi.evtchn_mask] |= 1 << port
    assert poll(guest, [mine]) == 0
    assert guest.v.pause_flags == VPF_blocked
    assert guest.call(do_event_channel_op, EVTCHNOP_send, "I", other) == 0
    assert guest.v.pause_flags == VPF_blocked
    assert guest.call(do_event_channel_op, EVTCHNOP_send, "I", mine) == 0
    assert guest.v.pause_flags == 0
    assert (guest.v.poll_evtchn, guest.d.evtchn.pollers) == (None, 0)
    assert poll(guest, [mine]) == 0  # still pending: does not sleep
    assert guest.v.pause_flags == 0


def test_poll_on_a_list_wakes_on_anything(guest: Guest) -> None:
    a, b, c = (bind_ipi(guest) for _ in range(3))
    guest.d.shared_info[guest.d.abi.evtchn_mask] = 0xFF
    assert poll(guest, [a, b]) == 0
    assert guest.v.poll_evtchn == -1
    assert guest.call(do_event_channel_op, EVTCHNOP_send, "I", c) == 0
    assert guest.v.pause_flags == 0


def test_poll_times_out(guest: Guest) -> None:
    port = bind_ipi(guest)
    assert poll(guest, [port], timeout=5000) == 0
    guest.run_to(4999)
    assert guest.v.pause_flags == VPF_blocked
    guest.run_to(5000)
    assert guest.v.pause_flags == 0
    assert poll(guest, [], timeout=(1 << 64) - 1) == 0  # a negative time: at once
    guest.run_to(5001)
    assert guest.v.pause_flags == 0


def test_poll_of_nothing_reads_no_list(guest32: Guest, guest64: Guest) -> None:
    assert poll(guest32, [], at=0xFFFFFFF0) == 0
    assert guest32.v.pause_flags == VPF_blocked
    assert poll(guest64, [], at=1 << 47) == -EFAULT
    assert guest64.v.pause_flags == 0


def test_poll_refusals(guest: Guest) -> None:
    port = bind_ipi(guest)
    assert poll(guest, [port] * 129) == -EINVAL
    assert poll(guest, [port] * 128) == 0
    guest.v.pause_flags = 0
    assert poll(guest, [port, 63]) == -EINVAL
    assert poll(guest, [0]) == -EINVAL
    assert poll(guest, [99999]) == -EINVAL
    assert poll(guest, [1], at=0x00F00000) == -EFAULT
    assert guest.v.pause_flags == 0
    guest.v.info[0], guest.v.info[1] = 1, 0
    assert poll(guest, [63]) == 0  # an event is deliverable: the ports are not even read


def test_the_singleshot_timer_raises_virq_timer(guest: Guest) -> None:
    port = bind_timer(guest)
    assert do_set_timer_op(guest.v, 1000) == 0
    guest.run_to(999)
    assert guest.d.evtchn.port_poll(port) == 0
    guest.run_to(1000)
    assert guest.d.evtchn.port_poll(port) == 1


@pytest.mark.parametrize("timeout", [1 << 63, (1 << 64) - 1, (1 << 50) + 10_000])
def test_a_timeout_beyond_reason_fires_in_100_ms(guest: Guest, timeout: int) -> None:
    assert do_set_timer_op(guest.v, timeout) == 0
    assert guest.d.clock.expires(("singleshot", 0)) == guest.d.clock.now() + 100_000_000
    assert do_set_timer_op(guest.v, 0) == 0
    assert guest.d.clock.expires(("singleshot", 0)) is None


def test_a_far_timeout_within_reason_is_kept(guest: Guest) -> None:
    assert do_set_timer_op(guest.v, 1 << 49) == 0
    assert guest.d.clock.expires(("singleshot", 0)) == 1 << 49


def test_periodic_ticks_while_it_runs(guest: Guest) -> None:
    port = bind_timer(guest)
    guest.run_to(10_000_000)
    vcpu_set_periodic_timer(guest.v, 1_000_000)
    assert guest.d.evtchn.port_poll(port) == 1  # long overdue
    guest.d.evtchn.clear_pending(port)
    guest.run_to(11_000_000)
    assert guest.d.evtchn.port_poll(port) == 1
    guest.d.evtchn.clear_pending(port)
    schedule_out(guest.v)
    guest.run_to(20_000_000)
    assert guest.d.evtchn.port_poll(port) == 0
    schedule_in(guest.v)
    assert guest.d.evtchn.port_poll(port) == 1
    vcpu_set_periodic_timer(guest.v, 0)
    assert guest.d.clock.expires(("periodic", 0)) is None


def test_watchdogs(guest: Guest) -> None:
    def watchdog(id_: int, timeout: int) -> int:
        return sched_op(guest, sched.SCHEDOP_watchdog, "II", id_, timeout)

    assert watchdog(1, 1) == -EINVAL
    assert [watchdog(0, 10), watchdog(0, 20)] == [1, 2]
    assert watchdog(0, 1) == (-ENOSPC if guest.d.abi.is_32bit else 2**32 - ENOSPC)
    assert watchdog(3, 1) == -EINVAL
    assert watchdog(1, 0) == 0
    assert watchdog(1, 0) == -EINVAL
    assert watchdog(2, 5) == 0
    guest.run_to(4_999_999_999)
    assert not guest.d.is_shutting_down
    guest.run_to(5_000_000_001)
    assert guest.d.shutdown_code == sched.SHUTDOWN_watchdog


def test_runstates_add_up(guest: Guest) -> None:
    v = guest.v
    schedule_in(v)
    assert v.runstate == RUNSTATE_running
    guest.run_to(100)
    assert sched_op(guest, sched.SCHEDOP_block) == 0
    schedule_out(v)
    assert v.runstate == RUNSTATE_blocked
    guest.run_to(350)
    state, entry, running, runnable, blocked, offline = vcpu_runstate_get(v)
    assert (state, entry) == (RUNSTATE_blocked, 100)
    assert (running, runnable, blocked, offline) == (100, 0, 250, 0)


def test_the_runstate_area_is_written_when_scheduled_in(guest: Guest) -> None:
    v = guest.v
    v.runstate_guest = 0x2FF0  # across two pages
    guest.d.vm_assist |= 1 << VMASST_TYPE_runstate_update_flag
    guest.run_to(70)
    schedule_in(v)
    fmt = "<iQ4Q" if guest.d.abi.word == 4 else "<i4xQ4Q"
    area = struct.unpack(fmt, guest.d.guest.copy_from(0x2FF0, struct.calcsize(fmt)))
    assert area == (RUNSTATE_running, 70, 0, 0, 0, 70)
    v.runstate_guest = 0x7F000000
    schedule_in(v)  # unmapped by now: the guest's loss


def test_bad_pointers(guest: Guest) -> None:
    for cmd in (2, 3, 4, 5, 6):
        with pytest.raises(GuestError) as e:
            do_sched_op(guest.v, cmd, 0x7FFF0000)
        assert e.value.errno == EFAULT
