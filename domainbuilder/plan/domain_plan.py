"""Planning a domain: parse the kernel and lay the domain out, without allocating its memory.

xc_dom_parse_image, xc_dom_mem_init and xc_dom_build_image of tools/libs/guest/xg_dom_core.c, Xen 4.17, as far
as they decide and not write.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from domainbuilder.errors import LayoutError
from domainbuilder.kernel.elf import parse_elf
from domainbuilder.kernel.findings import Finding
from domainbuilder.kernel.kernel_file import KernelFile, load_kernel
from domainbuilder.kernel.parms import UNSET_ADDR, ElfDomParms, XenPaeType, xc_dom_parse_elf_kernel
from domainbuilder.plan.findings import survey
from domainbuilder.plan.fit import MAX_PAGES, check_kernel, layout_in
from domainbuilder.plan.guest_types import GuestType
from domainbuilder.plan.guest_types import guest_type as guest_type_named
from domainbuilder.plan.planned import Planned
from domainbuilder.plan.ramdisk import open_ramdisk
from domainbuilder.plan.segments import (
    BOOT_STACK,
    MODULE0,
    PAGE_TABLES,
    PHYS2MACH,
    START_INFO,
    Layout,
    p2m_base,
)
from domainbuilder.plan.start_info import StartInfo, guest_cmdline
from domainbuilder.plan.vcpu_context import vcpu_x86_32, vcpu_x86_64
from hvcore.public.xen import PAGE_SHIFT, SIF_MOD_START_PFN

DEFAULT_MEMORY_MIB = 64
_MOST_BY_DEFAULT = 1024  # beyond that a kernel is larger than any: the user has to say so
DEFAULT_STORE_EVTCHN = 1
DEFAULT_CONSOLE_EVTCHN = 2


@dataclass(frozen=True, slots=True)
class DomainPlan(Planned):
    """What the builder will do, and what is worth telling about it."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is worth telling: about the plan, and about the kernel's pages. Worked out at each call."""
        return survey(self).findings


def plan(
    kernel: KernelFile | str | os.PathLike[str],
    memory_mib: int | None = None,
    *,
    ramdisk: str | os.PathLike[str] | bytes | None = None,
    cmdline: str | bytes = "",
    guest_type: str | None = None,
) -> DomainPlan:
    """Work out the domain that `kernel` would get with `memory_mib` MiB, without allocating its memory.

    Without `memory_mib` it gets 64, or what `default_memory` says that it needs. `guest_type` chooses among
    the kinds of guest that the kernel itself offers (PAE_MODE "bimodal"). Raises
    BuildError: the file is no kernel Xen would start, or (LayoutError, in Xen's words) does not fit.
    """
    opened = kernel if isinstance(kernel, KernelFile) else load_kernel(kernel)
    elf = parse_elf(opened.image, opened.path)
    parms = xc_dom_parse_elf_kernel(elf)
    check_kernel(elf, parms)
    module = None if ramdisk is None else open_ramdisk(ramdisk)
    given = cmdline.encode("utf-8", "surrogateescape") if isinstance(cmdline, str) else cmdline
    kept = guest_cmdline(given)

    def at(mib: int) -> DomainPlan:
        return lay_out(
            parms,
            mib << 20 >> PAGE_SHIFT,
            kernel=opened.path,
            module_size=None if module is None else module.segment_size,
            cmdline=kept,
            guest_type=guest_type,
        )

    mib = DEFAULT_MEMORY_MIB if memory_mib is None else memory_mib
    try:
        planned = at(mib)
    except LayoutError as error:
        roomy = default_memory(at)
        if roomy is None or not 0 < mib < roomy:
            error.where = error.where or elf.where()
            raise
        if memory_mib is not None or roomy > _MOST_BY_DEFAULT:
            raise LayoutError(
                error.reason,
                where=error.where or elf.where(),
                found=f"{mib} MB of memory",
                expected=f"-m {roomy} (memory_mib={roomy})",
            ) from error
        planned = at(roomy)
    else:
        if memory_mib is None and not _roomy(planned):
            planned = at(default_memory(at) or DEFAULT_MEMORY_MIB)
    return replace(planned, cmdline_dropped=len(given) - len(kept), elf=elf, ramdisk=module)


