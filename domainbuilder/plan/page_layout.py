"""What in a linked kernel must own whole pages, and whether it does.

Xen's rules are about pages. A page table, a descriptor table or the hypercall page that begins in the middle
of a page, or shares its page with something else, works natively and fails under Xen: a pinned page table
makes its whole page read-only, and a table address loses its low twelve bits. The founding example is Linux
commit 5ead97c84fa7, which had to name `.data.page_aligned` in the linker script: left out, the linker put the
tables behind another section without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from domainbuilder.kernel.elf import SHF_ALLOC, SHT_NOBITS, ElfImage, Section
from domainbuilder.kernel.findings import Finding, Severity
from domainbuilder.kernel.parms import UNSET_ADDR, ElfDomParms
from domainbuilder.plan.rules import found
from domainbuilder.symbols.table import ABSOLUTE, Symbol, Symbols
from hvcore.public.xen import PAGE_SIZE

PAGE_TABLE = "page table"
DESCRIPTOR_TABLE = "descriptor table"
HYPERCALL_PAGE = "hypercall page"
SHARED_PAGE = "shared page"
ZERO_PAGE = "zero page"

# Symbols that have to own whole pages: those of Linux i386 and x86-64 of all ages, GNU Mach, Mini-OS.
PAGE_OWNERS: dict[str, str] = {
    **dict.fromkeys(
        (
            "swapper_pg_dir",
            "swapper_pg_pmd",
            "swapper_pg_fixmap",
            "initial_page_table",
            "initial_pg_pmd",
            "initial_pg_fixmap",
            "init_level4_pgt",
            "init_top_pgt",
            "early_level4_pgt",
            "early_top_pgt",
            "level3_kernel_pgt",
            "level3_ident_pgt",
            "level2_kernel_pgt",
            "level2_ident_pgt",
            "level2_fixmap_pgt",
            "level1_fixmap_pgt",
            "level1_ident_pgt",
            "pg0",
        ),
        PAGE_TABLE,
    ),
    **dict.fromkeys(("idt_table", "cpu_gdt_table", "debug_idt_table"), DESCRIPTOR_TABLE),
    **dict.fromkeys(("hypercall_page", "hypcalls"), HYPERCALL_PAGE),
    **dict.fromkeys(("shared_info", "hyp_shared_info"), SHARED_PAGE),
    "empty_zero_page": ZERO_PAGE,
}
_WHY = {
    PAGE_TABLE: "Xen makes the whole page of a page table read-only, and finds the table by its page alone",
    DESCRIPTOR_TABLE: "a descriptor table is protected and handed over by the page",
    HYPERCALL_PAGE: "Xen fills the whole page with hypercall stubs",
    SHARED_PAGE: "the guest maps another page over it, and loses what else is in it",
    ZERO_PAGE: "it is mapped wherever a page of zeros is needed",
}
_POINTER_SIZES = (4, 8)
_STUB_NAME = re.compile(r"hypercall|hypcall", re.I)  # Linux names its stubs: xen_hypercall_iret ...
_PAGE_ALIGNED_NAME = re.compile(r"\.(data|bss|rodata)\.{1,2}page_aligned(\..*)?$")


class PageOwner(NamedTuple):
    """A symbol that has to own whole pages: where it is, and who else is in its pages."""

    name: str
    kind: str
    address: int
    size: int  # bytes; a whole page where the symbol does not say
    section: str
    neighbours: tuple[str, ...]

    @property
    def aligned(self) -> bool:
        """Whether it starts on a page."""
        return self.address % PAGE_SIZE == 0


class PageLayout(NamedTuple):
    """What a kernel's symbols and sections say about its pages. `symbols` is how many symbols there were."""

    symbols: int
    owners: tuple[PageOwner, ...]
    sections: tuple[Section, ...]  # those named for page-aligned contents
    findings: tuple[Finding, ...]


def page_layout(elf: ElfImage, parms: ElfDomParms, symbols: Symbols) -> PageLayout:
    """Check the pages of a linked kernel, by symbol, by section, and by the address of its hypercall page."""
    alloc = [s for s in elf.sections if s.flags & SHF_ALLOC and s.size]
    aligned = tuple(s for s in alloc if _PAGE_ALIGNED_NAME.match(s.name))
    named = (symbols.lookup(name) for name in PAGE_OWNERS)
    wanted = sorted((s for s in named if s is not None and _may_be_page(s)), key=lambda s: s.value)
    spans = [_Span(s.value, s.value + _size(s, symbols), PAGE_OWNERS[s.name]) for s in wanted]
    if parms.virt_hypercall != UNSET_ADDR:
        spans.append(_Span(parms.virt_hypercall, parms.virt_hypercall + PAGE_SIZE, HYPERCALL_PAGE))
    others = _neighbours(symbols, wanted, spans)
    owners = tuple(
        PageOwner(s.name, span.kind, s.value, span.end - span.start, _section_name(elf, s), names)
        for s, span, names in zip(wanted, spans, others, strict=False)
    )
    findings = [
        *_hypercall_findings(elf, parms, others[-1] if others else ()),
        *(finding for owner in owners for finding in _owner_findings(elf, owner)),
        *_section_findings(aligned, alloc),
    ]
    if not len(symbols) or not (owners or symbols.have_data):
        lacking = "no symbols" if not len(symbols) else f"no symbols of data in the {symbols.origin}"
        findings.append(found("page-layout-unchecked", f"{lacking}: which own whole pages cannot be told"))
    return PageLayout(len(symbols), owners, aligned, tuple(findings))


