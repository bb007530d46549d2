"""grant_table_op: sharing frames by reference (xen/common/grant_table.c and its compat version).

With one guest on the machine every grant that can be used is the domain's own, mapped or copied through its
own number. Domain 0 exists and grants nothing. A host mapping's references to the frame (general, and
writable unless read-only) are taken here and from then on belong to the page-table entry; a device mapping's
stay with its handle. Transfers are switched off, as with `gnttab=no-transfer`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.event import DOM0, domain_by_any_id
from hvcore.common.grant_entries import (
    MAX_GRANT_FRAMES,
    ActiveEntry,
    GNTPIN_devr_inc,
    GNTPIN_devw_inc,
    GNTPIN_hstr_inc,
    GNTPIN_hstw_inc,
    GNTPIN_write_mask,
    GrantTable,
    Mapping,
)
from hvcore.common.handles import array_access_ok
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.page_info import PGT_writable_page
from hvcore.public.errno import EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ESRCH
from hvcore.public.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTTAB_COPY_STATUS,
    GNTTAB_GET_STATUS_FRAMES_STATUS,
    GNTTAB_GET_VERSION_VERSION,
    GNTTAB_SETUP_TABLE_STATUS,
    GNTTAB_SWAP_STATUS,
    GNTTAB_UNMAP_STATUS,
    GNTTABOP_CMD_MASK,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_copy_arg,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_bad_virt_addr,
    GNTST_eagain,
    GNTST_general_error,
    GNTST_no_space,
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
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
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
    grant_entry_v2,
)
from hvcore.public.xen import DOMID_SELF, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

__all__ = ["GrantTable", "do_grant_table_op"]

DOM0_NR_ENTRIES = 512
UNMAP_BATCH_SIZE = 32
_REQUEST_NS = 500  # what a request takes of the vCPU's turn
_COMPAT_XLAT_SIZE = 8192
# A piece of a long list: a multiple of both sizes in which Xen takes requests together.
_CHUNK = UNMAP_BATCH_SIZE * (_COMPAT_XLAT_SIZE // gnttab_copy[8].size)
_COMPAT_MAX_FRAMES = (_COMPAT_XLAT_SIZE - 24) // 8


def _dom0_ref(ref: int) -> int:
    """What comes of using a reference of domain 0's: it grants nothing."""
    return GNTST_bad_gntref if ref >= DOM0_NR_ENTRIES else GNTST_general_error


# --- map --------------------------------------------------------------------------------------------------


def _pin_increment(flags: int) -> int:
    readonly = flags & GNTMAP_readonly
    pin = 0
    if flags & GNTMAP_device_map:
        pin += GNTPIN_devr_inc if readonly else GNTPIN_devw_inc
    if flags & GNTMAP_host_map:
        pin += GNTPIN_hstr_inc if readonly else GNTPIN_hstw_inc
    return pin


def _take_references(d: Domain, mfn: int, flags: int) -> int:
    """The general and type references of a new mapping on a frame that is held once; GNTST_*.

    On failure none of those taken here is left, and the caller's one is gone too.
    """
    mm = d.mm
    uses = bool(flags & GNTMAP_device_map) + bool(flags & GNTMAP_host_map)
    refs = [mfn] + [mfn for _ in range(uses - 1) if mm.get_page(mfn)]
    types = 0
    if not flags & GNTMAP_readonly:
        while types < uses and mm.get_page_type(mfn, PGT_writable_page) == 0:
            types += 1
        if types < uses:
            _drop_references(d, mfn, len(refs), types)
            return GNTST_general_error
    return GNTST_okay


def _drop_references(d: Domain, mfn: int, refs: int, types: int) -> None:
    for _ in range(types):
        d.mm.put_page_type(mfn)
    for _ in range(refs):
        d.mm.put_page(mfn)