def default_memory(at: Callable[[int], DomainPlan]) -> int | None:
    """The MiB that a kernel gets if nobody says how many, `at` being its plan for so many: the first power of
    two from 64 on of which it takes no more than half to start. None where no memory makes it fit.
    """
    for shift in range(DEFAULT_MEMORY_MIB.bit_length() - 1, (MAX_PAGES >> 20 - PAGE_SHIFT).bit_length()):
        try:
            planned = at(1 << shift)
        except LayoutError:
            continue
        if _roomy(planned):
            return 1 << shift
    return None


def _roomy(planned: DomainPlan) -> bool:
    return 2 * planned.layout.pfn_alloc_end <= planned.nr_pages


def lay_out(
    parms: ElfDomParms,
    nr_pages: int,
    *,
    kernel: str,
    module_size: int | None,
    cmdline: bytes,
    guest_type: str | None = None,
) -> DomainPlan:
    """The plan for a kernel that asks for `parms`, in `nr_pages` pages, with a module of that many bytes."""
    guest = guest_type_named(_choose_guest_type(parms, guest_type))
    layout, hypercall_page = layout_in(nr_pages, parms, guest, module_size)
    stack = parms.virt_base + ((layout[BOOT_STACK].pfn + 1) << PAGE_SHIFT)
    info = parms.virt_base + (layout[START_INFO].pfn << PAGE_SHIFT)
    return DomainPlan(
        kernel=kernel,
        guest=guest,
        parms=parms,
        nr_pages=nr_pages,
        layout=layout,
        start_info=_start_info(parms, guest, nr_pages, layout, cmdline),
        vcpu=(
            vcpu_x86_64(entry=parms.virt_entry, stack=stack, start_info=info)
            if guest.width == 8
            else vcpu_x86_32(entry=parms.virt_entry, stack=stack, start_info=info, pae=parms.pae)
        ),
        hypercall_page_pfn=hypercall_page,
        module_size=module_size,
    )


def _choose_guest_type(parms: ElfDomParms, wanted: str | None) -> str:
    offered = [parms.guest_type]
    if parms.pae == XenPaeType.BIMODAL and parms.guest_type != "xen-3.0-x86_64":
        offered = ["xen-3.0-x86_32p", "xen-3.0-x86_32"]
    if wanted is not None and wanted not in offered:
        raise LayoutError(f"the kernel is no {wanted} guest", expected=" or ".join(offered))
    return wanted or offered[0]


def _start_info(
    parms: ElfDomParms, guest: GuestType, nr_pages: int, layout: Layout, cmdline: bytes
) -> StartInfo:
    """start_info_x86_32, start_info_x86_64: all but the machine frames."""
    p2m = layout[PHYS2MACH]
    tables = layout[PAGE_TABLES]
    module = layout.get(MODULE0)
    unmapped = module is not None and not module.mapped
    apart = p2m_base(parms, guest) != UNSET_ADDR
    mod_start, mod_len = 0, 0
    if module is not None:
        mod_start = module.pfn if unmapped else module.vstart
        mod_len = module.pages << PAGE_SHIFT if unmapped else module.size
    return StartInfo(
        magic=guest.name,
        nr_pages=nr_pages,
        shared_info=0,
        flags=SIF_MOD_START_PFN if unmapped else 0,
        store_mfn=0,
        store_evtchn=DEFAULT_STORE_EVTCHN,
        console_mfn=0,
        console_evtchn=DEFAULT_CONSOLE_EVTCHN,
        pt_base=tables.vstart,
        nr_pt_frames=layout.maps[0].area.pgtables,
        mfn_list=p2m.vstart,
        mod_start=mod_start,
        mod_len=mod_len,
        cmd_line=cmdline,
        first_p2m_pfn=p2m.pfn if apart else 0,
        nr_p2m_frames=p2m.pages if apart else 0,
    )
