"""mmu_update, update_va_mapping and update_va_mapping_otherdomain.

Source: do_mmu_update(), do_update_va_mapping() in xen/arch/x86/mm.c, get_pg_owner() in common/page_alloc.c. A
domain that is unprivileged may name others, and learns whether they exist; it may change nothing of theirs.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import guest_handle_okay
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.page_info import PGT_l1_page_table, PGT_l4_page_table, PGT_writable_page
from hvcore.public import xen
from hvcore.public.errno import EBUSY, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH
from hvcore.public.xen import (
    UVMF_ALL,
    UVMF_FLUSHTYPE_MASK,
    UVMF_INVLPG,
    UVMF_LOCAL,
    UVMF_TLB_FLUSH,
)
from hvcore.pv.mm import L1_DISALLOW_MASK
from hvcore.refusal import Reason
from hvcore.x86 import PAGE_PRESENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.pv.mm import PageTables
    from hvcore.vcpu import Vcpu

_MMU_UPDATE = struct.Struct("<QQ")  # struct mmu_update: ptr, val
MMU_UPDATE_PREEMPTED = 1 << 31  # in `count`: a call that goes on where it was interrupted
REQUEST_NS = 100  # what one request of a batch takes of the vCPU's turn


def get_pg_owner(v: Vcpu, foreigndom: int) -> int:
    """The domain whose frames are meant, or -ESRCH. One's own is DOMID_SELF, and never one's number."""
    domid = foreigndom & 0xFFFF
    if domid in (xen.DOMID_SELF, xen.DOMID_IO, xen.DOMID_XEN):
        return domid
    return domid if domid in v.domain.domain_list and domid != v.domain.domain_id else -ESRCH


def begin_requests(v: Vcpu, reqs: int, count: int, pdone: int) -> tuple[int, int] | None:
    """The requests to carry out and how many were done before, of a call that may be a continuation.

    None for the continuation that only brings its result, which stands in the place of `foreigndom`.
    """
    if not count & MMU_UPDATE_PREEMPTED:
        return count, 0
    if count == MMU_UPDATE_PREEMPTED and not reqs:
        return None
    done = 0
    if pdone:
        with contextlib.suppress(GuestError):
            done = v.domain.guest.read_u32(pdone)
    return count & ~MMU_UPDATE_PREEMPTED, done


def continued_result(foreigndom: int) -> int:
    """What a continuation brings in the place of `foreigndom`: an int."""
    return (foreigndom & 0xFFFFFFFF ^ 1 << 31) - (1 << 31)


def end_requests(v: Vcpu, rc: int, done: int, pdone: int, rest: tuple[int, int], foreigndom: int) -> int:
    """Report the `done` requests; put off the `rest` (address, count) that no error stopped."""
    if pdone:
        with contextlib.suppress(GuestError):  # Xen does not look at the result of this copy either
            v.domain.guest.write_u32(pdone, done)
    reqs, left = rest
    if left and not rc:
        raise HypercallPreempted(reqs, left | MMU_UPDATE_PREEMPTED, pdone, foreigndom)
    return rc


def do_mmu_update(v: Vcpu, ureqs: int, count: int, pdone: int, foreigndom: int) -> int:
    """Apply `count` requests; `*pdone` is how many were done. Stops at the first error, as Xen does."""
    d = v.domain
    begun = begin_requests(v, ureqs, count & 0xFFFFFFFF, pdone)
    if begun is None:
        return continued_result(foreigndom)
    count, done_before = begun
    size = _MMU_UPDATE.size
    if not guest_handle_okay(d, ureqs, count, size):
        return -EFAULT
    pt_dom = (foreigndom >> 16 & 0xFFFF) - 1
    if pt_dom >= 0 and pt_dom not in d.domain_list:
        return -ESRCH
    pg_owner = get_pg_owner(v, foreigndom)
    if pg_owner < 0:
        return end_requests(v, pg_owner, done_before, pdone, (0, 0), foreigndom)
    own_tables = pt_dom in (-1, d.domain_id)
    update = _UPDATES.get(pg_owner, _not_ours) if own_tables else _not_ours
    done, rc = _run_one(v, ureqs, update) if count == 1 else _run_batches(v, ureqs, count, update)
    if d.mm.flush_linear_pt:
        d.mm.flush_linear_pt = False
        d.mm.flush_tlb()
    rest = (ureqs + done * size, count - done)
    return end_requests(v, rc, done_before + done, pdone, rest, foreigndom)


def _run_one(v: Vcpu, ureqs: int, update: Callable[[PageTables, int, int], int]) -> tuple[int, int]:
    """One request alone, as nearly all calls of Linux have it; 1 or 0, and the error if any."""
    d = v.domain
    try:
        rc = update(d.mm, *d.guest.unpack(_MMU_UPDATE, ureqs))
    except GuestError as error:
        return 0, -error.errno
    if rc:
        return 0, rc
    d.clock.spend(REQUEST_NS)
    return 1, 0


def _run_batches(
    v: Vcpu, ureqs: int, count: int, update: Callable[[PageTables, int, int], int]
) -> tuple[int, int]:
    """Apply the requests page by page of the guest's memory; how many were done, and the error if any.

    Fewer than asked for without an error: the vCPU's turn is over.
    """
    mm, clock = v.domain.mm, v.domain.clock
    copy_from = v.domain.guest.copy_from
    size = _MMU_UPDATE.size
    done = 0
    try:
        while done < count:
            batch = min(count - done, max(1, (4096 - (ureqs & 4095)) // size))
            for ptr, val in _MMU_UPDATE.iter_unpack(copy_from(ureqs, batch * size)):
                rc = update(mm, ptr, val)
                if rc:
                    return done, rc
                done += 1
            ureqs += batch * size
            clock.spend(batch * REQUEST_NS)
            if clock.turn_is_over():
                break
    except GuestError as error:
        return done, -error.errno
    return done, 0


def _one_update(mm: PageTables, ptr: int, val: int) -> int:
    cmd = ptr & mm.e.itemsize - 1
    if cmd == xen.MMU_MACHPHYS_UPDATE:
        return _machphys_update(mm, ptr >> 12, val)
    if cmd > xen.MMU_PT_UPDATE_NO_TRANSLATE:
        return -ENOSYS
    mfn = ptr >> 12
    pg = mfn - mm.base
    if not (0 <= pg < mm.nr and mm.owner[pg] == mm.domid and mm.count[pg]):
        return mm.refuse(Reason.NO_PAGE)
    at = (pg << mm.shift) + ((ptr & 4095) >> (12 - mm.shift))
    if mm.shift == 10:
        val &= 0xFFFFFFFF
    ptype = mm.ptype[pg]
    if not mm.tcount[pg]:
        rc = mm.get_page_type(mfn, PGT_writable_page)
        if not rc:
            mm.e[at] = val
            mm.put_page_type(mfn)
        return rc
    if ptype == PGT_l1_page_table:
        return mm.mod_l1_entry(at, val, cmd == xen.MMU_PT_UPDATE_PRESERVE_AD)
    if PGT_l1_page_table < ptype <= PGT_l4_page_table:
        modify = (mm.mod_l2_entry, mm.mod_l3_entry, mm.mod_l4_entry)[ptype - 2]
        return modify(at, val, cmd == xen.MMU_PT_UPDATE_PRESERVE_AD)
    if ptype == PGT_writable_page:
        mm.e[at] = val
        return 0
    return -EINVAL


def _one_io_update(mm: PageTables, ptr: int, val: int) -> int:
    """An update that names DOMID_IO as the frame's owner: no frame is, so no other can be mapped."""
    cmd = ptr & mm.e.itemsize - 1
    if cmd > xen.MMU_PT_UPDATE_NO_TRANSLATE:
        return -ENOSYS
    pg = (ptr >> 12) - mm.base
    if cmd == xen.MMU_MACHPHYS_UPDATE or not 0 <= pg < mm.nr:
        return -EINVAL
    if mm.tcount[pg] and PGT_l1_page_table < mm.ptype[pg] <= PGT_l4_page_table:
        return -EINVAL
    if not (val & PAGE_PRESENT and mm.tcount[pg] and mm.ptype[pg] == PGT_l1_page_table):
        return _one_update(mm, ptr, val)
    if val & L1_DISALLOW_MASK:
        return -EINVAL
    old = mm.e[(pg << mm.shift) + ((ptr & 4095) >> (12 - mm.shift))]
    if mm.is_fast(old, val):
        return _one_update(mm, ptr, val)
    return -EBUSY if 0 <= ((val >> 12) & mm.mfn_mask) - mm.base < mm.nr else -EPERM


