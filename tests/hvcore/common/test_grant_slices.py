"""Copies for backends, held to the mappings that they leave out."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from hvcore import abi as abi_module
from hvcore.common.grant_map import map_for_backend, unmap_for_backend
from hvcore.common.grant_slices import read_granted, write_granted
from hvcore.page_info import PGT_l1_page_table, PGT_validated, PGT_writable_page
from hvcore.public.grant_table import GTF_permit_access
from hvcore.pv.audit import audit
from tests.hvcore.conftest import Guest

REF, PAGES = 8, 16
FLAGS = st.one_of(st.just(GTF_permit_access), st.integers(0, 0xFFFF))
ENTRY = st.tuples(FLAGS, st.sampled_from([0, 0, 0, 1, 0x7FF0]), st.integers(-1, PAGES))


def entry(guest: Guest, ref: int) -> memoryview:
    return guest.d.mem.frame(guest.d.grant_table.shared[0])[8 * ref : 8 * ref + 8]


def put(guest: Guest, entries: list[tuple[int, int, int]]) -> None:
    for i, (flags, domid, page) in enumerate(entries):
        struct.pack_into("<HHI", entry(guest, REF + i), 0, flags, domid, guest.first_mfn + page)


@settings(max_examples=80, deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=4), st.booleans(), st.sets(st.integers(0, PAGES - 1), max_size=6))
def test_what_a_mapping_gives_is_what_is_read_and_written(
    entries: list[tuple[int, int, int]], readonly: bool, in_use: set[int]
) -> None:
    """So are the entries afterwards. Frames that are in use as they are cost no mapping."""
    guest = Guest(abi_module.PV64, 1)
    d, home = guest.d, guest.d.domain_list[0]
    engine: Any = SimpleNamespace(wrote_frame=lambda _mfn: None)
    d.engine = engine
    for page in in_use:
        pg = guest.first_mfn + page - d.mm.base
        d.mm.ptype[pg] = PGT_writable_page if page % 3 else PGT_l1_page_table
        d.mm.tcount[pg], d.mm.pflags[pg] = 1, d.mm.pflags[pg] | PGT_validated
    refs = [*range(REF, REF + len(entries)), REF, 1 << 20]
    put(guest, entries)
    mapped: list[int] = []
    for ref in refs:
        handle, mfn = map_for_backend(home, d, ref, readonly=readonly)
        mapped.append(mfn if handle >= 0 else handle)
        if handle >= 0:
            unmap_for_backend(home, handle)
    left = [bytes(entry(guest, ref)) for ref in refs[:-1]]
    put(guest, entries)
    if readonly:
        read = read_granted(home, d, [(ref, 8, 16) for ref in refs])
        for view, mfn in zip(read, mapped, strict=True):
            assert (view is None) == (mfn < 0)
            if view is not None:
                view[:4] = b"here"
                assert bytes(d.mem.frame(mfn)[8:12]) == b"here"
    else:
        wrote = write_granted(home, d, [(ref, memoryview(b"%06d" % i)) for i, ref in enumerate(refs)])
        assert wrote == [6 if mfn > 0 else mfn for mfn in mapped]
        last = {mfn: i for i, mfn in enumerate(mapped)}
        assert all(bytes(d.mem.frame(mfn)[:6]) == b"%06d" % i for mfn, i in last.items() if mfn > 0)
    assert [bytes(entry(guest, ref)) for ref in refs[:-1]] == left
    assert not d.grant_table.active
    assert not home.grant_table.maptrack


def test_a_pinned_grant_and_one_of_a_table(guest64: Guest) -> None:
    """What others map is read by a mapping of its own, and nothing is left of that."""
    d, home = guest64.d, guest64.d.domain_list[0]
    put(guest64, [(GTF_permit_access, 0, 3)])
    handle, mfn = map_for_backend(home, d, REF, readonly=True)
    struct.pack_into("<HHI", entry(guest64, REF), 0, 0, 0, 0)  # the pinned copy counts
    (view,) = read_granted(home, d, [(REF, 0, 4096)])
    assert view is not None
    assert view == d.mem.frame(mfn)
    unmap_for_backend(home, handle)
    assert read_granted(home, d, [(REF, 0, 4096)]) == [None]
    assert audit(d) == []
