"""From a kernel file to a domain in memory: parse, plan, build, one value per stage.

`plan` (domain_plan.py) decides where everything goes; `build` fills guest memory in, as elf_load_binary and
xc_dom_boot_image of libxenguest do.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, replace

from domainbuilder.build.bsd_symtab import load_bsdsyms
from domainbuilder.build.guest_memory import Frames, GuestMemory, allocate_ram, machine_frames
from domainbuilder.errors import BuildError, LayoutError
from domainbuilder.kernel.elf import ElfImage
from domainbuilder.kernel.kernel_file import KernelFile
from domainbuilder.kernel.parms import ElfDomParms, XenPaeType
from domainbuilder.plan.domain_plan import (
    DEFAULT_CONSOLE_EVTCHN,
    DEFAULT_STORE_EVTCHN,
    DomainPlan,
    plan,
)
from domainbuilder.plan.pgtables import setup_pgtables_pv
from domainbuilder.plan.segments import KERNEL, MODULE0, PHYS2MACH, Segment
from domainbuilder.plan.start_info import StartInfo, shared_info
from domainbuilder.plan.vcpu_context import VcpuContext
from hvcore.boot_image import BootImage
from hvcore.public.vcpu_guest_context import xen_pfn_to_cr3
from hvcore.public.xen import PAGE_SHIFT

__all__ = ["DomainImage", "DomainPlan", "build", "plan"]

DEFAULT_FIRST_MFN = 0x10000
DEFAULT_SHARED_INFO_MFN = 0xFFFF


@dataclass(frozen=True, slots=True, eq=False)
class DomainImage:
    """A built domain: everything a hypervisor needs to run it.

    `p2m` maps pseudo-physical to machine frames; `ram` is writable, of format "B", nr_pages << 12 bytes in
    machine order: the page of machine frame m is at (m - first_mfn) << 12. `start_info` is what the guest's
    start_info page says, `shared_info` the 4096 bytes to put into machine frame `shared_info_mfn`, which is
    not part of `ram`. The hypercall page (plan.hypercall_page_pfn) is left for the hypervisor to fill.
    """

    plan: DomainPlan
    p2m: array[int]
    ram: memoryview
    first_mfn: int
    shared_info_mfn: int
    context: VcpuContext
    start_info: StartInfo
    shared_info: bytes

    def boot_image(self) -> BootImage:
        """The same, in the hypervisor's terms."""
        plan, pfn = self.plan, self.plan.hypercall_page_pfn
        return BootImage(
            guest_type=plan.guest_type,
            nr_pages=plan.nr_pages,
            first_mfn=self.first_mfn,
            p2m=self.p2m,
            ram=self.ram,
            root_mfn=self.p2m[plan.pgtables_pfn],
            hypercall_page_mfn=None if pfn is None else self.p2m[pfn],
            shared_info_mfn=self.shared_info_mfn,
            shared_info=self.shared_info,
            context=self.context.pack(plan.guest.width),
            store_mfn=self.start_info.store_mfn,
            store_evtchn=self.start_info.store_evtchn,
            console_mfn=self.start_info.console_mfn,
            console_evtchn=self.start_info.console_evtchn,
        )

    @property
    def memory(self) -> GuestMemory:
        """`ram`, addressed by pseudo-physical frame."""
        return GuestMemory(self.ram, self.p2m, self.first_mfn)


