from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore.common.grant_map import map_for_backend, unmap_for_backend
from hvcore.common.grant_table import do_grant_table_op
from hvcore.errors import GuestError
from hvcore.public import grant_table as g
from hvcore.public.errno import EBUSY, EFAULT, EILSEQ, EINVAL, ENOSYS, EOPNOTSUPP, EPERM, ERANGE, ESRCH
from hvcore.public.xen import DOMID_SELF

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest

HOST, RO, DEV, PTE = g.GNTMAP_host_map, g.GNTMAP_readonly, g.GNTMAP_device_map, g.GNTMAP_contains_pte
REF = 9
FRAMES = 0x5000


def op(guest: Guest, cmd: int, fmt: str, *fields: int, count: int = 1) -> int:
    return guest.call(lambda v, c, arg: do_grant_table_op(v, c, arg, count), cmd, fmt, *fields)


def mfn(guest: Guest, page: int) -> int:
    return guest.d.mem.first_mfn + page


def table(guest: Guest) -> memoryview:
    return guest.d.mem.frame(guest.d.grant_table.shared[0])


def grant(
    guest: Guest, ref: int, page: int, flags: int = g.GTF_permit_access, domid: int | None = None
) -> None:
    domid = guest.d.domain_id if domid is None else domid
    if guest.d.grant_table.version == 1:
        struct.pack_into("<HHI", table(guest), 8 * ref, flags, domid, mfn(guest, page))
    else:
        struct.pack_into("<HHIQ", table(guest), 16 * ref, flags, domid, 0, mfn(guest, page))


def flags_of(guest: Guest, ref: int) -> int:
    return int.from_bytes(guest.d.grant_table.status_word(ref), "little")


def map_(
    guest: Guest, flags: int = HOST, ref: int = REF, addr: int = 0x9000, domid: int = -1
) -> tuple[int, int]:
    domid = guest.d.domain_id if domid < 0 else domid
    assert op(guest, 0, "QIIHhIQ", addr, flags, ref, domid, 77, 88, 99) == 0
    _, _, _, _, status, handle, bus = guest.result("QIIHhIQ")
    assert (status == 0) == (bus != 99)
    return status, handle


def unmap(guest: Guest, handle: int, addr: int = 0x9000, bus: int = 0) -> int:
    assert op(guest, 1, "QQIh2x", addr, bus, handle, 77) == 0
    return guest.result("QQIh2x")[3]


def references(guest: Guest, page: int) -> tuple[int, int]:
    i = mfn(guest, page) - guest.d.mem.base_mfn
    return guest.d.frames.count[i], guest.d.frames.tcount[i]


def set_version(guest: Guest, version: int) -> int:
    return op(guest, g.GNTTABOP_set_version, "I", version)


@pytest.fixture(params=[1, 2])
def granter(guest: Guest, request: pytest.FixtureRequest) -> Guest:
    if request.param == 2:
        assert set_version(guest, 2) == 0
    grant(guest, REF, 20)
    return guest


def test_map_and_unmap(granter: Guest) -> None:
    status, handle = map_(granter)
    assert (status, handle) == (0, 0)
    assert granter.mm.host_maps == [(0x9000, mfn(granter, 20), HOST)]
    assert references(granter, 20) == (2, 1)
    assert flags_of(granter, REF) & 0x18 == g.GTF_reading | g.GTF_writing
    assert unmap(granter, handle) == 0
    assert references(granter, 20) == (1, 0)
    assert flags_of(granter, REF) & 0x18 == 0
    assert granter.d.grant_table.active == {}
    assert granter.processor.tlb_flushes > 0
    assert unmap(granter, handle) == g.GNTST_bad_handle


