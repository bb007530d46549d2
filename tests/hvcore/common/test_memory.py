from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore.common.memory import do_memory_op
from hvcore.errors import GuestError
from hvcore.public import memory as m
from hvcore.public.errno import (
    EACCES,
    EDOM,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
)
from hvcore.public.xen import DOMID_SELF

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest

LIST = 0x3000


def put_list(guest: Guest, values: list[int], at: int = LIST) -> None:
    guest.d.guest.copy_to(at, struct.pack(f"<{len(values)}{guest.d.abi.word_format}", *values))


def get_list(guest: Guest, nr: int, at: int = LIST) -> list[int]:
    size = guest.d.abi.word * nr
    return list(struct.unpack(f"<{nr}{guest.d.abi.word_format}", guest.d.guest.copy_from(at, size)))


def reservation(
    guest: Guest, cmd: int, nr: int, order: int = 0, flags: int = 0, domid: int = DOMID_SELF, at: int = LIST
) -> int:
    fmt = "IIIIH2x" if guest.d.abi.word == 4 else "QQIIH6x"
    return guest.call(do_memory_op, cmd, fmt, at, nr, order, flags, domid)


def mfn(guest: Guest, pfn: int) -> int:
    return guest.d.mem.first_mfn + pfn


def test_decrease_then_populate(guest: Guest) -> None:
    gone = [mfn(guest, 40), mfn(guest, 41)]
    put_list(guest, gone)
    assert reservation(guest, m.XENMEM_decrease_reservation, 2) == 2
    assert guest.d.tot_pages == 62
    put_list(guest, [100, 101, 102])
    assert reservation(guest, m.XENMEM_populate_physmap, 3) == 2  # two frames are free
    got = get_list(guest, 3)
    assert sorted(got[:2]) == gone
    assert [guest.m2p(f) for f in got[:2]] == [100, 101]
    assert got[2] == 102


def test_decrease_stops_at_the_first_bad_frame(guest: Guest) -> None:
    put_list(guest, [mfn(guest, 50), 1, mfn(guest, 51)])
    assert reservation(guest, m.XENMEM_decrease_reservation, 3) == 1
    assert reservation(guest, m.XENMEM_decrease_reservation | 2 << 6, 3) == 3  # from the third on
    assert reservation(guest, m.XENMEM_decrease_reservation, 1, order=10) == 0
    put_list(guest, [mfn(guest, 32)])
    assert reservation(guest, m.XENMEM_decrease_reservation, 1, order=2) == 1
    assert guest.d.tot_pages == 58


def test_what_xen_shares_stays_xens(guest: Guest) -> None:
    shared = guest.d.grant_table.shared[0]
    put_list(guest, [shared])
    assert reservation(guest, m.XENMEM_decrease_reservation, 1) == 0
    put_list(guest, [9], 0x4000)
    assert exchange(guest, LIST, 1, 0, 0, DOMID_SELF, 0x4000, 1, 0, 0, DOMID_SELF, 0) == -EINVAL
    assert shared - guest.d.frames.base_mfn not in guest.d.frames.free_frames


def test_increase_reports_frames_or_not(guest: Guest) -> None:
    put_list(guest, [mfn(guest, 40), mfn(guest, 41)])
    assert reservation(guest, m.XENMEM_decrease_reservation, 2) == 2
    put_list(guest, [0, 0])
    assert reservation(guest, m.XENMEM_increase_reservation, 1) == 1
    assert get_list(guest, 1) == [mfn(guest, 41)]
    assert reservation(guest, m.XENMEM_increase_reservation, 5, at=0) == 1


def test_max_pages_bounds_a_guest(guest: Guest) -> None:
    put_list(guest, [mfn(guest, 40), mfn(guest, 41)])
    assert reservation(guest, m.XENMEM_decrease_reservation, 2) == 2
    guest.d.max_pages = 63
    assert reservation(guest, m.XENMEM_increase_reservation, 2) == 1


