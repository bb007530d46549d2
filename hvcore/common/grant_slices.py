"""Bytes of granted frames for a backend: what xen-netback has GNTTABOP_copy do, a list of places at a time.

A whole copy is one step for the guest, so an entry that grants what it seems to, that nobody has pinned and
whose frame is in use as it is needed, is read and left as it is: pins that come and go in the same step are
seen by nobody. Every other entry is mapped and let go of (hvcore/common/grant_map.py), or refused there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hvcore.common.grant_map import map_for_backend, unmap_for_backend
from hvcore.page_info import PGT_validated, PGT_writable_page
from hvcore.public.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
)
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from hvcore.domain import Domain

_PIN_MARKS = GTF_reading | GTF_writing
_READ = GTF_type_mask | GTF_sub_page | _PIN_MARKS  # the bits that count; GTF_permit_access is as they must be
_WRITE = _READ | GTF_readonly
_PER_FRAME_SHIFT = PAGE_SHIFT - 3  # entries of version 1 in a frame
_SLOT_MASK = (1 << _PER_FRAME_SHIFT) - 1


def read_granted(ld: Domain, rd: Domain, places: Iterable[tuple[int, int, int]]) -> list[memoryview | None]:
    """The bytes at each (reference, offset, size) of `rd`'s; None where the grant gives `ld` none.

    They are views of memory: whoever keeps them has to copy them before a guest runs.
    """
    frame_of, view, base = _plain_frames(ld, rd, _READ), rd.mem.view, rd.mem.base_mfn
    found: list[memoryview | None] = []
    for ref, offset, size in places:
        mfn = frame_of(ref)
        if mfn < 0:
            handle, mfn = map_for_backend(ld, rd, ref, readonly=True)
            if handle < 0:
                found.append(None)
                continue
            unmap_for_backend(ld, handle)
        start = (mfn - base << PAGE_SHIFT) + offset
        found.append(view[start : start + size])
    return found


def write_granted(ld: Domain, rd: Domain, places: Iterable[tuple[int, memoryview]]) -> list[int]:
    """Write each (reference, bytes) to the start of a frame of `rd`'s: how many, or a negative GNTST_*."""
    frame_of, view, base = _plain_frames(ld, rd, _WRITE), rd.mem.view, rd.mem.base_mfn
    pages, types, uses, flags = rd.mm.base, rd.mm.ptype, rd.mm.tcount, rd.mm.pflags
    wrote_frame = rd.engine.wrote_frame
    results: list[int] = []
    for ref, data in places:
        mfn, handle = frame_of(ref), -1
        pg = mfn - pages
        if mfn < 0 or types[pg] != PGT_writable_page or not uses[pg] or not flags[pg] & PGT_validated:
            handle, mfn = map_for_backend(ld, rd, ref, readonly=False)
            if handle < 0:
                results.append(handle)
                continue
        start, size = mfn - base << PAGE_SHIFT, len(data)
        view[start : start + size] = data
        wrote_frame(mfn)
        if handle >= 0:
            unmap_for_backend(ld, handle)
        results.append(size)
    return results


def _plain_frames(ld: Domain, rd: Domain, mask: int) -> Callable[[int], int]:
    """A function from references of `rd`'s to frames: -1 for an entry that has to be mapped to know."""
    gt, mm, domid, granter = rd.grant_table, rd.mm, ld.domain_id, rd.domain_id
    active, shared, nr_entries = gt.active, gt.shared, gt.nr_entries if gt.version == 1 else 0
    view, base_mfn, unpack = rd.mem.view, rd.mem.base_mfn, grant_entry_v1.unpack_from
    base, nr, owner, count = mm.base, mm.nr, mm.owner, mm.count

    def frame_of(ref: int) -> int:
        if ref >= nr_entries or ref in active:
            return -1
        at = (shared[ref >> _PER_FRAME_SHIFT] - base_mfn << PAGE_SHIFT) + ((ref & _SLOT_MASK) << 3)
        flags, allowed, mfn = unpack(view, at)
        pg = mfn - base
        if flags & mask != GTF_permit_access or allowed != domid or not 0 <= pg < nr:
            return -1
        return mfn if owner[pg] == granter and count[pg] else -1

    return frame_of
