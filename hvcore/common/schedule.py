"""Blocking, waking, polling, timers and the ends of a domain: xen/common/sched/core.c, common/domain.c.

Which vCPU runs is the run loop's choice; this module keeps the reasons why one does not (`pause_flags`), the
account of what it did (`runstate`), and asks for a new choice through `Domain.reschedule()`. Timers are named
(kind, number), and what each kind does stands in one table.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hvcore.abi import VCPU_UPCALL_MASK, VCPU_UPCALL_PENDING
from hvcore.common.handles import array_access_ok
from hvcore.common.time import update_vcpu_system_time
from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT, EINVAL, ENOSPC, ENOSYS, EPERM, ESRCH
from hvcore.public.sched import (
    SCHEDOP_block,
    SCHEDOP_pin_override,
    SCHEDOP_poll,
    SCHEDOP_remote_shutdown,
    SCHEDOP_shutdown,
    SCHEDOP_shutdown_code,
    SCHEDOP_watchdog,
    SCHEDOP_yield,
    SHUTDOWN_watchdog,
    sched_poll,
    sched_remote_shutdown,
    sched_shutdown,
    sched_watchdog,
)
from hvcore.public.vcpu import RUNSTATE_STATE_ENTRY_TIME, XEN_RUNSTATE_UPDATE, vcpu_runstate_info
from hvcore.public.xen import VIRQ_TIMER, VMASST_TYPE_runstate_update_flag
from hvcore.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
    VPF_blocked,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

NR_DOMAIN_WATCHDOG_TIMERS = 2
SINGLESHOT, PERIODIC, POLL, WATCHDOG = "singleshot", "periodic", "poll", "watchdog"  # kinds of timers
MAX_POLL_PORTS = 128
_SIGN = 1 << 63
_FAR_FUTURE_SHIFT = 50  # a timeout 2^50 ns ahead is taken for a jiffies wrap
_HUGE_TIMEOUT_NS = 100_000_000


# --- run states -------------------------------------------------------------------------------------------


def vcpu_runnable(v: Vcpu) -> bool:
    """Nothing keeps `v` from running."""
    return not v.pause_flags and not v.domain.is_shutting_down


def vcpu_runstate_change(v: Vcpu, new_state: int) -> None:
    """Charge the time since the last change to the old RUNSTATE_* and enter `new_state`."""
    if v.runstate == new_state:
        return
    now = v.domain.clock.now()
    delta = now - v.runstate_entry_time
    if delta > 0:
        v.runstate_time[v.runstate] += delta
        v.runstate_entry_time = now
    v.runstate = new_state


def vcpu_runstate_get(v: Vcpu) -> tuple[int, int, int, int, int, int]:
    """(state, state_entry_time, time[0..3]) with the current state charged up to now."""
    time = list(v.runstate_time)
    delta = v.domain.clock.now() - v.runstate_entry_time
    if delta > 0:
        time[v.runstate] += delta
    return (v.runstate, v.runstate_entry_time, time[0], time[1], time[2], time[3])


def schedule_out(v: Vcpu) -> None:
    """`v` leaves the processor: its run state becomes blocked, runnable or offline."""
    if v.pause_flags & VPF_blocked:
        vcpu_runstate_change(v, RUNSTATE_blocked)
    else:
        vcpu_runstate_change(v, RUNSTATE_runnable if vcpu_runnable(v) else RUNSTATE_offline)
    if v.periodic_period:
        v.domain.clock.stop_timer((PERIODIC, v.vcpu_id))


def schedule_in(v: Vcpu) -> None:
    """`v` takes the processor (its page tables are loaded): running, and its guest areas say so."""
    vcpu_runstate_change(v, RUNSTATE_running)
    update_vcpu_system_time(v)
    if v.runstate_guest:
        update_runstate_area(v)
    if v.periodic_period:
        vcpu_periodic_timer_work(v)


def update_runstate_area(v: Vcpu) -> None:
    """Write the registered runstate area of `v`, which must be current; a fault there is the guest's loss."""
    d = v.domain
    word = d.abi.word
    at = v.runstate_guest
    t = v.runstate_time
    entry = v.runstate_entry_time
    entry_va = at + RUNSTATE_STATE_ENTRY_TIME[word]
    flagged = bool(d.vm_assist >> VMASST_TYPE_runstate_update_flag & 1)
    try:
        if flagged:
            entry |= XEN_RUNSTATE_UPDATE
            d.guest.copy_to(entry_va + 7, bytes((entry >> 56,)))
        d.guest.copy_to(at, vcpu_runstate_info[word].pack(v.runstate, entry, *t))
        if flagged:
            entry &= ~XEN_RUNSTATE_UPDATE
            d.guest.copy_to(entry_va + 7, bytes((entry >> 56,)))
    except GuestError:
        return


