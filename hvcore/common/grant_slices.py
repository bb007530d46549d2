"""Bytes of granted frames for a backend: what xen-netback has GNTTABOP_copy do, a list of places at a time.

A whole copy is one step for the guest, so an entry that grants what it seems to, that nobody has pinned and
whose frame is in use as it is needed, is read and left as it is: pins that come and go in the same step are
seen by nobody. Every other entry is mapped and let go of (hvcore/common/grant_map.py), or refused there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
)
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from hvcore.domain import Domain

_PIN_MARKS = GTF_reading | GTF_writing
_READ = GTF_type_mask | GTF_sub_page | _PIN_MARKS  # the bits that count; GTF_permit_access is as they must be
_WRITE = _READ | GTF_readonly
_PER_FRAME_SHIFT = PAGE_SHIFT - 3  # entries of version 1 in a frame
_SLOT_MASK = (1 << _PER_FRAME_SHIFT) - 1
_DOMID_SHIFT, _FRAME_SHIFT = 16, 32  # in struct grant_entry_v1, seen as one word


def read_granted(ld: Domain, rd: Domain, places: Sequence[tuple[int, int, int]]) -> list[memoryview | None]:
    """The bytes at each (reference, offset, size) of `rd`'s; None where the grant gives `ld` none.

    They are views of memory: whoever keeps them has to copy them before a guest runs.
    """
    view, base = rd.mem.view, rd.mem.base_mfn
    found: list[memoryview | None] = []
    frames = _plain_frames(ld, rd, _READ, [ref for ref, _, _ in places])
    for (ref, offset, size), plain in zip(places, frames, strict=True):
        mfn = plain
        if mfn < 0:
            handle, mfn = map_for_backend(ld, rd, ref, readonly=True)
            if handle < 0:
                found.append(None)
                continue
            unmap_for_backend(ld, handle)
        start = (mfn - base << PAGE_SHIFT) + offset
        found.append(view[start : start + size])
    return found


def write_granted(ld: Domain, rd: Domain, places: Sequence[tuple[int, memoryview]]) -> list[int]:
    """Write each (reference, bytes) to the start of a frame of `rd`'s: how many, or a negative GNTST_*."""
    view, base = rd.mem.view, rd.mem.base_mfn
    pages, types, uses, flags = rd.mm.base, rd.mm.ptype, rd.mm.tcount, rd.mm.pflags
    wrote_frame = rd.engine.wrote_frame
    results: list[int] = []
    frames = _plain_frames(ld, rd, _WRITE, [ref for ref, _ in places])
    for (ref, data), plain in zip(places, frames, strict=True):
        mfn, pg, handle = plain, plain - pages, -1
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


def _plain_frames(ld: Domain, rd: Domain, mask: int, refs: list[int]) -> Iterator[int]:
    """The frames that references of `rd`'s grant: -1 for an entry that has to be mapped to know.

    Each is looked up when it is asked for, as entries may lie in a frame that was written to before.
    """
    gt, mm, granter = rd.grant_table, rd.mm, rd.domain_id
    active, shared, nr_entries = gt.active, gt.shared, gt.nr_entries if gt.version == 1 else 0
    words, base_mfn = rd.mem.q, rd.mem.base_mfn
    base, nr, owner, count = mm.base, mm.nr, mm.owner, mm.count
    mask |= 0xFFFF << _DOMID_SHIFT
    wanted = GTF_permit_access | ld.domain_id << _DOMID_SHIFT
    for ref in refs:
        mfn = -1
        if ref < nr_entries and ref not in active:
            first = shared[ref >> _PER_FRAME_SHIFT] - base_mfn << _PER_FRAME_SHIFT
            entry = words[first + (ref & _SLOT_MASK)]
            pg = (entry >> _FRAME_SHIFT) - base
            if entry & mask == wanted and 0 <= pg < nr and owner[pg] == granter and count[pg]:
                mfn = entry >> _FRAME_SHIFT
        yield mfn
