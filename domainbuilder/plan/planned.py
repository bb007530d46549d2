"""What a plan says: where everything goes and what the guest is told, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field

from domainbuilder.kernel.elf import ElfImage
from domainbuilder.kernel.parms import ElfDomParms
from domainbuilder.plan.guest_types import GuestType
from domainbuilder.plan.pgtables import Mapping
from domainbuilder.plan.ramdisk import Ramdisk
from domainbuilder.plan.segments import (
    BOOT_STACK,
    CONSOLE,
    PAGE_TABLES,
    START_INFO,
    XENSTORE,
    Layout,
    Segment,
)
from domainbuilder.plan.start_info import StartInfo
from domainbuilder.plan.vcpu_context import VcpuContext


@dataclass(frozen=True, slots=True)
class Planned:
    """What the builder will do: where everything goes, and what the guest is told.

    Frames are pseudo-physical. `start_info` and `vcpu` are as the guest will see them, except that what
    holds a machine frame (`start_info.shared_info`, `store_mfn`, `console_mfn`, `vcpu.cr3`) is still 0.
    `elf` and `ramdisk` are the inputs; a plan read back from a built image has neither, and cannot be built.
    """

    kernel: str
    guest: GuestType
    parms: ElfDomParms
    nr_pages: int
    layout: Layout
    start_info: StartInfo
    vcpu: VcpuContext
    hypercall_page_pfn: int | None
    module_size: int | None
    cmdline_dropped: int = 0  # bytes that did not fit into start_info
    elf: ElfImage | None = field(default=None, compare=False, repr=False)
    ramdisk: Ramdisk | None = field(default=None, compare=False, repr=False)

    @property
    def guest_type(self) -> str:
        """Xen's name for the kind of guest: "xen-3.0-x86_32p" and so on."""
        return self.guest.name

    @property
    def segments(self) -> tuple[Segment, ...]:
        """In the order of allocation."""
        return self.layout.segments

    @property
    def maps(self) -> tuple[Mapping, ...]:
        """The mappings and their page tables: the initial one, and that of a p2m list set apart."""
        return self.layout.maps

    @property
    def start_info_pfn(self) -> int:
        """Frame of the start_info page."""
        return self.layout[START_INFO].pfn

    @property
    def xenstore_pfn(self) -> int:
        """Frame of the xenstore ring."""
        return self.layout[XENSTORE].pfn

    @property
    def console_pfn(self) -> int:
        """Frame of the console ring."""
        return self.layout[CONSOLE].pfn

    @property
    def bootstack_pfn(self) -> int:
        """Frame of the boot stack."""
        return self.layout[BOOT_STACK].pfn

    @property
    def pgtables_pfn(self) -> int:
        """Frame of the top-level page table."""
        return self.layout[PAGE_TABLES].pfn
