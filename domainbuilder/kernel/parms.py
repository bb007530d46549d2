"""What a kernel asks of Xen, decoded: `struct elf_dom_parms` of Xen's libelf, as a frozen value.

And what Xen accepts: `elf_xen_parse` of xen/common/libelf/libelf-dominfo.c and
`xc_dom_parse_elf_kernel` of tools/libs/guest/xg_dom_elfloader.c, both of Xen 4.17.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from domainbuilder.errors import NotesError, Where
from domainbuilder.kernel.elf import EM_386, EM_ARM, EM_X86_64, ElfImage, elf_parse_bsdsyms
from domainbuilder.kernel.elfnotes import (
    GuestInfo,
    Note,
    Notes,
    elf_xen_parse_features,
    find_guest_info,
    find_notes,
    note_features,
    note_numeric,
    note_string,
    quoted,
)
from domainbuilder.kernel.lost_notes import Loss, cause, lost_notes
from hvcore.public.elfnote import ElfNote
from hvcore.public.features import XenFeat

UNSET_ADDR = (1 << 64) - 1  # UNSET_ADDR, xen/include/xen/libelf.h
UNSET_ADDR32 = (1 << 32) - 1  # UNSET_ADDR32


class XenPaeType(IntEnum):
    """enum xen_pae_type, xen/include/xen/libelf.h."""

    NO = 0
    YES = 1
    EXTCR3 = 2
    BIMODAL = 3


class ElfDomParms(NamedTuple):
    """`struct elf_dom_parms`, xen/include/xen/libelf.h; addresses are bytes, UNSET_ADDR where not given."""

    guest_type: str  # "xen-3.0-x86_32p", "xen-3.0-x86_32" (two-level), "xen-3.0-x86_64"
    guest_os: str
    guest_ver: str
    xen_ver: str
    loader: str
    pae: XenPaeType
    bsd_symtab: bool
    unmapped_initrd: bool
    f_supported: int
    f_required: int
    virt_base: int
    virt_entry: int
    virt_hypercall: int
    virt_hv_start_low: int
    p2m_base: int
    elf_paddr_offset: int
    phys_entry: int
    virt_offset: int
    virt_kstart: int
    virt_kend: int


# what Xen says when it will not have a kernel

NO_LOADER = "xc_dom_find_loader: no loader found: Invalid kernel"
_NO_NOTES = "there are neither Xen notes that Xen finds nor a __xen_guest section"
_MASK = (1 << 64) - 1


class RefusedError(NotesError):
    """Xen refuses this kernel. `xen` is what its user gets to read, `libelf` the line that libelf
    would log (no log is set while loaders are tried, so nobody sees it), `plain` the reason in
    plain words. `code` names the reason for programs.
    """

    def __init__(
        self, code: str, plain: str, *, xen: str = NO_LOADER, libelf: str = "", where: Where
    ) -> None:
        super().__init__(f"{xen}: {plain}", where=where)
        self.code = code
        self.xen = xen
        self.libelf = libelf
        self.plain = plain
        self.symptom = plain  # `plain` without what is behind it

    def because(self, cause: str, where: Where) -> RefusedError:
        """The same refusal, with what is behind it and the place of that."""
        plain = f"{self.plain}, because {cause}"
        refusal = RefusedError(self.code, plain, xen=self.xen, libelf=self.libelf, where=where)
        refusal.symptom = self.plain
        return refusal


@dataclass(slots=True)
class _Draft:
    """`struct elf_dom_parms` while it is being filled in, and where each field was read."""

    elf: ElfImage
    guest_os: str = ""
    guest_ver: str = ""
    xen_ver: str = ""
    loader: str = ""
    pae: XenPaeType = XenPaeType.NO
    bsd_symtab: bool = False
    unmapped_initrd: bool = False
    f_supported: int = 0
    f_required: int = 0
    virt_base: int = UNSET_ADDR
    virt_entry: int = UNSET_ADDR
    virt_hypercall: int = UNSET_ADDR
    virt_hv_start_low: int = UNSET_ADDR
    p2m_base: int = UNSET_ADDR
    elf_paddr_offset: int = UNSET_ADDR
    phys_entry: int = UNSET_ADDR32
    virt_offset: int = 0
    virt_kstart: int = 0
    virt_kend: int = 0
    places: dict[str, int] = field(default_factory=dict)

    def set(self, name: str, value: object, place: int) -> None:
        """Fill in a field that was read at `place`."""
        setattr(self, name, value)
        self.places[name] = place

    def where(self, *names: str) -> Where:
        """Where the first of these fields was read that was read at all."""
        return self.elf.where(next((self.places[name] for name in names if name in self.places), None))

    def add_features(self, text: bytes) -> str | None:
        """Both FEATURES; the required feature that Xen does not know, at which it stops."""
        features = elf_xen_parse_features(text)
        self.f_supported |= features.supported
        self.f_required |= features.required
        return features.refused

    def finish(self, guest_type: str) -> ElfDomParms:
        """The frozen value."""
        names = (name for name in ElfDomParms._fields if name != "guest_type")
        return ElfDomParms(guest_type=guest_type, **{name: getattr(self, name) for name in names})


def xc_dom_parse_elf_kernel(elf: ElfImage, *, hvm: bool = False) -> ElfDomParms:
    """What `elf` asks of Xen as a PV guest, or with `hvm` as a PVH one, defaults filled in.

    Raises RefusedError (a NotesError) where Xen 4.17 would refuse it; but a guest with two-level
    page tables passes, although no Xen of the last decade runs one.
    """
    notes = find_notes(elf)
    info = find_guest_info(elf, notes)
    try:
        return elf_xen_parse(elf, notes, info, hvm=hvm)
    except RefusedError as refusal:
        pvh = None if hvm else accepted_as_pvh(elf, notes, info)
        raise (
            refusal
            if hvm
            else explained(elf, notes, refusal, pvh, lost_notes(elf, notes, everywhere=not pvh))
        ) from None


def accepted_as_pvh(elf: ElfImage, notes: Notes, info: GuestInfo | None) -> ElfDomParms | None:
    """What the kernel asks for as a PVH guest; None where it is none."""
    try:
        return elf_xen_parse(elf, notes, info, hvm=True)
    except RefusedError:
        return None


def explained(
    elf: ElfImage, notes: Notes, refusal: RefusedError, pvh: ElfDomParms | None, losses: Sequence[Loss]
) -> RefusedError:
    """The refusal of a PV kernel, with its cause: notes that Xen does not come to, or none of PV's at all."""
    found = cause(elf, notes, losses)
    if found is not None and (refusal.code in _MISSING or (losses and refusal.code in _ADDRESSES)):
        return refusal.because(found[0], elf.where(found[1]))
    if pvh is not None:
        entry = f"PHYS32_ENTRY {pvh.phys_entry:#x}"
        plain = (
            f"it is a PVH kernel ({entry}) and no PV one, and domainbuilder runs PV guests: {refusal.plain}"
        )
        return RefusedError("pvh-only", plain, xen=refusal.xen, libelf=refusal.libelf, where=elf.where())
    return refusal


