"""The checks behind findings.py: each looks at a kernel and yields what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from domainbuilder.errors import BuildError
from domainbuilder.kernel.elf import EM_386, EM_X86_64, PF_W, PF_X, PT_LOAD, ElfImage
from domainbuilder.kernel.elfnotes import (
    NUMERIC_TYPES,
    STRING_TYPES,
    Note,
    elf_xen_parse_features,
    note_bytes,
    note_segments,
    note_string,
    quoted,
)
from domainbuilder.kernel.findings import Finding, Severity, Subject, found
from domainbuilder.kernel.lost_notes import disguised
from domainbuilder.kernel.parms import LEGACY_KEYS, UNSET_ADDR, ElfDomParms, RefusedError, XenPaeType
from hvcore.public.elfnote import ElfNote

_MANY = 64  # findings of one rule; a hostile file could have 65,536
_PAGE = 4096


# is it a Xen kernel at all?


def refusal(subject: Subject) -> Iterator[Finding]:
    pv = subject.pv
    if not isinstance(pv, RefusedError):
        return
    offset = pv.where.offset if pv.where else None
    if pv.code == "unknown-required-feature":
        yield found(pv.code, offset, pv.plain)
    elif not subject.accepted:
        yield found("refused" if _xen_kernel(subject) else "no-notes", offset, f"{pv.xen}: {pv.symptom}")


def _xen_kernel(subject: Subject) -> bool:
    """Whether anything in it is meant for Xen."""
    told = subject.notes.used or subject.guest_info or subject.losses
    return bool(told) or bool(disguised(subject.elf, subject.notes))


def unbuildable(subject: Subject) -> Iterator[Finding]:
    """Xen reads the notes and then cannot build the domain, whatever memory it has."""
    if subject.unfit is not None:
        where = subject.unfit.where
        place = where.offset if where is not None else None
        if place is None:
            place = _virt_base_offset(subject)
        yield found("unbuildable", place, _without_place(subject.unfit))


def _virt_base_offset(subject: Subject) -> int | None:
    notes = [note.offset for note in subject.notes.used if note.type == ElfNote.VIRT_BASE]
    info = subject.guest_info
    keys = [entry.offset for entry in info.keys if entry.key == "VIRT_BASE"] if info and info.used else []
    return next(iter((*notes[-1:], *keys[-1:])), None)


def _without_place(error: BuildError) -> str:
    return str(error).removeprefix(f"{error.where}: ")


def losses(subject: Subject) -> Iterator[Finding]:
    """Xen's notes that Xen does not come to."""
    for loss in subject.losses:
        yield found(loss.slug, loss.offset, loss.cause, None if subject.accepted else Severity.ERROR)


def broken(subject: Subject) -> Iterator[Finding]:
    for words in filter(None, (subject.elf.broken, subject.notes.broken)):
        yield found("broken", None, f"ELF broken: {words}")


def trailing_data(subject: Subject) -> Iterator[Finding]:
    if subject.kernel.trailing:
        yield found("trailing-data", None, f"{subject.kernel.trailing} bytes follow the compressed kernel")


def ident(subject: Subject) -> Iterator[Finding]:
    elf = subject.elf
    expected = {EM_386: 32, EM_X86_64: 64}.get(elf.machine)
    if expected and elf.elf_class != expected:
        yield found("class-machine", 4, f"an ELF{elf.elf_class} file whose machine is {elf.machine_name}")
    if elf.endian == ">":
        yield found("byte-order", 5, "the ELF header says big-endian")


# notes


def placement(subject: Subject) -> Iterator[Finding]:
    """Notes in no PT_NOTE; a PT_NOTE that Xen skips."""
    if subject.notes.source == "SHT_NOTE":
        first = next(note for note in subject.notes.used)
        name = subject.elf.sections[first.header].name
        message = f"Xen's notes are in section {quoted(name)} and in no PT_NOTE, where other loaders look"
        yield found("outside-pt-note", first.offset, message)
    for phdr in note_segments(subject.elf):
        if phdr.offset == 0 and phdr.filesz:
            yield found("note-offset-zero", phdr.header_offset, f"PT_NOTE {phdr.index} is at offset 0")


def owners(subject: Subject) -> Iterator[Finding]:
    for owner, notes in disguised(subject.elf, subject.notes).items():
        severity = None if subject.accepted else Severity.ERROR
        wrong = quoted(owner[:60].decode("latin-1"))
        message = f'{len(notes)} notes have the owner {wrong}, not "Xen": Xen ignores them'
        yield found("owner", notes[0].offset, message, severity)


def _name(note: Note) -> str:
    return note.type_name or f"type {note.type:#x}"


