"""Mapping and unmapping of grants: map_grant_ref() and unmap_common() of xen/common/grant_table.c.

The granting domain (`rd`) owns the frame and pins the entry, the mapping domain (`ld`) holds a handle. A host
mapping's references to the frame (general, and writable unless read-only) are taken here and from then on
belong to the page-table entry; a device mapping's stay with its handle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.grant_entries import (
    ActiveEntry,
    GNTPIN_devr_inc,
    GNTPIN_devw_inc,
    GNTPIN_hstr_inc,
    GNTPIN_hstw_inc,
    GNTPIN_write_mask,
    Mapping,
)
from hvcore.domain import rcu_lock_domain_by_id
from hvcore.errors import DomainCrash
from hvcore.page_info import PGT_writable_page
from hvcore.public.grant_table import (
    GNTTAB_UNMAP_STATUS,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_okay,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from hvcore.domain import Domain

UNMAP_BATCH_SIZE = 32


# --- map --------------------------------------------------------------------------------------------------


def _pin_increment(flags: int) -> int:
    readonly = flags & GNTMAP_readonly
    pin = 0
    if flags & GNTMAP_device_map:
        pin += GNTPIN_devr_inc if readonly else GNTPIN_devw_inc
    if flags & GNTMAP_host_map:
        pin += GNTPIN_hstr_inc if readonly else GNTPIN_hstw_inc
    return pin


def _take_references(rd: Domain, mfn: int, flags: int) -> int:
    """The general and type references of a new mapping on a frame that is held once; GNTST_*.

    On failure none of those taken here is left, and the caller's one is gone too.
    """
    mm = rd.mm
    uses = bool(flags & GNTMAP_device_map) + bool(flags & GNTMAP_host_map)
    refs = [mfn] + [mfn for _ in range(uses - 1) if mm.get_page(mfn)]
    types = 0
    if not flags & GNTMAP_readonly:
        while types < uses and mm.get_page_type(mfn, PGT_writable_page) == 0:
            types += 1
        if types < uses:
            drop_references(rd, mfn, len(refs), types)
            return GNTST_general_error
    return GNTST_okay


def drop_references(rd: Domain, mfn: int, refs: int, types: int) -> None:
    """Let go of a frame so often, and end so many uses of it."""
    for _ in range(types):
        rd.mm.put_page_type(mfn)
    for _ in range(refs):
        rd.mm.put_page(mfn)


def _pin_entry(ld: Domain, rd: Domain, ref: int, readonly: bool, pin: int) -> int:
    """Pin an entry of `rd`'s for `ld`, and hold its frame once: GNTST_*."""
    gt = rd.grant_table
    if ref >= gt.nr_entries:
        return GNTST_bad_gntref
    act = gt.active.get(ref)
    if act is not None and (not gt.may_pin(ref, ld.domain_id, pin) or act.is_sub_page):
        return GNTST_general_error
    if act is None or (not readonly and not act.pin & GNTPIN_write_mask):
        rc = gt.set_status(ref, ld.domain_id, readonly=readonly, mapping=True)
        if rc != GNTST_okay:
            return rc
    mfn = gt.frame_of(ref) if act is None else act.mfn
    if not rd.mm.get_page(mfn):
        gt.reduce_status_for_pin(ref, readonly)
        return GNTST_bad_page if act is None else GNTST_general_error
    if act is None:
        act = gt.active[ref] = ActiveEntry(ld.domain_id, mfn, trans_domid=rd.domain_id, trans_gref=ref)
    act.pin += pin
    return GNTST_okay