@pytest.mark.parametrize("cmd", [0, 1, 6])
def test_reservation_calls_say_how_far_they_came(guest: Guest, cmd: int) -> None:
    put_list(guest, [mfn(guest, 40)])
    assert reservation(guest, cmd, 1 << 26) == 0
    assert reservation(guest, cmd | 5 << 6, 3) == 5
    assert reservation(guest, cmd, 1, domid=0) == 0
    assert reservation(guest, cmd, 1, domid=33) == 0
    assert reservation(guest, cmd, 1, flags=12) == 0  # address bits within a page
    assert reservation(guest, cmd, 1, flags=1 << 17 | 1 << 8) == 0  # that very node
    assert reservation(guest, cmd, 1, at=0x00F00000) == 0
    assert do_memory_op(guest.v, cmd | 7 << 6, 0x7FFF0000) == 7


def test_populate_on_demand_is_not_for_oneself(guest: Guest) -> None:
    put_list(guest, [mfn(guest, 40)])
    assert reservation(guest, m.XENMEM_decrease_reservation, 1) == 1
    assert reservation(guest, m.XENMEM_populate_physmap, 1, flags=m.XENMEMF_populate_on_demand) == 0


def exchange(guest: Guest, *fields: int) -> int:
    fmt = "IIIIH2xIIIIH2xI" if guest.d.abi.word == 4 else "QQIIH6xQQIIH6xQ"
    return guest.call(do_memory_op, m.XENMEM_exchange, fmt, *fields)


def nr_exchanged(guest: Guest) -> int:
    return get_list(guest, 1, guest.ARG + (40 if guest.d.abi.word == 4 else 64))[0]


def test_exchange(guest: Guest) -> None:
    out = 0x4000
    put_list(guest, [mfn(guest, 45), mfn(guest, 46)])
    put_list(guest, [200, 201], out)
    assert exchange(guest, LIST, 2, 0, 0, DOMID_SELF, out, 2, 0, 0, DOMID_SELF, 0) == 0
    assert nr_exchanged(guest) == 2
    new = get_list(guest, 2, out)
    assert [guest.m2p(f) for f in new] == [200, 201]
    assert guest.d.tot_pages == 64
    # a larger piece for single frames
    put_list(guest, [mfn(guest, 48)])
    put_list(guest, [48, 49], out)
    assert exchange(guest, LIST, 1, 1, 0, DOMID_SELF, out, 2, 0, 0, DOMID_SELF, 0) == 0
    assert nr_exchanged(guest) == 1


def test_exchange_refusals(guest: Guest) -> None:
    out = 0x4000
    wide = guest.d.abi.word == 8
    put_list(guest, [mfn(guest, 45), mfn(guest, 45)])
    put_list(guest, [200, 201], out)
    self = DOMID_SELF
    assert exchange(guest, LIST, 1, 0, 0, self, out, 2, 0, 0, self, 0) == -EINVAL
    assert exchange(guest, LIST, 1, 0, 0, self, out, 1, 0, 0, 0, 0) == -EINVAL
    assert exchange(guest, LIST, 1, 0, 0, self, out, 1, 0, 0, self, 2) == -EINVAL
    assert exchange(guest, LIST, 1, 0, 0, 0, out, 1, 0, 0, 0, 0) == -EPERM
    assert exchange(guest, LIST, 1, 0, 0, 9, out, 1, 0, 0, 9, 0) == -ESRCH
    assert exchange(guest, LIST, 1024, 0, 0, self, out, 1, 10, 0, self, 0) == (-EPERM if wide else -7)
    assert exchange(guest, LIST, 1, 0xFFFFFFFF, 0, self, out, 1, 0, 0, self, 0) < 0
    assert exchange(guest, LIST, 2, 0, 0, self, out, 1, 1, 0, self, 0) == -EINVAL  # the same frame twice
    put_list(guest, [mfn(guest, 45), mfn(guest, 46)])
    assert exchange(guest, LIST, 2, 0, 0, self, out, 1, 1, 0, self, 0) == -ENOMEM
    assert exchange(guest, 0x00F00000, 1, 0, 0, self, out, 1, 0, 0, self, 0) == -EFAULT
    assert nr_exchanged(guest) == 0
    put_list(guest, [3])
    assert exchange(guest, LIST, 1, 0, 0, self, out, 1, 0, 0, self, 0) == -EINVAL
    assert guest.d.tot_pages == 64