def sizes(subject: Subject) -> Iterator[Finding]:
    """Descriptors cut short, without a NUL, of a size that is no number's."""
    for note in subject.notes.used:
        end = note.desc_offset + note.descsz
        if end > note.end:
            lost = _lost(subject.elf, note)
            yield found(
                "cut-short",
                note.offset,
                f"{_name(note)}: its descriptor ends at {end:#x}, its {note.source} at {note.end:#x}",
                Severity.ERROR if lost else None,
            )
        if note.type in NUMERIC_TYPES and note.descsz not in {1, 2, 4, 8}:
            yield found(
                "number-size", note.offset, f"{_name(note)}: a number of {note.descsz} bytes reads as 0"
            )
        if note.type == ElfNote.SUPPORTED_FEATURES and (note.descsz % 4 or not note.descsz):
            yield found("number-size", note.offset, f"{_name(note)}: {note.descsz} bytes read as no features")
        if note.type in STRING_TYPES and end <= note.end:
            yield from _unterminated(subject.elf, note)


def _lost(elf: ElfImage, note: Note) -> bool:
    """Whether Xen cannot read the descriptor: a string needs only its NUL."""
    if note.type in STRING_TYPES:
        return note_string(elf, note) is None
    return note.desc_offset + note.descsz > len(elf.view)


def _unterminated(elf: ElfImage, note: Note) -> Iterator[Finding]:
    if b"\0" in note_bytes(elf, note):
        return
    text = note_string(elf, note)
    if text is not None and note.desc_offset + len(text) < note.next_offset:
        message = f"{_name(note)}: no NUL within its {note.descsz} bytes; the padding serves as one"
        yield found("unterminated", note.offset, message, Severity.INFO)
    else:
        message = f"{_name(note)}: no NUL within its {note.descsz} bytes; Xen reads on into what follows"
        yield found("unterminated", note.offset, message)


def alignment(subject: Subject) -> Iterator[Finding]:
    """What a reader sees that believes a p_align of 8 and pads to it, as the gABI has it for ELF64."""
    for phdr in note_segments(subject.elf):
        if phdr.align != 8:
            continue
        mine = [note for note in subject.notes.used if note.source == "PT_NOTE" and note.header == phdr.index]
        for before, after in pairwise(mine):
            desc = before.offset + (12 + before.namesz + 7 & ~7)
            then = desc + (before.descsz + 7 & ~7)
            if (desc, then) != (before.desc_offset, after.offset):
                message = (
                    f"PT_NOTE {phdr.index} says alignment 8, and its notes are padded to 4, as Xen reads "
                    f"them; a reader that pads to 8 loses its way after {_name(before)}"
                )
                yield found("alignment", phdr.header_offset, message)
                break


def types(subject: Subject) -> Iterator[Finding]:
    """Types that Xen 4.17 has no name for, and those given twice."""
    seen: dict[int, Note] = {}
    for note in subject.notes.used:
        if not note.type_name:
            yield found("unknown-type", note.offset, f"type {note.type:#x} has no meaning in Xen 4.17")
        elif note.type in seen and note.type != ElfNote.INFO and note.offset != seen[note.type].offset:
            message = f"{_name(note)} was given at {seen[note.type].offset:#x} already"
            yield found("duplicate", note.offset, message)
        seen[note.type] = note


_CHAR16 = {ElfNote.GUEST_OS, ElfNote.GUEST_VERSION, ElfNote.XEN_VERSION, ElfNote.LOADER}


def strings(subject: Subject) -> Iterator[Finding]:
    """Strings that Xen truncates, features it does not know, odd PAE modes."""
    for note in subject.notes.used:
        raw = note_string(subject.elf, note) if note.type in STRING_TYPES else None
        if raw is None:
            continue
        text = raw.decode("latin-1")
        if note.type in _CHAR16 and len(raw) > 15:
            yield found(
                "string-truncated",
                note.offset,
                f"{_name(note)} is {quoted(text[:15])} to Xen, not {quoted(text[:60])}",
            )
        if note.type == ElfNote.FEATURES:
            for name in elf_xen_parse_features(raw).unknown[:_MANY]:
                if not name.startswith("!"):
                    yield found(
                        "unknown-feature", note.offset, f"FEATURES: {quoted(name)} means nothing to Xen 4.17"
                    )
        if note.type == ElfNote.PAE_MODE and raw not in {b"yes", b"no"} and b"bimodal" not in raw:
            yield found("pae-mode", note.offset, f"PAE_MODE: {quoted(text[:60])} reads as no PAE")


# __xen_guest


def legacy(subject: Subject) -> Iterator[Finding]:
    info = subject.guest_info
    if info is None:
        return
    if not info.used:
        yield found("legacy-ignored", info.section.offset, "__xen_guest: Xen reads the notes and not this")
        return
    yield found("legacy", info.section.offset, "described by __xen_guest, the section that notes replaced")
    for entry in info.keys:
        if entry.key not in LEGACY_KEYS:
            yield found("legacy-key", entry.offset, f"__xen_guest: {quoted(entry.key)} means nothing to Xen")
        numeric = entry.key in {"VIRT_BASE", "VIRT_ENTRY", "ELF_PADDR_OFFSET", "HYPERCALL_PAGE"}
        if numeric and not _is_number(entry.value):
            read = "page 0" if entry.key == "HYPERCALL_PAGE" else "another number"
            message = f"__xen_guest: {entry.key}={quoted(entry.value)} is no number, and Xen reads {read}"
            yield found("legacy-number", entry.offset, message)
        if entry.key == "FEATURES" and (
            name := elf_xen_parse_features(entry.value.encode("latin-1")).refused
        ):
            message = f"__xen_guest: FEATURES requires {quoted(name)}, unknown to Xen, which stops there"
            yield found("legacy-required-feature", entry.offset, message)
            return


