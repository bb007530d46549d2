"""GNTTABOP_transfer: a frame goes from one domain to another for good (xen/common/grant_table.c).

The giver loses the frame even where the receiver does not get it: then it is freed, as in Xen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.grant_copy import COMPAT_ARG_XLAT_SIZE
from hvcore.domain import rcu_lock_domain_by_id
from hvcore.errors import HypercallPreempted
from hvcore.public.grant_table import (
    GNTST_bad_domain,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_okay,
    GNTTABOP_transfer,
    GTF_accept_transfer,
    GTF_transfer_committed,
    GTF_transfer_completed,
    gnttab_transfer,
    grant_entry_v1,
    grant_entry_v2,
)

if TYPE_CHECKING:
    from hvcore.domain import Domain

_TRANSFER_NS = 1000  # what one takes of the vCPU's turn: a TLB flush, mostly


def _prepare_for_transfer(e: Domain, giver: int, ref: int) -> bool:
    """gnttab_prepare_for_transfer(): mark `e`'s entry as committed, where it accepts a frame of `giver`'s."""
    gt = e.grant_table
    if ref >= gt.nr_entries:
        return False
    entry = gt.entry(ref)
    flags, domid = grant_entry_v1.unpack_from(entry)[:2]
    if flags != GTF_accept_transfer or domid != giver:
        return False
    entry[:2] = (flags | GTF_transfer_committed).to_bytes(2, "little")
    return True


def _complete_transfer(e: Domain, mfn: int, ref: int) -> None:
    """guest_physmap_add_page(), and the entry says which frame has come."""
    entry = e.grant_table.entry(ref)
    if e.grant_table.version == 1:
        flags, domid, gfn = grant_entry_v1.unpack(entry)
        grant_entry_v1.pack_into(entry, 0, flags | GTF_transfer_completed, domid, mfn)
    else:
        flags, domid, pad0, pad1, gfn = grant_entry_v2.unpack(entry)
        grant_entry_v2.pack_into(entry, 0, flags | GTF_transfer_completed, domid, pad0, pad1, mfn)
    e.mem.set_gpfn_from_mfn(mfn, gfn)


def _transfer_one(d: Domain, mfn: int, domid: int, ref: int) -> int:
    """Steal a frame of `d`'s and give it to another domain: GNTST_*."""
    frames = d.frames
    pg = mfn - frames.base_mfn
    if not frames.steal_page(mfn, d.domain_id):
        return GNTST_bad_page
    d.mm.flush_tlb()
    e = rcu_lock_domain_by_id(d, domid)
    if e is None:
        frames.free_domheap_page(pg)
        return GNTST_bad_domain
    if e.is_dying or e.tot_pages >= e.max_pages or not _prepare_for_transfer(e, d.domain_id, ref):
        frames.free_domheap_page(pg)
        return GNTST_general_error
    frames.assign(mfn, 1, domid)
    _complete_transfer(e, mfn, ref)
    return GNTST_okay


def gnttab_transfer_list(d: Domain, uop: int, count: int) -> int:
    """GNTTABOP_transfer. A 32-bit guest's requests are translated in batches, each read before it begins."""
    layout = gnttab_transfer[d.abi.word]
    batch = COMPAT_ARG_XLAT_SIZE // gnttab_transfer[8].size if d.abi.is_32bit else 1
    done = 0
    while done < count:
        places = [uop + i * layout.size for i in range(done, min(done + batch, count))]
        ops = [d.guest.unpack(layout, at) for at in places]
        for at, (mfn, domid, ref, _) in zip(places, ops, strict=True):
            status = _transfer_one(d, mfn, domid, ref)
            d.guest.pack(layout, at, mfn, domid, ref, status)
            done += 1
            d.clock.spend(_TRANSFER_NS)
            if done < count and d.clock.turn_is_over():
                rest = uop + done * layout.size & d.abi.word_mask
                raise HypercallPreempted(GNTTABOP_transfer, rest, count - done)
    return 0