def _map_own(d: Domain, ref: int, flags: int, host_addr: int, pin: int) -> int:
    """Pin an entry of the domain's own and map its frame: GNTST_*."""
    gt = d.grant_table
    readonly = bool(flags & GNTMAP_readonly)
    if ref >= gt.nr_entries:
        return GNTST_bad_gntref
    act = gt.active.get(ref)
    if act is not None and (not gt.may_pin(ref, pin) or act.is_sub_page):
        return GNTST_general_error
    if act is None or (not readonly and not act.pin & GNTPIN_write_mask):
        rc = gt.set_status(ref, d.domain_id, readonly=readonly, mapping=True)
        if rc != GNTST_okay:
            return rc
    mfn = gt.frame_of(ref) if act is None else act.mfn
    if not d.mm.get_page(mfn):
        gt.reduce_status_for_pin(ref, readonly)
        return GNTST_bad_page
    if act is None:
        act = gt.active[ref] = ActiveEntry(d.domain_id, mfn)
    act.pin += pin
    rc = _take_references(d, mfn, flags)
    if rc == GNTST_okay and flags & GNTMAP_host_map:
        rc = d.mm.create_grant_host_mapping(host_addr, mfn, flags, 0)
        if rc != GNTST_okay:
            uses = bool(flags & GNTMAP_device_map) + 1
            _drop_references(d, mfn, uses, 0 if readonly else uses)
    if rc != GNTST_okay:
        act.pin -= pin
        gt.reduce_status_for_pin(ref, readonly)
    return rc


def _map_grant_ref(d: Domain, op: tuple[int, ...]) -> tuple[int, int, int]:
    """(status, handle, dev_bus_addr) of one map request."""
    host_addr, flags, ref, dom, _, handle, dev_bus_addr = op
    pin = _pin_increment(flags)
    if not pin:
        return GNTST_bad_gntref, handle, dev_bus_addr
    if dom not in (DOM0, d.domain_id):
        return GNTST_bad_domain, handle, dev_bus_addr
    gt = d.grant_table
    new = gt.get_handle()
    if new < 0:
        return GNTST_no_space, handle, dev_bus_addr
    rc = _dom0_ref(ref) if dom == DOM0 else _map_own(d, ref, flags, host_addr, pin)
    if rc != GNTST_okay:
        gt.put_handle(new)
        return rc, handle, dev_bus_addr
    mfn = gt.active[ref].mfn
    gt.maptrack[new] = Mapping(ref, flags & 0xFFFF, mfn)
    return GNTST_okay, new, mfn << PAGE_SHIFT


def _map(d: Domain, uop: int, count: int) -> int:
    layout = gnttab_map_grant_ref
    for at in range(uop, uop + count * layout.size, layout.size):
        op = d.guest.unpack(layout, at)
        status, handle, dev_bus_addr = _map_grant_ref(d, op)
        d.guest.pack(layout, at, *op[:4], status, handle, dev_bus_addr)
    return 0


# --- unmap ------------------------------------------------------------------------------------------------


class _Unmap:
    """What an unmap request has undone and still has to let go of, after the TLB flush."""

    __slots__ = ("done", "mfn", "ref")

    def __init__(self, ref: int, mfn: int, done: int) -> None:
        self.ref = ref
        self.mfn = mfn
        self.done = done


def _unmap_common(
    d: Domain, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int, undone: list[_Unmap]
) -> int:
    """Undo the mappings of a handle that the request names: GNTST_*."""
    gt = d.grant_table
    mapping = gt.maptrack.get(handle)
    if mapping is None:
        return GNTST_bad_handle
    flags = mapping.flags
    mfn = mapping.mfn
    if dev_bus_addr and flags & GNTMAP_device_map and dev_bus_addr != mfn << PAGE_SHIFT:
        return GNTST_bad_dev_addr
    done = 0
    if host_addr and flags & GNTMAP_host_map:
        rc = d.mm.replace_grant_host_mapping(host_addr, mfn, new_addr, flags)
        if rc < 0:
            return rc
        done |= GNTMAP_host_map
    if dev_bus_addr and flags & GNTMAP_device_map:
        done |= GNTMAP_device_map
    mapping.flags &= ~done
    if not mapping.flags & (GNTMAP_device_map | GNTMAP_host_map):
        gt.put_handle(handle)
    if done:
        undone.append(_Unmap(mapping.ref, mfn, done | flags & GNTMAP_readonly))
    return GNTST_okay


def _unmap_common_complete(d: Domain, undone: list[_Unmap]) -> None:
    """Let go of the frames that the requests unmapped."""
    gt = d.grant_table
    d.mm.flush_tlb()
    for u in undone:
        readonly = bool(u.done & GNTMAP_readonly)
        uses = bool(u.done & GNTMAP_device_map) + bool(u.done & GNTMAP_host_map)
        _drop_references(d, u.mfn, uses, 0 if readonly else uses)
        gt.active[u.ref].pin -= _pin_increment(u.done)
        gt.reduce_status_for_pin(u.ref, readonly)
    undone.clear()