_MISSING = frozenset({"no-notes", "loader", "xen-version"})  # refused for what notes do not say
_ADDRESSES = frozenset({"paddr-offset", "out-of-bounds"})


def elf_xen_parse(elf: ElfImage, notes: Notes, info: GuestInfo | None, *, hvm: bool = False) -> ElfDomParms:
    """The same, when the notes have been found already."""
    draft = _Draft(elf)
    for note in notes.used:
        _parse_note(elf, note, draft)
    legacy = info is not None and info.used and not hvm
    if info is not None and legacy:
        _parse_guest_info(info, draft)
    _note_check(elf, draft, notes, hvm=hvm, legacy=legacy)
    _addr_calc_check(elf, draft, hvm=hvm, legacy=legacy or not notes.ranges)
    if draft.f_required >> XenFeat.dom0 & 1:
        raise RefusedError(
            "dom0-only",
            "FEATURES requires dom0",
            xen="xc_dom_parse_elf_kernel: Kernel does not support unprivileged (DomU) operation"
            ": Invalid kernel",
            where=elf.where(),
        )
    return draft.finish(_guest_type(elf, draft, hvm=hvm))


# elf_xen_parse_note


def _text(raw: bytes) -> str:
    """safe_strcpy into a char[16]."""
    return raw[:15].decode("latin-1")


