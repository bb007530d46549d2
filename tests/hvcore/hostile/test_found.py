"""What hostile guests once broke."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from hvcore.abi import PV32_PAE
from hvcore.public.xen import Hypercall
from tests.hvcore.hostile.lanes import acts
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


def test_a_vcpu_that_was_refused_its_user_table_gives_the_kernel_table_back(
    world: Callable[[str], World],
) -> None:
    """Twice the same: a context with a good CR3, and a user CR3 that is no table."""
    w = world("64")
    context = bytearray(w.context)
    ctrlreg1 = bytes(w.context).index((w.v.cr3_mfn << 12).to_bytes(8, "little")) - 2 * 8
    context[ctrlreg1 : ctrlreg1 + 8] = (w.mapped[5].mfn << 12).to_bytes(8, "little")
    pages = [m for m in w.mapped if m.writable]
    run = next(a for a, b in pairwise(pages) if b.va == a.va + 4096)
    assert w.store(run.va, bytes(context))
    for _ in range(2):
        assert w.call(Hypercall.vcpu_op, (0, 1, run.va, 0, 0, 0)) == -22
        assert w.problems() == []
    assert w.store(run.va, w.context)
    assert w.call(Hypercall.vcpu_op, (0, 1, run.va, 0, 0, 0)) == 0


def test_an_instruction_that_stores_into_itself_costs_with_lanes_what_it_costs_without() -> None:
    """Code in a page table: the engine makes a block anew that a store changes, and executes it again."""
    assert acts(PV32_PAE)(97, Counter()) == []
