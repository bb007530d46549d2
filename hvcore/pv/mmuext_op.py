"""mmuext_op: pins, base pointers, TLB and cache flushes, the LDT, clearing and copying pages.

Source: do_mmuext_op() in xen/arch/x86/mm.c; struct mmuext_op in xen/include/public/xen.h.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import guest_handle_okay
from hvcore.errors import GuestError
from hvcore.page_info import PGT_pinned, PGT_writable_page
from hvcore.public import xen
from hvcore.public.errno import EACCES, EFAULT, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from hvcore.pv.descriptor_tables import set_ldt
from hvcore.pv.mmu_update import (
    REQUEST_NS,
    begin_requests,
    continued_result,
    end_requests,
    get_pg_owner,
    vcpumask_readable,
)
from hvcore.refusal import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.vcpu import Vcpu

# cmd, arg1 (mfn or linear_addr), arg2 (nr_ents, vcpumask or src_mfn)
_MMUEXT_OP = {4: struct.Struct("<III"), 8: struct.Struct("<I4xQQ")}


def _pin(v: Vcpu, cmd: int, mfn: int) -> int:
    mm = v.domain.mm
    level = cmd - xen.MMUEXT_PIN_L1_TABLE + 1
    if level > mm.levels:
        return 0  # pinning a level that the guest does not have is ignored
    rc = mm.get_page_and_type(mfn, level)
    if rc:
        mm.refuse(Reason.PIN, rc, mfn)
        return rc
    pg = mfn - mm.base
    if mm.pflags[pg] & PGT_pinned:
        mm.put_page_and_type(mfn)
        return mm.refuse(Reason.ALREADY_PINNED, mfn)
    mm.pflags[pg] |= PGT_pinned
    return 0


def pin_table(v: Vcpu, mfn: int, level: int = 0) -> int:
    """Pin a table of that level, as Xen's tools do for a guest; 0: a top-level one, as the first one is."""
    return _pin(v, xen.MMUEXT_PIN_L1_TABLE + (level or v.domain.abi.pt_levels) - 1, mfn)


def _unpin(v: Vcpu, mfn: int, _arg2: int) -> int:
    mm = v.domain.mm
    if not mm.get_page(mfn):
        return mm.refuse(Reason.NOT_OWNED, mfn)
    pg = mfn - mm.base
    rc = 0
    if mm.pflags[pg] & PGT_pinned:
        mm.pflags[pg] &= ~PGT_pinned
        mm.put_page_and_type(mfn)
    else:
        rc = mm.refuse(Reason.NOT_PINNED, mfn)
    mm.put_page(mfn)
    return rc


def _new_baseptr(v: Vcpu, mfn: int, _arg2: int) -> int:
    return v.domain.mm.new_guest_cr3(mfn)


def _new_user_baseptr(v: Vcpu, mfn: int, _arg2: int) -> int:
    mm = v.domain.mm
    if mm.pv32:
        return -EINVAL  # compat_mmuext_op(), even of nothing
    old = v.user_cr3_mfn
    if old == mfn:
        return 0
    if mfn:
        rc = mm.get_page_and_type(mfn, 4)
        if rc:
            mm.refuse(Reason.USER_BASEPTR, rc, mfn)
            return rc
    v.user_cr3_mfn = mfn
    if old:
        mm.put_page_and_type(old)
    return 0


def _flush_local(v: Vcpu, _arg1: int, _arg2: int) -> int:
    v.domain.mm.flush_tlb()
    return 0


def _invlpg(v: Vcpu, va: int, _arg2: int) -> int:
    v.domain.mm.flush_tlb_one(va)
    return 0


def _flush_multi(v: Vcpu, _arg1: int, mask: int) -> int:
    if not vcpumask_readable(v, mask):
        return -EINVAL
    v.domain.mm.flush_tlb()
    return 0


def _flush_cache(_v: Vcpu, _arg1: int, _arg2: int) -> int:
    return -EACCES  # no device is passed through, so there is nothing to keep coherent


def _flush_cache_global(_v: Vcpu, _arg1: int, _arg2: int) -> int:
    return -EINVAL


def _set_ldt(v: Vcpu, base: int, ents: int) -> int:
    return set_ldt(v, base, ents & 0xFFFFFFFF)