def _pae_mode(draft: _Draft, raw: bytes) -> None:
    if raw == b"yes":
        draft.pae = XenPaeType.EXTCR3
    if b"bimodal" in raw:
        draft.pae = XenPaeType.BIMODAL


def _bsd_symtab(draft: _Draft, raw: bytes) -> None:
    draft.bsd_symtab = draft.bsd_symtab or raw == b"yes"


_STRING_FIELDS = {
    ElfNote.LOADER: "loader",
    ElfNote.GUEST_OS: "guest_os",
    ElfNote.GUEST_VERSION: "guest_ver",
    ElfNote.XEN_VERSION: "xen_ver",
}
_STRING_SETTERS: dict[int, Callable[[_Draft, bytes], None]] = {
    ElfNote.PAE_MODE: _pae_mode,
    ElfNote.BSD_SYMTAB: _bsd_symtab,
}
_NUMERIC_FIELDS = {
    ElfNote.VIRT_BASE: "virt_base",
    ElfNote.ENTRY: "virt_entry",
    ElfNote.INIT_P2M: "p2m_base",
    ElfNote.PADDR_OFFSET: "elf_paddr_offset",
    ElfNote.HYPERCALL_PAGE: "virt_hypercall",
    ElfNote.HV_START_LOW: "virt_hv_start_low",
}


def _parse_note(elf: ElfImage, note: Note, draft: _Draft) -> None:
    kind = note.type
    if kind in _NUMERIC_FIELDS:
        draft.set(_NUMERIC_FIELDS[ElfNote(kind)], note_numeric(elf, note), note.offset)
    elif kind == ElfNote.PHYS32_ENTRY:
        draft.phys_entry = note_numeric(elf, note) & UNSET_ADDR32
    elif kind == ElfNote.MOD_START_PFN:
        draft.unmapped_initrd = bool(note_numeric(elf, note))
    elif kind == ElfNote.SUPPORTED_FEATURES:
        draft.f_supported |= note_features(elf, note)
    elif kind in _STRING_FIELDS or kind in _STRING_SETTERS or kind == ElfNote.FEATURES:
        _parse_string_note(elf, note, draft)


def _parse_string_note(elf: ElfImage, note: Note, draft: _Draft) -> None:
    raw = note_string(elf, note)
    if raw is None:
        return
    if note.type in _STRING_FIELDS:
        draft.set(_STRING_FIELDS[ElfNote(note.type)], _text(raw), note.offset)
    elif note.type in _STRING_SETTERS:
        _STRING_SETTERS[note.type](draft, raw)
    elif (refused := draft.add_features(raw)) is not None:
        raise RefusedError(
            "unknown-required-feature",
            f"FEATURES requires {quoted(refused)}, which Xen 4.17 does not know",
            where=elf.where(note.desc_offset),
        )


# elf_xen_parse_guest_info


def strtoull(text: str) -> int:
    """C's strtoull in base 0: what follows the number is ignored, no number is 0."""
    match = _NUMBER.match(text)
    if not match:
        return 0
    sign, hexadecimal, octal, decimal = match.groups()
    value = int(hexadecimal, 16) if hexadecimal else int(octal, 8) if octal else int(decimal)
    if value > _MASK:
        return _MASK
    return -value & _MASK if sign == "-" else value


_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))")

