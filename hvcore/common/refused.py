"""Hypercalls that are not for a domU, each refused where and as Xen 4.17 refuses it.

What a refusal looks like depends on what comes first: the copy of the argument (EFAULT), its version
(EACCES), the domain it names (ESRCH), or the permission check (EPERM). Sources: xen/common/sysctl.c,
kexec.c, hypfs.c, xenoprof.c, xen/arch/x86/platform_hypercall.c, hvm/hvm.c, hvm/dm.c, cpu/vpmu.c,
xen/include/xsm/dummy.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.public.errno import E2BIG, EACCES, EBUSY, EINVAL, ENODATA, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from hvcore.public.refused import (
    HVM_NR_PARAMS,
    XEN_DM_OP_MAX_BUFS,
    XEN_HVM_XENTRACE_EXTRA,
    XEN_SYSCTL_INTERFACE_VERSION,
    XENPF_INTERFACE_VERSION,
    HVMOP_altp2m,
    HVMOP_flush_tlbs,
    HVMOP_get_mem_type,
    HVMOP_get_param,
    HVMOP_get_time,
    HVMOP_guest_request_vm_event,
    HVMOP_pagetable_dying,
    HVMOP_set_evtchn_upcall_vector,
    HVMOP_set_param,
    HVMOP_xentrace,
    XENOPROF_get_buffer,
    XENOPROF_init,
    XENOPROF_last_op,
    xen_dm_op_buf,
    xen_hvm_get_mem_type,
    xen_hvm_get_time,
    xen_hvm_pagetable_dying,
    xen_hvm_param,
    xen_hvm_xentrace,
    xen_platform_op,
    xen_sysctl,
    xenoprof_init,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

# xen/arch/x86/oprofile/nmi_int.c of the processor that pv/cpuid.py shows.
_OPROFILE_CPU_TYPE = b"x86-64/hammer\0"
_OPROFILE_EVENTS = 4
_TRACE_EVENT_MASK = (1 << 12) - 1


def do_sysctl(v: Vcpu, u_sysctl: int) -> int:
    """HYPERVISOR_sysctl."""
    _cmd, version = v.domain.guest.unpack(xen_sysctl, u_sysctl)
    return -EPERM if version == XEN_SYSCTL_INTERFACE_VERSION else -EACCES


def do_platform_op(v: Vcpu, u_xenpf_op: int) -> int:
    """HYPERVISOR_platform_op."""
    _cmd, version = v.domain.guest.unpack(xen_platform_op, u_xenpf_op)
    return -EPERM if version == XENPF_INTERFACE_VERSION else -EACCES


# --- hvm_op: a PV domain has none of it, but time and trace are there for all -----------------------------


def _hvm_param(d: Domain, arg: int) -> int:
    domid, index, _ = d.guest.unpack(xen_hvm_param, arg)
    if index >= HVM_NR_PARAMS:
        return -EINVAL
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EINVAL


def _hvm_pagetable_dying(d: Domain, arg: int) -> int:
    domid, _ = d.guest.unpack(xen_hvm_pagetable_dying, arg)
    target = rcu_lock_domain_by_any_id(d, domid)
    if target is None:
        return -ESRCH
    return -EINVAL if target is d else -EOPNOTSUPP


def _hvm_get_time(d: Domain, arg: int) -> int:
    d.guest.pack(xen_hvm_get_time, arg, d.clock.now())
    return 0


def _hvm_xentrace(d: Domain, arg: int) -> int:
    event, extra_bytes = d.guest.unpack(xen_hvm_xentrace, arg)
    return -EINVAL if extra_bytes > XEN_HVM_XENTRACE_EXTRA or event & ~_TRACE_EVENT_MASK else 0


def _hvm_get_mem_type(d: Domain, arg: int) -> int:
    domid = d.guest.unpack(xen_hvm_get_mem_type, arg)[0]
    target = rcu_lock_domain_by_any_id(d, domid)
    if target is None:
        return -ESRCH
    return -EINVAL if target is d else -EPERM


def _hvm_not_for_pv(_d: Domain, _arg: int) -> int:
    return -EINVAL


def _hvm_request_vm_event(_d: Domain, arg: int) -> int:
    return -EINVAL if arg else 0  # nobody listens


def _hvm_altp2m(_d: Domain, _arg: int) -> int:
    return -EOPNOTSUPP


_HVM_OPS: dict[int, Callable[[Domain, int], int]] = {
    HVMOP_set_param: _hvm_param,
    HVMOP_get_param: _hvm_param,
    HVMOP_flush_tlbs: _hvm_not_for_pv,
    HVMOP_pagetable_dying: _hvm_pagetable_dying,
    HVMOP_get_time: _hvm_get_time,
    HVMOP_xentrace: _hvm_xentrace,
    HVMOP_get_mem_type: _hvm_get_mem_type,
    HVMOP_set_evtchn_upcall_vector: _hvm_not_for_pv,
    HVMOP_guest_request_vm_event: _hvm_request_vm_event,
    HVMOP_altp2m: _hvm_altp2m,
}


def do_hvm_op(v: Vcpu, op: int, arg: int) -> int:
    """HYPERVISOR_hvm_op."""
    handler = _HVM_OPS.get(op)
    return handler(v.domain, arg) if handler else -ENOSYS


def do_dm_op(v: Vcpu, domid: int, nr_bufs: int, bufs: int) -> int:
    """HYPERVISOR_dm_op: for device models, and of HVM domains only."""
    d = v.domain
    nr_bufs &= 0xFFFFFFFF
    if not nr_bufs:
        return -ENODATA
    if nr_bufs > XEN_DM_OP_MAX_BUFS:
        return -E2BIG
    d.guest.copy_from(bufs, nr_bufs * xen_dm_op_buf[d.abi.word].size)
    domid &= 0xFFFF
    if domid == d.domain_id:
        return -EPERM
    return -EINVAL if domid in d.domain_list else -ESRCH


def do_kexec_op(_v: Vcpu, _op: int, _uarg: int) -> int:
    """HYPERVISOR_kexec_op."""
    return -EPERM


def do_hypfs_op(_v: Vcpu, _cmd: int, _arg1: int, _arg2: int, _arg3: int, _arg4: int) -> int:
    """HYPERVISOR_hypfs_op."""
    return -EPERM


def do_mca(_v: Vcpu, _u_xen_mc: int) -> int:
    """HYPERVISOR_mca (__HYPERVISOR_arch_0)."""
    return -EPERM


def do_xenpmu_op(_v: Vcpu, _op: int, _arg: int) -> int:
    """HYPERVISOR_xenpmu_op: off unless Xen is booted with vpmu=."""
    return -EOPNOTSUPP


def do_xsm_op(_v: Vcpu, _op: int) -> int:
    """HYPERVISOR_xsm_op: the dummy module has none."""
    return -ENOSYS


def do_argo_op(_v: Vcpu, _cmd: int, _arg1: int, _arg2: int, _arg3: int, _arg4: int) -> int:
    """HYPERVISOR_argo_op: not built in."""
    return -ENOSYS


def do_xenoprof_op(v: Vcpu, op: int, arg: int) -> int:
    """HYPERVISOR_xenoprof_op: of what a domU may, the questions; the counters are always somebody else's."""
    op &= 0xFFFFFFFF
    if op > XENOPROF_last_op:
        return -EINVAL
    if op == XENOPROF_init:
        guest = v.domain.guest
        cpu_type = guest.copy_from(arg, xenoprof_init.size)[8:]
        name = _OPROFILE_CPU_TYPE + cpu_type[len(_OPROFILE_CPU_TYPE) :]
        guest.copy_to(arg, xenoprof_init.pack(_OPROFILE_EVENTS, 0, name))
        return 0
    return -EBUSY if op == XENOPROF_get_buffer else -EPERM
