"""What is worth telling about a plan: things Xen lets pass that its guest will not survive, or not expect."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder.kernel.findings import Finding, Severity
from domainbuilder.plan.page_layout import PageLayout, page_layout
from domainbuilder.plan.pgtables import Mapping, Paging
from domainbuilder.plan.rules import found
from domainbuilder.plan.segments import KERNEL
from domainbuilder.plan.start_info import MAX_GUEST_CMDLINE
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from domainbuilder.plan.planned import Planned
    from domainbuilder.symbols.table import Symbols


class Survey(NamedTuple):
    """What there is to say of a plan. `layout` is None for one that was read back from a built image."""

    layout: PageLayout | None
    findings: tuple[Finding, ...]  # the worst first

    @property
    def failed(self) -> bool:
        """Whether `domainbuilder plan --check` fails."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)


def survey(plan: Planned, symbols: Symbols | None = None) -> Survey:
    """Check the plan, and the pages of the kernel it is for, by `symbols` or by the kernel's own."""
    layout = None
    if plan.elf is not None:
        if symbols is None:
            from domainbuilder.symbols.read import kernel_symbols

            symbols = kernel_symbols(plan.elf)
        layout = page_layout(plan.elf, plan.parms, symbols)
    found_here = [finding for check in _CHECKS for finding in check(plan)]
    found_here += layout.findings if layout else ()
    return Survey(layout, tuple(sorted(found_here, key=lambda finding: -finding.severity)))


def warn(plan: Planned) -> None:
    """Say on stderr, a line each, what is more than information; for commands that go on with the plan.

    Of a kernel's pages only what its symbol table says: decoding kallsyms takes a tenth of a boot.
    """
    from domainbuilder.symbols.symtab import symtab_symbols
    from domainbuilder.symbols.table import no_symbols

    symbols = symtab_symbols(plan.elf) if plan.elf is not None else None
    for finding in survey(plan, no_symbols() if symbols is None else symbols).findings:
        if finding.severity is not Severity.INFO:
            word, rule = finding.severity.name.lower(), finding.rule
            told = " ".join(f"{rule.slug}: {finding.message}; {rule.advice}".split())
            print(f"domainbuilder: {word}: {rule.id} {told}", file=sys.stderr)


def canonical(paging: Paging, address: int) -> int:
    """An address masked to the paging mode's bits, sign-extended as the processor wants it."""
    if paging.virt_bits == 48 and address >> 47:
        return address | 0xFFFF << 48
    return address


def virtual_range(paging: Paging, mapping: Mapping) -> tuple[int, int]:
    """The addresses a mapping covers: first, and last plus 1."""
    return canonical(paging, mapping.area.start), canonical(paging, mapping.area.end) + 1


def _guest_type(plan: Planned) -> Iterator[Finding]:
    if not plan.guest.in_xen_4_17:
        yield found(
            "guest-type-unsupported",
            f"xc_dom_compat_check: guest type {plan.guest.name} not supported by xen kernel, sorry: "
            "Xen 4.17 runs no guests with two-level page tables; domainbuilder launch does",
        )


def _hypervisor_range(plan: Planned) -> Iterator[Finding]:
    xen = plan.guest.hypervisor_virt
    for mapping in plan.maps:
        start, end = virtual_range(plan.guest.paging, mapping)
        if start < xen.stop and end > xen.start:
            yield found(
                "mapping-in-hypervisor-range",
                f"the mapping {start:#x}-{end:#x} reaches into {xen.start:#x}-{xen.stop:#x}, where Xen is: "
                "those entries are replaced by Xen's own",
            )


def _canonical_base(plan: Planned) -> Iterator[Finding]:
    base = plan.parms.virt_base
    if canonical(plan.guest.paging, base & plan.guest.paging.vaddr_mask) != base:
        yield found(
            "virt-base-not-canonical",
            f"VIRT_BASE {base:#x} is no canonical address: the processor faults on it",
        )


def _hypercall_page(plan: Planned) -> Iterator[Finding]:
    kernel, pfn = plan.layout[KERNEL], plan.hypercall_page_pfn
    if pfn is not None and not kernel.pfn <= pfn < kernel.pfn + kernel.pages:
        yield found(
            "hypercall-page-outside-kernel",
            f"HYPERCALL_PAGE {plan.parms.virt_hypercall:#x} (pfn {pfn:#x}) is not in the kernel "
            f"(pfn {kernel.pfn:#x}-{kernel.pfn + kernel.pages:#x}): Xen overwrites what else is there",
        )


def _command_line(plan: Planned) -> Iterator[Finding]:
    if plan.cmdline_dropped:
        yield found(
            "command-line-truncated",
            f"the last {plan.cmdline_dropped} bytes of the command line are dropped: the guest gets at most "
            f"{MAX_GUEST_CMDLINE - 1}",
        )


def _memory_left(plan: Planned) -> Iterator[Finding]:
    left = plan.nr_pages - plan.layout.pfn_alloc_end
    if left < plan.nr_pages >> 3:
        yield found(
            "little-memory-left",
            f"the guest starts with {left << PAGE_SHIFT >> 10} kB of {plan.nr_pages >> 8} MB unused",
        )


_CHECKS: tuple[Callable[[Planned], Iterator[Finding]], ...] = (
    _guest_type,
    _canonical_base,
    _hypervisor_range,
    _hypercall_page,
    _command_line,
    _memory_left,
)