_LEGACY_STRINGS = {"LOADER": "loader", "GUEST_OS": "guest_os", "GUEST_VER": "guest_ver", "XEN_VER": "xen_ver"}
_LEGACY_NUMBERS = {
    "VIRT_BASE": ("virt_base", 0),
    "VIRT_ENTRY": ("virt_entry", 0),
    "ELF_PADDR_OFFSET": ("elf_paddr_offset", 0),
    "HYPERCALL_PAGE": ("virt_hypercall", 12),  # a page number
}
LEGACY_KEYS = frozenset({*_LEGACY_STRINGS, *_LEGACY_NUMBERS, "PAE", "BSD_SYMTAB", "FEATURES"})
"""The keys of `__xen_guest` that Xen acts on."""


def _parse_guest_info(info: GuestInfo, draft: _Draft) -> None:
    for entry in info.keys:
        key, value = entry.key, entry.value
        if key in _LEGACY_STRINGS:
            draft.set(_LEGACY_STRINGS[key], value[:15], entry.offset)
        elif key in _LEGACY_NUMBERS:
            name, shift = _LEGACY_NUMBERS[key]
            draft.set(name, strtoull(value) << shift & _MASK, entry.offset)
        elif key == "PAE" and value == "yes[extended-cr3]":
            draft.pae = XenPaeType.EXTCR3
        elif key == "PAE" and value.startswith("yes"):
            draft.pae = XenPaeType.YES
        elif key == "BSD_SYMTAB":
            draft.bsd_symtab = True
        elif key == "FEATURES" and draft.add_features(value.encode("latin-1")) is not None:
            break  # Xen stops reading here, and forgets that it did
    if UNSET_ADDR not in {draft.virt_base, draft.virt_hypercall}:
        draft.virt_hypercall = (draft.virt_hypercall + draft.virt_base) & _MASK


# elf_xen_note_check, elf_xen_addr_calc_check, xc_dom_guest_type


def _note_check(elf: ElfImage, draft: _Draft, notes: Notes, *, hvm: bool, legacy: bool) -> None:
    if not notes.ranges and not legacy:
        if elf.machine in {EM_386, EM_X86_64}:
            raise RefusedError(
                "no-notes",
                _NO_NOTES,
                libelf="ERROR: Not a Xen-ELF image: No ELF notes or '__xen_guest' section found",
                where=elf.where(),
            )
        return
    if elf.machine == EM_ARM or (hvm and draft.phys_entry != UNSET_ADDR32):
        return
    if not draft.loader.startswith("generic") and not draft.guest_os.startswith("linux"):
        plain = (
            f'LOADER is {quoted(draft.loader)}, not "generic", '
            f'and GUEST_OS is {quoted(draft.guest_os)}, not "linux"'
        )
        none = not notes.used and not legacy
        raise RefusedError(
            "no-notes" if none else "loader",
            _NO_NOTES if none else plain,
            libelf="ERROR: Will only load images built for the generic loader or Linux images"
            f" (Not '{draft.loader}' and '{draft.guest_os}') or with PHYS32_ENTRY set",
            where=draft.where("loader", "guest_os"),
        )
    if not draft.xen_ver.startswith("xen-3.0"):
        raise RefusedError(
            "xen-version",
            f'XEN_VERSION is {quoted(draft.xen_ver)}, not "xen-3.0"',
            libelf=f"ERROR: Xen will only load images built for Xen v3.0 (Not '{draft.xen_ver}')",
            where=draft.where("xen_ver"),
        )


def _addr_calc_check(elf: ElfImage, draft: _Draft, *, hvm: bool, legacy: bool) -> None:
    if draft.elf_paddr_offset != UNSET_ADDR and draft.virt_base == UNSET_ADDR:
        raise RefusedError(
            "paddr-offset",
            "PADDR_OFFSET is given and VIRT_BASE is not",
            libelf="ERROR: ELF_PADDR_OFFSET set, VIRT_BASE unset",
            where=draft.where("elf_paddr_offset"),
        )
    if draft.virt_base == UNSET_ADDR or hvm:
        draft.virt_base = 0
    if draft.elf_paddr_offset == UNSET_ADDR or hvm:
        draft.elf_paddr_offset = draft.virt_base if legacy and not hvm else 0
    draft.virt_offset = (draft.virt_base - draft.elf_paddr_offset) & _MASK
    draft.virt_kstart = (elf.pstart + draft.virt_offset) & _MASK
    draft.virt_kend = (elf.pend + draft.virt_offset) & _MASK
    if draft.virt_entry == UNSET_ADDR or hvm:
        phys = hvm and draft.phys_entry != UNSET_ADDR32
        draft.virt_entry = draft.phys_entry if phys else elf.entry
    if draft.bsd_symtab and (symbols := elf_parse_bsdsyms(elf, elf.pend)) and symbols[1]:
        draft.virt_kend = (symbols[1] + draft.virt_offset) & _MASK
    _bounds_check(draft, elf)


