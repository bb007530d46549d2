"""domctl as a domU meets it: what Xen looks at before it says that the caller may not (xen/common/domctl.c).

Most commands are refused at once. Some look at their own arguments first, and one is for everybody.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.event_channel import NR_PIRQS
from hvcore.public.errno import EACCES, EINVAL, EOPNOTSUPP, EPERM, ESRCH
from hvcore.public.refused import (
    VM_EVENT_INTERFACE_VERSION,
    XEN_DOMCTL_INTERFACE_VERSION,
    XEN_VM_EVENT_GET_VERSION,
    XEN_DOMCTL_assign_device,
    XEN_DOMCTL_bind_pt_irq,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_deassign_device,
    XEN_DOMCTL_get_device_group,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_iomem_permission,
    XEN_DOMCTL_ioport_mapping,
    XEN_DOMCTL_ioport_permission,
    XEN_DOMCTL_irq_permission,
    XEN_DOMCTL_memory_mapping,
    XEN_DOMCTL_set_target,
    XEN_DOMCTL_shadow_op,
    XEN_DOMCTL_test_assign_device,
    XEN_DOMCTL_unbind_pt_irq,
    XEN_DOMCTL_vm_event_op,
    xen_domctl,
)
from hvcore.public.xen import DOMID_FIRST_RESERVED, DOMID_INVALID, DOMID_IO
from hvcore.x86 import M32, M64

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

U = 16  # offset of the union in struct xen_domctl
_VM_EVENT_VERSION = U + 8
_MAX_IOPORTS = 0x10000
_PADDR_BITS = 40
_PAGE_SHIFT = 12


def _words(u: bytes, layout: str) -> tuple[int, ...]:
    return struct.unpack_from("<" + layout, u)


def _iomem_permission(_d: Domain, u: bytes) -> int:
    first, nr = _words(u, "QQ")
    return -EINVAL if first + nr - 1 & M64 < first else -EPERM


def _ioport_permission(_d: Domain, u: bytes) -> int:
    first, nr = _words(u, "II")
    end = first + nr & M32
    return -EINVAL if end <= first or end > _MAX_IOPORTS else -EPERM


def _irq_permission(_d: Domain, u: bytes) -> int:
    return -EINVAL if _words(u, "I")[0] >= NR_PIRQS else -EPERM


def _memory_mapping(_d: Domain, u: bytes) -> int:
    gfn, mfn, nr = _words(u, "QQQ")
    end = mfn + nr - 1 & M64
    wraps = end < mfn or gfn + nr - 1 & M64 < gfn
    return -EINVAL if wraps or (mfn | end) >> _PADDR_BITS - _PAGE_SHIFT else -EPERM


def _set_target(d: Domain, u: bytes, domid: int) -> int:
    target = _words(u, "H")[0]
    if target not in d.domain_list:
        return -ESRCH
    return -EINVAL if target == domid else -EOPNOTSUPP  # no domain here is an HVM one


def _not_for_pv(_d: Domain, _u: bytes) -> int:
    return -EINVAL


def _no_hvm_or_iommu(_d: Domain, _u: bytes) -> int:
    return -EOPNOTSUPP


# What these say before, or instead of, -EPERM.
_CHECKS: dict[int, Callable[[Domain, bytes], int]] = {
    XEN_DOMCTL_irq_permission: _irq_permission,
    XEN_DOMCTL_iomem_permission: _iomem_permission,
    XEN_DOMCTL_ioport_permission: _ioport_permission,
    XEN_DOMCTL_bind_pt_irq: _not_for_pv,
    XEN_DOMCTL_memory_mapping: _memory_mapping,
    XEN_DOMCTL_ioport_mapping: _no_hvm_or_iommu,
    XEN_DOMCTL_unbind_pt_irq: _not_for_pv,
    XEN_DOMCTL_get_device_group: _no_hvm_or_iommu,
}
_DEVICES = (XEN_DOMCTL_assign_device, XEN_DOMCTL_deassign_device)
_MAY_BE_NOBODY = (XEN_DOMCTL_test_assign_device, XEN_DOMCTL_vm_event_op)


def do_domctl(v: Vcpu, u_domctl: int) -> int:
    """HYPERVISOR_domctl."""
    d = v.domain
    raw = d.guest.copy_from(u_domctl, xen_domctl.size)
    cmd, version, domid = xen_domctl.unpack(raw)
    if version != XEN_DOMCTL_INTERFACE_VERSION:
        return -EACCES
    if cmd == XEN_DOMCTL_createdomain or (cmd in _DEVICES and domid == DOMID_IO):
        return -EPERM
    if cmd == XEN_DOMCTL_getdomaininfo:
        return _getdomaininfo(d, domid)
    nobody = cmd in _MAY_BE_NOBODY and domid == DOMID_INVALID
    if not nobody and domid not in d.domain_list:
        return -ESRCH
    if cmd == XEN_DOMCTL_vm_event_op:
        return _vm_event_op(d, u_domctl, raw[U:], nobody)
    if cmd == XEN_DOMCTL_set_target:
        return _set_target(d, raw[U:], domid)
    check = _CHECKS.get(cmd)
    return check(d, raw[U:]) if check else -EPERM


def _getdomaininfo(d: Domain, domid: int) -> int:
    """The domain, or the next one that there is."""
    if domid not in d.domain_list and domid >= DOMID_FIRST_RESERVED:
        return -EINVAL
    return -EPERM if max(d.domain_list) >= domid else -ESRCH


def _vm_event_op(d: Domain, u_domctl: int, u: bytes, nobody: bool) -> int:
    """Which version of the interface there is, everybody may ask."""
    if _words(u, "I")[0] == XEN_VM_EVENT_GET_VERSION:
        d.guest.write_u32(u_domctl + _VM_EVENT_VERSION, VM_EVENT_INTERFACE_VERSION)
        return 0
    return -ESRCH if nobody else -EPERM


def do_paging_domctl_cont(v: Vcpu, u_domctl: int) -> int:
    """HYPERVISOR_paging_domctl_cont (arch_1): a domctl that Xen makes its caller repeat."""
    cmd, version, domid = v.domain.guest.unpack(xen_domctl, u_domctl)
    if version != XEN_DOMCTL_INTERFACE_VERSION or cmd != XEN_DOMCTL_shadow_op:
        return -EOPNOTSUPP
    return -EPERM if domid in v.domain.domain_list else -ESRCH