def _map_entry(ld: Domain, rd: Domain, ref: int, flags: int, host_addr: int, pin: int) -> int:
    """Pin an entry of `rd`'s and map its frame for `ld`: GNTST_*."""
    readonly = bool(flags & GNTMAP_readonly)
    rc = _pin_entry(ld, rd, ref, readonly, pin)
    if rc != GNTST_okay:
        return rc
    act = rd.grant_table.active[ref]
    rc = _take_references(rd, act.mfn, flags)
    if rc == GNTST_okay and flags & GNTMAP_host_map:
        rc = ld.mm.create_grant_host_mapping(host_addr, act.mfn, flags, 0)
        if rc != GNTST_okay:
            uses = bool(flags & GNTMAP_device_map) + 1
            drop_references(rd, act.mfn, uses, 0 if readonly else uses)
    if rc != GNTST_okay:
        act.pin -= pin
        rd.grant_table.reduce_status_for_pin(ref, readonly)
    return rc


def _map_grant_ref(ld: Domain, op: tuple[int, ...]) -> tuple[int, int, int]:
    """(status, handle, dev_bus_addr) of one map request."""
    host_addr, flags, ref, dom, _, handle, dev_bus_addr = op
    pin = _pin_increment(flags)
    if not pin:
        return GNTST_bad_gntref, handle, dev_bus_addr
    rd = rcu_lock_domain_by_id(ld, dom)
    if rd is None:
        return GNTST_bad_domain, handle, dev_bus_addr
    gt = ld.grant_table
    new = gt.get_handle()
    if new < 0:
        return GNTST_no_space, handle, dev_bus_addr
    rc = _map_entry(ld, rd, ref, flags, host_addr, pin)
    if rc != GNTST_okay:
        gt.put_handle(new)
        return rc, handle, dev_bus_addr
    mfn = rd.grant_table.active[ref].mfn
    gt.maptrack[new] = Mapping(dom, ref, flags & 0xFFFF, mfn)
    return GNTST_okay, new, mfn << PAGE_SHIFT


def gnttab_map_grant_refs(d: Domain, uop: int, count: int) -> int:
    """GNTTABOP_map_grant_ref."""
    layout = gnttab_map_grant_ref
    for at in range(uop, uop + count * layout.size, layout.size):
        op = d.guest.unpack(layout, at)
        status, handle, dev_bus_addr = _map_grant_ref(d, op)
        d.guest.pack(layout, at, *op[:4], status, handle, dev_bus_addr)
    return 0


def map_for_backend(ld: Domain, rd: Domain, ref: int, *, readonly: bool) -> tuple[int, int]:
    """Map a grant of `rd`'s for a backend in `ld`, which has no page tables: (handle, mfn).

    The handle holds the frame until unmap_for_backend(); where it cannot be had it is a negative GNTST_*.
    """
    flags = GNTMAP_device_map | (GNTMAP_readonly if readonly else 0)
    gt = ld.grant_table
    handle = gt.get_handle()
    if handle < 0:
        return GNTST_no_space, 0
    noted = len(rd.trace.pending)
    rc = _map_entry(ld, rd, ref, flags, 0, _pin_increment(flags))
    del rd.trace.pending[noted:]  # a refusal is of no act of the guest's
    if rc != GNTST_okay:
        gt.put_handle(handle)
        return rc, 0
    mfn = rd.grant_table.active[ref].mfn
    gt.maptrack[handle] = Mapping(rd.domain_id, ref, flags, mfn)
    return handle, mfn


def unmap_for_backend(ld: Domain, handle: int) -> None:
    """Let go of what map_for_backend() mapped."""
    mapping = ld.grant_table.maptrack[handle]
    rd = ld.domain_list[mapping.domid]
    ld.grant_table.put_handle(handle)
    release_mapping(rd, mapping.ref, mapping.mfn, mapping.flags)


def unmap_all_for_backends(ld: Domain, domid: int) -> None:
    """The backends of domain `domid` are closed: nothing of it stays mapped."""
    for handle in [handle for handle, m in ld.grant_table.maptrack.items() if m.domid == domid]:
        unmap_for_backend(ld, handle)


# --- unmap ------------------------------------------------------------------------------------------------


