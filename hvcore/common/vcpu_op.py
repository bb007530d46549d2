"""vcpu_op: a guest's other processors, their timers, and the areas where Xen tells of them.

Sources: do_vcpu_op() of xen/arch/x86/domain.c, common_vcpu_op() and map_vcpu_info() of xen/common/domain.c,
and the compat versions of both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.abi import VCPU_INFO_SIZE, VCPU_UPCALL_MASK, XEN_LEGACY_MAX_VCPUS
from hvcore.common.handles import array_access_ok
from hvcore.common.schedule import (
    SINGLESHOT,
    domain_shutdown,
    send_timer_event,
    set_singleshot_timer,
    vcpu_kick,
    vcpu_mark_events_pending,
    vcpu_runstate_get,
    vcpu_set_periodic_timer,
    vcpu_sleep,
    vcpu_wake,
)
from hvcore.common.time import force_update_vcpu_system_time
from hvcore.errors import GuestError
from hvcore.public.errno import EEXIST, EFAULT, EINVAL, ENOENT, ENOSYS, ENXIO
from hvcore.public.sched import SHUTDOWN_poweroff
from hvcore.public.vcpu import (
    VCPUOP_down,
    VCPUOP_get_physid,
    VCPUOP_get_runstate_info,
    VCPUOP_initialise,
    VCPUOP_is_up,
    VCPUOP_register_runstate_memory_area,
    VCPUOP_register_vcpu_info,
    VCPUOP_register_vcpu_time_memory_area,
    VCPUOP_send_nmi,
    VCPUOP_set_periodic_timer,
    VCPUOP_set_singleshot_timer,
    VCPUOP_stop_periodic_timer,
    VCPUOP_stop_singleshot_timer,
    VCPUOP_up,
    vcpu_register_vcpu_info,
    vcpu_runstate_info,
    vcpu_set_singleshot_timer,
    vcpu_time_info,
)
from hvcore.public.vcpu import (
    vcpu_set_periodic_timer as set_periodic_timer_t,
)
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT_SIZE
from hvcore.public.xen import PAGE_SIZE
from hvcore.vcpu import VPF_down

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.vcpu import Vcpu

MIN_PERIOD_NS = 1_000_000
STIME_DELTA_MAX = (1 << 62) - 1
_SIGN = 1 << 63


def has_dummy_info(v: Vcpu) -> bool:
    """The vCPU has no place in shared_info and has not been given one elsewhere."""
    return v.vcpu_id >= XEN_LEGACY_MAX_VCPUS and v.info_mfn is None


def map_vcpu_info(curr: Vcpu, v: Vcpu, mfn: int, offset: int) -> int:
    """Move `v`'s vcpu_info into a frame of the guest's, with everything pending so that nothing gets lost."""
    d = v.domain
    if offset > PAGE_SIZE - VCPU_INFO_SIZE or offset & (d.abi.word - 1):
        return -ENXIO
    if v.info_mfn is not None or (v is not curr and not v.pause_flags & VPF_down):
        return -EINVAL
    if not d.mm.get_page_writable(mfn):
        return -EINVAL
    new = d.mem.frame(mfn)[offset : offset + VCPU_INFO_SIZE]
    if has_dummy_info(v):
        new[:] = bytes(VCPU_INFO_SIZE)
        new[VCPU_UPCALL_MASK] = 1
    else:
        new[:] = bytes(v.info)
    v.place_info(new, mfn)
    selector = d.abi.vcpu_pending_sel
    new[selector : selector + d.abi.word] = b"\xff" * d.abi.word
    vcpu_mark_events_pending(v)
    return 0


def _initialise(_curr: Vcpu, v: Vcpu, arg: int) -> int:
    from hvcore.pv.vcpu_context import arch_set_info_guest

    if has_dummy_info(v):
        return -EINVAL
    d = v.domain
    raw = d.guest.copy_from(arg, VCPU_GUEST_CONTEXT_SIZE[d.abi.word])
    return -EEXIST if v.is_initialised else arch_set_info_guest(v, raw)


def _up(_curr: Vcpu, v: Vcpu, _arg: int) -> int:
    if not v.is_initialised:
        return -EINVAL
    if v.pause_flags & VPF_down:
        v.pause_flags &= ~VPF_down
        vcpu_wake(v)
    return 0


def _down(_curr: Vcpu, v: Vcpu, _arg: int) -> int:
    """The last vCPU to go down takes the domain with it."""
    d = v.domain
    if all(other is v or other.pause_flags & VPF_down for other in d.vcpus):
        domain_shutdown(d, SHUTDOWN_poweroff)
    elif not v.pause_flags & VPF_down:
        v.pause_flags |= VPF_down
        vcpu_sleep(v)
    return 0


def _is_up(_curr: Vcpu, v: Vcpu, _arg: int) -> int:
    return int(not v.pause_flags & VPF_down)


def _get_runstate_info(_curr: Vcpu, v: Vcpu, arg: int) -> int:
    d = v.domain
    d.guest.pack(vcpu_runstate_info[d.abi.word], arg, *vcpu_runstate_get(v))
    return 0


def _register_runstate_memory_area(curr: Vcpu, v: Vcpu, arg: int) -> int:
    d = v.domain
    layout = vcpu_runstate_info[d.abi.word]
    at = d.guest.read_ulong(arg)
    if not array_access_ok(d, at, 1, layout.size):
        return -EFAULT
    v.runstate_guest = at
    if v is curr:
        state = (v.runstate, v.runstate_entry_time, *v.runstate_time)
    else:
        state = vcpu_runstate_get(v)
    try:
        d.guest.pack(layout, at, *state)
    except GuestError:
        return 0  # not there yet: it is written again when the vCPU is scheduled
    return 0


def _set_periodic_timer(_curr: Vcpu, v: Vcpu, arg: int) -> int:
    (period,) = v.domain.guest.unpack(set_periodic_timer_t, arg)
    if not MIN_PERIOD_NS <= period <= STIME_DELTA_MAX:
        return -EINVAL
    vcpu_set_periodic_timer(v, period)
    return 0


def _stop_periodic_timer(_curr: Vcpu, v: Vcpu, _arg: int) -> int:
    vcpu_set_periodic_timer(v, 0)
    return 0


def _set_singleshot_timer(curr: Vcpu, v: Vcpu, arg: int) -> int:
    """VCPU_SSHOTTMR_future is a hint that 4.17 does not take: a time in the past raises the event at once."""
    d = v.domain
    if v is not curr and not d.abi.is_32bit:
        return -EINVAL
    timeout, _flags = d.guest.unpack(vcpu_set_singleshot_timer[d.abi.word], arg)
    if v is not curr:
        return -EINVAL
    if timeout < d.clock.now():
        d.clock.stop_timer((SINGLESHOT, v.vcpu_id))
        send_timer_event(v)
    else:
        set_singleshot_timer(v, timeout if timeout < _SIGN else 0)
    return 0


def _stop_singleshot_timer(curr: Vcpu, v: Vcpu, _arg: int) -> int:
    if v is not curr:
        return -EINVAL
    v.domain.clock.stop_timer((SINGLESHOT, v.vcpu_id))
    return 0


def _register_vcpu_info(curr: Vcpu, v: Vcpu, arg: int) -> int:
    mfn, offset, _ = v.domain.guest.unpack(vcpu_register_vcpu_info, arg)
    rc = map_vcpu_info(curr, v, mfn, offset)
    force_update_vcpu_system_time(v)
    return rc


def _register_vcpu_time_memory_area(_curr: Vcpu, v: Vcpu, arg: int) -> int:
    d = v.domain
    at = d.guest.read_ulong(arg)
    if not array_access_ok(d, at, 1, vcpu_time_info.size):
        return -EFAULT
    v.time_info_guest = at
    force_update_vcpu_system_time(v)
    return 0


def _send_nmi(_curr: Vcpu, v: Vcpu, arg: int) -> int:
    if arg:
        return -EINVAL
    send_nmi(v)
    return 0


def send_nmi(v: Vcpu) -> None:
    """VCPUOP_send_nmi and XEN_DOMCTL_SENDTRIGGER_NMI."""
    if not v.nmi_pending:
        v.nmi_pending = True
        vcpu_kick(v)


def _get_physid(_curr: Vcpu, _v: Vcpu, _arg: int) -> int:
    return -EINVAL  # for a hardware domain pinned to its processors


_VCPU_OPS: dict[int, Callable[[Vcpu, Vcpu, int], int]] = {
    VCPUOP_initialise: _initialise,
    VCPUOP_up: _up,
    VCPUOP_down: _down,
    VCPUOP_is_up: _is_up,
    VCPUOP_get_runstate_info: _get_runstate_info,
    VCPUOP_register_runstate_memory_area: _register_runstate_memory_area,
    VCPUOP_set_periodic_timer: _set_periodic_timer,
    VCPUOP_stop_periodic_timer: _stop_periodic_timer,
    VCPUOP_set_singleshot_timer: _set_singleshot_timer,
    VCPUOP_stop_singleshot_timer: _stop_singleshot_timer,
    VCPUOP_register_vcpu_info: _register_vcpu_info,
    VCPUOP_send_nmi: _send_nmi,
    VCPUOP_get_physid: _get_physid,
    VCPUOP_register_vcpu_time_memory_area: _register_vcpu_time_memory_area,
}


def do_vcpu_op(v: Vcpu, cmd: int, vcpuid: int, arg: int) -> int:
    """HYPERVISOR_vcpu_op on vCPU number `vcpuid`."""
    vcpus = v.domain.vcpus
    vcpuid &= 0xFFFFFFFF
    if vcpuid >= len(vcpus):
        return -ENOENT
    op = _VCPU_OPS.get(cmd & 0xFFFFFFFF)
    return op(v, vcpus[vcpuid], arg) if op else -ENOSYS
