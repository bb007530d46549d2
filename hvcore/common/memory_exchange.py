"""XENMEM_exchange: frames that are given for others (memory_exchange() in xen/common/memory.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.domain import rcu_lock_domain_by_any_id
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.page_info import PGC_allocated, PGC_xen_heap
from hvcore.public.errno import E2BIG, EFAULT, EINVAL, ENOMEM, EPERM, ESRCH
from hvcore.public.memory import (
    XEN_MEMORY_EXCHANGE_NR_EXCHANGED,
    XENMEM_exchange,
    XENMEMF_exact_node_request,
    xen_memory_exchange,
)
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from hvcore.domain import Domain

DOMU_MAX_ORDER = 9
COMPAT_XLAT_SIZE = 8192  # Xen translates a 32-bit guest's arrays piecewise, through this many bytes
_EXTENT_NS = 1000  # what an exchange takes of the vCPU's turn
_NO_NODE = 0xFF


def propagate_node(mem_flags: int) -> bool:
    """A domU's wish for a NUMA node is ignored, its insistence refused."""
    node = ((mem_flags >> 8) - 1) & 0xFF
    return node == _NO_NODE or not mem_flags & XENMEMF_exact_node_request


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
        if COMPAT_XLAT_SIZE - xen_memory_exchange[8].size < pieces * 8:
            return -E2BIG
        if too_big:
            return -EPERM
    if in_dom != out_dom:
        return -EINVAL
    if nr_done == in_nr:
        return 0
    if not (array_access_ok(d, in_list, in_nr, word) and array_access_ok(d, out_list, out_nr, word)):
        return -EFAULT
    if not propagate_node(out_flags):
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


def memory_exchange(d: Domain, start: int, arg: int) -> int:
    """XENMEM_exchange: trade frames for as many others, some orders larger or smaller, piece by piece."""
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
