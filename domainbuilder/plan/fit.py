"""Whether a domain of any size can be made of a kernel, and how much memory it takes at least."""

from __future__ import annotations

from domainbuilder.build.guest_memory import MAX_PAGES
from domainbuilder.errors import LayoutError
from domainbuilder.kernel.elf import ElfImage
from domainbuilder.kernel.parms import ElfDomParms
from domainbuilder.plan.domain_plan import check_kernel, lay_out
from hvcore.public.xen import PAGE_SHIFT

_MIB_PAGES = 1 << 20 >> PAGE_SHIFT


def least_memory_mib(elf: ElfImage, parms: ElfDomParms) -> int:
    """The least power of two of MiB in which `plan` lays the domain out, without a ramdisk.

    Raises what `plan` raises with any memory: BuildError.
    """
    check_kernel(elf, parms)
    pages = _MIB_PAGES
    while True:
        try:
            lay_out(parms, pages, kernel=elf.name, module_size=None, cmdline=b"")
        except LayoutError as error:
            error.where = error.where or elf.where()
            if 2 * pages > MAX_PAGES:
                raise
            pages *= 2
        else:
            return pages // _MIB_PAGES