class _Unmap:
    """What an unmap request has undone and still has to let go of, after the TLB flush."""

    __slots__ = ("done", "mfn", "rd", "ref")

    def __init__(self, rd: Domain, ref: int, mfn: int, done: int) -> None:
        self.rd = rd
        self.ref = ref
        self.mfn = mfn
        self.done = done


def _unmap_common(
    ld: Domain, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int, undone: list[_Unmap]
) -> int:
    """Undo the mappings of a handle that the request names: GNTST_*."""
    gt = ld.grant_table
    mapping = gt.maptrack.get(handle)
    if mapping is None:
        return GNTST_bad_handle
    rd = rcu_lock_domain_by_id(ld, mapping.domid)
    if rd is None:  # destroyed while its frame was mapped, which cannot happen here
        raise DomainCrash(f"unmap of a grant of domain {mapping.domid}, which is no more")
    flags, mfn = mapping.flags, mapping.mfn
    if dev_bus_addr and flags & GNTMAP_device_map and dev_bus_addr != mfn << PAGE_SHIFT:
        return GNTST_bad_dev_addr
    done = 0
    if host_addr and flags & GNTMAP_host_map:
        rc = ld.mm.replace_grant_host_mapping(host_addr, mfn, new_addr, flags)
        if rc < 0:
            return rc
        done |= GNTMAP_host_map
    if dev_bus_addr and flags & GNTMAP_device_map:
        done |= GNTMAP_device_map
    mapping.flags &= ~done
    if not mapping.flags & (GNTMAP_device_map | GNTMAP_host_map):
        gt.put_handle(handle)
    if done:
        undone.append(_Unmap(rd, mapping.ref, mfn, done | flags & GNTMAP_readonly))
    return GNTST_okay


def release_mapping(rd: Domain, ref: int, mfn: int, done: int) -> None:
    """unmap_common_complete(): let go of a frame of `rd`'s that was mapped as `done` (GNTMAP_*) says."""
    readonly = bool(done & GNTMAP_readonly)
    uses = bool(done & GNTMAP_device_map) + bool(done & GNTMAP_host_map)
    drop_references(rd, mfn, uses, 0 if readonly else uses)
    rd.grant_table.active[ref].pin -= _pin_increment(done)
    rd.grant_table.reduce_status_for_pin(ref, readonly)


def _complete(d: Domain, undone: list[_Unmap]) -> None:
    d.mm.flush_tlb()
    for u in undone:
        release_mapping(u.rd, u.ref, u.mfn, u.done)
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
                _complete(d, undone)
    finally:
        _complete(d, undone)
    return 0


def gnttab_unmap_grant_refs(d: Domain, uop: int, count: int) -> int:
    """GNTTABOP_unmap_grant_ref."""
    return _unmap_list(d, uop, count, replace=False)


def gnttab_unmap_and_replace(d: Domain, uop: int, count: int) -> int:
    """GNTTABOP_unmap_and_replace."""
    return _unmap_list(d, uop, count, replace=True)


# --- the end of a domain ----------------------------------------------------------------------------------


def gnttab_release_mappings(d: Domain) -> None:
    """Give up the grants of others that `d` still maps; its page tables are gone, or go by themselves.

    A host mapping's references belong to the page-table entry, which drops them with its table; the pin is
    what is given back here.
    """
    for handle, mapping in sorted(d.grant_table.maptrack.items()):
        rd = rcu_lock_domain_by_id(d, mapping.domid)
        if rd is None:
            continue
        readonly = bool(mapping.flags & GNTMAP_readonly)
        if mapping.flags & GNTMAP_device_map:
            drop_references(rd, mapping.mfn, 1, 0 if readonly else 1)
        rd.grant_table.active[mapping.ref].pin -= _pin_increment(mapping.flags)
        rd.grant_table.reduce_status_for_pin(mapping.ref, readonly)
        d.grant_table.put_handle(handle)