def test_read_only_maps(granter: Guest) -> None:
    grant(granter, REF, 20, g.GTF_permit_access | g.GTF_readonly)
    assert map_(granter)[0] == g.GNTST_general_error
    assert flags_of(granter, REF) & 0x18 == 0
    status, first = map_(granter, HOST | RO)
    assert status == 0
    assert references(granter, 20) == (2, 0)
    assert flags_of(granter, REF) & 0x18 == g.GTF_reading
    # a writable mapping of an entry that is pinned read-only is checked again
    assert map_(granter)[0] == g.GNTST_general_error
    assert unmap(granter, first) == 0
    assert references(granter, 20) == (1, 0)


def test_device_and_host_maps_count_apart(granter: Guest) -> None:
    status, handle = map_(granter, HOST | DEV)
    assert status == 0
    assert references(granter, 20) == (3, 2)
    assert list(granter.d.grant_table.held_frames()) == [(mfn(granter, 20), True)]
    bus = mfn(granter, 20) << 12
    assert unmap(granter, handle, addr=0, bus=bus + 4096) == g.GNTST_bad_dev_addr
    assert unmap(granter, handle, addr=0, bus=bus) == 0
    assert references(granter, 20) == (2, 1)
    assert unmap(granter, handle, addr=0x1234) == g.GNTST_general_error  # not where it was mapped
    assert unmap(granter, handle) == 0
    assert references(granter, 20) == (1, 0)


def test_map_refusals(granter: Guest) -> None:
    guest = granter
    assert map_(guest, 0)[0] == g.GNTST_bad_gntref
    assert map_(guest, RO)[0] == g.GNTST_bad_gntref
    assert map_(guest, domid=DOMID_SELF)[0] == g.GNTST_bad_domain
    assert map_(guest, domid=40)[0] == g.GNTST_bad_domain
    assert map_(guest, domid=0, ref=512)[0] == g.GNTST_bad_gntref
    assert map_(guest, domid=0, ref=5)[0] == g.GNTST_general_error
    assert map_(guest, ref=100_000)[0] == g.GNTST_bad_gntref
    assert map_(guest, ref=REF + 1)[0] == g.GNTST_general_error
    grant(guest, REF, 20, domid=0)
    assert map_(guest)[0] == g.GNTST_general_error
    grant(guest, REF, 20, g.GTF_permit_access | g.GTF_sub_page)
    assert map_(guest)[0] == g.GNTST_general_error
    grant(guest, REF, 20, g.GTF_accept_transfer)
    assert map_(guest)[0] == g.GNTST_general_error
    grant(guest, REF, 1_000_000)
    assert map_(guest)[0] == g.GNTST_bad_page
    assert flags_of(guest, REF) & 0x18 == 0
    grant(guest, REF, 20)
    guest.mm.make_table(mfn(guest, 20))
    assert map_(guest)[0] == g.GNTST_general_error
    guest.mm.end_table(mfn(guest, 20))
    guest.mm.refuse_host_map = g.GNTST_bad_virt_addr
    assert map_(guest)[0] == g.GNTST_bad_virt_addr
    assert map_(guest, HOST | DEV)[0] == g.GNTST_bad_virt_addr
    assert references(guest, 20) == (1, 0)
    assert guest.d.grant_table.active == {}
    assert guest.d.grant_table.maptrack == {}


def test_a_pin_counter_does_not_overflow(granter: Guest) -> None:
    for i in range(128):
        assert map_(granter, HOST | RO, addr=0x9000 + i)[0] == 0
    assert map_(granter, HOST | RO)[0] == g.GNTST_general_error
    assert references(granter, 20) == (129, 0)


def test_a_pinned_frame_stays_though_the_entry_changes(granter: Guest) -> None:
    _, handle = map_(granter)
    grant(granter, REF, 30)
    assert map_(granter, HOST | RO, addr=0xA000)[0] == 0
    assert references(granter, 30) == (1, 0)
    assert unmap(granter, handle) == 0
    assert references(granter, 20) == (2, 0)


