"""The JSON that `domainbuilder notes --format json` prints, as pydantic models.

Addresses are strings such as "0xffffffff80000000", since JSON's numbers are doubles to many
readers; offsets, sizes and counts are numbers. What is not given is null. docs/notes.md describes
every field, and docs/notes.schema.json is the JSON Schema of `NotesReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from domainbuilder.errors import BuildError
from domainbuilder.kernel.elfnotes import Note, Value, decode, feature_names
from domainbuilder.kernel.fix import FixResult
from domainbuilder.kernel.inspection import Inspection
from domainbuilder.kernel.parms import UNSET_ADDR, UNSET_ADDR32, ElfDomParms
from domainbuilder.reports import Address, FindingReport, Model, Text, finding_report


class KernelReport(Model):
    """The file and the ELF image in it."""

    container: Literal["elf", "gzip", "bzimage"]
    compression: Literal["", "gzip", "xz", "lzma", "bzip2", "lz4", "zstd"]
    payload_offset: int
    image_size: int
    elf_class: Literal[32, 64]
    machine: str
    entry: Address
    load_start: Address
    load_end: Address


class VerdictReport(Model):
    """One kind of guest."""

    kind: Literal["pv32-pae", "pv32-two-level", "pv64", "pvh"]
    guest_type: str
    accepted: bool
    accepted_by_xen: bool
    reason: str
    remark: str


class NoteReport(Model):
    """One ELF note, in the order of the file."""

    owner: str | None
    type: int
    name: str
    offset: int
    size: int
    source: Literal["PT_NOTE", "SHT_NOTE"]
    used: bool
    kind: Literal["number", "string", "bytes", "fields", "unreadable"]
    value: str | list[FieldReport] | None


class FieldReport(Model):
    """A named number within a descriptor."""

    name: str
    value: Address


class GuestKeyReport(Model):
    """One KEY=VALUE of `__xen_guest`."""

    key: str
    value: str
    offset: int


class ParmsReport(Model):
    """`struct elf_dom_parms`, defaults filled in; null where the kernel does not say."""

    guest_type: str
    guest_os: str
    guest_ver: str
    xen_ver: str
    loader: str
    pae: Literal["no", "yes", "extcr3", "bimodal"]
    bsd_symtab: bool
    unmapped_initrd: bool
    f_supported: list[str]
    f_required: list[str]
    virt_base: Address
    virt_entry: Address
    virt_hypercall: Address | None
    virt_hv_start_low: Address | None
    p2m_base: Address | None
    elf_paddr_offset: Address
    phys_entry: Address | None
    virt_offset: Address
    virt_kstart: Address
    virt_kend: Address


class FileReport(Model):
    """One file: `error` where it cannot be used, and then nothing else."""

    file: Text
    error: Text | None = None
    kernel: KernelReport | None = None
    verdicts: list[VerdictReport] = Field(default=[])
    notes_source: Literal["PT_NOTE", "SHT_NOTE", "__xen_guest", ""] = ""
    notes: list[NoteReport] = Field(default=[])
    guest_info: list[GuestKeyReport] | None = None
    pv: ParmsReport | None = None
    pvh: ParmsReport | None = None
    findings: list[FindingReport] = Field(default=[])


class NotesReport(Model):
    """All files. `schema_version` grows when a field changes its meaning or goes away."""

    schema_version: Literal[1] = 1
    files: list[FileReport]


class FixReport(Model):
    """What `notes fix` did."""

    schema_version: Literal[1] = 1
    file: Text
    output: Text
    changes: list[Text]
    left: list[Text]


_NoteKind = Literal["number", "string", "bytes", "fields", "unreadable"]


def _value(value: Value) -> tuple[_NoteKind, str | list[FieldReport] | None]:
    if value is None:
        return "unreadable", None
    if isinstance(value, int):
        return "number", hex(value)
    if isinstance(value, str):
        return "string", value
    if isinstance(value, bytes):
        return "bytes", value.hex()
    return "fields", [FieldReport(name=name, value=number) for name, number in value]


def _note(inspection: Inspection, note: Note) -> NoteReport:
    kind, value = _value(decode(inspection.elf, note))
    return NoteReport(
        owner=None if note.owner is None else note.owner_text,
        type=note.type,
        name=note.type_name,
        offset=note.offset,
        size=note.descsz,
        source="PT_NOTE" if note.source == "PT_NOTE" else "SHT_NOTE",
        used=note.used,
        kind=kind,
        value=value,
    )


def _parms(parms: ElfDomParms | None) -> ParmsReport | None:
    if parms is None:
        return None
    values = parms._asdict()
    values["pae"] = parms.pae.name.lower()
    values["f_supported"] = list(feature_names(parms.f_supported))
    values["f_required"] = list(feature_names(parms.f_required))
    for name in ("virt_hypercall", "virt_hv_start_low", "p2m_base"):
        values[name] = None if values[name] == UNSET_ADDR else values[name]
    values["phys_entry"] = None if parms.phys_entry == UNSET_ADDR32 else parms.phys_entry
    return ParmsReport.model_validate(values)


def file_report(inspection: Inspection) -> FileReport:
    """The report on one inspected kernel."""
    kernel, elf, info = inspection.kernel, inspection.elf, inspection.guest_info
    source = "__xen_guest" if info is not None and info.used else inspection.notes.source
    return FileReport.model_validate(
        {
            "file": kernel.path,
            "kernel": {
                "container": kernel.container,
                "compression": kernel.compression,
                "payload_offset": kernel.payload_offset,
                "image_size": len(elf.view),
                "elf_class": elf.elf_class,
                "machine": elf.machine_name,
                "entry": elf.entry,
                "load_start": elf.pstart if elf.load_segments else 0,
                "load_end": elf.pend,
            },
            "verdicts": [
                {
                    "kind": verdict.kind.value,
                    "guest_type": verdict.guest_type,
                    "accepted": verdict.accepted,
                    "accepted_by_xen": verdict.xen,
                    "reason": verdict.reason,
                    "remark": verdict.remark,
                }
                for verdict in inspection.verdicts
            ],
            "notes_source": source,
            "notes": [_note(inspection, note) for note in inspection.notes.notes],
            "guest_info": None if info is None else [key._asdict() for key in info.keys],
            "pv": _parms(inspection.pv),
            "pvh": _parms(inspection.pvh),
            "findings": [finding_report(finding) for finding in inspection.findings],
        }
    )


def notes_report(files: Sequence[tuple[str, Inspection | BuildError]]) -> NotesReport:
    """The report on all files, those that cannot be used included."""
    return NotesReport(
        files=[
            file_report(result)
            if isinstance(result, Inspection)
            else FileReport(file=name, error=" ".join(str(result).split()))
            for name, result in files
        ]
    )


def fix_report(result: FixResult) -> FixReport:
    """The report on a repair."""
    return FixReport(
        file=result.path, output=result.output, changes=list(result.changes), left=list(result.left)
    )