def test_reservation_numbers_are_those_of_a_domu(guest: Guest) -> None:
    assert guest.call(do_memory_op, m.XENMEM_current_reservation, "H", DOMID_SELF) == 64
    assert guest.call(do_memory_op, m.XENMEM_maximum_reservation, "H", guest.d.domain_id) == 64 + 256
    assert guest.call(do_memory_op, m.XENMEM_maximum_gpfn, "H", DOMID_SELF) == 0
    guest.d.shared_info[guest.d.abi.arch_shared_info] = 77
    assert guest.call(do_memory_op, m.XENMEM_maximum_gpfn, "H", DOMID_SELF) == 76
    assert guest.call(do_memory_op, m.XENMEM_maximum_gpfn, "H", 0) == -EPERM
    assert guest.call(do_memory_op, m.XENMEM_maximum_gpfn, "H", 1000) == -ESRCH
    assert guest.call(do_memory_op, m.XENMEM_maximum_gpfn | 1 << 6, "H", DOMID_SELF) == -EINVAL
    assert do_memory_op(guest.v, m.XENMEM_maximum_ram_page, 0) == guest.d.mem.end_mfn


def test_the_memory_map(guest: Guest) -> None:
    fmt = "II" if guest.d.abi.word == 4 else "I4xQ"
    assert guest.call(do_memory_op, m.XENMEM_memory_map, fmt, 9, LIST) == 0
    assert guest.result(fmt) == (1, LIST)
    assert struct.unpack("<QQI", guest.d.guest.copy_from(LIST, 20)) == (0, 64 << 12, 1)
    assert guest.call(do_memory_op, m.XENMEM_machine_memory_map, fmt, 9, LIST) == -EPERM
    foreign = "H2xII" if guest.d.abi.word == 4 else "H6xI4xQ"
    guest.d.guest.copy_to(LIST, struct.pack("<QQIQQI", 0, 1 << 12, 1, 1 << 20, 1 << 12, 2))
    assert guest.call(do_memory_op, m.XENMEM_set_memory_map, foreign, DOMID_SELF, 2, LIST) == 0
    assert guest.call(do_memory_op, m.XENMEM_set_memory_map, foreign, 0, 2, LIST) == -EPERM
    assert guest.call(do_memory_op, m.XENMEM_set_memory_map, foreign, DOMID_SELF, 1025, LIST) == -EINVAL
    assert guest.call(do_memory_op, m.XENMEM_memory_map, fmt, 1, 0x5000) == 0
    assert guest.result(fmt)[0] == 1
    assert guest.call(do_memory_op, m.XENMEM_memory_map, fmt, 5, 0x5000) == 0
    assert guest.result(fmt)[0] == 2
    assert guest.call(do_memory_op, m.XENMEM_set_memory_map, foreign, DOMID_SELF, 0, LIST) == 0
    assert guest.call(do_memory_op, m.XENMEM_memory_map, fmt, 1, 0x5000) == -ENOSYS


def test_machphys(guest32: Guest, guest64: Guest) -> None:
    """The numbers a real domU reads."""
    assert do_memory_op(guest32.v, m.XENMEM_machphys_mapping, 0x1000) == 0
    assert guest32.result("III") == (0xF5800000, 0xFFE00000, 0x297FFFF)
    assert do_memory_op(guest64.v, m.XENMEM_machphys_mapping, 0x1000) == 0
    assert guest64.result("QQQ") == (0xFFFF800000000000, 0xFFFF804000000000, 0x7FFFFFFFF)
    assert guest32.call(do_memory_op, m.XENMEM_machphys_mfn_list, "III", 10, LIST, 0) == 0
    assert guest32.result("III") == (10, LIST, 1)
    assert get_list(guest32, 1) == [guest32.d.mem.m2p[4].mfn]
    assert guest64.call(do_memory_op, m.XENMEM_machphys_mfn_list, "I4xQI4x", 0, LIST, 7) == 0
    assert guest64.result("I4xQI4x") == (0, LIST, 0)
    assert guest64.call(do_memory_op, m.XENMEM_machphys_compat_mfn_list, "I4xQI4x", 1, LIST, 0) == -EOPNOTSUPP