def test_batches_go_on_after_a_failure(guest: Guest) -> None:
    grant(guest, REF, 20)
    requests = [(0x9000, HOST, REF), (0x9000, HOST, 70), (0xA000, HOST | RO, REF)]
    fields = [x for addr, flags, ref in requests for x in (addr, flags, ref, guest.d.domain_id, 0, 0, 0)]
    assert op(guest, 0, "QIIHhIQ" * 3, *fields, count=3) == 0
    done = guest.result("QIIHhIQ" * 3)
    assert done[4::7] == (0, g.GNTST_general_error, 0)
    handles = done[5], done[19]
    fields = [x for addr, h in zip((0x9000, 0xA000), handles, strict=True) for x in (addr, 0, h, 0)]
    assert op(guest, 1, "QQIh2x" * 2, *fields, count=2) == 0
    assert references(guest, 20) == (1, 0)


def test_a_fault_amid_unmaps_completes_what_was_done(guest: Guest) -> None:
    grant(guest, REF, 20)
    _, handle = map_(guest)
    at = (64 << 12) - 24
    guest.d.guest.copy_to(at, struct.pack("<QQIh2x", 0x9000, 0, handle, 0))
    with pytest.raises(GuestError):
        do_grant_table_op(guest.v, 1, at, 2)
    assert references(guest, 20) == (1, 0)


def test_unmap_and_replace(guest: Guest) -> None:
    grant(guest, REF, 20)
    _, handle = map_(guest)
    assert op(guest, 7, "QQIh2x", 0x9000, 0xB000, handle, 77) == 0
    assert guest.result("QQIh2x")[3] == 0
    assert guest.mm.host_maps == [(0xB000, mfn(guest, 20), HOST)]


def setup(
    guest: Guest, nr: int, domid: int = DOMID_SELF, at: int = FRAMES, count: int = 1
) -> tuple[int, int]:
    fmt = "H2xIh2xI" if guest.d.abi.word == 4 else "H2xIh6xQ"
    rc = op(guest, 2, fmt, domid, nr, 77, at, count=count)
    return rc, guest.result(fmt)[2]


def test_setup_table(guest: Guest) -> None:
    assert setup(guest, 4) == (0, 0)
    gt = guest.d.grant_table
    listed = [guest.d.guest.read_ulong(FRAMES + i * guest.d.abi.word) for i in range(4)]
    assert listed == gt.shared
    assert gt.nr_entries == 2048
    assert setup(guest, 64) == (0, 0)
    assert setup(guest, 65) == (0, g.GNTST_general_error)
    assert setup(guest, 1, domid=0) == (0, g.GNTST_permission_denied)
    assert setup(guest, 1, domid=30) == (0, g.GNTST_bad_domain)
    assert setup(guest, 1, at=0x00F00000) == (0, g.GNTST_bad_virt_addr)
    assert setup(guest, 1, count=2)[0] == -EINVAL
    assert setup(guest, 1, count=0)[0] == (0 if guest.d.abi.word == 4 else -EINVAL)
    outside = 0xF5800000 if guest.d.abi.word == 4 else 1 << 47
    assert setup(guest, 1, at=outside)[0] == -EFAULT


def test_query_size_and_versions(guest: Guest) -> None:
    assert op(guest, 6, "H2xIIh2x", DOMID_SELF, 0, 0, 77) == 0
    assert guest.result("H2xIIh2x") == (DOMID_SELF, 1, 64, 0)
    assert op(guest, 6, "H2xIIh2x", 0, 0, 0, 77) == 0
    assert guest.result("H2xIIh2x")[3] == g.GNTST_permission_denied
    assert op(guest, 6, "H2xIIh2x", 0, 0, 0, 0, count=2) == -EINVAL
    assert op(guest, 10, "HHI", DOMID_SELF, 0, 0) == 0
    assert guest.result("HHI")[2] == 1
    assert op(guest, 10, "HHI", 0, 0, 0) == -EPERM
    assert op(guest, 10, "HHI", 30, 0, 0) == -ESRCH
    assert set_version(guest, 3) == -EINVAL
    assert guest.result("I") == (1,)