def _unmap_list(d: Domain, uop: int, count: int, replace: bool) -> int:
    layout = gnttab_unmap_grant_ref  # unmap_and_replace has new_addr where this has dev_bus_addr
    undone: list[_Unmap] = []
    try:
        for i in range(count):
            at = uop + i * layout.size
            host_addr, second, handle, _ = d.guest.unpack(layout, at)
            dev_bus_addr, new_addr = (0, second) if replace else (second, 0)
            status = _unmap_common(d, handle, host_addr, dev_bus_addr, new_addr, undone)
            d.guest.copy_to(at + GNTTAB_UNMAP_STATUS, status.to_bytes(2, "little", signed=True))
            if i % UNMAP_BATCH_SIZE == UNMAP_BATCH_SIZE - 1:
                _unmap_common_complete(d, undone)
    finally:
        _unmap_common_complete(d, undone)
    return 0


def _unmap(d: Domain, uop: int, count: int) -> int:
    return _unmap_list(d, uop, count, replace=False)


def _unmap_and_replace(d: Domain, uop: int, count: int) -> int:
    return _unmap_list(d, uop, count, replace=True)


# --- the table itself -------------------------------------------------------------------------------------


def _not_one(d: Domain, count: int) -> int | None:
    """The result of a call for exactly one request that got another number; a 32-bit guest may pass none."""
    if count == 1:
        return None
    return 0 if count == 0 and d.abi.is_32bit else -EINVAL


def _status_of_domain(d: Domain, dom: int) -> int:
    target = domain_by_any_id(d, dom)
    if target is None:
        return GNTST_bad_domain
    return GNTST_okay if target == d.domain_id else GNTST_permission_denied


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
    d.guest.pack(gnttab_query_size, uop, dom, nr_frames, max_nr_frames, status)
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
                status = GNTST_bad_virt_addr
    _write_status(d, uop + GNTTAB_GET_STATUS_FRAMES_STATUS, status)
    return 0


def _get_version(d: Domain, uop: int, _count: int) -> int:
    dom = d.guest.unpack(gnttab_get_version, uop)[0]
    target = domain_by_any_id(d, dom)
    if target is None:
        return -ESRCH
    if target != d.domain_id:
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


# --- copy -------------------------------------------------------------------------------------------------


class _CopyBuffer:
    """One side of a copy: a held frame and the bytes of it that may be touched; `ref` is -1 for a frame."""

    __slots__ = ("length", "mfn", "ref", "start")

    def __init__(self, mfn: int, start: int, length: int, ref: int) -> None:
        self.mfn = mfn
        self.start = start
        self.length = length
        self.ref = ref


def _grant_for_copy(d: Domain, ref: int, readonly: bool) -> _CopyBuffer | int:
    """acquire_grant_for_copy() of the domain's own entry: the buffer, pinned and held, or GNTST_*."""
    gt = d.grant_table
    pin = GNTPIN_hstr_inc if readonly else GNTPIN_hstw_inc
    if ref >= gt.nr_entries:
        return GNTST_bad_gntref
    act = gt.active.get(ref)
    if act is not None and not gt.may_pin(ref, pin):
        return GNTST_general_error
    if act is None or (not readonly and not act.pin & GNTPIN_write_mask):
        rc = gt.set_status(ref, d.domain_id, readonly=readonly, mapping=False)
        if rc != GNTST_okay:
            return rc
    new = ActiveEntry(d.domain_id, gt.frame_of(ref)) if act is None else act
    if act is None and gt.version == 2:
        flags, _, offset, length, _ = grant_entry_v2.unpack(gt.entry(ref))
        if flags & GTF_type_mask == GTF_transitive:  # to itself, or to where nothing is granted
            gt.reduce_status_for_pin(ref, readonly)
            return GNTST_general_error
        if flags & GTF_sub_page:
            new.start, new.length, new.is_sub_page = offset, length, True
    if not d.mm.get_page(new.mfn):
        gt.reduce_status_for_pin(ref, readonly)
        return GNTST_bad_page
    gt.active[ref] = new
    new.pin += pin
    return _CopyBuffer(new.mfn, new.start, new.length, ref)


