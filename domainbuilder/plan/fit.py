"""Whether a domain can be made of a kernel, in so much memory or in any, and how it is laid out then.

What Xen lets pass and no guest survives is refused here as well.
"""

from __future__ import annotations

from domainbuilder.errors import ElfError, LayoutError
from domainbuilder.kernel.elf import ElfImage, ProgramHeader
from domainbuilder.kernel.parms import UNSET_ADDR, ElfDomParms
from domainbuilder.plan.guest_types import GuestType, guest_type
from domainbuilder.plan.segments import Layout, build_image
from hvcore.public.features import XenFeat
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

MAX_PAGES = 1 << 24  # 64 GB: the p2m list of a domain is eight bytes a page in this process, too
_MIB_PAGES = 1 << 20 >> PAGE_SHIFT


def least_memory_mib(elf: ElfImage, parms: ElfDomParms) -> int:
    """The least power of two of MiB in which `plan` lays the domain out, without a ramdisk.

    Raises what `plan` raises with any memory: BuildError.
    """
    check_kernel(elf, parms)
    guest, pages = guest_type(parms.guest_type), _MIB_PAGES
    while True:
        try:
            layout_in(pages, parms, guest, None)
        except LayoutError as error:
            error.where = error.where or elf.where()
            if 2 * pages > MAX_PAGES:
                raise
            pages *= 2
        else:
            return pages // _MIB_PAGES


def check_kernel(elf: ElfImage, parms: ElfDomParms) -> None:
    """What no memory makes good: raises ElfError or LayoutError.

    Xen fills what is between VIRT_BASE and the kernel with the domain's memory.
    """
    if parms.f_required >> XenFeat.auto_translated_physmap & 1:
        raise LayoutError("bootearly: PV Autotranslate guests no longer supported", where=elf.where())
    check_load_segments(elf, parms)
    if parms.virt_kend - parms.virt_base > MAX_PAGES << PAGE_SHIFT:
        padding = parms.virt_kstart - parms.virt_base >> PAGE_SHIFT
        raise LayoutError(
            f"xc_dom_chk_alloc_pages: segment padding too large ({padding:#x} pages): VIRT_BASE and the "
            "addresses of the kernel contradict each other",
            where=elf.where(),
            found=f"VIRT_BASE {parms.virt_base:#x}, and the kernel at {parms.virt_kstart:#x}-"
            f"{parms.virt_kend:#x}",
            expected=f"the kernel's end within {MAX_PAGES >> 30 - PAGE_SHIFT} GB of VIRT_BASE",
        )


def check_load_segments(elf: ElfImage, parms: ElfDomParms) -> None:
    """Each LOAD segment within the kernel's space and apart from the others, by physical address.

    libelf skips what lies outside, says "program segments total to more than the input image size" of the
    grossest overlaps and lets the others pass: what the guest gets then is nothing anybody has linked.
    """
    pstart = elf.pstart
    limit = -(-(parms.virt_kend - parms.virt_kstart) // PAGE_SIZE) * PAGE_SIZE
    before: ProgramHeader | None = None
    for phdr in sorted(elf.load_segments, key=lambda phdr: phdr.paddr):
        size = max(phdr.filesz, phdr.memsz)
        if phdr.paddr - pstart + size > limit:
            raise ElfError(
                f"LOAD segment {phdr.index} reaches beyond the kernel",
                where=elf.where(phdr.header_offset),
                found=f"{phdr.paddr:#x}+{size:#x}",
                expected=f"within {pstart:#x}+{limit:#x}",
            )
        if not size:
            continue
        if before is not None and phdr.paddr < before.paddr + max(before.filesz, before.memsz):
            raise ElfError(
                f"LOAD segments {before.index} and {phdr.index} overlap in physical memory",
                where=elf.where(phdr.header_offset),
                found=f"{before.paddr:#x}+{before.memsz:#x} and {phdr.paddr:#x}+{phdr.memsz:#x}",
            )
        before = phdr


def layout_in(
    nr_pages: int, parms: ElfDomParms, guest: GuestType, module_size: int | None
) -> tuple[Layout, int | None]:
    """The layout in so many pages, with a module of so many bytes or none, and the hypercall page's frame.

    Raises LayoutError, in Xen's words, where it does not fit.
    """
    if not 0 < nr_pages <= MAX_PAGES:
        raise LayoutError(
            f"meminit_pv: failed to allocate {nr_pages:#x} pages",
            expected=f"between 1 and {MAX_PAGES >> 20 - PAGE_SHIFT} MB of memory",
        )
    for name in ("virt_base", "virt_entry"):
        if guest.width == 4 and getattr(parms, name) >> 32:
            raise LayoutError(f"{name} is not a 32-bit address", found=getattr(parms, name))
    return build_image(parms, guest, nr_pages, module_size), _hypercall_page_pfn(parms, nr_pages)


def _hypercall_page_pfn(parms: ElfDomParms, nr_pages: int) -> int | None:
    """setup_hypercall_page: the frame Xen will fill with hypercall stubs, None when there is none."""
    if parms.virt_hypercall == UNSET_ADDR:
        return None
    pfn = (parms.virt_hypercall - parms.virt_base) >> PAGE_SHIFT
    if not 0 <= pfn < nr_pages:
        raise LayoutError(
            "setup_hypercall_page: HYPERCALL_INIT failed: the hypercall page is outside of guest memory",
            found=parms.virt_hypercall,
            expected=f"{parms.virt_base:#x}-{parms.virt_base + (nr_pages << PAGE_SHIFT):#x}",
        )
    return pfn
