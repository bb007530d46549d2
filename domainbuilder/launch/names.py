"""The names that reports about a running guest give to its addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError
from domainbuilder.kernel.elf import PF_X, ElfImage, parse_elf
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.kernel.parms import UNSET_ADDR
from domainbuilder.kernel.unpacked import users_kernels
from domainbuilder.symbols.read import kernel_symbols
from domainbuilder.symbols.table import Symbols, no_symbols
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from domainbuilder.plan.domain_plan import DomainPlan


def _kernel_elf(plan: DomainPlan, *, cache: bool) -> ElfImage | None:
    """The kernel that was launched, opened again for its symbols; None if it has gone or is no file."""
    if plan.elf is not None:
        return plan.elf
    try:
        return parse_elf(load_kernel(plan.kernel, kept=users_kernels(cache=cache)).image, plan.kernel)
    except (BuildError, OSError):
        return None


class Names:
    """Addresses to `symbol+offset`, for the guest's code, by `symbols` or by the kernel's own.

    Without a plan nothing is known of the kernel: then what the symbols name is code. `cache`: an unpacked
    kernel is looked for under the user's cache folder, and kept there.
    """

    def __init__(self, plan: DomainPlan | None, symbols: Symbols | None, *, cache: bool) -> None:
        elf = _kernel_elf(plan, cache=cache) if plan is not None else None
        if symbols is None:
            symbols = kernel_symbols(elf) if elf is not None else no_symbols()
        self.symbols = symbols
        self.virt_base = plan.parms.virt_base if plan is not None else None
        stubs = plan.parms.virt_hypercall if plan is not None else UNSET_ADDR
        self.stubs = (
            range(0) if stubs == UNSET_ADDR else range(stubs & -PAGE_SIZE, (stubs & -PAGE_SIZE) + PAGE_SIZE)
        )
        self._code: list[tuple[int, int]] | None = None
        if elf is not None:
            self._code = [(p.vaddr, p.vaddr + p.memsz) for p in elf.load_segments if p.flags & PF_X]
        elif plan is not None:  # a built domain, whose kernel is nowhere but in its memory
            self._code = [(plan.parms.virt_kstart, plan.parms.virt_kend)]

    def __call__(self, address: int) -> str:
        return self.symbols.name(address) if self.in_code(address) else ""

    def line(self, address: int) -> str:
        """As "file.c:34", of an address in code, where that is known."""
        return self.symbols.line(address) if self.in_code(address) else ""

    def start(self, address: int) -> int | None:
        """Where the function starts that `address` is in."""
        found = self.symbols.at(address)
        return found[0].value if found else None

    def in_code(self, address: int) -> bool:
        """Whether the kernel has code there."""
        if self._code is None:
            return bool(self.symbols.name(address))
        return any(start <= address < end for start, end in self._code)
