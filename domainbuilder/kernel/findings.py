"""What is remarkable about a kernel's notes and layout: rules with stable ids, and what to do.

The table is the one place where ids, severities and advice are kept; docs/notes.md explains each
id, and tests hold both to it. The checks themselves are in note_checks.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from domainbuilder.errors import BuildError
from domainbuilder.kernel.elf import ElfImage
from domainbuilder.kernel.elfnotes import GuestInfo, Notes
from domainbuilder.kernel.kernel_file import KernelFile
from domainbuilder.kernel.lost_notes import Loss
from domainbuilder.kernel.parms import ElfDomParms, RefusedError


class Severity(IntEnum):
    """How bad it is; `--check` fails on errors."""

    INFO = 0
    WARNING = 1
    ERROR = 2


_I, _W, _E = Severity


class Rule(NamedTuple):
    """A kind of finding: its id for good, a name, how bad it usually is, and what to do about it."""

    id: str
    slug: str
    severity: Severity
    advice: str

    def found(self, message: str, offset: int | None = None, severity: Severity | None = None) -> Finding:
        """A finding of this rule, with its severity unless another is given."""
        return Finding(self, self.severity if severity is None else severity, offset, message)


RULES = {
    rule[1]: Rule(*rule)
    for rule in (
        ("DBN001", "no-notes", _E, 'give the kernel Xen notes (owner "Xen") in a PT_NOTE segment'),
        ("DBN002", "refused", _E, "correct the notes or addresses that the message names"),
        (
            "DBN003",
            "outside-pt-note",
            _W,
            "put the section into a PT_NOTE segment (PHDRS), or run `notes fix`",
        ),
        ("DBN004", "owner", _W, 'the owner must be exactly "Xen"; `notes fix` renames it'),
        ("DBN005", "cut-short", _W, "enlarge the segment or section to hold its last note whole"),
        ("DBN006", "alignment", _W, "set the alignment of the note segment and section to 4"),
        ("DBN007", "unterminated", _W, "end the string with a NUL (.asciz) and count it in descsz"),
        ("DBN008", "number-size", _E, "make the descriptor 4 or 8 bytes"),
        ("DBN009", "unknown-type", _I, "nothing, where a newer Xen knows the type; else check the number"),
        ("DBN010", "duplicate", _W, "keep one of them: the last one wins"),
        ("DBN011", "unknown-feature", _I, "nothing, where a newer Xen knows it; else check the spelling"),
        ("DBN012", "unknown-required-feature", _E, 'drop the "!", or the name'),
        ("DBN013", "string-truncated", _W, "shorten it to 15 bytes"),
        ("DBN014", "legacy", _I, "nothing for Xen 4.17; ELF notes say the same, and more loaders read them"),
        ("DBN015", "legacy-key", _W, "Xen ignores the key: check the spelling (GUEST_VER, XEN_VER)"),
        ("DBN016", "legacy-number", _W, "write a C number: 0x hexadecimal, 0 octal, or decimal"),
        ("DBN017", "legacy-required-feature", _W, 'drop the "!", or put FEATURES last'),
        ("DBN018", "legacy-ignored", _I, "drop the section, or the notes"),
        ("DBN019", "class-machine", _W, "link with the ELF class of the machine"),
        ("DBN020", "byte-order", _W, "link a little-endian ELF"),
        ("DBN021", "rwx-segment", _I, "split code and data into segments of their own"),
        ("DBN022", "segments-overlap", _E, "give every LOAD segment physical addresses of its own"),
        ("DBN023", "filesz-over-memsz", _E, "make p_memsz at least p_filesz"),
        ("DBN024", "no-load-segment", _E, "link the kernel with at least one LOAD segment"),
        ("DBN025", "load-without-permission", _W, "give the segment flags: Xen does not load it"),
        ("DBN026", "note-offset-zero", _W, "Xen skips a PT_NOTE at offset 0: link with newer binutils"),
        ("DBN027", "bsd-symtab-missing", _W, "do not strip the symbol table, or drop BSD_SYMTAB"),
        ("DBN028", "hypercall-page", _E, "give the hypercall page a page of its own within the kernel"),
        ("DBN029", "two-level", _W, 'build for PAE and say so (PAE_MODE "yes"): Xen 4.17 has no such guests'),
        ("DBN030", "pae-mode", _W, 'write "yes", "no" or "bimodal"'),
        ("DBN031", "broken", _W, "correct the header counts; Xen reads what it can and goes on"),
        ("DBN032", "trailing-data", _W, "drop what follows the compressed kernel: nobody reads it"),
        ("DBN033", "entry-not-loaded", _E, "point ENTRY into a LOAD segment"),
        ("DBN034", "incongruent", _W, "make p_offset and p_vaddr equal modulo p_align"),
        (
            "DBN035",
            "note-padding",
            _W,
            "pad notes to 4 bytes (.balign 4, also in 64-bit kernels); `notes fix` does",
        ),
        ("DBN036", "note-covers", _W, "correct the size that the note states; `notes fix` does"),
        (
            "DBN037",
            "note-garbage",
            _W,
            "let the output section hold nothing but notes; `notes fix` repacks it",
        ),
        ("DBN038", "note-unread", _W, "put all of Xen's notes into a PT_NOTE (PHDRS); `notes fix` does"),
        (
            "DBN039",
            "unbuildable",
            _E,
            "make VIRT_BASE, PADDR_OFFSET and the addresses of the LOAD segments agree",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: its rule, where in the ELF image (byte offset, None: nowhere in particular), and what."""

    rule: Rule
    severity: Severity
    offset: int | None
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What the checks look at."""

    kernel: KernelFile
    elf: ElfImage
    notes: Notes
    guest_info: GuestInfo | None
    pv: ElfDomParms | RefusedError
    pvh: ElfDomParms | RefusedError
    accepted: bool  # as some kind of guest
    losses: tuple[Loss, ...] = ()
    unfit: BuildError | None = None  # why no domain of any size can be made of it


def found(slug: str, offset: int | None, message: str, severity: Severity | None = None) -> Finding:
    """A finding of the rule `slug`, with the rule's severity unless another is given."""
    return RULES[slug].found(message, offset, severity)
