"""memory_op: what a guest gives back, takes, exchanges and asks of its memory (xen/common/memory.c).

A PV guest names machine frames; the pseudo-physical numbers that it gives go into the machine-to-physical
table and nowhere else. Calls on a list of extents answer with the number done, whatever stopped them. Nothing
is preempted here, so no call is ever continued, but a caller may say where to start.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.page_info import PGC_allocated, PGC_xen_heap
from hvcore.public.errno import (
    E2BIG,
    EACCES,
    EDOM,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from hvcore.public.memory import (
    E820_RAM,
    E820MAX,
    MEMOP_CMD_MASK,
    MEMOP_EXTENT_SHIFT,
    XEN_MEMORY_EXCHANGE_NR_EXCHANGED,
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
    XENMEM_get_pod_target,
    XENMEM_get_sharing_freed_pages,
    XENMEM_get_sharing_shared_pages,
    XENMEM_get_vnumainfo,
    XENMEM_increase_reservation,
    XENMEM_machine_memory_map,
    XENMEM_machphys_compat_mfn_list,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_maximum_gpfn,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_memory_map,
    XENMEM_populate_physmap,
    XENMEM_remove_from_physmap,
    XENMEM_reserved_device_memory_map,
    XENMEM_set_memory_map,
    XENMEM_set_pod_target,
    XENMEMF_exact_node_request,
    XENMEMF_populate_on_demand,
    XENMEMF_vnode,
    e820entry,
    xen_add_to_physmap,
    xen_add_to_physmap_batch,
    xen_foreign_memory_map,
    xen_machphys_mapping,
    xen_machphys_mfn_list,
    xen_mem_access_op,
    xen_mem_acquire_resource,
    xen_memory_domain,
    xen_memory_exchange,
    xen_memory_map,
    xen_memory_reservation,
    xen_pod_target,
    xen_remove_from_physmap,
    xen_reserved_device_memory_map,
    xen_vnuma_topology_info,
)
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

DOMU_MAX_ORDER = 9
_EXTENT_NS = 1000  # what an exchange takes of the vCPU's turn
_MAX_EXTENTS = 0xFFFFFFFF >> MEMOP_EXTENT_SHIFT
_NO_NODE = 0xFF
_INT_MAX = 0x7FFFFFFF
_M2P_CHUNK = 1 << 21  # machphys_mfn_list speaks of 2 MB pieces of the table
_COMPAT_M2P_END = {3: 0xFFE00000, 2: 0xFC400000}  # by page-table levels
_NATIVE_M2P_END = 0xFFFF804000000000
_COMPAT_XLAT_SIZE = 8192  # Xen translates a 32-bit guest's arrays piecewise, through this many bytes


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


def _propagate_node(mem_flags: int) -> bool:
    """A domU's wish for a NUMA node is ignored, its insistence refused."""
    node = ((mem_flags >> 8) - 1) & 0xFF
    return node == _NO_NODE or not mem_flags & XENMEMF_exact_node_request


def _reservation_limit(d: Domain, mem_flags: int) -> int:
    """The frame number that allocations must stay below, from XENMEMF_address_bits; -1 for nonsense."""
    if not mem_flags & XENMEMF_vnode and not _propagate_node(mem_flags):
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


# --- exchange ---------------------------------------------------------------------------------------------


def _stealable(d: Domain, mfn: int) -> bool:
    """steal_page(): an ordinary frame of the guest's that nothing but its allocation refers to."""
    frames = d.frames
    i = mfn - frames.base_mfn
    return (
        0 <= i < frames.nr
        and frames.owner[i] == d.domain_id
        and frames.count[i] == 1
        and frames.flags[i] & (PGC_allocated | PGC_xen_heap) == PGC_allocated
    )


