from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok

if TYPE_CHECKING:
    from tests.hvcore.conftest import Guest


def test_a_32_bit_array_ends_below_xen(guest32: Guest) -> None:
    d = guest32.d
    assert array_access_ok(d, 0xF57FFFF8, 2, 4)
    assert not array_access_ok(d, 0xF57FFFF9, 2, 4)
    assert array_access_ok(d, 0xF57FFFFF, 0, 4)
    assert not array_access_ok(d, 0xF5800000, 0, 4)
    assert not array_access_ok(d, 0, 0x40000000, 4)


def test_a_64_bit_array_starts_outside_the_hole_and_xen(guest64: Guest) -> None:
    d = guest64.d
    assert array_access_ok(d, (1 << 47) - 1, 1 << 32, 8)
    assert not array_access_ok(d, 1 << 47, 0, 8)
    assert not array_access_ok(d, 0xFFFF87FFFFFFFFFF, 1, 8)
    assert array_access_ok(d, 0xFFFF880000000000, 1, 8)
    assert not array_access_ok(d, 0, 1 << 61, 8)
