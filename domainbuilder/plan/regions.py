"""A plan taken apart for people: regions with the gaps between them, page tables, registers.

The text, the JSON and the picture all show these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from domainbuilder.plan.domain_plan import DomainPlan
from domainbuilder.plan.findings import canonical, virtual_range
from domainbuilder.plan.segments import PADDING, PAGE_TABLES, PHYS2MACH
from domainbuilder.plan.vcpu_context import VCPU_CONTEXT_FIELDS
from hvcore.public.xen import PAGE_SHIFT

FREE = "free"


@dataclass(frozen=True, slots=True)
class Region:
    """A run of frames with one use. `vstart` is None where no page table of the new domain maps it.

    `size` is the bytes in use, of `pages` pages; padding and free memory are in use by nobody.
    """

    name: str
    pfn: int
    pages: int
    size: int
    vstart: int | None
    read_only: bool = False

    @property
    def vend(self) -> int | None:
        """Where its last page ends, None where it is not mapped."""
        return None if self.vstart is None else self.vstart + (self.pages << PAGE_SHIFT)


def regions(plan: DomainPlan) -> tuple[Region, ...]:
    """Every frame of the domain, in order, each in exactly one region."""
    return tuple(_regions(plan))


def _regions(plan: DomainPlan) -> Iterator[Region]:
    at = 0
    for region in _segments(plan):
        if region.pfn > at:
            yield _gap(plan, PADDING, at, region.pfn)
        if region.pages:
            yield region
        at = region.pfn + region.pages
    if plan.layout.pfn_alloc_end > at:
        yield _gap(plan, PADDING, at, plan.layout.pfn_alloc_end)
    if plan.nr_pages > plan.layout.pfn_alloc_end:
        yield _gap(plan, FREE, plan.layout.pfn_alloc_end, plan.nr_pages)


def _segments(plan: DomainPlan) -> Iterator[Region]:
    """The segments as regions; a p2m list set apart has its own page tables behind it, mapped nowhere."""
    for seg in plan.segments:
        region = Region(
            seg.name, seg.pfn, seg.pages, seg.size, seg.vstart if seg.mapped else None, seg.read_only
        )
        if seg.name == PHYS2MACH and len(plan.maps) > 1:
            tables = plan.maps[1].area.pgtables
            first = seg.pfn + seg.pages - tables
            yield replace(region, pages=seg.pages - tables)
            yield Region(f"{PHYS2MACH} {PAGE_TABLES}", first, tables, tables << PAGE_SHIFT, None)
        else:
            yield region


def _gap(plan: DomainPlan, name: str, first: int, end: int) -> Region:
    """Frames nobody uses: mapped as far as the initial mapping reaches, which is never half of a gap."""
    start, stop = virtual_range(plan.guest.paging, plan.maps[0])
    vstart = start + (first << PAGE_SHIFT)
    return Region(name, first, end - first, 0, vstart if vstart < stop else None)


@dataclass(frozen=True, slots=True)
class Tables:
    """The page tables of one level that serve one mapping; `start` to `end` is what they cover."""

    mapping: int
    level: int  # 1 is the lowest
    tables: int
    pfn: int
    start: int
    end: int  # exclusive


def tables(plan: DomainPlan) -> tuple[Tables, ...]:
    """Every table there is, mapping by mapping, the highest level first."""
    paging = plan.guest.paging
    return tuple(
        Tables(
            number,
            level + 1,
            rung.pgtables,
            rung.pfn,
            canonical(paging, rung.start),
            canonical(paging, rung.end) + 1,
        )
        for number, mapping in enumerate(plan.maps)
        for level, rung in reversed(tuple(enumerate(mapping.lvls)))
        if rung.pgtables
    )


_ORDER = [
    *("eip", "rip", "esp", "rsp", "esi", "rsi", "eflags", "rflags"),
    *("cs", "ss", "ds", "es", "fs", "gs", "dr6", "dr7"),
]


def registers(plan: DomainPlan) -> dict[str, int]:
    """The registers that are not 0, and eip or rip; without cr3, which a plan has not got."""
    values = {}
    for name in VCPU_CONTEXT_FIELDS[plan.guest.width]:
        value = getattr(plan.vcpu, name)
        if name == "ip" or (value and name not in ("vgcf", "vm_assist", "kernel_ss", "kernel_sp")):
            values[_register_name(name, plan.guest.width)] = value
    return dict(sorted(values.items(), key=lambda item: _ORDER.index(item[0])))


def _register_name(name: str, width: int) -> str:
    if name in ("cs", "ss", "ds", "es", "fs", "gs", "dr6", "dr7") or name[1:].isdigit():
        return name
    return ("r" if width == 8 else "e") + name


def human(size: int) -> str:
    """A number of bytes for people: "4 kB", "58 MB", "1.5 MB"."""
    for unit, shift in (("EB", 60), ("PB", 50), ("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10)):
        if size >> shift:
            value = size / (1 << shift)
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size} B"
