"""The JSON that `domainbuilder inspect --format json` prints, as pydantic models: all of a dump.

Addresses and registers are strings such as "0xc0100000", as in launch's report. docs/inspect.schema.json is
the JSON Schema of `CoreReport`.
"""

from __future__ import annotations

from typing import Any, Literal

from domainbuilder.reports import Address, Model, Text
from domainbuilder.reports.launch_report import FrameReport, InstructionReport, RegistersReport, vcpu_fields
from domainbuilder.saved.core_file import CoreFile
from domainbuilder.saved.core_vcpu import is_user, vcpu_state
from domainbuilder.symbols.table import Symbols, no_symbols
from domainbuilder.visible import visible


class CoreVcpu(Model):
    """Where a vCPU stood; no backtrace is of a process."""

    vcpu: int
    registers: RegistersReport
    symbol: str
    line: str
    code: list[InstructionReport]
    stack_address: Address
    stack: list[Address]
    backtrace: list[FrameReport]


class MappingReport(Model):
    """Addresses that are mapped alike, from `start` up to `end`. All that a 64-bit guest maps is `user`."""

    start: Address
    end: Address
    writable: bool
    user: bool
    executable: bool


class ConsoleRing(Model):
    """The frame of the console's ring, and where in the file it is."""

    pfn: Address
    offset: Address


class CoreReport(Model):
    """The document. What only our own dumps know is null or empty in those of xl."""

    schema_version: Literal[1] = 1
    core: Text
    bits: Literal[32, 64]
    pages: int
    kernel: str | None
    guest_ns: int | None
    outcome: str | None
    vcpus: list[CoreVcpu]
    root: Address
    mappings: list[MappingReport]
    xenstore: dict[str, str]
    console_ring: ConsoleRing | None
    console: str


def core_json(core: CoreFile, symbols: Symbols | None) -> str:
    """The document, with a newline at its end. Nothing is left out, however much there is."""
    names, about = symbols or no_symbols(), core.about
    context = core.context(0)
    root = core.root(context, is_user=is_user(core, context))
    nodes = about.get("xenstore")
    pairs = nodes.items() if isinstance(nodes, dict) else ()
    guest_ns = about.get("guest_ns")
    vcpus = [vcpu_state(core, index, names) for index in range(core.nr_vcpus)]
    return (
        CoreReport(
            core=core.name,
            bits=64 if core.width == 8 else 32,
            pages=core.nr_pages,
            kernel=_text(about, "kernel"),
            guest_ns=guest_ns if type(guest_ns) is int else None,
            outcome=_text(about, "outcome") or None,
            vcpus=[CoreVcpu(vcpu=vcpu.number, **vcpu_fields(vcpu)) for vcpu in vcpus],
            root=root << 12,
            mappings=[
                MappingReport(
                    start=row.start, end=row.end, writable=row.is_writable, user=row.is_user,
                    executable=row.is_code,
                )
                for row in core.mappings(root)
            ],
            xenstore={visible(path): visible(value) for path, value in pairs if isinstance(value, str)},
            console_ring=_ring(core),
            console=_text(about, "console") or "",
        ).model_dump_json(indent=2)
        + "\n"
    )  # fmt: skip


def _text(about: dict[str, Any], name: str) -> str | None:
    value = about.get(name)
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _ring(core: CoreFile) -> ConsoleRing | None:
    pfn = core.about.get("console_pfn")
    offset = core.offset_of_pfn(pfn) if type(pfn) is int else None
    return ConsoleRing(pfn=pfn, offset=offset) if type(pfn) is int and offset is not None else None