def _clear_page(v: Vcpu, mfn: int, _arg2: int) -> int:
    mm = v.domain.mm
    if mm.get_page_and_type(mfn, PGT_writable_page):
        return -EINVAL
    v.domain.mem.frame(mfn)[:] = bytes(xen.PAGE_SIZE)
    mm.put_page_and_type(mfn)
    return 0


def _copy_page(v: Vcpu, mfn: int, src: int) -> int:
    mm, mem = v.domain.mm, v.domain.mem
    if not mm.get_page(src):
        return -EINVAL
    rc = mm.get_page_and_type(mfn, PGT_writable_page)
    if not rc:
        mem.frame(mfn)[:] = mem.frame(src)
        mm.put_page_and_type(mfn)
    mm.put_page(src)
    return -EINVAL if rc else 0


def _superpages(_v: Vcpu, _arg1: int, _arg2: int) -> int:
    return -EOPNOTSUPP


def _pin_level(cmd: int) -> Callable[[Vcpu, int, int], int]:
    return lambda v, mfn, _arg2: _pin(v, cmd, mfn)


_OPS: dict[int, Callable[[Vcpu, int, int], int]] = {
    xen.MMUEXT_PIN_L1_TABLE: _pin_level(xen.MMUEXT_PIN_L1_TABLE),
    xen.MMUEXT_PIN_L2_TABLE: _pin_level(xen.MMUEXT_PIN_L2_TABLE),
    xen.MMUEXT_PIN_L3_TABLE: _pin_level(xen.MMUEXT_PIN_L3_TABLE),
    xen.MMUEXT_PIN_L4_TABLE: _pin_level(xen.MMUEXT_PIN_L4_TABLE),
    xen.MMUEXT_UNPIN_TABLE: _unpin,
    xen.MMUEXT_NEW_BASEPTR: _new_baseptr,
    xen.MMUEXT_TLB_FLUSH_LOCAL: _flush_local,
    xen.MMUEXT_INVLPG_LOCAL: _invlpg,
    xen.MMUEXT_TLB_FLUSH_MULTI: _flush_multi,
    xen.MMUEXT_INVLPG_MULTI: _flush_multi,
    xen.MMUEXT_TLB_FLUSH_ALL: _flush_local,
    xen.MMUEXT_INVLPG_ALL: _invlpg,
    xen.MMUEXT_FLUSH_CACHE: _flush_cache,
    xen.MMUEXT_SET_LDT: _set_ldt,
    xen.MMUEXT_NEW_USER_BASEPTR: _new_user_baseptr,
    xen.MMUEXT_CLEAR_PAGE: _clear_page,
    xen.MMUEXT_COPY_PAGE: _copy_page,
    xen.MMUEXT_FLUSH_CACHE_GLOBAL: _flush_cache_global,
    xen.MMUEXT_MARK_SUPER: _superpages,
    xen.MMUEXT_UNMARK_SUPER: _superpages,
}


def do_mmuext_op(v: Vcpu, uops: int, count: int, pdone: int, foreigndom: int) -> int:
    """Carry out `count` operations; `*pdone` is how many were done. Stops at the first error."""
    d = v.domain
    guest = d.guest
    layout = _MMUEXT_OP[d.abi.word]
    begun = begin_requests(v, uops, count & 0xFFFFFFFF, pdone)
    if begun is None:
        return continued_result(foreigndom)
    count, done_before = begun
    done = 0
    if not guest_handle_okay(d, uops, count, layout.size):
        return -EFAULT
    if not count and d.abi.is_32bit and d.abi.pt_levels != 2:
        return 0  # compat_mmuext_op() looks at nothing else
    owner = get_pg_owner(v, foreigndom)
    if owner < 0:
        return owner
    if owner != xen.DOMID_SELF:
        return -EPERM
    rc, clock = 0, d.clock
    try:
        while done < count:
            cmd, arg1, arg2 = guest.unpack(layout, uops + done * layout.size)
            op = _OPS.get(cmd)
            rc = op(v, arg1, arg2) if op else -ENOSYS
            if rc:
                break
            done += 1
            clock.spend(REQUEST_NS)
            if clock.turn_is_over():
                break
    except GuestError as error:
        rc = -error.errno
    rest = (uops + done * layout.size, count - done)
    return end_requests(v, rc, done_before + done, pdone, rest, foreigndom)
