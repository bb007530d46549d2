"""`domainbuilder plan` as text: the map first, then the page tables, what the guest is told, and findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from domainbuilder.kernel.findings import Finding, Severity
from domainbuilder.kernel.notes_text import Pen
from domainbuilder.plan.domain_plan import DomainPlan
from domainbuilder.plan.findings import Survey, virtual_range
from domainbuilder.plan.page_layout import PageLayout
from domainbuilder.plan.regions import FREE, human, regions, registers, tables
from domainbuilder.plan.segments import PADDING
from domainbuilder.visible import visible
from hvcore.public.xen import PAGE_SHIFT

_BOLD, _DIM, _RED, _GREEN, _YELLOW, _CYAN = "1", "2", "31", "32", "33", "36"
_SEVERITIES = {Severity.ERROR: _RED, Severity.WARNING: _YELLOW, Severity.INFO: _CYAN}


def render(plan: DomainPlan, survey: Survey, *, colour: bool = False) -> str:
    """The whole report; lines end in a newline."""
    pen = Pen(colour=colour)
    blocks = (
        _head(plan, pen),
        _findings(survey.findings, pen),
        _map(plan, pen),
        _tables(plan, pen),
        _start_info(plan, pen),
        _registers(plan, pen),
        _owners(survey.layout, pen) if survey.layout else (),
    )
    written = (list(block) for block in blocks)
    return "\n".join("".join(f"{line.rstrip()}\n" for line in block) for block in written if block)


def _head(plan: DomainPlan, pen: Pen) -> Iterator[str]:
    kernel, guest = pen(visible(plan.kernel), _BOLD), pen(plan.guest.name, _BOLD, _GREEN)
    memory = human(plan.nr_pages << PAGE_SHIFT)
    yield f"{kernel}: {guest}, {plan.guest.paging.name} paging, {memory}"


def _grid(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]], right: str, pen: Pen
) -> Iterator[str]:
    """A table; `right` has an "r" for every column that is aligned to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(
            f"{cell:>{width}}" if side == "r" else f"{cell:<{width}}"
            for cell, width, side in zip(cells, widths, right, strict=True)
        )

    yield pen(title, _BOLD)
    yield pen(f"  {line(head)}", _DIM)
    for row in rows:
        text = f"  {line(row)}"
        yield pen(text, _DIM) if row[0] in (PADDING, FREE) else text


def _map(plan: DomainPlan, pen: Pen) -> Iterator[str]:
    digits = 2 * plan.guest.width
    rows = []
    for region in regions(plan):
        where = "-" if region.vstart is None else f"0x{region.vstart:0{digits}x}"
        access = "" if region.vstart is None else "read-only" if region.read_only else "writable"
        size = human(region.size or region.pages << PAGE_SHIFT)
        rows.append((region.name, where, f"{region.pfn:#x}", f"{region.pages:,}", size, access))
    yield from _grid("Memory", ("segment", "address", "pfn", "pages", "bytes", "mapped"), rows, "llrrrl", pen)
    for mapping in plan.maps:
        start, end = virtual_range(plan.guest.paging, mapping)
        covers = f"{start:#x} to {end:#x}, {human(end - start)}"
        yield pen(f"  mapped: {covers} from pfn {mapping.first_pfn:#x}", _DIM)


def _tables(plan: DomainPlan, pen: Pen) -> Iterator[str]:
    rungs = tables(plan)
    rows = [
        (f"L{rung.level}", f"{rung.tables:,}", f"{rung.pfn:#x}", f"{rung.start:#x} to {rung.end:#x}")
        for rung in rungs
    ]
    total = sum(rung.tables for rung in rungs)
    title = f"Page tables: {total}, all of them read-only to the guest"
    yield from _grid(title, ("level", "tables", "pfn", "what they cover"), rows, "lrrl", pen)


def _pairs(title: str, rows: Sequence[tuple[str, str]], pen: Pen) -> Iterator[str]:
    yield pen(title, _BOLD)
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        yield f"  {name:<{width}}  {value}"


def _start_info(plan: DomainPlan, pen: Pen) -> Iterator[str]:
    info = plan.start_info
    hypercall = plan.hypercall_page_pfn
    rows = [
        ("magic", f'"{info.magic}"'),
        ("nr_pages", f"{info.nr_pages:#x} ({human(info.nr_pages << PAGE_SHIFT)})"),
        ("flags", f"{info.flags:#x}" + (" (SIF_MOD_START_PFN)" if info.flags else "")),
        ("store_mfn", f"machine frame of pfn {plan.xenstore_pfn:#x}"),
        ("console.domU.mfn", f"machine frame of pfn {plan.console_pfn:#x}"),
        ("pt_base", f"{info.pt_base:#x}"),
        ("nr_pt_frames", f"{info.nr_pt_frames}"),
        ("mfn_list", f"{info.mfn_list:#x}"),
        ("mod_start", f"{info.mod_start:#x}" + (" (a pfn)" if info.flags else "")),
        ("mod_len", f"{info.mod_len:#x}"),
        ("cmd_line", f'"{visible(info.cmd_line.decode("utf-8", "backslashreplace"))}"'),
    ]
    if info.nr_p2m_frames:
        rows += [
            ("first_p2m_pfn", f"{info.first_p2m_pfn:#x}"),
            ("nr_p2m_frames", f"{info.nr_p2m_frames:#x} ({human(info.nr_p2m_frames << PAGE_SHIFT)})"),
        ]
    yield from _pairs(f"start_info, at {plan.vcpu.si:#x}", rows, pen)
    page = "none asked for: the guest places it itself" if hypercall is None else f"pfn {hypercall:#x}"
    yield pen(f"  hypercall page: {page}", _DIM)


def _registers(plan: DomainPlan, pen: Pen) -> Iterator[str]:
    values = registers(plan)
    rows = [(name, f"{value:#x}") for name, value in values.items()]
    rows.append(("cr3", f"machine address of pfn {plan.pgtables_pfn:#x}"))
    yield from _pairs("Registers (the others are 0)", rows, pen)


def _owners(layout: PageLayout, pen: Pen) -> Iterator[str]:
    if not layout.owners:
        return
    rows = [
        (
            visible(owner.name),
            f"{owner.address:#x}",
            f"{owner.size:#x}",
            visible(owner.section),
            "yes" if owner.aligned else "no",
            visible(", ".join(owner.neighbours[:3])) or "-",
        )
        for owner in layout.owners
    ]
    head = ("symbol", "address", "size", "section", "aligned", "shares its page with")
    yield from _grid("Symbols that must own whole pages", head, rows, "lrrlll", pen)


def _findings(findings: Sequence[Finding], pen: Pen) -> Iterator[str]:
    if not findings:
        return
    yield pen("Findings", _BOLD)
    for finding in findings:
        head = pen(f"{finding.severity.name.lower():<7}", _SEVERITIES[finding.severity])
        offset = "" if finding.offset is None else f" (at +{finding.offset:#x})"
        yield f"  {head}  {finding.rule.id} {finding.rule.slug}{offset}: {visible(finding.message)}"
        yield pen(f"           {finding.rule.advice}", _DIM)