def build(
    kernel: DomainPlan | KernelFile | str | os.PathLike[str],
    memory_mib: int | None = None,
    *,
    ramdisk: str | os.PathLike[str] | bytes | None = None,
    cmdline: str | bytes = "",
    guest_type: str | None = None,
    frames: Frames = "xen",
    first_mfn: int = DEFAULT_FIRST_MFN,
    shared_info_mfn: int = DEFAULT_SHARED_INFO_MFN,
    store_evtchn: int = DEFAULT_STORE_EVTCHN,
    console_evtchn: int = DEFAULT_CONSOLE_EVTCHN,
    ram: memoryview | None = None,
) -> DomainImage:
    """Build the domain of a plan; or of a kernel, planned with the first four options, which are the plan's.

    `frames` says which machine frame backs which page: "xen" as Xen's heap hands them out (descending 2 MB
    extents), "linear" first_mfn + pfn. `ram` is where to build, zeroed, nr_pages << 12 bytes in machine
    order; without it memory is mapped. Raises what `plan` raises, and LayoutError when a machine frame does
    not fit where the guest has to find it.
    """
    if not isinstance(kernel, DomainPlan):
        kernel = plan(kernel, memory_mib, ramdisk=ramdisk, cmdline=cmdline, guest_type=guest_type)
    elif (memory_mib, ramdisk, cmdline, guest_type) != (None, None, "", None):
        raise BuildError("a plan has its memory, ramdisk and command line already")
    if kernel.elf is None:
        raise BuildError("a plan read back from a built image has no kernel to build from")
    nr_pages, width = kernel.nr_pages, kernel.guest.width
    p2m = machine_frames(frames, nr_pages, first_mfn)
    _check_machine_frames(kernel, p2m, first_mfn, shared_info_mfn)
    if ram is None:
        ram = allocate_ram(nr_pages)
    if ram.format != "B" or ram.readonly or len(ram) != nr_pages << PAGE_SHIFT:
        raise ValueError(f"ram must be {nr_pages << PAGE_SHIFT:#x} writable bytes")
    start_info = kernel.start_info._replace(
        shared_info=shared_info_mfn << PAGE_SHIFT,
        store_mfn=p2m[kernel.xenstore_pfn],
        store_evtchn=store_evtchn,
        console_mfn=p2m[kernel.console_pfn],
        console_evtchn=console_evtchn,
    )
    memory = GuestMemory(ram, p2m, first_mfn)
    _load_kernel(kernel.elf, kernel.parms, memory, kernel.layout[KERNEL])
    if kernel.ramdisk is not None:
        kernel.ramdisk.load(memory, kernel.layout[MODULE0].pfn)
    p2m_list = p2m if width == 8 else array("I", p2m)
    memory.write(kernel.layout[PHYS2MACH].pfn, memoryview(p2m_list).cast("B"))
    setup_pgtables_pv(kernel.guest.paging, kernel.maps, p2m, memory)
    memory.write(kernel.start_info_pfn, start_info.pack(width))
    return DomainImage(
        plan=kernel,
        p2m=p2m,
        ram=ram,
        first_mfn=first_mfn,
        shared_info_mfn=shared_info_mfn,
        context=replace(kernel.vcpu, cr3=xen_pfn_to_cr3(p2m[kernel.pgtables_pfn], width)),
        start_info=start_info,
        shared_info=shared_info(),
    )


def _check_machine_frames(plan: DomainPlan, p2m: array[int], first_mfn: int, shared_info_mfn: int) -> None:
    last = first_mfn + plan.nr_pages - 1
    if first_mfn < 0 or shared_info_mfn < 0 or first_mfn <= shared_info_mfn <= last:
        raise LayoutError(
            "shared_info's machine frame is one of the domain's own",
            found=shared_info_mfn,
            expected=f"outside of {first_mfn:#x}-{last:#x}",
        )
    if plan.guest.width == 4 and (last >> 32 or shared_info_mfn >> 32 - PAGE_SHIFT):
        raise LayoutError("a 32-bit guest cannot be told of so high a machine frame", found=last)
    l3mfn = p2m[plan.pgtables_pfn]
    if plan.parms.pae == XenPaeType.YES and plan.guest.paging.levels == 3 and l3mfn >= 0x100000:
        raise LayoutError(
            "setup_pgtables_x86_32_pae: cannot move L3 below 4G. extended-cr3 not supported by guest. "
            f"(L3 PFN {plan.pgtables_pfn:#x} MFN {l3mfn:#x})"
        )


def _load_kernel(elf: ElfImage, parms: ElfDomParms, memory: GuestMemory, segment: Segment) -> None:
    """elf_load_binary: the LOAD segments at their physical addresses relative to the lowest one.

    They do not overlap and stay within the kernel's space: the plan has seen to that. Memory is zero already.
    """
    pstart = elf.pstart
    for phdr in elf.load_segments:
        memory.write(segment.pfn, elf.segment_bytes(phdr), phdr.paddr - pstart)
    if parms.bsd_symtab:
        for address, data in load_bsdsyms(elf, elf.pend):
            if address - pstart + len(data) <= segment.pages << PAGE_SHIFT:
                memory.write(segment.pfn, data, address - pstart)
