from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore.clock import TSC_PER_NS
from hvcore.common.time import (
    force_update_vcpu_system_time,
    update_domain_wallclock_time,
    update_vcpu_system_time,
    version_update_begin,
    version_update_end,
)

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest


def record(guest: Guest) -> tuple[int, ...]:
    return struct.unpack_from("<IIQQIbBH", guest.v.info, 0x20)


def guest_time(rec: tuple[int, ...], tsc: int) -> int:
    """What a guest computes from a record: xen.h's own formula."""
    _, _, stamp, system_time, mul, shift, _, _ = rec
    delta = tsc - stamp
    assert delta >= 0
    delta = delta << shift if shift >= 0 else delta >> -shift
    return system_time + (delta * mul >> 32)


def test_versions_are_odd_while_written() -> None:
    assert [version_update_begin(n) for n in (0, 1, 2, 0xFFFFFFFF)] == [1, 3, 3, 1]
    assert version_update_end(0xFFFFFFFF) == 0


def test_a_guest_computes_system_time_from_the_record(guest: Guest) -> None:
    guest.run_to(123_456)
    force_update_vcpu_system_time(guest.v)
    rec = record(guest)
    assert rec[0] == 2
    assert guest_time(rec, 123_456 * TSC_PER_NS) == 123_456
    assert guest_time(rec, 10**12 * TSC_PER_NS) == 10**12


def test_records_change_once_a_second(guest: Guest) -> None:
    guest.run_to(5)
    update_vcpu_system_time(guest.v)
    first = record(guest)
    guest.run_to(900_000_000)
    update_vcpu_system_time(guest.v)
    assert record(guest) == first
    guest.run_to(1_000_000_005)
    update_vcpu_system_time(guest.v)
    assert record(guest)[0] == first[0] + 2
    assert record(guest)[3] == 1_000_000_005


def test_the_secondary_area_gets_the_same_record(guest: Guest) -> None:
    guest.v.time_info_guest = 0x1FF0
    guest.run_to(77)
    force_update_vcpu_system_time(guest.v)
    assert struct.unpack("<IIQQIbBH", guest.d.guest.copy_from(0x1FF0, 32)) == record(guest)
    guest.v.time_info_guest = 0x7F000000
    force_update_vcpu_system_time(guest.v)
    assert record(guest)[0] == 4


def test_wallclock(guest: Guest) -> None:
    guest.d.wallclock_ns = (5 << 32) * 10**9 + 17
    update_domain_wallclock_time(guest.d)
    at = guest.d.abi.wallclock
    assert struct.unpack_from("<III", guest.d.shared_info, at) == (2, 0, 17)
    assert struct.unpack_from("<I", guest.d.shared_info, guest.d.abi.wc_sec_hi) == (5,)


@pytest.mark.parametrize("offset", [3600, -3600])
def test_wallclock_with_an_offset(guest: Guest, offset: int) -> None:
    """XEN_DOMCTL_settimeoffset: sec = wc_sec + d->time_offset.seconds."""
    guest.d.wallclock_ns, guest.d.time_offset = (5 << 32) * 10**9 + 17, offset
    update_domain_wallclock_time(guest.d)
    at, high = guest.d.abi.wallclock, guest.d.abi.wc_sec_hi
    wanted = (5 << 32) + offset
    assert struct.unpack_from("<II", guest.d.shared_info, at + 4) == (wanted & 0xFFFFFFFF, 17)
    assert struct.unpack_from("<I", guest.d.shared_info, high) == (wanted >> 32,)
