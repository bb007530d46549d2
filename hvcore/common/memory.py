"""memory_op: what a guest gives back, takes, exchanges and asks of its memory (xen/common/memory.c).

A PV guest names machine frames; the pseudo-physical numbers that it gives go into the machine-to-physical
table and nowhere else. Calls on a list of extents answer with the number done, whatever stopped them; a
caller may say where to start. The exchange alone is continued, where a vCPU's turn ends (memory_exchange.py).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.common.memory_exchange import COMPAT_XLAT_SIZE, DOMU_MAX_ORDER, memory_exchange, propagate_node
from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.errors import GuestError
from hvcore.page_info import PGC_xen_heap
from hvcore.public.errno import (
    EACCES,
    EDOM,
    EFAULT,
    EINVAL,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from hvcore.public.memory import (
    MEMOP_CMD_MASK,
    MEMOP_EXTENT_SHIFT,
    XENMEM_RDM_ALL,
    XENMAPSPACE_gmfn_foreign,
    XENMAPSPACE_gmfn_range,
    XENMEM_access_op,
    XENMEM_acquire_resource,
    XENMEM_add_to_physmap,
    XENMEM_add_to_physmap_batch,
    XENMEM_claim_pages,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_exchange,
    XENMEM_get_vnumainfo,
    XENMEM_increase_reservation,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_populate_physmap,
    XENMEM_remove_from_physmap,
    XENMEM_reserved_device_memory_map,
    XENMEMF_populate_on_demand,
    XENMEMF_vnode,
    xen_add_to_physmap,
    xen_add_to_physmap_batch,
    xen_mem_access_op,
    xen_mem_acquire_resource,
    xen_memory_domain,
    xen_memory_reservation,
    xen_remove_from_physmap,
    xen_reserved_device_memory_map,
    xen_vnuma_topology_info,
)
from hvcore.public.xen import PAGE_SHIFT
from hvcore.pv.arch_memory import arch_memory_op

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

_MAX_EXTENTS = 0xFFFFFFFF >> MEMOP_EXTENT_SHIFT
_INT_MAX = 0x7FFFFFFF


# --- extents ----------------------------------------------------------------------------------------------


def _alloc(d: Domain, order: int, max_mfn: int) -> int:
    """A new frame below `max_mfn` for the guest, or -1. Free memory is scattered: order 0 only."""
    if order or d.tot_pages >= d.max_pages:
        return -1
    mfn = d.mm.alloc_domheap_page()
    if mfn >= max_mfn:
        d.mm.guest_remove_page(mfn)
        return -1
    return mfn


def _increase_reservation(d: Domain, list_: int, i: int, order: int, max_mfn: int) -> bool:
    if order > DOMU_MAX_ORDER:
        return False
    mfn = _alloc(d, order, max_mfn)
    if mfn < 0:
        return False
    if list_:
        d.guest.write_ulong(list_ + i * d.abi.word, mfn)
    return True


def _decrease_reservation(d: Domain, list_: int, i: int, order: int, _max_mfn: int) -> bool:
    if order > DOMU_MAX_ORDER:
        return False
    mfn = d.guest.read_ulong(list_ + i * d.abi.word)
    return all(_remove(d, mfn + j) for j in range(1 << order))


def _remove(d: Domain, mfn: int) -> bool:
    """Take a frame back, but for those that Xen shares with the guest and goes on using."""
    i = mfn - d.frames.base_mfn
    if 0 <= i < d.frames.nr and d.frames.flags[i] & PGC_xen_heap:
        return False
    return d.mm.guest_remove_page(mfn) == 0


def _populate_physmap(d: Domain, list_: int, i: int, order: int, max_mfn: int) -> bool:
    if order > DOMU_MAX_ORDER:
        return False
    at = list_ + i * d.abi.word
    gpfn = d.guest.read_ulong(at)
    mfn = _alloc(d, order, max_mfn)
    if mfn < 0:
        return False
    d.mem.set_gpfn_from_mfn(mfn, gpfn)
    d.guest.write_ulong(at, mfn)
    return True


_EXTENT_OPS: dict[int, Callable[[Domain, int, int, int, int], bool]] = {
    XENMEM_increase_reservation: _increase_reservation,
    XENMEM_decrease_reservation: _decrease_reservation,
    XENMEM_populate_physmap: _populate_physmap,
}


def _reservation_limit(d: Domain, mem_flags: int) -> int:
    """The frame number that allocations must stay below, from XENMEMF_address_bits; -1 for nonsense."""
    if not mem_flags & XENMEMF_vnode and not propagate_node(mem_flags):
        return -1
    bits = mem_flags & 0xFF
    max_page = d.mem.end_mfn
    if bits == 0 or bits >= (max_page - 1).bit_length() + PAGE_SHIFT:
        return max_page
    return -1 if bits <= PAGE_SHIFT else 1 << bits - PAGE_SHIFT


def _change_reservation(d: Domain, op: int, start: int, arg: int) -> int:
    """The three reservation calls: extents done, counted from the list's beginning."""
    try:
        list_, nr, order, flags, domid = d.guest.unpack(xen_memory_reservation[d.abi.word], arg)
    except GuestError:
        return start
    if nr > _MAX_EXTENTS or start >= nr or rcu_lock_domain_by_any_id(d, domid) is not d:
        return start
    max_mfn = _reservation_limit(d, flags)
    null_ok = op == XENMEM_increase_reservation
    if max_mfn < 0 or not ((null_ok and not list_) or array_access_ok(d, list_, nr, d.abi.word)):
        return start
    if op == XENMEM_populate_physmap and flags & XENMEMF_populate_on_demand:
        return start  # not of oneself
    act = _EXTENT_OPS[op]
    done = start
    try:
        while done < nr and act(d, list_, done, order, max_mfn):
            done += 1
    except GuestError:
        pass
    return done