# --- block, wake, kick ------------------------------------------------------------------------------------


def vcpu_wake(v: Vcpu) -> None:
    """A reason not to run has gone: account for it."""
    if vcpu_runnable(v):
        if v.runstate >= RUNSTATE_blocked:
            vcpu_runstate_change(v, RUNSTATE_runnable)
    elif not v.pause_flags & VPF_blocked and v.runstate == RUNSTATE_blocked:
        vcpu_runstate_change(v, RUNSTATE_offline)


def vcpu_unblock(v: Vcpu) -> None:
    """End SCHEDOP_block or SCHEDOP_poll of `v`, if it is in one."""
    if not v.pause_flags & VPF_blocked:
        return
    v.pause_flags &= ~VPF_blocked
    if v.poll_evtchn is not None:
        stop_polling(v)
    vcpu_wake(v)


def vcpu_kick(v: Vcpu) -> None:
    """`v` has something to look at: wake it. Its next entry to the guest checks for events anyway."""
    if v.pause_flags & VPF_blocked:
        vcpu_unblock(v)


def vcpu_mark_events_pending(v: Vcpu) -> None:
    """Set evtchn_upcall_pending; the first to set it kicks the vCPU."""
    info = v.info
    old = info[VCPU_UPCALL_PENDING]
    if not old & 1:
        info[VCPU_UPCALL_PENDING] = old | 1
        vcpu_kick(v)


def vcpu_sleep(v: Vcpu) -> None:
    """A reason not to run has come: account for it, and give up the processor when `v` has it."""
    if v.runstate == RUNSTATE_runnable:
        vcpu_runstate_change(v, RUNSTATE_offline)
    if v is v.domain.current:
        v.domain.reschedule()


def vcpu_block(v: Vcpu) -> None:
    """Sleep until an event, unless one waits already (which closes the wakeup-waiting race)."""
    if not v.event_needs_delivery():
        v.pause_flags |= VPF_blocked
        v.domain.reschedule()


def vcpu_block_enable_events(v: Vcpu) -> None:
    """SCHEDOP_block: unmask upcalls and sleep."""
    v.info[VCPU_UPCALL_MASK] = 0
    vcpu_block(v)


def stop_polling(v: Vcpu) -> None:
    """`v` no longer waits for a port."""
    v.poll_evtchn = None
    v.domain.evtchn.pollers -= 1


def do_poll(v: Vcpu, ports: int, nr_ports: int, timeout: int) -> int:
    """Sleep until one of the ports is pending or system time `timeout` (0: never) has come.

    A vCPU that polls one port remembers it; one that polls several is woken by any event (`poll_evtchn` -1).
    """
    d = v.domain
    if nr_ports > MAX_POLL_PORTS:
        return -EINVAL
    if not d.abi.is_32bit and not array_access_ok(d, ports, nr_ports, 4):
        return -EFAULT
    if v.event_needs_delivery():
        return 0
    port = 0
    evtchn = d.evtchn
    read_u32 = d.guest.read_u32
    for i in range(nr_ports):
        port = read_u32(ports + 4 * i)
        pending = evtchn.port_poll(port)
        if pending:
            return min(pending, 0)
    v.pause_flags |= VPF_blocked
    v.poll_evtchn = port if nr_ports == 1 else -1
    evtchn.pollers += 1
    if timeout:
        when = timeout if timeout < _SIGN else 0
        arm(d, POLL, v.vcpu_id, when)
    d.reschedule()
    return 0