def _check_exchange(d: Domain, x: tuple[int, ...]) -> int:
    """The sanity checks of memory_exchange(), in the order of the guest's width: 0 or -errno."""
    in_list, in_nr, in_order, _, in_dom, out_list, out_nr, out_order, out_flags, out_dom, nr_done = x
    mask = d.abi.word_mask
    word = d.abi.word
    too_big = max(in_order, out_order) > DOMU_MAX_ORDER
    if too_big and not d.abi.is_32bit:
        return -EPERM
    # Orders are not limited yet in a 32-bit guest's call: they shift as the processor does.
    in_shift, out_shift = in_order & d.abi.word_bits - 1, out_order & d.abi.word_bits - 1
    delta = (out_order - in_order + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    if (
        nr_done > in_nr
        or (d.abi.is_32bit and delta > 0 and nr_done & ((1 << (delta & 31)) - 1))
        or mask >> in_shift < in_nr
        or mask >> out_shift < out_nr
        or (in_nr << in_shift) & mask != (out_nr << out_shift) & mask
    ):
        return -EINVAL
    if d.abi.is_32bit:
        if not (array_access_ok(d, in_list, in_nr, word) and array_access_ok(d, out_list, out_nr, word)):
            return -EFAULT
        pieces = (1 << (abs(delta) & 31)) + 1
        if _COMPAT_XLAT_SIZE - xen_memory_exchange[8].size < pieces * 8:
            return -E2BIG
        if too_big:
            return -EPERM
    if in_dom != out_dom:
        return -EINVAL
    if nr_done == in_nr:
        return 0
    if not (array_access_ok(d, in_list, in_nr, word) and array_access_ok(d, out_list, out_nr, word)):
        return -EFAULT
    if not _propagate_node(out_flags):
        return -EINVAL
    target = rcu_lock_domain_by_any_id(d, in_dom)
    if target is None:
        return -ESRCH
    return 0 if target is d else -EPERM


def _exchange_chunk(d: Domain, old: list[int], out_at: int, nr_out: int, out_order: int, max_mfn: int) -> int:
    """Trade the frames `old` for `nr_out` new ones, whose pseudo-physical numbers stand at `out_at`."""
    if len(set(old)) != len(old) or not all(_stealable(d, mfn) for mfn in old):
        return -EINVAL
    if out_order or d.mem.first_mfn >= max_mfn:
        return -ENOMEM
    for mfn in old:
        d.mm.guest_remove_page(mfn)
    rc = 0
    for j in range(nr_out):
        mfn = d.mm.alloc_domheap_page()
        at = out_at + j * d.abi.word
        try:
            d.mem.set_gpfn_from_mfn(mfn, d.guest.read_ulong(at))
            d.guest.write_ulong(at, mfn)
        except GuestError:
            rc = -EFAULT
    return rc


def _exchange(d: Domain, start: int, arg: int) -> int:
    word = d.abi.word
    if d.abi.is_32bit:
        d.guest.unpack(xen_memory_exchange[word], arg)
    if start:
        return -EINVAL
    x = d.guest.unpack(xen_memory_exchange[word], arg)
    rc = _check_exchange(d, x)
    in_list, in_nr, in_order, _, _, out_list, _, out_order, out_flags, _, nr_done = x
    if rc == 0 and nr_done < in_nr:
        in_chunk = max(out_order - in_order, 0)
        out_chunk = max(in_order - out_order, 0)
        max_mfn = d.mem.end_mfn
        if out_flags & 0xFF:
            max_mfn = min(max_mfn, 1 << max((out_flags & 0xFF) - PAGE_SHIFT, 0))
        for i in range(nr_done >> in_chunk, in_nr >> in_chunk):
            try:
                firsts = [
                    d.guest.read_ulong(in_list + ((i << in_chunk) + j) * word) for j in range(1 << in_chunk)
                ]
            except GuestError:
                rc = -EFAULT
                break
            old = [mfn + k for mfn in firsts for k in range(1 << in_order)]
            out_at = out_list + (i << out_chunk) * word
            rc = _exchange_chunk(d, old, out_at, 1 << out_chunk, out_order, max_mfn)
            if rc:
                break
            nr_done = (i + 1) << in_chunk
            d.clock.spend(_EXTENT_NS)
            if d.clock.turn_is_over():
                break
    elif rc == 0 and not d.abi.is_32bit:
        return 0
    d.guest.write_ulong(arg + XEN_MEMORY_EXCHANGE_NR_EXCHANGED[word], nr_done)
    if nr_done < in_nr and not rc:
        raise HypercallPreempted(XENMEM_exchange, arg)
    return rc


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
        for i in range(start, min(size, start + (_COMPAT_XLAT_SIZE - 32) // 16)):
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


# --- the x86 part: maps and the machine-to-physical table -------------------------------------------------


def _set_memory_map(d: Domain, arg: int) -> int:
    domid, nr_entries, buffer = d.guest.unpack(xen_foreign_memory_map[d.abi.word], arg)
    if nr_entries > E820MAX:
        return -EINVAL
    target = rcu_lock_domain_by_any_id(d, domid)
    if target is None:
        return -ESRCH
    if target is not d:
        return -EPERM
    d.e820 = d.guest.copy_from(buffer, nr_entries * e820entry.size)
    return 0


def _memory_map(d: Domain, arg: int) -> int:
    layout = xen_memory_map[d.abi.word]
    room, buffer = d.guest.unpack(layout, arg)
    e820 = d.e820
    if e820 is None:  # as libxl sets it: all RAM from 0 on
        e820 = e820entry.pack(0, d.nr_pages << PAGE_SHIFT, E820_RAM)
    if not e820:
        return -ENOSYS
    nr = min(room, len(e820) // e820entry.size)
    d.guest.copy_to(buffer, e820[: nr * e820entry.size])
    d.guest.pack(layout, arg, nr, buffer)
    return 0


def _machine_memory_map(d: Domain, arg: int) -> int:
    if d.abi.is_32bit:
        d.guest.unpack(xen_memory_map[4], arg)
    return -EPERM


def _machphys_mapping(d: Domain, arg: int) -> int:
    abi = d.abi
    start = abi.m2p_virt_start
    end = _COMPAT_M2P_END[abi.pt_levels] if abi.is_32bit else _NATIVE_M2P_END
    d.guest.pack(xen_machphys_mapping[abi.word], arg, start, end, (end - start) // abi.m2p_entry - 1)
    return 0


def _machphys_mfn_list(d: Domain, arg: int) -> int:
    layout = xen_machphys_mfn_list[d.abi.word]
    max_extents, list_, _ = d.guest.unpack(layout, arg)
    chunks = -(-d.mem.end_mfn * d.abi.m2p_entry // _M2P_CHUNK)
    nr = min(max_extents, chunks)
    first = d.mem.m2p[d.abi.m2p_entry].mfn
    for i in range(nr):
        d.guest.write_ulong(list_ + i * d.abi.word, first + (i * _M2P_CHUNK >> PAGE_SHIFT))
    d.guest.pack(layout, arg, max_extents, list_, nr)
    return 0


def _machphys_compat_mfn_list(d: Domain, arg: int) -> int:
    """The 32-bit table: a 64-bit guest's machine has none, like a Xen booted with pv=no-32."""
    return _machphys_mfn_list(d, arg) if d.abi.is_32bit else -EOPNOTSUPP


def _pod_target(d: Domain, arg: int) -> int:
    domid = d.guest.unpack(xen_pod_target[d.abi.word], arg)[4]
    return -ESRCH if rcu_lock_domain_by_any_id(d, domid) is None else -EINVAL


def _nothing_shared(_d: Domain, _arg: int) -> int:
    return 0


_OPS: dict[int, Callable[[Domain, int, int], int]] = {
    XENMEM_exchange: _exchange,
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

_ARCH_OPS: dict[int, Callable[[Domain, int], int]] = {  # take no start extent
    XENMEM_set_memory_map: _set_memory_map,
    XENMEM_memory_map: _memory_map,
    XENMEM_machine_memory_map: _machine_memory_map,
    XENMEM_machphys_mapping: _machphys_mapping,
    XENMEM_machphys_mfn_list: _machphys_mfn_list,
    XENMEM_machphys_compat_mfn_list: _machphys_compat_mfn_list,
    XENMEM_set_pod_target: _pod_target,
    XENMEM_get_pod_target: _pod_target,
    XENMEM_get_sharing_freed_pages: _nothing_shared,
    XENMEM_get_sharing_shared_pages: _nothing_shared,
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
        arch = _ARCH_OPS.get(cmd)
        rc = arch(d, arg) if arch else -ENOSYS
    return min(rc, _INT_MAX) if d.abi.is_32bit else rc
