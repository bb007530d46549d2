"""`domainbuilder.inspect`: everything a kernel file says about itself, as one frozen value."""

from __future__ import annotations

import os
from dataclasses import dataclass

from domainbuilder.errors import BuildError, Where
from domainbuilder.kernel.elf import ElfImage, parse_elf
from domainbuilder.kernel.elfnotes import GuestInfo, Notes, find_guest_info, find_notes
from domainbuilder.kernel.findings import Finding, Severity, Subject
from domainbuilder.kernel.kernel_file import DEFAULT_LIMIT, KernelFile, load_kernel
from domainbuilder.kernel.lost_notes import Loss, lost_notes
from domainbuilder.kernel.note_checks import find
from domainbuilder.kernel.parms import ElfDomParms, RefusedError, elf_xen_parse, explained
from domainbuilder.kernel.verdict import Verdict, verdicts


@dataclass(frozen=True, slots=True, eq=False)
class Inspection:
    """A kernel file, inspected.

    `pv` and `pvh` are what the kernel asks for as a guest of either kind, None where Xen does not take its
    notes. `pv_refusal` and `pvh_refusal` are why Xen makes no guest of it; a kernel whose notes are right and
    whose addresses nobody can build has both a `pv` and a `pv_refusal`. `verdicts` has one entry per
    `GuestKind`, `findings` are sorted: errors first, then by offset; `losses` are the notes that Xen does not
    come to.
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
    losses: tuple[Loss, ...]

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
    refused = isinstance(pv, RefusedError) and isinstance(pvh, RefusedError)
    losses = lost_notes(elf, notes, everywhere=refused)
    if isinstance(pv, RefusedError):
        pv = explained(elf, notes, pv, pvh if isinstance(pvh, ElfDomParms) else None, losses)
    unfit = _unfit(elf, pv) if isinstance(pv, ElfDomParms) else None
    judged = verdicts(elf, notes, pv, pvh, unfit)
    accepted = any(verdict.accepted for verdict in judged)
    subject = Subject(kernel, elf, notes, info, pv, pvh, accepted, losses, unfit)
    return Inspection(
        kernel=kernel,
        elf=elf,
        notes=notes,
        guest_info=info,
        pv=pv if isinstance(pv, ElfDomParms) else None,
        pvh=pvh if isinstance(pvh, ElfDomParms) else None,
        pv_refusal=pv if isinstance(pv, RefusedError) else _refusal(unfit),
        pvh_refusal=pvh if isinstance(pvh, RefusedError) else None,
        verdicts=judged,
        findings=find(subject),
        losses=losses,
    )


def _unfit(elf: ElfImage, parms: ElfDomParms) -> BuildError | None:
    """Why `plan` refuses the kernel whatever memory it may use; None where it does not."""
    from domainbuilder.plan.fit import least_memory_mib

    try:
        least_memory_mib(elf, parms)
    except BuildError as error:
        return error
    return None


def _refusal(unfit: BuildError | None) -> RefusedError | None:
    if unfit is None:
        return None
    plain = f"found {unfit.found}" if unfit.found is not None else "whatever memory it gets"
    return RefusedError("unbuildable", plain, xen=unfit.reason, where=unfit.where or Where(""))


def _parse(elf: ElfImage, notes: Notes, info: GuestInfo | None, *, hvm: bool) -> ElfDomParms | RefusedError:
    try:
        return elf_xen_parse(elf, notes, info, hvm=hvm)
    except RefusedError as refusal:
        return refusal
