"""The x86 part of memory_op: memory maps, and where the machine-to-physical table is.

xen/arch/x86/mm.c and xen/arch/x86/x86_64/mm.c; common/memory.py is the general part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.public.errno import EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from hvcore.public.memory import (
    E820_RAM,
    E820MAX,
    XENMEM_get_pod_target,
    XENMEM_get_sharing_freed_pages,
    XENMEM_get_sharing_shared_pages,
    XENMEM_machine_memory_map,
    XENMEM_machphys_compat_mfn_list,
    XENMEM_machphys_mapping,
    XENMEM_machphys_mfn_list,
    XENMEM_memory_map,
    XENMEM_set_memory_map,
    XENMEM_set_pod_target,
    e820entry,
    xen_foreign_memory_map,
    xen_machphys_mapping,
    xen_machphys_mfn_list,
    xen_memory_map,
    xen_pod_target,
)
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain

_M2P_CHUNK = 1 << 21  # machphys_mfn_list speaks of 2 MB pieces of the table
_COMPAT_M2P_END = {3: 0xFFE00000, 2: 0xFC400000}  # by page-table levels
_NATIVE_M2P_END = 0xFFFF804000000000


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


def set_memmap_limit(d: Domain, pages: int) -> None:
    """xc_domain_set_memmap_limit(): RAM from 0 on, so much as the domain may come to have."""
    d.e820 = e820entry.pack(0, pages << PAGE_SHIFT, E820_RAM)


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


def arch_memory_op(d: Domain, cmd: int, arg: int) -> int:
    """A command that takes no start extent: its result, -ENOSYS for one that nobody knows."""
    act = _ARCH_OPS.get(cmd)
    return act(d, arg) if act else -ENOSYS
