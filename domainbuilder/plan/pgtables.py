"""Page tables of a new domain: geometry as data, counting, and writing.

After tools/libs/guest/xg_dom_x86.c (count_pgtables, alloc_pgtables_pv, setup_pgtables_pv) of Xen 4.17;
the two-level geometry after the same file of Xen 3.x, the last Xen that built such domains.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from domainbuilder.errors import LayoutError
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE
from hvcore.x86 import PAGE_ACCESSED, PAGE_DIRTY, PAGE_PRESENT, PAGE_RW, PAGE_USER

L1_PROT = PAGE_PRESENT | PAGE_RW | PAGE_ACCESSED
L1_PROT_RO = L1_PROT & ~PAGE_RW
L2_PROT = PAGE_PRESENT | PAGE_RW | PAGE_ACCESSED | PAGE_DIRTY | PAGE_USER

MAPPING_MAX = 2  # xg_dom_x86.c: the initial mapping, and the p2m list of a guest with INIT_P2M
VIRT_PGTAB_ALIGN = 4 << 20  # the initial mapping ends on a 4 MB boundary ...
VIRT_PGTAB_SLACK = 512 << 10  # ... with at least this much behind the last page in use


class Paging(NamedTuple):
    """`struct xc_dom_params` (xg_dom_x86.c), and what distinguishes one x86 paging mode from another."""

    name: str
    levels: int
    entry_size: int  # bytes
    level_bits: int  # address bits one level translates; the top level of PAE translates only two
    virt_bits: int
    mfn_bits: int  # width of the frame number an entry can hold
    needs_l2_for_l3_slot3: bool = False  # Xen maps itself through L3 slot 3 of every PAE guest

    @property
    def vaddr_mask(self) -> int:
        """The address bits that are translated, as a mask."""
        return (1 << self.virt_bits) - 1

    @property
    def entries(self) -> int:
        """Entries in one page table."""
        return PAGE_SIZE // self.entry_size

    @property
    def typecode(self) -> str:
        """The `array` type code of one entry."""
        return "Q" if self.entry_size == 8 else "I"

    def shift(self, level: int) -> int:
        """The address bit at which the index into a table of `level` (0 = L1) begins."""
        return PAGE_SHIFT + level * self.level_bits


TWO_LEVEL = Paging("two-level", 2, 4, 10, 32, 20)
PAE = Paging("PAE", 3, 8, 9, 32, 40, needs_l2_for_l3_slot3=True)
FOUR_LEVEL = Paging("4-level", 4, 8, 9, 48, 40)


class TableRange(NamedTuple):
    """`struct xc_dom_x86_mapping_lvl`: the tables of one level that serve one mapping.

    `start` and `end` are masked to the paging mode's virtual bits, `end` is inclusive; `pfn` is the first
    table's frame (for the mapping's own area: the frame mapped at `start`).
    """

    start: int
    end: int
    pfn: int
    pgtables: int


class Mapping(NamedTuple):
    """`struct xc_dom_x86_mapping`: a range of virtual addresses, and the tables that exist for it.

    `lvls[0]` are the L1 tables. `area.pgtables` is the number of all tables of the mapping; they occupy
    consecutive frames, the highest level first.
    """

    area: TableRange
    lvls: tuple[TableRange, ...]

    @property
    def tables_pfn(self) -> int:
        """Frame of the first page table."""
        return self.lvls[-1].pfn

    @property
    def first_pfn(self) -> int:
        """Frame mapped at `area.start`."""
        return self.area.pfn


def count_pgtables(
    paging: Paging,
    maps: Sequence[Mapping],
    start: int,
    end: int,
    *,
    pfn: int,
    tables_pfn: int,
    p2m_size: int,
) -> Mapping:
    """The tables needed to map [start, end] (end inclusive) from frame `pfn` on, beyond those of `maps`.

    `tables_pfn` is the frame the first of them will have. Raises LayoutError in Xen's words.
    """
    if len(maps) == MAPPING_MAX:
        raise LayoutError("count_pgtables: too many mappings")
    pfn_end = pfn + ((end - start) >> PAGE_SHIFT)
    if pfn_end >= p2m_size:
        raise LayoutError(
            f"count_pgtables: not enough memory for initial mapping ({pfn_end:#x} > {p2m_size:#x})"
        )
    start_masked, end_masked = start & paging.vaddr_mask, end & paging.vaddr_mask
    for other in maps:
        if start_masked <= other.area.end and end_masked >= other.area.start:
            raise LayoutError("count_pgtables: overlapping mappings")

    lvls: list[TableRange] = []
    total = 0
    for level in reversed(range(paging.levels)):
        bits = paging.shift(level + 1)
        first, last = _tables_span(paging, maps, start_masked, end_masked, level)
        pgtables = ((last - first) >> bits) + 1 if first < last else 0
        if not pgtables:
            first = last = 0
        lvls.append(TableRange(first, last, tables_pfn + total, pgtables))
        total += pgtables
    return Mapping(TableRange(start_masked, end_masked, pfn, total), tuple(reversed(lvls)))


def _tables_span(
    paging: Paging, maps: Sequence[Mapping], start: int, end: int, level: int
) -> tuple[int, int]:
    """The addresses that need a table of `level` of their own: (first, last), equal when none do."""
    if level == paging.levels - 1:  # one top-level table, and it belongs to the first mapping
        return (0, 0) if maps else (0, paging.vaddr_mask)
    mask = (1 << paging.shift(level + 1)) - 1
    first, last = start & ~mask, end | mask
    if paging.needs_l2_for_l3_slot3 and not maps and end < 0xC0000000 and level == 1:
        last = paging.vaddr_mask
    for other in maps:
        theirs = other.lvls[level]
        if theirs.start == theirs.end:
            continue
        if first >= theirs.start and last <= theirs.end:
            return 0, 0
        if theirs.start <= first <= theirs.end:
            first = theirs.end + 1
        if theirs.start <= last <= theirs.end:
            last = theirs.start - 1
    return first, last


def virt_pgtab_end(
    paging: Paging, virt_base: int, virt_alloc_end: int, *, tables_pfn: int, p2m_size: int
) -> tuple[Mapping, int]:
    """alloc_pgtables_pv: the initial mapping, and the (exclusive) address it ends at.

    The mapping has to cover its own tables, the boot stack and 512 kB more, and it ends on a 4 MB boundary.
    """
    extra_pages = 1 + (VIRT_PGTAB_SLACK >> PAGE_SHIFT)
    pages = extra_pages
    while True:
        end = (virt_alloc_end + pages * PAGE_SIZE) | (VIRT_PGTAB_ALIGN - 1)
        if (virt_base ^ end) & ~paging.vaddr_mask or end >> 64:
            raise LayoutError(
                f"the initial mapping does not fit into {paging.virt_bits} address bits",
                found=f"{virt_base:#x}-{end + 1:#x}",
            )
        mapping = count_pgtables(paging, (), virt_base, end, pfn=0, tables_pfn=tables_pfn, p2m_size=p2m_size)
        pages = mapping.area.pgtables + extra_pages
        if virt_alloc_end + pages * PAGE_SIZE <= end + 1:
            return mapping, end + 1


class PageWriter(Protocol):
    """Where page tables go: `write(pfn, data)` stores whole pages at consecutive pseudo-physical frames."""

    def write(self, pfn: int, data: bytes | memoryview) -> None: ...


def read_only_pfns(maps: Sequence[Mapping]) -> tuple[range, ...]:
    """The frames of the page tables: the initial mapping maps exactly these read-only."""
    return tuple(range(m.tables_pfn, m.tables_pfn + m.area.pgtables) for m in maps)


def setup_pgtables_pv(paging: Paging, maps: Sequence[Mapping], p2m: array[int], memory: PageWriter) -> None:
    """Write the page tables of `maps`, with machine frames from `p2m`."""
    widest = max(p2m)
    if widest >> paging.mfn_bits:
        raise LayoutError(
            f"a {paging.name} page-table entry cannot hold machine frame {widest:#x}",
            expected=f"at most {paging.mfn_bits} bits",
        )
    for level in reversed(range(paging.levels)):
        for mapping in maps:
            tables = mapping.lvls[level]
            if tables.pgtables:
                entries = array(paging.typecode, bytes(tables.pgtables * PAGE_SIZE))
                for other in maps:
                    _fill(paging, entries, tables, other, level, maps, p2m)
                memory.write(tables.pfn, memoryview(entries).cast("B"))


def _fill(
    paging: Paging,
    entries: array[int],
    tables: TableRange,
    mapping: Mapping,
    level: int,
    maps: Sequence[Mapping],
    p2m: array[int],
) -> None:
    """Fill in the entries of `tables` that lead to `mapping`: to its tables one level down, or its pages."""
    below = mapping.lvls[level - 1] if level else mapping.area
    if not below.pgtables or below.start > tables.end or below.end < tables.start:
        return
    shift = paging.shift(level)
    first = max(tables.start, below.start)
    index = (first - tables.start) >> shift
    pfn = ((first - below.start) >> shift) + below.pfn
    count = ((min(tables.end, below.end) - tables.start) >> shift) - index + 1
    for lo, hi, prot in _protections(level, pfn, pfn + count, maps):
        entries[index + lo - pfn : index + hi - pfn] = array(
            paging.typecode, [mfn << PAGE_SHIFT | prot for mfn in p2m[lo:hi]]
        )


def _protections(level: int, first: int, end: int, maps: Sequence[Mapping]) -> Iterator[tuple[int, int, int]]:
    """get_pg_prot over a run of frames: (first, end, flags), in order; page tables are read-only leaves."""
    if level:
        yield first, end, L2_PROT
        return
    at = first
    for tables in sorted(read_only_pfns(maps), key=lambda frames: frames.start):
        lo, hi = max(tables.start, at), min(tables.stop, end)
        if lo < hi:
            if at < lo:
                yield at, lo, L1_PROT
            yield lo, hi, L1_PROT_RO
            at = hi
    if at < end:
        yield at, end, L1_PROT