def test_changing_versions_keeps_the_reserved_entries_only(guest: Guest) -> None:
    gt = guest.d.grant_table
    gt.preset(g.GNTTAB_RESERVED_CONSOLE, 0, 0x11)
    gt.preset(g.GNTTAB_RESERVED_XENSTORE, 0, 0x22)
    grant(guest, REF, 20)
    assert set_version(guest, 2) == 0
    assert struct.unpack_from("<HHIQ", table(guest), 0) == (1, 0, 0, 0x11)
    assert struct.unpack_from("<HHIQ", table(guest), 16) == (1, 0, 0, 0x22)
    assert not any(table(guest)[16 * 8 :])
    assert len(gt.status) == 1
    struct.pack_into("<Q", table(guest), 8, 1 << 40)
    assert set_version(guest, 1) == -ERANGE
    struct.pack_into("<Q", table(guest), 8, 0x11)
    i = gt.status[0] - guest.d.mem.base_mfn
    guest.d.frames.count[i] += 1  # the guest maps the status frame
    assert set_version(guest, 1) == -EBUSY
    guest.d.frames.count[i] -= 1
    for _ in range(50):  # frames are taken back and used again: the heap does not leak
        assert set_version(guest, 1) == 0
        assert set_version(guest, 2) == 0
    assert gt.status[0] - guest.d.mem.base_mfn == i
    assert set_version(guest, 1) == 0
    assert struct.unpack_from("<HHI", table(guest), 8) == (1, 0, 0x22)


def test_a_version_does_not_change_while_entries_are_pinned(guest: Guest) -> None:
    grant(guest, REF, 20)
    _, handle = map_(guest)
    assert set_version(guest, 2) == -EBUSY
    assert unmap(guest, handle) == 0
    assert set_version(guest, 2) == 0


def test_status_frames(guest: Guest) -> None:
    fmt = "IHhI" if guest.d.abi.word == 4 else "IHhQ"
    assert op(guest, 9, fmt, 1, DOMID_SELF, 77, FRAMES) == 0
    assert guest.result(fmt)[2] == g.GNTST_general_error  # version 1 has none
    assert set_version(guest, 2) == 0
    assert op(guest, 9, fmt, 1, DOMID_SELF, 77, FRAMES) == 0
    assert guest.result(fmt)[2] == 0
    assert int.from_bytes(guest.d.guest.copy_from(FRAMES, 8), "little") == guest.d.grant_table.status[0]
    assert setup(guest, 9) == (0, 0)
    assert len(guest.d.grant_table.status) == 2
    assert op(guest, 9, fmt, 1, 0, 77, FRAMES) == 0
    assert guest.result(fmt)[2] == g.GNTST_permission_denied
    assert op(guest, 9, fmt, 1, DOMID_SELF, 77, FRAMES, count=2) == -EINVAL


def test_swap(granter: Guest) -> None:
    grant(granter, REF + 1, 30, g.GTF_permit_access | g.GTF_readonly)

    def swap(a: int, b: int) -> int:
        assert op(granter, 11, "IIh2x", a, b, 77) == 0
        return granter.result("IIh2x")[2]

    assert swap(REF, REF + 1) == 0
    assert granter.d.grant_table.frame_of(REF) == mfn(granter, 30)
    assert swap(REF, REF) == 0
    assert swap(REF, 5000) == g.GNTST_bad_gntref
    assert map_(granter, ref=REF + 1)[0] == 0
    assert swap(REF, REF + 1) == g.GNTST_eagain


def copy(guest: Guest, src: tuple[int, int, int], dst: tuple[int, int, int], length: int, flags: int) -> int:
    fmt = "IHHIHHHHh2x" if guest.d.abi.word == 4 else "QHH4xQHH4xHHh2x"
    assert op(guest, 5, fmt, *src, *dst, length, flags, 77) == 0
    return guest.result(fmt)[8]


