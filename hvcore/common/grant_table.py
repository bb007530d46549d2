"""grant_table_op: sharing frames by reference (xen/common/grant_table.c and its compat version).

The table itself and the dispatcher; what is done with grants stands in grant_map.py, grant_copy.py and
grant_transfer.py, the state in grant_entries.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.grant_copy import COMPAT_ARG_XLAT_SIZE, gnttab_copy_list
from hvcore.common.grant_entries import (
    MAX_GRANT_FRAMES,
    GrantTable,
)
from hvcore.common.grant_map import (
    UNMAP_BATCH_SIZE,
    gnttab_map_grant_refs,
    gnttab_unmap_and_replace,
    gnttab_unmap_grant_refs,
)
from hvcore.common.grant_transfer import gnttab_transfer_list
from hvcore.common.handles import array_access_ok
from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.public.errno import EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from hvcore.public.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTTAB_GET_STATUS_FRAMES_STATUS,
    GNTTAB_GET_VERSION_VERSION,
    GNTTAB_QUERY_SIZE_NR_FRAMES,
    GNTTAB_SETUP_TABLE_STATUS,
    GNTTAB_SWAP_STATUS,
    GNTTABOP_CMD_MASK,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_virt_addr,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    gnttab_cache_flush,
    gnttab_copy,
    gnttab_get_status_frames,
    gnttab_get_version,
    gnttab_map_grant_ref,
    gnttab_query_size,
    gnttab_set_version,
    gnttab_setup_table,
    gnttab_swap_grant_ref,
    gnttab_transfer,
    gnttab_unmap_grant_ref,
)
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

__all__ = ["GrantTable", "do_grant_table_op"]

_REQUEST_NS = 500  # what a request takes of the vCPU's turn
# A piece of a long list: a multiple of both sizes in which Xen takes requests together.
_CHUNK = UNMAP_BATCH_SIZE * (COMPAT_ARG_XLAT_SIZE // gnttab_copy[8].size)
_COMPAT_MAX_FRAMES = (COMPAT_ARG_XLAT_SIZE - 24) // 8


# --- the table itself -------------------------------------------------------------------------------------


def _not_one(d: Domain, count: int) -> int | None:
    """The result of a call for exactly one request that got another number; a 32-bit guest may pass none."""
    if count == 1:
        return None
    return 0 if count == 0 and d.abi.is_32bit else -EINVAL


def _status_of_domain(d: Domain, dom: int) -> int:
    target = rcu_lock_domain_by_any_id(d, dom)
    if target is None:
        return GNTST_bad_domain
    return GNTST_okay if target is d else GNTST_permission_denied


def _write_status(d: Domain, at: int, status: int) -> None:
    d.guest.copy_to(at, status.to_bytes(2, "little", signed=True))


def _setup_table(d: Domain, uop: int, count: int) -> int:
    wrong = _not_one(d, count)
    if wrong is not None:
        return wrong
    word = d.abi.word
    dom, nr_frames, _, frame_list = d.guest.unpack(gnttab_setup_table[word], uop)
    if not array_access_ok(d, frame_list, nr_frames, word):
        return -EFAULT
    status = _status_of_domain(d, dom)
    gt = d.grant_table
    if status == GNTST_okay and (nr_frames > MAX_GRANT_FRAMES or gt.grow(nr_frames) != 0):
        status = GNTST_general_error
    if status == GNTST_okay:
        for i in range(nr_frames):
            try:
                d.guest.write_ulong(frame_list + i * word, gt.shared[i])
            except GuestError:
                status = GNTST_bad_virt_addr
    _write_status(d, uop + GNTTAB_SETUP_TABLE_STATUS, status)
    return 0


def _query_size(d: Domain, uop: int, count: int) -> int:
    if count != 1:
        return -EINVAL
    dom, nr_frames, max_nr_frames, _ = d.guest.unpack(gnttab_query_size, uop)
    status = _status_of_domain(d, dom)
    if status == GNTST_okay:
        nr_frames, max_nr_frames = len(d.grant_table.shared), MAX_GRANT_FRAMES
    d.guest.write_u32(uop + GNTTAB_QUERY_SIZE_NR_FRAMES, nr_frames)
    d.guest.write_u32(uop + GNTTAB_QUERY_SIZE_NR_FRAMES + 4, max_nr_frames)
    _write_status(d, uop + GNTTAB_QUERY_SIZE_NR_FRAMES + 8, status)
    return 0


def _set_version(d: Domain, uop: int, _count: int) -> int:
    (version,) = d.guest.unpack(gnttab_set_version, uop)
    gt = d.grant_table
    rc = -EINVAL
    if version in (1, 2):
        rc = 0 if version == gt.version else gt.set_version(version)
    d.guest.pack(gnttab_set_version, uop, gt.version)
    return rc


def _get_status_frames(d: Domain, uop: int, count: int) -> int:
    wrong = _not_one(d, count)
    if wrong is not None:
        return wrong
    nr_frames, dom, _, frame_list = d.guest.unpack(gnttab_get_status_frames[d.abi.word], uop)
    if not array_access_ok(d, frame_list, nr_frames, 8):
        return -EFAULT
    status = _status_of_domain(d, dom)
    frames = d.grant_table.status
    if status == GNTST_okay and nr_frames > min(len(frames), _COMPAT_MAX_FRAMES):
        status = GNTST_general_error
    if status == GNTST_okay:
        for i in range(nr_frames):
            try:
                d.guest.write_u64(frame_list + 8 * i, frames[i])
            except GuestError:
                # Xen has translated the status of a 32-bit guest's call before it copies the list.
                status = GNTST_okay if d.abi.is_32bit else GNTST_bad_virt_addr
    _write_status(d, uop + GNTTAB_GET_STATUS_FRAMES_STATUS, status)
    return 0


def _get_version(d: Domain, uop: int, _count: int) -> int:
    dom = d.guest.unpack(gnttab_get_version, uop)[0]
    target = rcu_lock_domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    if target is not d:
        return -EPERM
    d.guest.write_u32(uop + GNTTAB_GET_VERSION_VERSION, d.grant_table.version)
    return 0


def _swap(gt: GrantTable, a: int, b: int) -> int:
    if max(a, b) >= gt.nr_entries:
        return GNTST_bad_gntref
    if a == b:
        return GNTST_okay
    if a in gt.active or b in gt.active:
        return GNTST_eagain
    pairs = [(gt.entry(a), gt.entry(b))]
    if gt.version == 2:
        pairs.append((gt.status_word(a), gt.status_word(b)))
    for x, y in pairs:
        x[:], y[:] = bytes(y), bytes(x)
    return GNTST_okay


def _swap_grant_ref(d: Domain, uop: int, count: int) -> int:
    size = gnttab_swap_grant_ref.size
    for at in range(uop, uop + count * size, size):
        a, b, _ = d.guest.unpack(gnttab_swap_grant_ref, at)
        _write_status(d, at + GNTTAB_SWAP_STATUS, _swap(d.grant_table, a, b))
    return 0


# --- cache ------------------------------------------------------------------------------------------------


def _cache_flush_one(d: Domain, op: tuple[int, ...], resumed: int) -> int:
    bus_addr, offset, length, what = op
    if (
        offset >= PAGE_SIZE
        or offset + length > PAGE_SIZE
        or what & ~(GNTTAB_CACHE_INVAL | GNTTAB_CACHE_CLEAN)
    ):
        return -EINVAL
    if length == 0 or what == 0:
        return -EILSEQ if resumed else 0
    i = (bus_addr >> PAGE_SHIFT) - d.frames.base_mfn
    if not 0 <= i < d.frames.nr:
        return -EINVAL
    if d.frames.owner[i] != d.domain_id:
        return -EPERM
    return -EOPNOTSUPP if what == GNTTAB_CACHE_INVAL else 0  # x86 cannot throw dirty lines away


def _cache_flush(d: Domain, uop: int, count: int, resumed: int) -> int:
    size = gnttab_cache_flush.size
    for at in range(uop, uop + count * size, size):
        rc = _cache_flush_one(d, d.guest.unpack(gnttab_cache_flush, at), resumed)
        if rc:
            return rc
        resumed = 0
    return 0


_SIZES = {
    GNTTABOP_map_grant_ref: gnttab_map_grant_ref.size,
    GNTTABOP_unmap_grant_ref: gnttab_unmap_grant_ref.size,
    GNTTABOP_unmap_and_replace: gnttab_unmap_grant_ref.size,
    GNTTABOP_transfer: gnttab_transfer[8].size,
    GNTTABOP_copy: gnttab_copy[8].size,
    GNTTABOP_swap_grant_ref: gnttab_swap_grant_ref.size,
    GNTTABOP_cache_flush: gnttab_cache_flush.size,
}
# The calls whose requests are independent of each other.
_ENTRY_SIZES = {
    GNTTABOP_map_grant_ref: {4: gnttab_map_grant_ref.size, 8: gnttab_map_grant_ref.size},
    GNTTABOP_unmap_grant_ref: {4: gnttab_unmap_grant_ref.size, 8: gnttab_unmap_grant_ref.size},
    GNTTABOP_unmap_and_replace: {4: gnttab_unmap_grant_ref.size, 8: gnttab_unmap_grant_ref.size},
    GNTTABOP_copy: {4: gnttab_copy[4].size, 8: gnttab_copy[8].size},
    GNTTABOP_swap_grant_ref: {4: gnttab_swap_grant_ref.size, 8: gnttab_swap_grant_ref.size},
}
_GNTTAB_OPS: dict[int, Callable[[Domain, int, int], int]] = {
    GNTTABOP_map_grant_ref: gnttab_map_grant_refs,
    GNTTABOP_unmap_grant_ref: gnttab_unmap_grant_refs,
    GNTTABOP_setup_table: _setup_table,
    GNTTABOP_transfer: gnttab_transfer_list,
    GNTTABOP_copy: gnttab_copy_list,
    GNTTABOP_query_size: _query_size,
    GNTTABOP_unmap_and_replace: gnttab_unmap_and_replace,
    GNTTABOP_set_version: _set_version,
    GNTTABOP_get_status_frames: _get_status_frames,
    GNTTABOP_get_version: _get_version,
    GNTTABOP_swap_grant_ref: _swap_grant_ref,
}


def do_grant_table_op(v: Vcpu, cmd: int, uop: int, count: int) -> int:
    """HYPERVISOR_grant_table_op: 0 or -errno; each request has its own status."""
    d = v.domain
    cmd &= 0xFFFFFFFF
    count &= 0xFFFFFFFF
    op, resumed = cmd & GNTTABOP_CMD_MASK, cmd & ~GNTTABOP_CMD_MASK
    if count >> 31 or (resumed and op != GNTTABOP_cache_flush):
        return -EINVAL
    if op in _SIZES and d.abi.word == 8 and not array_access_ok(d, uop, count, _SIZES[op]):
        return -EFAULT
    if op == GNTTABOP_cache_flush:
        return _cache_flush(d, uop, count, resumed)
    handler = _GNTTAB_OPS.get(op)
    if handler is None:
        return -ENOSYS
    if op in _ENTRY_SIZES and count > _CHUNK:
        return _piecewise(d, handler, cmd, uop, count)
    return handler(d, uop, count)


def _piecewise(d: Domain, handler: Callable[[Domain, int, int], int], cmd: int, uop: int, count: int) -> int:
    """A long list, a piece at a time: what is left when the vCPU's turn is over is put off."""
    size = _ENTRY_SIZES[cmd][d.abi.word]
    while True:
        now = min(count, _CHUNK)
        rc = handler(d, uop, now)
        uop, count = uop + now * size, count - now
        if rc or not count:
            return rc
        d.clock.spend(now * _REQUEST_NS)
        if d.clock.turn_is_over():
            raise HypercallPreempted(cmd, uop & d.abi.word_mask, count)
