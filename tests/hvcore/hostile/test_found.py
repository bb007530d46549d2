"""What hostile guests once broke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvcore.public.xen import Hypercall
from tests.hvcore.hostile.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Callable[[str], World]]:
    made = []

    def make(guest: str = "pae") -> World:
        made.append(World(guest, str(tmp_path)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_64_bit_value_for_a_two_level_entry_loses_its_upper_half(world: Callable[[str], World]) -> None:
    w = world("two-level")
    m = next(m for m in w.mapped if m.writable)
    entry = m.mfn << 12 | 0x21
    assert w.call(Hypercall.update_va_mapping, (m.va, entry, 0x80000001, 2, 0, 0)) == 0
    assert w.mm.e[(m.table - w.mm.base << w.mm.shift) + m.slot] == entry
    assert w.problems() == []


def test_a_store_by_the_linear_page_table_is_none_to_an_l1_mapping(world: Callable[[str], World]) -> None:
    """In Xen's linear slot an L2 entry stands where an L1 entry is looked for; it may be read-only."""
    w = world("64")
    m = next(m for m in w.mapped if m.writable)
    linear = 0xFFFF810000000000 + (m.va >> 12 << 3)
    at = w.mm.l1_entry_of(w.v.cr3_mfn, linear)
    assert w.mm.ptype[at >> 9] == 2
    pointer = (at << 3) + (w.mm.base << 12)
    request = pointer.to_bytes(8, "little") + (w.mm.e[at] & ~2).to_bytes(8, "little")
    assert w.store(m.va, request)
    assert w.call(Hypercall.mmu_update, (m.va, 1, 0, 0x7FF0, 0, 0)) == 0
    assert not w.machine.ro_page_fault.try_start(linear)
    assert w.problems() == []
