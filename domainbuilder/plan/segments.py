"""The layout of a new domain: which pseudo-physical frames hold what, and where that is mapped.

After xc_dom_build_image, xc_dom_alloc_segment and their kin in tools/libs/guest/xg_dom_core.c of Xen 4.17.
Addresses are bytes, sizes of segments too; frames are counted in pages of 4 KiB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from domainbuilder.errors import LayoutError
from domainbuilder.kernel.parms import UNSET_ADDR, ElfDomParms
from domainbuilder.plan.guest_types import GuestType
from domainbuilder.plan.pgtables import Mapping, count_pgtables, virt_pgtab_end
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

# xc_dom_alloc_segment's and xc_dom_alloc_page's names, as Xen logs them.
KERNEL = "kernel"
MODULE0 = "module0"
PHYS2MACH = "phys2mach"
START_INFO = "start info"
XENSTORE = "xenstore"
CONSOLE = "console"
PAGE_TABLES = "page tables"
BOOT_STACK = "boot stack"
PADDING = "padding"


@dataclass(frozen=True, slots=True)
class Segment:
    """`struct xc_dom_seg`: [vstart, vend) in `pages` frames from `pfn`; `vend` is where its bytes end.

    A segment that is not `mapped` lies beyond the initial mapping: `vstart` is where Xen counts it, and no
    page table leads there (a phys2mach segment with INIT_P2M is mapped at its `vstart`, the list alone).
    """

    name: str
    vstart: int
    vend: int
    pfn: int
    pages: int
    read_only: bool = False
    mapped: bool = True

    @property
    def size(self) -> int:
        """Bytes in use."""
        return self.vend - self.vstart


@dataclass(frozen=True, slots=True)
class Layout:
    """What xc_dom_build_image works out, and nothing of what it writes."""

    segments: tuple[Segment, ...]  # in the order of allocation: ascending frames, without the padding
    maps: tuple[Mapping, ...]
    virt_alloc_end: int
    virt_pgtab_end: int
    pfn_alloc_end: int

    def get(self, name: str) -> Segment | None:
        """The segment of that name, or None."""
        return next((seg for seg in self.segments if seg.name == name), None)

    def __getitem__(self, name: str) -> Segment:
        """The segment of that name; every layout has all but module0."""
        return next(seg for seg in self.segments if seg.name == name)


class _Allocator:
    """xc_dom_chk_alloc_pages and its callers: hands out frames and addresses in step, ascending."""

    def __init__(self, total_pages: int, virt_alloc_end: int) -> None:
        self.total_pages = total_pages
        self.virt_alloc_end = virt_alloc_end
        self.pfn_alloc_end = 0
        self.segments: list[Segment] = []

    def chk_alloc_pages(self, name: str, pages: int) -> None:
        if pages > self.total_pages - self.pfn_alloc_end:
            raise LayoutError(
                f"xc_dom_chk_alloc_pages: segment {name} too large "
                f"({pages:#x} > {self.total_pages:#x} - {self.pfn_alloc_end:#x} pages)"
            )
        self.pfn_alloc_end += pages
        self.virt_alloc_end += pages << PAGE_SHIFT

    def alloc_pad(self, boundary: int) -> None:
        if boundary & (PAGE_SIZE - 1):
            raise LayoutError(f"xc_dom_alloc_pad: segment boundary isn't page aligned ({boundary:#x})")
        if boundary < self.virt_alloc_end:
            raise LayoutError(
                f"xc_dom_alloc_pad: segment boundary too low ({boundary:#x} < {self.virt_alloc_end:#x})"
            )
        self.chk_alloc_pages(PADDING, (boundary - self.virt_alloc_end) >> PAGE_SHIFT)

    def alloc_segment(self, name: str, size: int, *, start: int = 0, mapped: bool = True) -> Segment:
        if start:
            self.alloc_pad(start)
        vstart, pfn = self.virt_alloc_end, self.pfn_alloc_end
        pages = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
        self.chk_alloc_pages(name, pages)
        self.segments.append(Segment(name, vstart, vstart + size, pfn, pages, name == PAGE_TABLES, mapped))
        return self.segments[-1]


def p2m_base(parms: ElfDomParms, guest: GuestType) -> int:
    """Where the guest wants its p2m list, UNSET_ADDR when Xen does not heed the wish."""
    if not guest.p2m_base_supported or parms.p2m_base >= parms.virt_base or parms.p2m_base % PAGE_SIZE:
        return UNSET_ADDR
    return parms.p2m_base


def build_image(parms: ElfDomParms, guest: GuestType, total_pages: int, module_size: int | None) -> Layout:
    """xc_dom_build_image: lay out a domain of `total_pages`, with a module of `module_size` bytes or none.

    Raises LayoutError, in Xen's words, when something does not fit.
    """
    dom = _Allocator(total_pages, 0 if parms.virt_base == UNSET_ADDR else parms.virt_base)
    base = p2m_base(parms, guest)
    kernel_size = parms.virt_kend - parms.virt_kstart
    if kernel_size < 0:
        raise LayoutError(
            "the kernel ends before it starts", found=f"{parms.virt_kstart:#x}-{parms.virt_kend:#x}"
        )
    dom.alloc_segment(KERNEL, kernel_size, start=parms.virt_kstart)
    if module_size is not None and not parms.unmapped_initrd:
        dom.alloc_segment(MODULE0, module_size)
    p2m_size = -(-total_pages * guest.width // PAGE_SIZE) * PAGE_SIZE
    if base == UNSET_ADDR:
        dom.alloc_segment(PHYS2MACH, p2m_size)
    for page in (START_INFO, XENSTORE, CONSOLE):
        dom.alloc_segment(page, PAGE_SIZE)

    initial, pgtab_end = virt_pgtab_end(
        guest.paging, parms.virt_base, dom.virt_alloc_end, tables_pfn=dom.pfn_alloc_end, p2m_size=total_pages
    )
    maps = [initial]
    dom.alloc_segment(PAGE_TABLES, initial.area.pgtables * PAGE_SIZE)
    dom.alloc_segment(BOOT_STACK, PAGE_SIZE)
    dom.alloc_pad(pgtab_end)

    if module_size is not None and parms.unmapped_initrd:
        dom.alloc_segment(MODULE0, module_size, mapped=False)
    if base != UNSET_ADDR:
        maps.append(_alloc_p2m_list_x86_64(dom, guest, maps, base, p2m_size))
    return Layout(tuple(dom.segments), tuple(maps), dom.virt_alloc_end, pgtab_end, dom.pfn_alloc_end)


def _alloc_p2m_list_x86_64(
    dom: _Allocator, guest: GuestType, maps: list[Mapping], base: int, p2m_size: int
) -> Mapping:
    """The p2m list outside the initial mapping, at `base`, with page tables of its own right behind it."""
    pfn = dom.pfn_alloc_end
    mapping = count_pgtables(
        guest.paging,
        maps,
        base,
        base + p2m_size - 1,
        pfn=pfn,
        tables_pfn=pfn + (p2m_size >> PAGE_SHIFT),
        p2m_size=dom.total_pages,
    )
    seg = dom.alloc_segment(PHYS2MACH, p2m_size + mapping.area.pgtables * PAGE_SIZE)
    dom.segments[-1] = replace(seg, vstart=base, vend=base + p2m_size)
    return mapping