def poll_timer_fn(v: Vcpu) -> None:
    """The poll's time is up. Nothing disarms it when the poll ends early: it may end a later one."""
    if v.poll_evtchn is not None:
        vcpu_unblock(v)


# --- timers -----------------------------------------------------------------------------------------------


def send_timer_event(v: Vcpu) -> None:
    """Raise VIRQ_TIMER."""
    v.domain.evtchn.send_guest_vcpu_virq(v, VIRQ_TIMER)


def set_singleshot_timer(v: Vcpu, when: int) -> None:
    """Arm the vCPU's one-shot timer for system time `when` (ns)."""
    arm(v.domain, SINGLESHOT, v.vcpu_id, when)


def do_set_timer_op(v: Vcpu, timeout: int) -> int:
    """Arm the one-shot timer at `timeout` (a 64-bit system time, 0 to disarm)."""
    clock = v.domain.clock
    if not timeout:
        clock.stop_timer((SINGLESHOT, v.vcpu_id))
        return 0
    now = clock.now()
    if timeout >= _SIGN or (timeout - now) >> _FAR_FUTURE_SHIFT > 0:
        timeout = now + _HUGE_TIMEOUT_NS
    arm(v.domain, SINGLESHOT, v.vcpu_id, timeout)
    return 0


def vcpu_periodic_timer_work(v: Vcpu) -> None:
    """Send a tick when one is due and arm the next; only a vCPU that runs ticks."""
    clock = v.domain.clock
    now = clock.now()
    due = v.periodic_last_event + v.periodic_period
    if now >= due:
        send_timer_event(v)
        v.periodic_last_event = now
        due = now + v.periodic_period
    arm(v.domain, PERIODIC, v.vcpu_id, due)


def vcpu_set_periodic_timer(v: Vcpu, period: int) -> None:
    """Tick every `period` ns; 0 stops the ticks."""
    v.domain.clock.stop_timer((PERIODIC, v.vcpu_id))
    v.periodic_period = period
    if period:
        vcpu_periodic_timer_work(v)


# --- the ends of a domain ---------------------------------------------------------------------------------


def domain_shutdown(d: Domain, reason: int) -> None:
    """The domain stops for SHUTDOWN_* `reason`; a code that was set before wins."""
    if d.shutdown_code is None:
        d.shutdown_code = reason
    if not d.is_shutting_down:
        d.is_shutting_down = True
        d.reschedule()


def domain_watchdog_timeout(d: Domain) -> None:
    """The guest did not pat its watchdog in time."""
    domain_shutdown(d, SHUTDOWN_watchdog)


def domain_watchdog(d: Domain, id_: int, timeout: int) -> int:
    """Start (id 0), pat, or stop (timeout 0) one of the domain's watchdogs; `timeout` in seconds."""
    if id_ > NR_DOMAIN_WATCHDOG_TIMERS:
        return -EINVAL
    clock = d.clock
    when = clock.now() + timeout * 1_000_000_000
    if id_ == 0:
        for slot in range(1, NR_DOMAIN_WATCHDOG_TIMERS + 1):
            if clock.expires((WATCHDOG, slot)) is None:
                arm(d, WATCHDOG, slot, when)
                return slot
        return -ENOSPC
    if clock.expires((WATCHDOG, id_)) is None:
        return -EINVAL
    if timeout == 0:
        clock.stop_timer((WATCHDOG, id_))
    else:
        arm(d, WATCHDOG, id_, when)
    return 0


# --- what timers do ---------------------------------------------------------------------------------------

