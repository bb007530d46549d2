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