def _may_be_page(symbol: Symbol) -> bool:
    """Whether it may be what its name says: a pointer to such a page often has that name, too."""
    return symbol.kind != ABSOLUTE and symbol.size not in _POINTER_SIZES


def _size(symbol: Symbol, symbols: Symbols) -> int:
    """Its bytes: a whole page where nobody says, and of a page of stubs, which have names of their own."""
    if PAGE_OWNERS[symbol.name] == HYPERCALL_PAGE and not symbol.size:
        return PAGE_SIZE
    return symbols.extent(symbol) or PAGE_SIZE


def _section_name(elf: ElfImage, symbol: Symbol) -> str:
    if 0 < symbol.section < len(elf.sections):
        return elf.sections[symbol.section].name
    here = (s for s in elf.sections[1:] if s.flags & SHF_ALLOC and s.addr <= symbol.value < s.addr + s.size)
    return next((section.name for section in here), "")


class _Span(NamedTuple):
    """The bytes of something that owns the pages they are in."""

    start: int
    end: int
    kind: str

    def disturbed_by(self, symbol: Symbol, first: int, last: int) -> bool:
        """Whether a symbol at [first, last) is in these pages and is not part of what owns them."""
        if first >= -(-self.end // PAGE_SIZE) * PAGE_SIZE or last <= self.start & -PAGE_SIZE:
            return False
        if first <= self.start and self.end <= last:  # an alias, or an object that this is part of
            return False
        inside = self.start <= first and last <= self.end
        stub = self.kind != HYPERCALL_PAGE or _STUB_NAME.search(symbol.name)
        return not (inside and stub)


def _neighbours(symbols: Symbols, owners: Sequence[Symbol], spans: Sequence[_Span]) -> list[tuple[str, ...]]:
    """For each span, the names of the symbols that disturb it, by address."""
    intruders: list[list[str]] = [[] for _ in spans]
    if not spans:
        return []
    low = min(span.start for span in spans) & -PAGE_SIZE
    high = max(span.end for span in spans) + PAGE_SIZE
    sizeless = [owner._replace(size=_size(owner, symbols)) for owner in owners if not symbols.extent(owner)]
    for symbol in sorted([*symbols.overlapping(low, high), *sizeless], key=lambda s: s.value):
        first, last = symbol.value, symbol.value + symbol.size
        for names, span in zip(intruders, spans, strict=True):
            if span.disturbed_by(symbol, first, last):
                names.append(symbol.name)
    return [tuple(dict.fromkeys(names)) for names in intruders]


def _offset(elf: ElfImage, address: int) -> int | None:
    """The file offset of an address, where the file has one."""
    for section in elf.sections:
        inside = section.addr <= address < section.addr + section.size
        if inside and section.flags & SHF_ALLOC and section.type != SHT_NOBITS:
            return section.offset + address - section.addr
    return None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown


def _owner_findings(elf: ElfImage, owner: PageOwner) -> Iterator[Finding]:
    severity = Severity.WARNING if owner.kind == DESCRIPTOR_TABLE else Severity.ERROR
    if not owner.aligned:
        yield found(
            "page-symbol-misaligned",
            f"{owner.name} ({owner.kind}) is at {owner.address:#x}, {owner.address % PAGE_SIZE:#x} bytes "
            f"into a page of {owner.section}: {_WHY[owner.kind]}",
            _offset(elf, owner.address),
            severity,
        )
    if owner.neighbours:
        yield found(
            "page-symbol-shared",
            f"{owner.name} ({owner.kind}) at {owner.address:#x} shares its page with "
            f"{_listed(owner.neighbours)}: {_WHY[owner.kind]}",
            _offset(elf, owner.address),
            severity,
        )


def _hypercall_findings(elf: ElfImage, parms: ElfDomParms, neighbours: Sequence[str]) -> Iterator[Finding]:
    address = parms.virt_hypercall
    if address == UNSET_ADDR:
        return
    if address % PAGE_SIZE:
        yield found(
            "hypercall-page-misaligned",
            f"HYPERCALL_PAGE is {address:#x}, {address % PAGE_SIZE:#x} bytes into a page: the stubs "
            f"will be at {address & -PAGE_SIZE:#x}",
            _offset(elf, address),
        )
    if neighbours:
        yield found(
            "hypercall-page-shared",
            f"the page of HYPERCALL_PAGE ({address:#x}) also holds {_listed(neighbours)}: "
            f"{_WHY[HYPERCALL_PAGE]}",
            _offset(elf, address),
        )


def _section_findings(aligned: Sequence[Section], alloc: Sequence[Section]) -> Iterator[Finding]:
    """The output sections for page-aligned contents: each on a page boundary, its pages its own."""
    for section in aligned:
        if section.addr % PAGE_SIZE:
            yield found(
                "page-aligned-section-misaligned",
                f"section {section.name} is at {section.addr:#x}, not on a page boundary",
                section.offset,
            )
        start, end = section.addr & -PAGE_SIZE, -(-(section.addr + section.size) // PAGE_SIZE) * PAGE_SIZE
        sharing = [s.name for s in alloc if s is not section and s.addr < end and s.addr + s.size > start]
        if sharing:
            yield found(
                "page-aligned-section-shared",
                f"section {section.name} ({section.addr:#x}-{section.addr + section.size:#x}) shares a page "
                f"with {_listed(sharing)}",
                section.offset,
            )