def test_copy(granter: Guest) -> None:
    guest = granter
    me = guest.d.domain_id
    guest.memory(20)[100:110] = b"0123456789"
    assert copy(guest, (REF, me, 100), (mfn(guest, 21), DOMID_SELF, 200), 10, g.GNTCOPY_source_gref) == 0
    assert bytes(guest.memory(21)[200:210]) == b"0123456789"
    both = g.GNTCOPY_source_gref | g.GNTCOPY_dest_gref
    assert copy(guest, (REF, me, 100), (REF, DOMID_SELF, 500), 10, both) == 0
    assert bytes(guest.memory(20)[500:510]) == b"0123456789"
    frames = (mfn(guest, 20), DOMID_SELF, 0), (mfn(guest, 21), DOMID_SELF, 0)
    assert copy(guest, *frames, 4096, 0) == 0
    assert guest.memory(20) == guest.memory(21)
    assert (references(guest, 20), references(guest, 21)) == ((1, 0), (1, 0))
    assert flags_of(guest, REF) & 0x18 == 0


def test_copy_refusals(granter: Guest) -> None:
    guest = granter
    me = guest.d.domain_id
    src, dst = (REF, me, 0), (mfn(guest, 21), DOMID_SELF, 0)
    gref = g.GNTCOPY_source_gref
    assert copy(guest, (REF, me, 4000), dst, 100, gref) == g.GNTST_bad_copy_arg
    assert copy(guest, src, (mfn(guest, 21), DOMID_SELF, 4095), 2, gref) == g.GNTST_bad_copy_arg
    assert copy(guest, (mfn(guest, 20), me, 0), dst, 2, 0) == g.GNTST_permission_denied
    assert copy(guest, src, (mfn(guest, 21), 0, 0), 2, gref) == g.GNTST_permission_denied
    assert copy(guest, (REF, 50, 0), dst, 2, gref) == g.GNTST_bad_domain
    assert copy(guest, (REF, 0, 0), dst, 2, gref) == g.GNTST_general_error
    assert copy(guest, (700, 0, 0), dst, 2, gref) == g.GNTST_bad_gntref
    assert copy(guest, (70_000, me, 0), dst, 2, gref) == g.GNTST_bad_gntref
    assert copy(guest, (3, DOMID_SELF, 0), dst, 2, 0) == g.GNTST_bad_page
    assert copy(guest, src, (3, DOMID_SELF, 0), 2, gref) == g.GNTST_bad_page
    guest.mm.make_table(mfn(guest, 21))
    assert copy(guest, src, dst, 2, gref) == g.GNTST_general_error
    assert references(guest, 20) == (1, 0)
    assert references(guest, 21) == (1, 1)  # the use as a page table
    assert guest.d.grant_table.active == {}


def test_sub_page_and_transitive_grants(guest: Guest) -> None:
    assert set_version(guest, 2) == 0
    me = guest.d.domain_id
    dst = (mfn(guest, 21), DOMID_SELF, 0)
    gref = g.GNTCOPY_source_gref
    struct.pack_into(
        "<HHHHQ", table(guest), 16 * REF, g.GTF_permit_access | g.GTF_sub_page, me, 16, 32, mfn(guest, 20)
    )
    assert copy(guest, (REF, me, 16), dst, 32, gref) == 0
    assert copy(guest, (REF, me, 15), dst, 4, gref) == g.GNTST_general_error
    assert copy(guest, (REF, me, 40), dst, 9, gref) == g.GNTST_general_error
    struct.pack_into("<HHHHI4x", table(guest), 16 * REF, g.GTF_transitive, me, me, 0, 5)
    assert copy(guest, (REF, me, 0), dst, 4, gref) == g.GNTST_general_error
    assert flags_of(guest, REF) & 0x18 == 0


