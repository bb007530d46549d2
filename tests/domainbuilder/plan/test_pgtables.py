"""Page tables, walked as a processor walks them, against libxenguest's mappings."""

from __future__ import annotations

import pytest

from domainbuilder.build.guest_memory import Frames, GuestMemory, allocate_ram, machine_frames
from domainbuilder.errors import LayoutError
from domainbuilder.plan.domain_plan import DomainPlan, lay_out
from domainbuilder.plan.pgtables import setup_pgtables_pv
from tests.domainbuilder.libxenguest import FIRST_MFN, Reference, read_reference
from tests.domainbuilder.pagewalk import Walk, walk_page_tables


def planned(reference: Reference, **changes: object) -> DomainPlan:
    parms = reference.parms._replace(**changes)  # type: ignore[arg-type]
    return lay_out(parms, reference.nr_pages, kernel="k", module_size=reference.module_size, cmdline=b"")


def walked(plan: DomainPlan, frames: Frames, first_mfn: int = FIRST_MFN) -> tuple[Walk, dict[int, int]]:
    p2m = machine_frames(frames, plan.nr_pages, first_mfn)
    memory = GuestMemory(allocate_ram(plan.nr_pages), p2m, first_mfn)
    setup_pgtables_pv(plan.guest.paging, plan.maps, p2m, memory)
    root = p2m[plan.pgtables_pfn]
    walk = walk_page_tables(memory.ram, first_mfn, root, plan.guest.paging.levels)
    return walk, {mfn: pfn for pfn, mfn in enumerate(p2m)}


def test_every_mapping_is_libxenguests(reference: Reference) -> None:
    walk, pfns = walked(planned(reference), "linear")
    assert walk.ranges(pfns.__getitem__) == reference.facts["maps"]
    tables = reference.facts["tables"]
    assert {f"L{level}": count for level, count in walk.tables.items()} == {
        name: count for name, count in tables.items() if name != "ranges"
    }


def test_upper_entries_are_libxenguests(reference: Reference) -> None:
    """The dump shows an upper entry when a mapping begins in what it leads to, so it shows some of them."""
    walk, _ = walked(planned(reference), "linear")
    shown = [(entry["level"], entry["index"], entry["value"]) for entry in reference.facts["entries"]]
    remaining = iter(walk.entries)
    assert all(entry in remaining for entry in shown), "in the order of the walk"
    assert {entry & 0xFFF for _, _, entry in walk.entries} == {0x067}


def test_frames_out_of_order_change_no_mapping(reference: Reference) -> None:
    walk, pfns = walked(planned(reference), "xen", first_mfn=0x2345)
    assert walk.ranges(pfns.__getitem__) == reference.facts["maps"]


def test_two_level_tables() -> None:
    """What Xen 3.x built: 4-byte entries, the same flags, one table a 4 MB."""
    plan = planned(read_reference("statedump32"), guest_type="xen-3.0-x86_32")
    walk, pfns = walked(plan, "xen")
    assert walk.tables == {1: 1, 2: 1}
    assert [(level, index) for level, index, _ in walk.entries] == [(2, 0xC0000000 >> 22)]
    first = plan.pgtables_pfn
    base = 0xC0000000
    assert walk.ranges(pfns.__getitem__) == [
        {"va_start": base, "va_end": base + (first << 12), "pfn": 0, "flags": 0x023},
        {"va_start": base + (first << 12), "va_end": base + (first + 2 << 12), "pfn": first, "flags": 0x021},
        {"va_start": base + (first + 2 << 12), "va_end": base + (4 << 20), "pfn": first + 2, "flags": 0x023},
    ]


def test_exactly_the_page_tables_are_read_only(reference: Reference) -> None:
    plan = planned(reference)
    walk, pfns = walked(plan, "xen")
    read_only = {pfns[entry >> 12 & (1 << 40) - 1] for _, entry in walk.leaves if not entry & 2}
    tables = plan.layout["page tables"]
    assert read_only == set(range(tables.pfn, tables.pfn + tables.pages))


def test_a_frame_too_high_for_two_level_entries_is_refused() -> None:
    plan = planned(read_reference("statedump32"), guest_type="xen-3.0-x86_32")
    with pytest.raises(LayoutError, match="cannot hold machine frame 0x103fff"):
        walked(plan, "linear", first_mfn=0x100000)