def _release_for_copy(d: Domain, buf: _CopyBuffer, readonly: bool, typed: bool) -> None:
    gt = d.grant_table
    if buf.ref >= 0:
        gt.active[buf.ref].pin -= GNTPIN_hstr_inc if readonly else GNTPIN_hstw_inc
        gt.reduce_status_for_pin(buf.ref, readonly)
    _drop_references(d, buf.mfn, 1, int(typed))


def _claim(d: Domain, domid: int, is_gref: int, u: int, readonly: bool) -> _CopyBuffer | int:
    if is_gref:
        u &= 0xFFFFFFFF
        if domain_by_any_id(d, domid) == DOM0:
            return _dom0_ref(u)
        buf = _grant_for_copy(d, u, readonly)
        if isinstance(buf, int):
            return buf
    else:
        if not d.mm.get_page(u):
            return GNTST_bad_page
        buf = _CopyBuffer(u, 0, PAGE_SIZE, -1)
    if not readonly and d.mm.get_page_type(buf.mfn, PGT_writable_page):
        _release_for_copy(d, buf, readonly, typed=False)
        return GNTST_general_error
    return buf


def _copy_within(
    d: Domain, src: _CopyBuffer, src_off: int, dst: _CopyBuffer, dst_off: int, length: int
) -> int:
    if src_off + length > PAGE_SIZE or dst_off + length > PAGE_SIZE:
        return GNTST_bad_copy_arg
    for buf, offset in ((src, src_off), (dst, dst_off)):
        if offset < buf.start or offset + length > buf.start + buf.length:
            return GNTST_general_error
    data = bytes(d.mem.frame(src.mfn)[src_off : src_off + length])
    d.mem.frame(dst.mfn)[dst_off : dst_off + length] = data
    return GNTST_okay


def _copy_one(d: Domain, op: tuple[int, ...]) -> int:
    src_u, src_dom, src_off, dst_u, dst_dom, dst_off, length, flags, _ = op
    for domid, is_gref in ((src_dom, flags & GNTCOPY_source_gref), (dst_dom, flags & GNTCOPY_dest_gref)):
        if domid != DOMID_SELF and not is_gref:
            return GNTST_permission_denied
        if domain_by_any_id(d, domid) is None:
            return GNTST_bad_domain
    src = _claim(d, src_dom, flags & GNTCOPY_source_gref, src_u, readonly=True)
    if isinstance(src, int):
        return src
    dst = _claim(d, dst_dom, flags & GNTCOPY_dest_gref, dst_u, readonly=False)
    if isinstance(dst, int):
        _release_for_copy(d, src, readonly=True, typed=False)
        return dst
    rc = _copy_within(d, src, src_off, dst, dst_off, length)
    _release_for_copy(d, src, readonly=True, typed=False)
    _release_for_copy(d, dst, readonly=False, typed=True)
    return rc


def _copy(d: Domain, uop: int, count: int) -> int:
    """A 32-bit guest's requests are translated in batches, each read before any of it is done."""
    layout = gnttab_copy[d.abi.word]
    batch = _COMPAT_XLAT_SIZE // gnttab_copy[8].size if d.abi.is_32bit else 1
    for first in range(0, count, batch):
        places = [uop + i * layout.size for i in range(first, min(first + batch, count))]
        ops = [d.guest.unpack(layout, at) for at in places]
        for at, op in zip(places, ops, strict=True):
            _write_status(d, at + GNTTAB_COPY_STATUS[d.abi.word], _copy_one(d, op))
    return 0


def _transfer(d: Domain, uop: int, count: int) -> int:
    if d.abi.is_32bit:
        if not count:
            return 0
        d.guest.copy_from(uop, min(count, _COMPAT_XLAT_SIZE // 24) * gnttab_transfer[4].size)
    return -EOPNOTSUPP


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
    GNTTABOP_map_grant_ref: _map,
    GNTTABOP_unmap_grant_ref: _unmap,
    GNTTABOP_setup_table: _setup_table,
    GNTTABOP_transfer: _transfer,
    GNTTABOP_copy: _copy,
    GNTTABOP_query_size: _query_size,
    GNTTABOP_unmap_and_replace: _unmap_and_replace,
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
