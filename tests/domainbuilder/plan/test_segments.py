"""The layout of a domain, against libxenguest's."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.errors import LayoutError
from domainbuilder.kernel.parms import UNSET_ADDR, ElfDomParms
from domainbuilder.plan.guest_types import GUEST_TYPES, guest_type
from domainbuilder.plan.segments import Layout, build_image
from tests.domainbuilder.libxenguest import Reference, read_reference


def lay(reference: Reference, **changes: int | None) -> Layout:
    nr_pages = changes.pop("nr_pages", None) or reference.nr_pages
    module = changes.pop("module_size", reference.module_size)
    parms = reference.parms._replace(**changes)  # type: ignore[arg-type]
    return build_image(parms, guest_type(parms.guest_type), nr_pages, module)


NAMES = {"kernel": "kernel", "module0": "module0", "p2m": "phys2mach", "pgtables": "page tables"}


def test_every_segment_is_where_libxenguest_puts_it(reference: Reference) -> None:
    layout = lay(reference)
    for theirs, ours in NAMES.items():
        expected = reference.facts["segments"][theirs]
        segment = layout.get(ours)
        if not expected["pages"]:
            assert segment is None
            continue
        assert segment is not None
        assert (segment.vstart, segment.pfn, segment.pages) == tuple(
            expected[key] for key in ("vstart", "pfn", "pages")
        ), ours
        if ours == "phys2mach" and len(layout.maps) > 1:
            # libxenguest moves vstart to INIT_P2M and leaves vend where it was: the end of allocation
            assert expected["vend"] == layout.virt_alloc_end
        else:
            assert segment.vend == expected["vend"]


def test_special_pages_and_ends_are_libxenguests(reference: Reference) -> None:
    layout, alloc = lay(reference), reference.facts["alloc"]
    pages = {"start info": "start_info_pfn", "xenstore": "xenstore_pfn", "console": "console_pfn"}
    for ours, theirs in {**pages, "boot stack": "bootstack_pfn"}.items():
        assert (layout[ours].pfn, layout[ours].pages) == (alloc[theirs], 1), ours
    for name in ("pfn_alloc_end", "virt_alloc_end", "virt_pgtab_end"):
        assert getattr(layout, name) == alloc[name], name
    assert [segment.read_only for segment in layout.segments] == [
        segment.name == "page tables" for segment in layout.segments
    ]


def test_a_two_level_guest_follows_the_same_rules() -> None:
    """Xen 3.x's xc_dom_x86.c: one L2, an L1 for every 4 MB of the mapping, no spare tables."""
    layout = build_image(
        read_reference("statedump32").parms._replace(guest_type="xen-3.0-x86_32"),
        GUEST_TYPES["xen-3.0-x86_32"],
        0x4000,
        None,
    )
    assert layout["page tables"].pages == 2
    assert layout["phys2mach"].pages == 0x4000 * 4 // 4096
    assert layout.virt_pgtab_end == 0xC0400000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nr_pages": 8}, "segment padding too large (0x100 > 0x8 - 0x0 pages)"),
        ({"nr_pages": 0x105}, "segment kernel too large (0x10 > 0x105 - 0x100 pages)"),
        ({"nr_pages": 0x110}, "segment module0 too large (0xb6 > 0x110 - 0x110 pages)"),
        ({"nr_pages": 0x1C6}, "segment phys2mach too large (0x1 > 0x1c6 - 0x1c6 pages)"),
        ({"nr_pages": 0x200}, "not enough memory for initial mapping (0x3ff > 0x200)"),
        ({"nr_pages": 0x4000, "module_size": 1 << 40}, "segment module0 too large"),
        ({"virt_kstart": 0xC0100800}, "segment boundary isn't page aligned (0xc0100800)"),
        ({"virt_base": 0xD0000000}, "segment boundary too low (0xc0100000 < 0xd0000000)"),
        ({"virt_kend": 0xC0000000}, "the kernel ends before it starts"),
        ({"virt_kend": (1 << 64) - 1}, "segment kernel too large"),
        ({"virt_base": 0xFFC00000, "virt_kstart": 0xFFF00000, "virt_kend": 0xFFF10000}, "32 address bits"),
    ],
)
def test_what_does_not_fit_is_refused_in_xens_words(changes: dict[str, int], message: str) -> None:
    with pytest.raises(LayoutError) as caught:
        lay(read_reference("statedump32"), **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("base", [0x8000000800, 0xFFFFFFFF80000000, UNSET_ADDR])
def test_init_p2m_is_ignored_where_xen_ignores_it(base: int) -> None:
    layout = lay(read_reference("statedump64-linuxlike"), p2m_base=base)
    assert len(layout.maps) == 1
    assert layout["phys2mach"].vstart == 0xFFFFFFFF80110000


def test_init_p2m_that_runs_into_the_initial_mapping_is_refused() -> None:
    with pytest.raises(LayoutError, match="overlapping mappings"):
        lay(read_reference("statedump64-linuxlike"), p2m_base=0xFFFFFFFF7FFF0000)


@given(
    name=st.sampled_from(list(GUEST_TYPES)),
    pages=st.integers(0x300, 0x20000),
    kernel=st.integers(0, 0x400000),
    skip=st.integers(0, 0x300),
    module=st.none() | st.integers(1, 0x300000),
    unmapped=st.booleans(),
    apart=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_any_layout_keeps_the_rules(
    name: str, pages: int, kernel: int, skip: int, module: int | None, unmapped: bool, apart: bool
) -> None:
    guest = GUEST_TYPES[name]
    base = 0xFFFFFFFF80000000 if guest.width == 8 else 0xC0000000
    parms: ElfDomParms = read_reference("statedump64-linuxlike").parms._replace(
        virt_base=base,
        virt_kstart=base + skip * 4096,
        virt_kend=base + skip * 4096 + kernel,
        unmapped_initrd=unmapped,
        p2m_base=0x8000000000 if apart else UNSET_ADDR,
    )
    try:
        layout = build_image(parms, guest, pages, module)
    except LayoutError:
        return
    at = 0
    for segment in layout.segments:
        assert segment.pfn >= at
        at = segment.pfn + segment.pages
    assert at <= layout.pfn_alloc_end <= pages
    stack = layout["boot stack"]
    assert layout.virt_pgtab_end % (4 << 20) == 0
    assert layout.virt_pgtab_end - (stack.vstart + 4096) >= 512 << 10
    assert layout["page tables"].pages == layout.maps[0].area.pgtables
    for segment in layout.segments:
        if segment.mapped and segment.vstart >= base:
            assert segment.vstart == base + segment.pfn * 4096
            assert segment.vend <= layout.virt_pgtab_end