def test_a_backends_ring_stays_its_backends(guest: Guest) -> None:
    ring = mfn(guest, 30)
    gt, dom0 = guest.d.grant_table, guest.d.domain_list[0]
    gt.preset(g.GNTTAB_RESERVED_CONSOLE, 0, ring)
    handle, frame = map_for_backend(dom0, guest.d, g.GNTTAB_RESERVED_CONSOLE, readonly=False)
    assert frame == ring
    assert references(guest, 30) == (2, 1)
    assert list(dom0.grant_table.held_frames()) == [(ring, True)]
    assert flags_of(guest, 0) == g.GTF_permit_access | g.GTF_reading | g.GTF_writing
    assert map_(guest, ref=0)[0] == g.GNTST_general_error
    dst = (mfn(guest, 21), DOMID_SELF, 0)
    assert copy(guest, (0, guest.d.domain_id, 0), dst, 4, g.GNTCOPY_source_gref) == g.GNTST_general_error
    assert op(guest, 11, "IIh2x", 0, REF, 77) == 0
    assert guest.result("IIh2x")[2] == g.GNTST_eagain
    assert set_version(guest, 2) == 0
    assert flags_of(guest, 0) == g.GTF_reading | g.GTF_writing
    assert references(guest, 30) == (2, 1)
    assert set_version(guest, 1) == 0
    guest.mm.make_table(mfn(guest, 31))
    gt.preset(g.GNTTAB_RESERVED_XENSTORE, 0, mfn(guest, 31))
    refused = map_for_backend(dom0, guest.d, g.GNTTAB_RESERVED_XENSTORE, readonly=False)
    assert refused == (g.GNTST_general_error, 0)
    unmap_for_backend(dom0, handle)
    assert references(guest, 30) == (1, 0)
    assert list(dom0.grant_table.held_frames()) == []


def test_odd_calls_are_refused(guest: Guest) -> None:
    assert op(guest, g.GNTTABOP_dump_table, "64x") == -ENOSYS
    assert op(guest, 13, "64x") == -ENOSYS
    assert op(guest, 0, "64x", count=0x80000000) == -EINVAL
    assert op(guest, 0x1000, "64x") == -EINVAL
    assert op(guest, 0, "64x", count=0) == 0


def test_cache_flush(guest: Guest) -> None:
    def flush(addr: int, offset: int, length: int, what: int, resumed: int = 0) -> int:
        return op(guest, 12 | resumed, "QHHI", addr, offset, length, what)

    at = mfn(guest, 20) << 12
    assert flush(at, 0, 4096, g.GNTTAB_CACHE_CLEAN) == 0
    assert flush(at, 0, 4096, g.GNTTAB_CACHE_CLEAN | g.GNTTAB_CACHE_INVAL) == 0
    assert flush(at, 0, 4096, g.GNTTAB_CACHE_INVAL) == -EOPNOTSUPP
    assert flush(at, 4096, 0, 1) == -EINVAL
    assert flush(at, 1, 4096, 1) == -EINVAL
    assert flush(at, 0, 1, g.GNTTAB_CACHE_SOURCE_GREF) == -EINVAL
    assert flush(at, 0, 0, 1) == 0
    assert flush(at, 0, 0, 1, resumed=0x1000) == -EILSEQ
    assert flush(0, 0, 1, 1) == -EINVAL
    assert flush(guest.d.mem.m2p[8].mfn << 12, 0, 1, 1) == -EPERM


def test_handles_are_used_again(guest: Guest) -> None:
    grant(guest, REF, 20)
    seen = set()
    for _ in range(600):
        status, handle = map_(guest, HOST | RO)
        assert status == 0
        seen.add(handle)
        assert unmap(guest, handle) == 0
    assert len(seen) == 256
    assert guest.d.grant_table.maptrack_limit == 256


@pytest.mark.parametrize("cmd", [0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12])
def test_bad_pointers(guest: Guest, cmd: int) -> None:
    with pytest.raises(GuestError) as e:
        do_grant_table_op(guest.v, cmd, 0x7FFF0000, 1)
    assert e.value.errno == EFAULT
