"""`domainbuilder.inspect`: everything a kernel file says about itself, as one frozen value."""

from __future__ import annotations

import os
from dataclasses import dataclass

from domainbuilder.kernel.elf import ElfImage, parse_elf
from domainbuilder.kernel.elfnotes import GuestInfo, Notes, find_guest_info, find_notes
from domainbuilder.kernel.findings import Finding, Severity, Subject, find
from domainbuilder.kernel.kernel_file import DEFAULT_LIMIT, KernelFile, load_kernel
from domainbuilder.kernel.parms import ElfDomParms, RefusedError, elf_xen_parse
from domainbuilder.kernel.verdict import Verdict, verdicts


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A kernel file, inspected.

    `pv` and `pvh` are what the kernel asks for as a guest of either kind, None where Xen refuses
    it (`pv_refusal`, `pvh_refusal`). `verdicts` has one entry per `GuestKind`, `findings` are sorted:
    errors first, then by offset.
    """

    kernel: KernelFile
    elf: ElfImage
    notes: Notes
    guest_info: GuestInfo | None
    pv: ElfDomParms | None
    pvh: ElfDomParms | None
    pv_refusal: RefusedError | None
    pvh_refusal: RefusedError | None
    verdicts: tuple[Verdict, ...]
    findings: tuple[Finding, ...]

    @property
    def accepted(self) -> tuple[Verdict, ...]:
        """The kinds of guest it can be."""
        return tuple(verdict for verdict in self.verdicts if verdict.accepted)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that `domainbuilder notes --check` fails on."""
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)


def inspect(path: str | os.PathLike[str], *, limit: int = DEFAULT_LIMIT) -> Inspection:
    """Inspect the kernel at `path`: raw ELF, gzip or bzImage.

    Raises KernelFormatError where the file cannot be opened or unpacked (to `limit` bytes at most),
    ElfError where what is inside is no usable ELF, NotesError where `__xen_guest` has no end. That
    Xen would refuse the kernel is no error here but a verdict.
    """
    return inspect_kernel(load_kernel(path, limit=limit))


def inspect_kernel(kernel: KernelFile) -> Inspection:
    """The same for a kernel that is open already."""
    elf = parse_elf(kernel.image, kernel.path)
    notes = find_notes(elf)
    info = find_guest_info(elf, notes)
    pv = _parse(elf, notes, info, hvm=False)
    pvh = _parse(elf, notes, info, hvm=True)
    judged = verdicts(elf, notes, pv, pvh)
    subject = Subject(kernel, elf, notes, info, pv, pvh, any(verdict.accepted for verdict in judged))
    return Inspection(
        kernel=kernel,
        elf=elf,
        notes=notes,
        guest_info=info,
        pv=pv if isinstance(pv, ElfDomParms) else None,
        pvh=pvh if isinstance(pvh, ElfDomParms) else None,
        pv_refusal=pv if isinstance(pv, RefusedError) else None,
        pvh_refusal=pvh if isinstance(pvh, RefusedError) else None,
        verdicts=judged,
        findings=find(subject),
    )


def _parse(elf: ElfImage, notes: Notes, info: GuestInfo | None, *, hvm: bool) -> ElfDomParms | RefusedError:
    try:
        return elf_xen_parse(elf, notes, info, hvm=hvm)
    except RefusedError as refusal:
        return refusal