# --- questions --------------------------------------------------------------------------------------------


def _maximum_ram_page(d: Domain, start: int, _arg: int) -> int:
    return -EINVAL if start else d.mem.end_mfn


def get_max_pfn(d: Domain) -> int:
    """arch_get_max_pfn(): what the guest wrote in shared_info."""
    return int(struct.unpack_from("<" + d.abi.word_format, d.shared_info, d.abi.arch_shared_info)[0])


def _stat(value: Callable[[Domain], int]) -> Callable[[Domain, int, int], int]:
    def ask(d: Domain, start: int, arg: int) -> int:
        if start:
            return -EINVAL
        (domid,) = d.guest.unpack(xen_memory_domain, arg)
        target = rcu_lock_domain_by_any_id(d, domid)
        if target is None:
            return -ESRCH
        return value(d) if target is d else -EPERM

    return ask


def _add_to_physmap(d: Domain, start: int, arg: int) -> int:
    layout = xen_add_to_physmap[d.abi.word]
    if d.abi.is_32bit:
        d.guest.unpack(layout, arg)
    if start > 0xFFFF:
        return -EDOM
    domid, _, space, _, _ = d.guest.unpack(layout, arg)
    if space == XENMAPSPACE_gmfn_foreign:
        return -ENOSYS
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EACCES


