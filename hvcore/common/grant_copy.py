"""GNTTABOP_copy: bytes from one granted or own frame to another (xen/common/grant_table.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.grant_entries import ActiveEntry, GNTPIN_hstr_inc, GNTPIN_hstw_inc, GNTPIN_write_mask
from hvcore.common.grant_map import drop_references
from hvcore.domain import rcu_lock_domain_by_any_id, rcu_lock_domain_by_id
from hvcore.page_info import PGT_writable_page
from hvcore.public.grant_table import (
    GNTTAB_COPY_STATUS,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
    gnttab_copy,
    grant_entry_v2,
    grant_entry_v2_transitive,
)
from hvcore.public.xen import DOMID_SELF, PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.domain import Domain

COMPAT_ARG_XLAT_SIZE = 8192  # how much of a 32-bit guest's list is translated at a time


class _CopyBuffer:
    """One side of a copy: a held frame of `rd`'s and the bytes of it that may be touched.

    `ref` is the pinned entry of `granter`'s, -1 for a frame of one's own.
    """

    __slots__ = ("granter", "length", "mfn", "rd", "ref", "start")

    def __init__(self, rd: Domain, granter: Domain, mfn: int, start: int, length: int, ref: int) -> None:
        self.rd = rd
        self.granter = granter
        self.mfn = mfn
        self.start = start
        self.length = length
        self.ref = ref


def _pin_increment(readonly: bool) -> int:
    return GNTPIN_hstr_inc if readonly else GNTPIN_hstw_inc


def _own_entry(rd: Domain, ref: int, ldom: int) -> ActiveEntry | int:
    """What an entry of `rd`'s says now, with its frame held; or GNTST_*."""
    gt = rd.grant_table
    new = ActiveEntry(ldom, gt.frame_of(ref), trans_domid=rd.domain_id, trans_gref=ref)
    if gt.version == 2:
        flags, _, offset, length, _ = grant_entry_v2.unpack(gt.entry(ref))
        if flags & GTF_sub_page:
            new.start, new.length, new.is_sub_page = offset, length, True
    return new if rd.mm.get_page(new.mfn) else GNTST_bad_page


def _transitive_entry(rd: Domain, ref: int, ldom: int, readonly: bool) -> ActiveEntry | int:
    """What a transitive entry of `rd`'s leads to, pinned and held there; or GNTST_*."""
    _, _, trans_domid, _, gref = grant_entry_v2_transitive.unpack(rd.grant_table.entry(ref))
    if trans_domid == rd.domain_id:
        return GNTST_general_error  # transitive grants cannot be self-referential
    td = rcu_lock_domain_by_id(rd, trans_domid)
    if td is None:
        return GNTST_general_error
    buf = acquire_grant_for_copy(td, gref, rd.domain_id, readonly, allow_transitive=False)
    if isinstance(buf, int):
        return buf
    return ActiveEntry(
        ldom,
        buf.mfn,
        buf.start,
        buf.length,
        is_sub_page=True,  # also where it is not: that blocks mappings of transitive grants
        trans_domid=trans_domid,
        trans_gref=gref,
    )


def _is_transitive(rd: Domain, ref: int) -> bool:
    gt = rd.grant_table
    return gt.version == 2 and grant_entry_v2.unpack(gt.entry(ref))[0] & GTF_type_mask == GTF_transitive