def test_physmap_calls_are_for_translated_guests(guest: Guest) -> None:
    wide = guest.d.abi.word == 8
    add = "HHIQQ" if wide else "HHIII"
    assert guest.call(do_memory_op, m.XENMEM_add_to_physmap, add, DOMID_SELF, 0, 0, 0, 9) == -EACCES
    assert guest.call(do_memory_op, m.XENMEM_add_to_physmap, add, 5, 0, 0, 0, 9) == -ESRCH
    assert guest.call(do_memory_op, m.XENMEM_add_to_physmap, add, DOMID_SELF, 0, 4, 0, 9) == -ENOSYS
    assert guest.call(do_memory_op, m.XENMEM_add_to_physmap | 1 << 22, add, DOMID_SELF, 0, 0, 0, 9) == -EDOM
    batch = "HHHHQQQ" if wide else "HHHHIII"
    at = LIST
    op = m.XENMEM_add_to_physmap_batch
    assert guest.call(do_memory_op, op, batch, DOMID_SELF, 0, 1, 0, at, at, at) == -EACCES
    assert guest.call(do_memory_op, op, batch, DOMID_SELF, 3, 1, 0, at, at, at) == -EOPNOTSUPP
    remove = "H6xQ" if wide else "H2xI"
    assert guest.call(do_memory_op, m.XENMEM_remove_from_physmap, remove, DOMID_SELF, 9) == -EACCES
    assert guest.call(do_memory_op, m.XENMEM_remove_from_physmap, remove, 6, 9) == -ESRCH


def test_the_rest_that_a_domu_may_not(guest: Guest) -> None:
    wide = guest.d.abi.word == 8
    claim = reservation(guest, m.XENMEM_claim_pages, 1, domid=guest.d.domain_id, at=0)
    assert claim == (-EPERM if wide else -ENOSYS)
    if wide:
        assert reservation(guest, m.XENMEM_claim_pages, 1, domid=DOMID_SELF, at=0) == -EINVAL
    vnuma = "HHIIIQQQ"
    assert guest.call(do_memory_op, m.XENMEM_get_vnumainfo, vnuma, DOMID_SELF, 0, *[0] * 6) == -EOPNOTSUPP
    assert guest.call(do_memory_op, m.XENMEM_get_vnumainfo, vnuma, DOMID_SELF, 1, *[0] * 6) == -EINVAL
    acquire = "HHIIIQQ" if wide else "HHIIIQI"
    op = m.XENMEM_acquire_resource
    assert guest.call(do_memory_op, op, acquire, 0, 1, 0, 1, 0, 0, 0) == -EPERM
    assert guest.call(do_memory_op, op, acquire, DOMID_SELF, 1, 0, 1, 0, 0, 0) == -ESRCH
    assert guest.call(do_memory_op, op, acquire, 0, 1, 0, 1, 1, 0, 0) == -EINVAL
    assert guest.call(do_memory_op, op, acquire, 0, 1, 0, 1, 0, 0xFFFFFFFF, 0) == -EINVAL
    rdm = "IIQI4x" if wide else "IIII"
    op = m.XENMEM_reserved_device_memory_map
    assert guest.call(do_memory_op, op, rdm, 1, 4, LIST, 0) == 0
    assert guest.result(rdm) == (1, 0, LIST, 0)
    assert guest.call(do_memory_op, op, rdm, 2, 4, LIST, 0) == -EINVAL
    access = "BBHIQQQ" if wide else "BBHIQII"
    op = m.XENMEM_access_op
    assert guest.call(do_memory_op, op, access, 0, 0, guest.d.domain_id, 0, 0, 0, 0) == -EPERM
    assert guest.call(do_memory_op, op, access, 0, 0, 0, 0, 0, 0, 0) == -EINVAL
    pod = "QQQQH6x" if wide else "QQQQH2x"
    assert guest.call(do_memory_op, m.XENMEM_get_pod_target, pod, 0, 0, 0, 0, DOMID_SELF) == -EINVAL
    assert guest.call(do_memory_op, m.XENMEM_get_pod_target, pod, 0, 0, 0, 0, 20) == -ESRCH
    assert do_memory_op(guest.v, m.XENMEM_get_sharing_shared_pages, 0) == 0
    for cmd in (8, 20, 22, 29, 63, m.XENMEM_memory_map | 1 << 6):
        assert do_memory_op(guest.v, cmd, guest.ARG) == -ENOSYS


@pytest.mark.parametrize("cmd", [3, 4, 5, 7, 9, 11, 12, 13, 14, 15, 16, 17, 21, 23, 26, 27, 28])
def test_bad_pointers(guest: Guest, cmd: int) -> None:
    with pytest.raises(GuestError) as e:
        do_memory_op(guest.v, cmd, 0x7FFF0000)
    assert e.value.errno == EFAULT
