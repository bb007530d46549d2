"""Grants from one domain to another: map, unmap, copy, transitive copy, transfer, and what is refused.

Expected values are what xen/common/grant_table.c of Xen 4.17 does, by reading.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest

from hvcore.common.grant_map import gnttab_release_mappings
from hvcore.common.grant_table import do_grant_table_op
from hvcore.public import grant_table as g
from tests.hvcore.conftest import ABIS, NR_PAGES, Guest

HOST, RO, DEV = g.GNTMAP_host_map, g.GNTMAP_readonly, g.GNTMAP_device_map
REF = 9


class Pair(NamedTuple):
    """Two domains on one machine, of all pairs of widths; `a` grants, `b` uses."""

    a: Guest
    b: Guest


@pytest.fixture(params=[(x, y) for x in ABIS for y in ABIS], ids=["32-32", "32-64", "64-32", "64-64"])
def pair(request: pytest.FixtureRequest) -> Pair:
    a = Guest(request.param[0], 1, domains=3)
    return Pair(a, Guest(request.param[1], 1, beside=a))


def op(guest: Guest, cmd: int, fmt: str, *fields: int) -> int:
    return guest.call(lambda v, c, arg: do_grant_table_op(v, c, arg, 1), cmd, fmt, *fields)


def grant(
    guest: Guest, page: int, domid: int, flags: int = g.GTF_permit_access, ref: int = REF, extra: int = 0
) -> None:
    table = guest.d.mem.frame(guest.d.grant_table.shared[0])
    if guest.d.grant_table.version == 1:
        struct.pack_into("<HHI", table, 8 * ref, flags, domid, guest.first_mfn + page)
    else:
        struct.pack_into("<HHIQ", table, 16 * ref, flags, domid, extra, guest.first_mfn + page)


def map_(guest: Guest, domid: int, flags: int = HOST, ref: int = REF) -> tuple[int, int]:
    assert op(guest, g.GNTTABOP_map_grant_ref, "QIIHhIQ", 0x9000, flags, ref, domid, 77, 88, 99) == 0
    _, _, _, _, status, handle, _ = guest.result("QIIHhIQ")
    return status, handle


def unmap(guest: Guest, handle: int, bus: int = 0) -> int:
    assert op(guest, g.GNTTABOP_unmap_grant_ref, "QQIh2x", 0x9000, bus, handle, 77) == 0
    return guest.result("QQIh2x")[3]


def copy(guest: Guest, src: tuple[int, int, int], dst: tuple[int, int, int], length: int, flags: int) -> int:
    """`src` and `dst` are (reference or frame, domid, offset)."""
    word = "I" if guest.d.abi.is_32bit else "Q"
    pad = "" if guest.d.abi.is_32bit else "4x"
    fmt = f"{word}HH{pad}{word}HH{pad}HHhxx"
    if not guest.d.abi.is_32bit:
        fmt = "QHH4xQHH4xHHh2x"
    assert op(guest, g.GNTTABOP_copy, fmt, *src, *dst, length, flags, 77) == 0
    return guest.result(fmt)[-1]


def transfer(guest: Guest, mfn: int, domid: int, ref: int = REF) -> int:
    fmt = "IH2xIh2x" if guest.d.abi.is_32bit else "QH2xIh6x"
    assert op(guest, g.GNTTABOP_transfer, fmt, mfn, domid, ref, 77) == 0
    return guest.result(fmt)[-1]


def references(guest: Guest, page: int) -> tuple[int, int]:
    i = guest.first_mfn + page - guest.d.mem.base_mfn
    return guest.d.frames.count[i], guest.d.frames.tcount[i]


def marks(guest: Guest, ref: int = REF) -> int:
    flags: int = struct.unpack("<H", guest.d.grant_table.status_word(ref))[0]
    return flags & (g.GTF_reading | g.GTF_writing)


def test_one_domain_maps_what_another_grants(pair: Pair) -> None:
    a, b = pair
    grant(a, 20, b.d.domain_id)
    status, handle = map_(b, a.d.domain_id)
    assert status == g.GNTST_okay
    assert b.mm.host_maps == [(0x9000, a.first_mfn + 20, HOST)]
    assert a.mm.host_maps == []
    assert references(a, 20) == (2, 1)
    assert marks(a) == g.GTF_reading | g.GTF_writing
    assert a.d.grant_table.maptrack == {}
    assert unmap(b, handle) == g.GNTST_okay
    assert references(a, 20) == (1, 0)
    assert marks(a) == 0
    assert unmap(b, handle) == g.GNTST_bad_handle


def test_a_grant_is_for_one_domain(pair: Pair) -> None:
    a, b = pair
    c = Guest(b.d.abi, 1, beside=a)
    grant(a, 20, b.d.domain_id)
    assert map_(c, a.d.domain_id)[0] == g.GNTST_general_error
    assert map_(a, a.d.domain_id)[0] == g.GNTST_general_error
    assert map_(b, c.d.domain_id)[0] == g.GNTST_general_error
    assert map_(b, 17)[0] == g.GNTST_bad_domain
    # the pinned copy counts, whatever the granter writes afterwards
    status, handle = map_(b, a.d.domain_id)
    assert status == g.GNTST_okay
    grant(a, 21, c.d.domain_id)
    assert map_(c, a.d.domain_id)[0] == g.GNTST_general_error
    assert map_(b, a.d.domain_id, HOST | RO)[0] == g.GNTST_okay
    assert references(a, 20) == (3, 1)
    assert unmap(b, handle) == g.GNTST_okay


def test_what_a_domain_does_not_own_it_cannot_grant(pair: Pair) -> None:
    a, b = pair
    grant(a, NR_PAGES + 5, b.d.domain_id)  # a frame of b's own
    assert map_(b, a.d.domain_id)[0] == g.GNTST_bad_page
    assert marks(a) == 0
    grant(a, 20, b.d.domain_id)
    a.mm.make_table(a.first_mfn + 20)
    assert map_(b, a.d.domain_id)[0] == g.GNTST_general_error
    a.mm.end_table(a.first_mfn + 20)
    assert (references(a, 20), marks(a), a.d.grant_table.active) == ((1, 0), 0, {})
    assert map_(b, a.d.domain_id, HOST | RO)[0] == g.GNTST_okay


def test_a_device_mapping_is_held_by_its_handle(pair: Pair) -> None:
    a, b = pair
    grant(a, 20, b.d.domain_id)
    status, handle = map_(b, a.d.domain_id, DEV)
    assert status == g.GNTST_okay
    assert references(a, 20) == (2, 1)
    assert list(b.d.grant_table.held_frames()) == [(a.first_mfn + 20, True)]
    assert unmap(b, handle, (a.first_mfn + 20) << 12) == g.GNTST_okay
    assert references(a, 20) == (1, 0)


def test_the_mappings_of_a_domain_that_ends_are_released(pair: Pair) -> None:
    a, b = pair
    grant(a, 20, b.d.domain_id)
    assert map_(b, a.d.domain_id, DEV)[0] == g.GNTST_okay
    assert map_(b, a.d.domain_id, DEV | RO)[0] == g.GNTST_okay
    gnttab_release_mappings(b.d)
    assert references(a, 20) == (1, 0)
    assert (marks(a), a.d.grant_table.active, b.d.grant_table.maptrack) == (0, {}, {})


def test_copies_between_domains(pair: Pair) -> None:
    a, b = pair
    grant(a, 20, b.d.domain_id)
    a.memory(20)[100:105] = b"hello"
    own = b.first_mfn + 30
    there, back = g.GNTCOPY_source_gref, g.GNTCOPY_dest_gref
    assert copy(b, (REF, a.d.domain_id, 100), (own, 0x7FF0, 200), 5, there) == g.GNTST_okay
    assert bytes(b.memory(30)[200:205]) == b"hello"
    b.memory(30)[0:3] = b"abc"
    assert copy(b, (own, 0x7FF0, 0), (REF, a.d.domain_id, 0), 3, back) == g.GNTST_okay
    assert bytes(a.memory(20)[0:3]) == b"abc"
    grant(a, 20, b.d.domain_id, g.GTF_permit_access | g.GTF_readonly)
    assert copy(b, (own, 0x7FF0, 0), (REF, a.d.domain_id, 0), 3, back) == g.GNTST_general_error
    assert copy(b, (own, b.d.domain_id, 0), (REF, a.d.domain_id, 0), 3, back) == g.GNTST_permission_denied
    assert copy(b, (a.first_mfn + 20, 0x7FF0, 0), (own, 0x7FF0, 0), 3, 0) == g.GNTST_bad_page
    assert (references(a, 20), references(b, 30), marks(a)) == ((1, 0), (1, 0), 0)


def test_transitive_grants_are_copied_and_not_mapped(pair: Pair) -> None:
    a, b = pair
    c = Guest(b.d.abi, 1, beside=a)
    assert op(b, g.GNTTABOP_set_version, "I", 2) == 0
    grant(a, 20, b.d.domain_id)
    a.memory(20)[0:5] = b"hello"
    entry = struct.pack("<HHHHI", g.GTF_transitive, c.d.domain_id, a.d.domain_id, 0, REF)
    b.d.mem.frame(b.d.grant_table.shared[0])[16 * 12 : 16 * 12 + len(entry)] = entry
    own = c.first_mfn + 30
    assert copy(c, (12, b.d.domain_id, 0), (own, 0x7FF0, 0), 5, g.GNTCOPY_source_gref) == g.GNTST_okay
    assert bytes(c.memory(30)[0:5]) == b"hello"
    assert map_(c, b.d.domain_id, ref=12)[0] == g.GNTST_general_error
    assert (references(a, 20), marks(a), marks(b, 12)) == ((1, 0), 0, 0)
    assert a.d.grant_table.active == b.d.grant_table.active == {}
    # one step of transitivity, not two, and not to oneself
    entry = struct.pack("<HHHHI", g.GTF_transitive, c.d.domain_id, b.d.domain_id, 0, REF)
    b.d.mem.frame(b.d.grant_table.shared[0])[16 * 12 : 16 * 12 + len(entry)] = entry
    assert (
        copy(c, (12, b.d.domain_id, 0), (own, 0x7FF0, 0), 5, g.GNTCOPY_source_gref) == g.GNTST_general_error
    )
    assert (marks(b, 12), b.d.grant_table.active) == (0, {})


def test_a_frame_is_transferred(pair: Pair) -> None:
    a, b = pair
    grant(b, 33 - b.first_mfn, a.d.domain_id, g.GTF_accept_transfer)  # as pseudo-physical page 33
    mfn = a.first_mfn + 40
    assert transfer(a, mfn, b.d.domain_id) == g.GNTST_okay
    assert (a.d.tot_pages, b.d.tot_pages) == (NR_PAGES - 1, NR_PAGES + 1)
    assert b.d.frames.owner[mfn - b.d.mem.base_mfn] == b.d.domain_id
    assert (b.d.grant_table.frame_of(REF), b.m2p(mfn)) == (mfn, 33)
    flags = struct.unpack_from("<H", b.d.grant_table.entry(REF))[0]
    assert flags == g.GTF_accept_transfer | g.GTF_transfer_committed | g.GTF_transfer_completed
    assert transfer(a, mfn, b.d.domain_id) == g.GNTST_bad_page  # no longer the giver's


def test_a_transfer_that_fails_late_costs_the_giver_its_frame(pair: Pair) -> None:
    a, b = pair
    assert transfer(a, a.first_mfn + 40, 17) == g.GNTST_bad_domain
    assert transfer(a, a.first_mfn + 41, b.d.domain_id) == g.GNTST_general_error  # nothing accepts it
    grant(b, 3, 17, g.GTF_accept_transfer)
    assert transfer(a, a.first_mfn + 42, b.d.domain_id) == g.GNTST_general_error
    b.d.max_pages = NR_PAGES
    grant(b, 3, a.d.domain_id, g.GTF_accept_transfer)
    assert transfer(a, a.first_mfn + 43, b.d.domain_id) == g.GNTST_general_error
    assert (a.d.tot_pages, b.d.tot_pages) == (NR_PAGES - 4, NR_PAGES)
    assert transfer(a, b.first_mfn + 4, b.d.domain_id) == g.GNTST_bad_page
    assert transfer(a, 1, b.d.domain_id) == g.GNTST_bad_page
    assert a.mm.get_page(a.first_mfn + 44)  # held once more
    assert transfer(a, a.first_mfn + 44, b.d.domain_id) == g.GNTST_bad_page
    assert a.d.tot_pages == NR_PAGES - 4