def _bounds_check(draft: _Draft, elf: ElfImage) -> None:
    start, end = draft.virt_kstart, draft.virt_kend
    kernel = f"the kernel's {start:#x} to {end:#x}"
    checks = (
        (start > end, "virt_base", f"the kernel would start at {start:#x} and end at {end:#x}"),
        (
            not start <= draft.virt_entry <= end,
            "virt_entry",
            f"ENTRY {draft.virt_entry:#x} is outside {kernel}{_wrong_base(draft, elf)}",
        ),
        (
            draft.virt_base > start,
            "virt_base",
            f"VIRT_BASE {draft.virt_base:#x} is above the kernel's start {start:#x}",
        ),
    )
    for wrong, name, plain in checks:
        if wrong:
            libelf = "ERROR: ELF start or entries are out of bounds"
            raise RefusedError("out-of-bounds", plain, libelf=libelf, where=draft.where(name))
    if draft.p2m_base != UNSET_ADDR and start <= draft.p2m_base < end:
        raise RefusedError(
            "p2m-out-of-bounds",
            f"INIT_P2M {draft.p2m_base:#x} is inside {kernel}",
            libelf="ERROR: P->M table base is out of bounds",
            where=draft.where("p2m_base"),
        )


def _wrong_base(draft: _Draft, elf: ElfImage) -> str:
    """Why an entry that is inside the segments as they are linked is outside of where Xen puts them."""
    if not draft.virt_offset or not elf.pstart <= draft.virt_entry <= elf.pend:
        return ""
    if draft.elf_paddr_offset:
        added = f"VIRT_BASE {draft.virt_base:#x} less PADDR_OFFSET {draft.elf_paddr_offset:#x}"
        return f": Xen adds {added} to the physical addresses of its segments"
    if elf.pstart < draft.virt_base:
        return ": Xen adds VIRT_BASE to the physical addresses of its segments, and ENTRY is one of these"
    return (
        ": the physical addresses of its segments are virtual ones, and Xen adds VIRT_BASE to them; "
        "PADDR_OFFSET with VIRT_BASE's value takes it away, or AT() in the linker script makes them physical"
    )


_PAE_GUEST_TYPES = {
    XenPaeType.NO: "xen-3.0-x86_32",
    XenPaeType.YES: "xen-3.0-x86_32p",
    XenPaeType.EXTCR3: "xen-3.0-x86_32p",
    XenPaeType.BIMODAL: "xen-3.0-x86_32p",  # as on any Xen that has PAE guests
}


def _guest_type(elf: ElfImage, draft: _Draft, *, hvm: bool) -> str:
    if hvm and draft.phys_entry != UNSET_ADDR32:
        return "hvm-3.0-x86_32"
    if hvm:
        raise RefusedError(
            "not-pvh",
            "it has no PHYS32_ENTRY note",
            xen="xc_dom_guest_type: image not capable of booting inside a HVM container: Invalid kernel",
            where=elf.where(),
        )
    if elf.machine == EM_386:
        return _PAE_GUEST_TYPES[draft.pae]
    if elf.machine == EM_X86_64:
        return "xen-3.0-x86_64"
    raise RefusedError(
        "machine",
        f"it is for {elf.machine_name}",
        xen=f"xc_dom_guest_type: unknown image type {elf.machine}: Invalid kernel",
        where=elf.where(18),
    )
