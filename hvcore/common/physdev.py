"""physdev_op of a domain without devices: xen/arch/x86/physdev.c and xen/drivers/pci/physdev.c.

What concerns the machine is refused; what concerns the guest's own view (I/O privilege, its interrupt
numbers, the page of EOI bits) works, though no interrupt will ever come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.event_channel import NR_IRQS_GSI, NR_PIRQS
from hvcore.common.handles import array_access_ok
from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.public.errno import EBUSY, EINVAL, ENODEV, ENOSPC, ENOSYS, EPERM, ESRCH
from hvcore.public.physdev import (
    IOBMP_BYTES,
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MSI,
    MAP_PIRQ_TYPE_MSI_SEG,
    MAP_PIRQ_TYPE_MULTI_MSI,
    PHYSDEV_OP_U,
    PHYSDEVOP_IRQ_UNMASK_NOTIFY,
    XEN_PCI_DEV_PXM,
    PHYSDEVOP_alloc_irq_vector,
    PHYSDEVOP_apic_read,
    PHYSDEVOP_apic_write,
    PHYSDEVOP_dbgp_op,
    PHYSDEVOP_eoi,
    PHYSDEVOP_get_free_pirq,
    PHYSDEVOP_irq_status_query,
    PHYSDEVOP_manage_pci_add,
    PHYSDEVOP_manage_pci_add_ext,
    PHYSDEVOP_manage_pci_remove,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pci_device_add,
    PHYSDEVOP_pci_device_remove,
    PHYSDEVOP_pci_mmcfg_reserved,
    PHYSDEVOP_pirq_eoi_gmfn_v1,
    PHYSDEVOP_pirq_eoi_gmfn_v2,
    PHYSDEVOP_prepare_msix,
    PHYSDEVOP_release_msix,
    PHYSDEVOP_restore_msi,
    PHYSDEVOP_restore_msi_ext,
    PHYSDEVOP_set_iobitmap,
    PHYSDEVOP_set_iopl,
    PHYSDEVOP_setup_gsi,
    PHYSDEVOP_unmap_pirq,
    XENIRQSTAT_needs_eoi,
    physdev_apic,
    physdev_eoi,
    physdev_get_free_pirq,
    physdev_irq,
    physdev_irq_status_query,
    physdev_manage_pci,
    physdev_manage_pci_ext,
    physdev_map_pirq,
    physdev_op,
    physdev_pci_device,
    physdev_pci_device_add,
    physdev_pirq_eoi_gmfn,
    physdev_set_iobitmap,
    physdev_set_iopl,
    physdev_setup_gsi,
    physdev_unmap_pirq,
)

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable

    from hvcore.vcpu import Vcpu

_IOPL_SHIFT = 12
_MAX_PORTS = 65536
_FIRST_GSI_PIRQ = 16


def _eoi(v: Vcpu, arg: int) -> int:
    d = v.domain
    (irq,) = d.guest.unpack(physdev_eoi, arg)
    return 0 if irq in d.evtchn.pirqs else -EINVAL


def _pirq_eoi_gmfn(v: Vcpu, arg: int) -> int:
    d = v.domain
    (gmfn,) = d.guest.unpack(physdev_pirq_eoi_gmfn[d.abi.word], arg)
    if not d.mm.get_page_writable(gmfn):
        return -EINVAL
    if d.evtchn.pirq_eoi_map_mfn is not None:
        d.mm.put_page_and_type(gmfn)
        return -EBUSY
    d.evtchn.pirq_eoi_map_mfn = gmfn
    return 0


def _irq_unmask_notify(_v: Vcpu, _arg: int) -> int:
    return 0


def _irq_status_query(v: Vcpu, arg: int) -> int:
    guest = v.domain.guest
    irq, _ = guest.unpack(physdev_irq_status_query, arg)
    if irq >= NR_PIRQS:
        return -EINVAL
    guest.pack(physdev_irq_status_query, arg, irq, XENIRQSTAT_needs_eoi)
    return 0


def _map_pirq(v: Vcpu, arg: int) -> int:
    """For device models and the control domain; the argument comes back all the same."""
    d = v.domain
    layout = physdev_map_pirq[d.abi.word]
    domid, kind, *rest, table_base = d.guest.unpack(layout, arg)
    if kind == MAP_PIRQ_TYPE_MULTI_MSI and table_base:
        return -EINVAL
    if kind == MAP_PIRQ_TYPE_MSI_SEG:
        kind = MAP_PIRQ_TYPE_MSI
    d.guest.pack(layout, arg, domid, kind, *rest, table_base)
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EPERM


def _unmap_pirq(v: Vcpu, arg: int) -> int:
    d = v.domain
    domid, _pirq = d.guest.unpack(physdev_unmap_pirq, arg)
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EPERM


def _apic(v: Vcpu, arg: int) -> int:
    d = v.domain
    d.guest.unpack(physdev_apic[d.abi.word], arg)
    return -EPERM


def _set_iopl(v: Vcpu, arg: int) -> int:
    (iopl,) = v.domain.guest.unpack(physdev_set_iopl, arg)
    if iopl > 3:
        return -EINVAL
    v.iopl = iopl << _IOPL_SHIFT
    v.domain.close_ports()
    return 0


def _set_iobitmap(v: Vcpu, arg: int) -> int:
    d = v.domain
    bitmap, nr_ports = d.guest.unpack(physdev_set_iobitmap[d.abi.word], arg)
    if not array_access_ok(d, bitmap, IOBMP_BYTES, 1) or nr_ports > _MAX_PORTS:
        return -EINVAL
    v.iobmp = bitmap
    v.iobmp_limit = nr_ports
    return 0


def _read_then(layout: struct.Struct, errno: int) -> Callable[[Vcpu, int], int]:
    """An operation that copies its argument in and is refused with `errno`."""

    def refuse(v: Vcpu, arg: int) -> int:
        v.domain.guest.unpack(layout, arg)
        return -errno

    return refuse


def _manage_pci_add_ext(v: Vcpu, arg: int) -> int:
    _, _, is_extfn, is_virtfn, _, _ = v.domain.guest.unpack(physdev_manage_pci_ext, arg)
    return -EINVAL if is_extfn > 1 or is_virtfn > 1 else -EPERM


def _setup_gsi(v: Vcpu, arg: int) -> int:
    gsi = v.domain.guest.unpack(physdev_setup_gsi, arg)[0]
    return -EPERM if 0 <= gsi < NR_IRQS_GSI else -EINVAL


def _get_free_pirq(v: Vcpu, arg: int) -> int:
    d = v.domain
    kind, _ = d.guest.unpack(physdev_get_free_pirq, arg)
    taken = d.evtchn.pirqs
    low = range(_FIRST_GSI_PIRQ, NR_IRQS_GSI) if kind == MAP_PIRQ_TYPE_GSI else range(0)
    for pirq in (*low, *range(NR_PIRQS - 1, NR_IRQS_GSI - 1, -1)):
        if pirq not in taken:
            taken.add(pirq)
            d.guest.pack(physdev_get_free_pirq, arg, kind, pirq)
            return 0
    return -ENOSPC


def _pci_device_add(v: Vcpu, arg: int) -> int:
    guest = v.domain.guest
    flags = guest.unpack(physdev_pci_device_add, arg)[3]
    if flags & XEN_PCI_DEV_PXM:
        guest.read_u32(arg + physdev_pci_device_add.size)
    return -EPERM


def _not_permitted(_v: Vcpu, _arg: int) -> int:
    return -EPERM


_PHYSDEV_OPS: dict[int, Callable[[Vcpu, int], int]] = {
    PHYSDEVOP_IRQ_UNMASK_NOTIFY: _irq_unmask_notify,
    PHYSDEVOP_irq_status_query: _irq_status_query,
    PHYSDEVOP_set_iopl: _set_iopl,
    PHYSDEVOP_set_iobitmap: _set_iobitmap,
    PHYSDEVOP_apic_read: _apic,
    PHYSDEVOP_apic_write: _apic,
    PHYSDEVOP_alloc_irq_vector: _read_then(physdev_irq, EPERM),
    PHYSDEVOP_eoi: _eoi,
    PHYSDEVOP_map_pirq: _map_pirq,
    PHYSDEVOP_unmap_pirq: _unmap_pirq,
    PHYSDEVOP_manage_pci_add: _read_then(physdev_manage_pci, EPERM),
    PHYSDEVOP_manage_pci_remove: _read_then(physdev_manage_pci, EPERM),
    PHYSDEVOP_pirq_eoi_gmfn_v1: _pirq_eoi_gmfn,
    PHYSDEVOP_restore_msi: _read_then(physdev_manage_pci, ENODEV),
    PHYSDEVOP_manage_pci_add_ext: _manage_pci_add_ext,
    PHYSDEVOP_setup_gsi: _setup_gsi,
    PHYSDEVOP_get_free_pirq: _get_free_pirq,
    PHYSDEVOP_pci_mmcfg_reserved: _not_permitted,
    PHYSDEVOP_pci_device_add: _pci_device_add,
    PHYSDEVOP_pci_device_remove: _read_then(physdev_pci_device, EPERM),
    PHYSDEVOP_restore_msi_ext: _read_then(physdev_pci_device, ENODEV),
    PHYSDEVOP_pirq_eoi_gmfn_v2: _pirq_eoi_gmfn,
    PHYSDEVOP_dbgp_op: _not_permitted,
    PHYSDEVOP_prepare_msix: _read_then(physdev_pci_device, EPERM),
    PHYSDEVOP_release_msix: _read_then(physdev_pci_device, EPERM),
}


def do_physdev_op(v: Vcpu, cmd: int, arg: int) -> int:
    """HYPERVISOR_physdev_op."""
    op = _PHYSDEV_OPS.get(cmd & 0xFFFFFFFF)
    return op(v, arg) if op else -ENOSYS


def do_physdev_op_compat(v: Vcpu, uop: int) -> int:
    """The physdev_op of before 3.2: one struct with the command in front."""
    d = v.domain
    (cmd,) = d.guest.unpack(physdev_op[d.abi.word], uop)
    return do_physdev_op(v, cmd, uop + PHYSDEV_OP_U[d.abi.word])