def _add_to_physmap_batch(d: Domain, start: int, arg: int) -> int:
    word = d.abi.word
    layout = xen_add_to_physmap_batch[word]
    if d.abi.is_32bit:
        _, _, size, _, idxs, gpfns, errs = d.guest.unpack(layout, arg)
        if not all(array_access_ok(d, va, size, 4) for va in (idxs, gpfns, errs)):
            return -EFAULT
        for i in range(start, min(size, start + (COMPAT_XLAT_SIZE - 32) // 16)):
            d.guest.read_u32(idxs + 4 * i)
            d.guest.read_u32(gpfns + 4 * i)
    if start > 0xFFFF:
        return -EDOM
    domid, space = d.guest.unpack(layout, arg)[:2]
    if space == XENMAPSPACE_gmfn_range:
        return -EOPNOTSUPP
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EACCES


def _remove_from_physmap(d: Domain, start: int, arg: int) -> int:
    layout = xen_remove_from_physmap[d.abi.word]
    if d.abi.is_32bit:
        d.guest.unpack(layout, arg)
    if start:
        return -EINVAL
    domid, _ = d.guest.unpack(layout, arg)
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EACCES


def _remote_domain(d: Domain, domid: int) -> int:
    """rcu_lock_remote_domain_by_id(), for calls that one makes on others only; 0 is domain 0."""
    if domid == d.domain_id:
        return -EPERM
    return 0 if domid in d.domain_list else -ESRCH


def _access_op(d: Domain, _start: int, arg: int) -> int:
    domid = d.guest.unpack(xen_mem_access_op[d.abi.word], arg)[2]
    return _remote_domain(d, domid) or -EINVAL


def _claim_pages(d: Domain, start: int, arg: int) -> int:
    if d.abi.is_32bit:
        return -ENOSYS
    if start:
        return -EINVAL
    list_, _, order, flags, domid = d.guest.unpack(xen_memory_reservation[8], arg)
    if list_ or order or flags or domid not in d.domain_list:
        return -EINVAL
    return -EPERM


def _get_vnumainfo(d: Domain, start: int, arg: int) -> int:
    if d.abi.is_32bit:
        d.guest.unpack(xen_vnuma_topology_info, arg)
    if start:
        return -EINVAL
    domid, pad = d.guest.unpack(xen_vnuma_topology_info, arg)[:2]
    if pad:
        return -EINVAL
    target = rcu_lock_domain_by_any_id(d, domid)
    if target is None:
        return -ESRCH
    return -EOPNOTSUPP if target is d else -EPERM


def _reserved_device_memory_map(d: Domain, start: int, arg: int) -> int:
    if start:
        return -EINVAL
    layout = xen_reserved_device_memory_map[d.abi.word]
    flags, nr_entries, buffer, pci = d.guest.unpack(layout, arg)
    if not array_access_ok(d, buffer, nr_entries, 2 * d.abi.word):
        return -EFAULT
    if flags & ~XENMEM_RDM_ALL:
        return -EINVAL
    d.guest.pack(layout, arg, flags, 0, buffer, pci)  # no IOMMU, no reserved regions
    return 0


def _acquire_resource(d: Domain, start: int, arg: int) -> int:
    domid, _, _, nr_frames, pad, frame, list_ = d.guest.unpack(xen_mem_acquire_resource[d.abi.word], arg)
    if d.abi.is_32bit and list_ and nr_frames and start >= nr_frames:
        return -EINVAL
    if pad or frame >> 32 or (frame + nr_frames) >> 32:
        return -EINVAL
    return _remote_domain(d, domid) or -EPERM


_OPS: dict[int, Callable[[Domain, int, int], int]] = {
    XENMEM_exchange: memory_exchange,
    XENMEM_maximum_ram_page: _maximum_ram_page,
    XENMEM_current_reservation: _stat(lambda d: d.tot_pages),
    XENMEM_maximum_reservation: _stat(lambda d: d.max_pages),
    XENMEM_maximum_gpfn: _stat(lambda d: (get_max_pfn(d) or 1) - 1),
    XENMEM_add_to_physmap: _add_to_physmap,
    XENMEM_add_to_physmap_batch: _add_to_physmap_batch,
    XENMEM_remove_from_physmap: _remove_from_physmap,
    XENMEM_access_op: _access_op,
    XENMEM_claim_pages: _claim_pages,
    XENMEM_get_vnumainfo: _get_vnumainfo,
    XENMEM_reserved_device_memory_map: _reserved_device_memory_map,
    XENMEM_acquire_resource: _acquire_resource,
}


def do_memory_op(v: Vcpu, cmd: int, arg: int) -> int:
    """HYPERVISOR_memory_op: the command in the low six bits, the extent to start from above them."""
    d = v.domain
    op = cmd & MEMOP_CMD_MASK
    start = cmd >> MEMOP_EXTENT_SHIFT
    if op in _EXTENT_OPS:
        rc = _change_reservation(d, op, start, arg)
    elif op in _OPS:
        rc = _OPS[op](d, start, arg)
    else:
        rc = arch_memory_op(d, cmd, arg)
    return min(rc, _INT_MAX) if d.abi.is_32bit else rc