def acquire_grant_for_copy(
    rd: Domain, ref: int, ldom: int, readonly: bool, *, allow_transitive: bool
) -> _CopyBuffer | int:
    """Pin an entry of `rd`'s for domain `ldom` and hold its frame: the buffer, or GNTST_*.

    An entry that is pinned has to say what it said then. Xen has the guest retry for ever where a transitive
    one does not; here it is refused at once.
    """
    gt = rd.grant_table
    if ref >= gt.nr_entries:
        return GNTST_bad_gntref
    act = gt.active.get(ref)
    if act is not None and not gt.may_pin(ref, ldom, _pin_increment(readonly)):
        return GNTST_general_error
    fresh = act is None or (not readonly and not act.pin & GNTPIN_write_mask)
    if fresh:
        rc = gt.set_status(ref, ldom, readonly=readonly, mapping=False)
        if rc != GNTST_okay:
            return rc
    found: ActiveEntry | int
    if _is_transitive(rd, ref):
        found = _transitive_entry(rd, ref, ldom, readonly) if allow_transitive else GNTST_general_error
    elif fresh or act is None:
        found = _own_entry(rd, ref, ldom)
    else:
        found = act if rd.mm.get_page(act.mfn) else GNTST_bad_domain
    if isinstance(found, ActiveEntry) and act is not None and not act.is_same_grant(found):
        holder = rd.domain_list[found.trans_domid]
        if holder is not rd:
            release_grant_for_copy(holder, found.trans_gref, readonly)
        holder.mm.put_page(found.mfn)
        found = GNTST_general_error
    if isinstance(found, int):
        gt.reduce_status_for_pin(ref, readonly)
        return found
    act = gt.active.setdefault(ref, found)
    act.pin += _pin_increment(readonly)
    return _CopyBuffer(rd.domain_list[act.trans_domid], rd, act.mfn, act.start, act.length, ref)


def release_grant_for_copy(rd: Domain, ref: int, readonly: bool) -> None:
    """Unpin an entry of `rd`'s, and the entry behind it where it is a transitive one."""
    gt = rd.grant_table
    act = gt.active[ref]
    act.pin -= _pin_increment(readonly)
    gt.reduce_status_for_pin(ref, readonly)
    if act.trans_domid != rd.domain_id:
        release_grant_for_copy(rd.domain_list[act.trans_domid], act.trans_gref, readonly)


def _release_buffer(buf: _CopyBuffer, readonly: bool, typed: bool) -> None:
    if buf.ref >= 0:
        release_grant_for_copy(buf.granter, buf.ref, readonly)
    drop_references(buf.rd, buf.mfn, 1, int(typed))


def _claim(d: Domain, rd: Domain, is_gref: int, u: int, readonly: bool) -> _CopyBuffer | int:
    if is_gref:
        buf = acquire_grant_for_copy(rd, u & 0xFFFFFFFF, d.domain_id, readonly, allow_transitive=True)
        if isinstance(buf, int):
            return buf
    else:
        if not d.mm.get_page(u):
            return GNTST_bad_page
        buf = _CopyBuffer(d, d, u, 0, PAGE_SIZE, -1)
    if not readonly and buf.rd.mm.get_page_type(buf.mfn, PGT_writable_page):
        _release_buffer(buf, readonly, typed=False)
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
    owners = []
    for domid, is_gref in ((src_dom, flags & GNTCOPY_source_gref), (dst_dom, flags & GNTCOPY_dest_gref)):
        if domid != DOMID_SELF and not is_gref:
            return GNTST_permission_denied
        rd = rcu_lock_domain_by_any_id(d, domid)
        if rd is None:
            return GNTST_bad_domain
        owners.append(rd)
    src = _claim(d, owners[0], flags & GNTCOPY_source_gref, src_u, readonly=True)
    if isinstance(src, int):
        return src
    dst = _claim(d, owners[1], flags & GNTCOPY_dest_gref, dst_u, readonly=False)
    if isinstance(dst, int):
        _release_buffer(src, readonly=True, typed=False)
        return dst
    rc = _copy_within(d, src, src_off, dst, dst_off, length)
    _release_buffer(src, readonly=True, typed=False)
    _release_buffer(dst, readonly=False, typed=True)
    return rc


def gnttab_copy_list(d: Domain, uop: int, count: int) -> int:
    """GNTTABOP_copy. A 32-bit guest's requests are translated in batches, each read before it is begun."""
    layout = gnttab_copy[d.abi.word]
    batch = COMPAT_ARG_XLAT_SIZE // gnttab_copy[8].size if d.abi.is_32bit else 1
    for first in range(0, count, batch):
        places = [uop + i * layout.size for i in range(first, min(first + batch, count))]
        ops = [d.guest.unpack(layout, at) for at in places]
        for at, op in zip(places, ops, strict=True):
            status = _copy_one(d, op).to_bytes(2, "little", signed=True)
            d.guest.copy_to(at + GNTTAB_COPY_STATUS[d.abi.word], status)
    return 0