def _not_ours(mm: PageTables, ptr: int, _val: int) -> int:
    """An update of another domain's table, or of a frame of another's or DOMID_XEN's (xsm_mmu_update())."""
    return -ENOSYS if ptr & mm.e.itemsize - 1 > xen.MMU_PT_UPDATE_NO_TRANSLATE else -EPERM


_UPDATES = {xen.DOMID_SELF: _one_update, xen.DOMID_IO: _one_io_update}


def _machphys_update(mm: PageTables, mfn: int, pfn: int) -> int:
    if not mm.get_page(mfn):
        return mm.refuse(Reason.NO_M2P_PAGE)
    mm.mem.set_gpfn_from_mfn(mfn, pfn)
    mm.put_page(mfn)
    return 0


def do_update_va_mapping(v: Vcpu, va: int, val: int, flags: int) -> int:
    """Set the L1 entry that maps `va` in the current address space, then flush as `flags` (UVMF_*) say."""
    mm = v.domain.mm
    at = mm.l1_entry_of(v.cr3_mfn, va)
    shift = mm.shift
    pg = at >> shift
    if at < 0 or mm.owner[pg] != mm.domid or mm.ptype[pg] != PGT_l1_page_table:
        return mm.refuse(Reason.NO_TABLE, va)
    rc = mm.mod_l1_entry(at, val if shift == 9 else val & 0xFFFFFFFF)
    if rc:
        return rc
    flush = flags & UVMF_FLUSHTYPE_MASK
    if flush not in (UVMF_TLB_FLUSH, UVMF_INVLPG):
        return 0
    target = flags & ~UVMF_FLUSHTYPE_MASK
    if target not in (UVMF_LOCAL, UVMF_ALL) and not vcpumask_readable(v, target):
        return -EFAULT
    if flush == UVMF_INVLPG:
        mm.flush_tlb_one(va)
    else:
        mm.flush_tlb()
    return 0


def vcpumask_readable(v: Vcpu, va: int) -> bool:
    """Whether the guest's bitmap of vCPUs can be read; every vCPU shares the one processor, so all flush."""
    try:
        v.domain.guest.copy_from(va, v.domain.abi.word)
    except GuestError:
        return False
    return True


def do_update_va_mapping_otherdomain(v: Vcpu, va: int, val: int, flags: int, domid: int) -> int:
    """update_va_mapping with the frame's owner named: only this domain itself may be."""
    owner = get_pg_owner(v, domid)
    if owner < 0:
        return owner
    if owner != xen.DOMID_SELF:
        return -EPERM
    return do_update_va_mapping(v, va, val, flags)