def _is_number(text: str) -> bool:
    try:
        int(text, 8 if text.startswith("0") and text.isdigit() else 0)
    except ValueError:
        return False
    return "_" not in text


# segments and addresses


def segments(subject: Subject) -> Iterator[Finding]:
    elf = subject.elf
    if not elf.load_segments:
        yield found("no-load-segment", None, "no LOAD segment: there is nothing to load")
    for phdr in elf.phdrs:
        if phdr.type != PT_LOAD:
            continue
        at, name = phdr.header_offset, f"LOAD segment {phdr.index}"
        if not phdr.loadable:
            yield found("load-without-permission", at, f"{name} may be neither read, written nor executed")
        if phdr.filesz > phdr.memsz:
            message = f"{name}: {phdr.filesz:#x} bytes in the file, {phdr.memsz:#x} in memory"
            yield found("filesz-over-memsz", at, message)
        if phdr.flags & PF_W and phdr.flags & PF_X:
            yield found("rwx-segment", at, f"{name} at {phdr.vaddr:#x} is writable and executable")
        if phdr.align > 1 and phdr.filesz and (phdr.offset - phdr.vaddr) % phdr.align:
            message = (
                f"{name}: offset {phdr.offset:#x} and address {phdr.vaddr:#x} differ modulo {phdr.align:#x}"
            )
            yield found("incongruent", at, message)


def overlaps(subject: Subject) -> Iterator[Finding]:
    loads = sorted((phdr for phdr in subject.elf.load_segments if phdr.memsz), key=lambda phdr: phdr.paddr)
    for before, after in pairwise(loads):
        if after.paddr < before.paddr + before.memsz:
            message = (
                f"LOAD segments {before.index} ({before.paddr:#x}+{before.memsz:#x}) and {after.index} "
                f"({after.paddr:#x}+{after.memsz:#x}) overlap"
            )
            yield found("segments-overlap", after.header_offset, message)


def addresses(subject: Subject) -> Iterator[Finding]:
    pv = subject.pv
    if not isinstance(pv, ElfDomParms):
        return
    hypercall = pv.virt_hypercall
    if hypercall != UNSET_ADDR and hypercall % _PAGE:
        yield found("hypercall-page", None, f"HYPERCALL_PAGE {hypercall:#x} is not at the start of a page")
    if hypercall != UNSET_ADDR and not pv.virt_kstart <= hypercall < pv.virt_kend:
        message = (
            f"HYPERCALL_PAGE {hypercall:#x} is outside the kernel's {pv.virt_kstart:#x} to {pv.virt_kend:#x}"
        )
        yield found("hypercall-page", None, message)
    entry = pv.virt_entry - pv.virt_offset & UNSET_ADDR
    if not any(phdr.paddr <= entry < phdr.paddr + phdr.memsz for phdr in subject.elf.load_segments):
        yield found("entry-not-loaded", None, f"ENTRY {pv.virt_entry:#x} is in no LOAD segment")
    if pv.bsd_symtab and subject.elf.symtab is None:
        yield found("bsd-symtab-missing", None, "BSD_SYMTAB asks for the symbol table, and there is none")
    if pv.guest_type == "xen-3.0-x86_32" and pv.pae == XenPaeType.NO:
        yield found("two-level", None, "the kernel does not say PAE: it would get two-level page tables")


def _bounded(check: Callable[[Subject], Iterator[Finding]]) -> Callable[[Subject], Iterator[Finding]]:
    """The first `_MANY` findings of each rule: one is as good as a thousand."""

    def bounded(subject: Subject) -> Iterator[Finding]:
        counts: dict[str, int] = {}
        for finding in check(subject):
            count = counts[finding.rule.id] = counts.get(finding.rule.id, 0) + 1
            if count <= _MANY:
                yield finding

    return bounded


CHECKS = tuple(
    map(
        _bounded,
        (
            *(refusal, unbuildable, broken, trailing_data, ident),
            *(placement, losses, owners, sizes, alignment, types, strings),
            legacy,
            *(segments, overlaps, addresses),
        ),
    )
)


def find(subject: Subject) -> tuple[Finding, ...]:
    """All findings: the worst first, then in the order of the file."""
    findings = [finding for check in CHECKS for finding in check(subject)]
    findings.sort(key=lambda one: (-one.severity, -1 if one.offset is None else one.offset, one.rule.id))
    return tuple(findings)
