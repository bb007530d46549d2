"""The JSON that `domainbuilder plan --format json` prints, as pydantic models.

Addresses and frame numbers are strings such as "0xc0000000", since JSON's numbers are doubles to many
readers; sizes and counts are numbers. What is not there is null. docs/builder.md describes every field, and
docs/plan.schema.json is the JSON Schema of `PlanReport`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from domainbuilder.plan.domain_plan import DomainPlan
from domainbuilder.plan.findings import Survey, virtual_range
from domainbuilder.plan.regions import regions, registers, tables
from domainbuilder.reports import Address, FindingReport, Model, Text, finding_report
from hvcore.public.xen import PAGE_SHIFT


class RegionReport(Model):
    """A run of frames with one use; `vstart` and `vend` are null where nothing maps it."""

    name: str
    pfn: Address
    pages: int
    size: int
    vstart: Address | None
    vend: Address | None
    read_only: bool


class MappingReport(Model):
    """A range of virtual addresses that is mapped from frame `pfn` on."""

    vstart: Address
    vend: Address
    pfn: Address
    tables: int


class TablesReport(Model):
    """The page tables of one level (1 is the lowest) that serve one mapping, counted from 0."""

    mapping: int
    level: int
    tables: int
    pfn: Address
    start: Address
    end: Address


class StartInfoReport(Model):
    """`struct start_info`; instead of machine frames, which a plan has not got, the frames they back."""

    magic: str
    nr_pages: int
    flags: Address
    store_pfn: Address
    console_pfn: Address
    pt_base: Address
    nr_pt_frames: int
    mfn_list: Address
    mod_start: Address
    mod_len: int
    cmd_line: str
    cmd_line_hex: str
    first_p2m_pfn: Address
    nr_p2m_frames: int


class PageOwnerReport(Model):
    """A symbol that has to own whole pages."""

    name: str
    kind: str
    address: Address
    size: int
    section: str
    aligned: bool
    neighbours: list[str]


class PageLayoutReport(Model):
    """The kernel's page-aligned contents; `symbols` is how many symbols there are to look at."""

    symbols: int
    owners: list[PageOwnerReport]
    sections: list[str]


class PlanReport(Model):
    """A whole plan. `schema_version` grows when a field changes its meaning or goes away."""

    schema_version: Literal[1] = 1
    kernel: Text
    guest_type: str
    paging: Literal["two-level", "PAE", "4-level"]
    memory_mib: int
    nr_pages: int
    virt_base: Address
    virt_alloc_end: Address
    virt_pgtab_end: Address
    pfn_alloc_end: Address
    pgtables_pfn: Address
    hypercall_page_pfn: Address | None
    regions: list[RegionReport]
    mappings: list[MappingReport]
    tables: list[TablesReport]
    start_info: StartInfoReport
    registers: dict[str, Address]
    vm_assist: Address
    page_layout: PageLayoutReport | None
    findings: list[FindingReport]


def plan_report(plan: DomainPlan, survey: Survey) -> PlanReport:
    """The report on a plan."""
    info = plan.start_info._asdict()
    for name in ("shared_info", "store_mfn", "store_evtchn", "console_mfn", "console_evtchn"):
        del info[name]
    info |= {
        "store_pfn": plan.xenstore_pfn,
        "console_pfn": plan.console_pfn,
        "cmd_line": plan.start_info.cmd_line.decode("utf-8", "backslashreplace"),
        "cmd_line_hex": plan.start_info.cmd_line.hex(),
    }
    layout = survey.layout
    return PlanReport.model_validate(
        {
            "kernel": plan.kernel,
            "guest_type": plan.guest.name,
            "paging": plan.guest.paging.name,
            "memory_mib": plan.nr_pages >> 20 - PAGE_SHIFT,
            "nr_pages": plan.nr_pages,
            "virt_base": plan.parms.virt_base,
            "virt_alloc_end": plan.layout.virt_alloc_end,
            "virt_pgtab_end": plan.layout.virt_pgtab_end,
            "pfn_alloc_end": plan.layout.pfn_alloc_end,
            "pgtables_pfn": plan.pgtables_pfn,
            "hypercall_page_pfn": plan.hypercall_page_pfn,
            "regions": [{**asdict(region), "vend": region.vend} for region in regions(plan)],
            "mappings": [
                {
                    "vstart": virtual_range(plan.guest.paging, mapping)[0],
                    "vend": virtual_range(plan.guest.paging, mapping)[1],
                    "pfn": mapping.first_pfn,
                    "tables": mapping.area.pgtables,
                }
                for mapping in plan.maps
            ],
            "tables": [asdict(rung) for rung in tables(plan)],
            "start_info": info,
            "registers": registers(plan),
            "vm_assist": plan.vcpu.vm_assist,
            "page_layout": None
            if layout is None
            else {
                "symbols": layout.symbols,
                "owners": [{**owner._asdict(), "aligned": owner.aligned} for owner in layout.owners],
                "sections": [section.name for section in layout.sections],
            },
            "findings": [finding_report(finding) for finding in survey.findings],
        }
    )