_TIMERS: dict[str, Callable[[Domain, int], None]] = {
    SINGLESHOT: lambda d, vcpu: send_timer_event(d.vcpus[vcpu]),
    PERIODIC: lambda d, vcpu: vcpu_periodic_timer_work(d.vcpus[vcpu]),
    POLL: lambda d, vcpu: poll_timer_fn(d.vcpus[vcpu]),
    WATCHDOG: lambda d, _slot: domain_watchdog_timeout(d),
}


TIMER_KINDS = tuple(_TIMERS)


def timer_action(d: Domain, kind: str, number: int) -> Callable[[], None]:
    """What the timer (kind, number) of a domain does when it is due."""
    return partial(_TIMERS[kind], d, number)


def arm(d: Domain, kind: str, number: int, when: int) -> None:
    """Arm or move a timer: the singleshot, periodic or poll timer of a vCPU, or a domain's watchdog."""
    d.clock.set_timer((kind, number), when, timer_action(d, kind, number))


# --- sched_op ---------------------------------------------------------------------------------------------


def _yield(v: Vcpu, _arg: int) -> int:
    v.domain.reschedule()
    return 0


def _block(v: Vcpu, _arg: int) -> int:
    vcpu_block_enable_events(v)
    return 0


def _shutdown(v: Vcpu, arg: int) -> int:
    (reason,) = v.domain.guest.unpack(sched_shutdown, arg)
    domain_shutdown(v.domain, reason & 0xFF)
    return 0


def _shutdown_code(v: Vcpu, arg: int) -> int:
    d = v.domain
    (reason,) = d.guest.unpack(sched_shutdown, arg)
    if d.shutdown_code is None:
        d.shutdown_code = reason & 0xFF
    return 0


def _poll(v: Vcpu, arg: int) -> int:
    d = v.domain
    ports, nr_ports, timeout = d.guest.unpack(sched_poll[d.abi.word], arg)
    return do_poll(v, ports, nr_ports, timeout)


def _remote_shutdown(v: Vcpu, arg: int) -> int:
    """Only a domain's device model or the control domain may, not even the domain itself."""
    d = v.domain
    domain_id, _reason = d.guest.unpack(sched_remote_shutdown, arg)
    return -EPERM if domain_id in d.domain_list else -ESRCH


def _watchdog(v: Vcpu, arg: int) -> int:
    d = v.domain
    id_, timeout = d.guest.unpack(sched_watchdog, arg)
    rc = domain_watchdog(d, id_, timeout)
    # domain_watchdog() chooses between -ENOSPC and an unsigned id: the error is an unsigned int, too.
    return rc & 0xFFFFFFFF if rc == -ENOSPC and not d.abi.is_32bit else rc


def _pin_override(_v: Vcpu, _arg: int) -> int:
    return -EPERM


_SCHED_OPS: dict[int, Callable[[Vcpu, int], int]] = {
    SCHEDOP_yield: _yield,
    SCHEDOP_block: _block,
    SCHEDOP_shutdown: _shutdown,
    SCHEDOP_poll: _poll,
    SCHEDOP_remote_shutdown: _remote_shutdown,
    SCHEDOP_shutdown_code: _shutdown_code,
    SCHEDOP_watchdog: _watchdog,
    SCHEDOP_pin_override: _pin_override,
}


def do_sched_op(v: Vcpu, cmd: int, arg: int) -> int:
    """HYPERVISOR_sched_op."""
    op = _SCHED_OPS.get(cmd & 0xFFFFFFFF)
    return op(v, arg) if op else -ENOSYS


def do_sched_op_compat(v: Vcpu, cmd: int, arg: int) -> int:
    """The sched_op of before 3.1, which takes the shutdown reason by value."""
    cmd &= 0xFFFFFFFF
    if cmd == SCHEDOP_shutdown:
        domain_shutdown(v.domain, arg & 0xFF)
        return 0
    if cmd in (SCHEDOP_yield, SCHEDOP_block):
        return do_sched_op(v, cmd, 0)
    return -ENOSYS
