"""Xen's ELF notes, and the `__xen_guest` string they replaced: where they are and what they say.

The walk is that of `elf_xen_parse` and `elf_xen_parse_notes` in xen/common/libelf/libelf-dominfo.c
of Xen 4.17, step by step, so that what is read here is what Xen reads. Notes that Xen never looks
at are found as well, for people to see.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from domainbuilder.errors import NotesError
from domainbuilder.kernel.elf import PT_NOTE, SHT_NOTE, ElfImage, ProgramHeader, Section
from hvcore.public.elfnote import ELFNOTE_NAME, ElfNote
from hvcore.public.features import XenFeat

ELF_MAX_TOTAL_NOTE_COUNT = 65536  # xen/include/xen/libelf.h
MAX_GUEST_INFO = 1 << 16  # bytes of __xen_guest; Xen reads until a NUL, however far

OWNER = ELFNOTE_NAME.encode()

KNOWN_FEATURES = {
    feature.name: feature
    for feature in (
        XenFeat.writable_page_tables,
        XenFeat.writable_descriptor_tables,
        XenFeat.auto_translated_physmap,
        XenFeat.supervisor_mode_kernel,
        XenFeat.pae_pgdir_above_4gb,
        XenFeat.hvm_callback_vector,
        XenFeat.dom0,
    )
}
"""elf_xen_feature_names: the features FEATURES may name; a required one that is not here is refused."""

_BASE = 0x7F00_0000_0000  # where the image would be mapped: libelf's pointers wrap at 2**64
_MASK = (1 << 64) - 1

Value = int | str | bytes | tuple[tuple[str, int], ...] | None
"""A decoded descriptor: a number, a string, named numbers, raw bytes, or None where unreadable."""


class Note(NamedTuple):
    """One ELF note. Offsets are bytes in the image; `end` is where its segment or section ends.

    `owner` is the name as Xen reads it (up to a NUL, `namesz` notwithstanding), None where it has
    no end. `used`: Xen takes this note to heart.
    """

    owner: bytes | None
    type: int
    namesz: int
    descsz: int
    offset: int
    source: str  # "PT_NOTE" or "SHT_NOTE"
    header: int  # index of the program or section header
    end: int
    used: bool

    @property
    def desc_offset(self) -> int:
        """elf_note_desc: where the descriptor starts."""
        return self.offset + 12 + round4(self.namesz)

    @property
    def next_offset(self) -> int:
        """elf_note_next: where the next note would start."""
        return self.desc_offset + round4(self.descsz)

    @property
    def is_xen(self) -> bool:
        """The owner is exactly "Xen"."""
        return self.owner == OWNER

    @property
    def owner_text(self) -> str:
        """The owner for people to read."""
        return "(unreadable)" if self.owner is None else self.owner.decode("latin-1")

    @property
    def type_name(self) -> str:
        """The name of the type without XEN_ELFNOTE_, or "" where neither Xen nor this table has one."""
        if self.is_xen:
            return _XEN_TYPES[self.type][0] if self.type in _XEN_TYPES else ""
        return _FOREIGN_TYPES.get((self.owner_text, self.type), "")


class Notes(NamedTuple):
    """All notes of an image. `source`: where Xen finds its own: "PT_NOTE", "SHT_NOTE" or ""."""

    notes: tuple[Note, ...]
    source: str
    ranges: int  # segments and sections walked as Xen walks them
    broken: str

    @property
    def used(self) -> tuple[Note, ...]:
        """Those Xen reads, in its order."""
        return tuple(note for note in self.notes if note.used)


def quoted(text: str) -> str:
    """`text` in double quotes; what no terminal should print as a backslash escape."""
    escapes = {'"': '\\"', "\\": "\\\\"}
    shown = "".join(
        escapes.get(char) or (char if char.isprintable() else char.encode("unicode_escape").decode())
        for char in text
    )
    return f'"{shown}"'


def round4(size: int) -> int:
    """Names and descriptors take a multiple of 4 bytes, whatever p_align says."""
    return (size + 3) & 0xFFFF_FFFC  # unsigned int, as in libelf


class _Walker:
    """elf_xen_parse_notes for one range after the other, with one bound on all notes together."""

    def __init__(self, elf: ElfImage, *, used: bool) -> None:
        self.elf = elf
        self.used = used
        self.left = ELF_MAX_TOTAL_NOTE_COUNT
        self.broken = ""

    def walk(self, source: str, header: int, offset: int, size: int) -> Iterator[Note]:
        unsigned = self.elf.unsigned
        pointer, end = (_BASE + offset) & _MASK, (_BASE + offset + size) & _MASK
        while pointer < end:
            if not self.left:
                self.broken = "too many ELF notes"
                return
            self.left -= 1
            at = pointer - _BASE
            namesz, descsz = unsigned(at, 4), unsigned(at + 4, 4)
            owner = self.elf.strval(at + 12)
            used = self.used and owner == OWNER
            yield Note(owner, unsigned(at + 8, 4), namesz, descsz, at, source, header, end - _BASE, used)
            if not 0 <= at < len(self.elf.view):
                return
            pointer = (pointer + 12 + round4(namesz) + round4(descsz)) & _MASK


def find_notes(elf: ElfImage) -> Notes:
    """Every note of `elf`: those Xen reads first, in its order, then what else sections hold.

    Xen looks at every PT_NOTE (but for those at offset 0), and at SHT_NOTE sections only when no
    PT_NOTE had a note of its own.
    """
    walker = _Walker(elf, used=True)
    segments = [(phdr.index, phdr.offset, phdr.filesz) for phdr in note_segments(elf) if phdr.offset]
    sections = [(one.index, one.offset, one.size) for one in note_sections(elf)]
    read = [note for one in segments for note in walker.walk("PT_NOTE", *one)]
    source, ranges = "PT_NOTE", len(segments)
    if not any(note.is_xen for note in read):
        more = [note for one in sections for note in walker.walk("SHT_NOTE", *one)]
        source = "SHT_NOTE" if any(note.is_xen for note in more) else ""
        read += more
        ranges += len(sections)
    other = _Walker(elf, used=False)
    unread = (
        [note for one in sections for note in other.walk("SHT_NOTE", *one)] if source == "PT_NOTE" else []
    )
    seen: set[int] = set()
    notes = []
    for note in (*read, *unread):
        if note.used or note.offset not in seen:
            notes.append(note)
        seen.add(note.offset)
    return Notes(tuple(notes), source, ranges, walker.broken)


def notes_in(elf: ElfImage, source: str, header: int) -> list[Note]:
    """All notes of one PT_NOTE or SHT_NOTE, as Xen would walk it."""
    if source == "PT_NOTE":
        offset, size = elf.phdrs[header].offset, elf.phdrs[header].filesz
    else:
        offset, size = elf.sections[header].offset, elf.sections[header].size
    return list(_Walker(elf, used=True).walk(source, header, offset, size))


def note_segments(elf: ElfImage) -> Iterator[ProgramHeader]:
    """The PT_NOTE program headers."""
    return (phdr for phdr in elf.phdrs if phdr.type == PT_NOTE)


def note_sections(elf: ElfImage) -> Iterator[Section]:
    """The SHT_NOTE sections."""
    return (section for section in elf.sections[1:] if section.type == SHT_NOTE)


# what descriptors say


def note_string(elf: ElfImage, note: Note) -> bytes | None:
    """elf_strval of the descriptor: up to its NUL, whatever `descsz` says; None where there is none."""
    return elf.strval(note.desc_offset)


def note_numeric(elf: ElfImage, note: Note) -> int:
    """elf_note_numeric: 1, 2, 4 or 8 bytes; any other size reads as 0."""
    return elf.unsigned(note.desc_offset, note.descsz) if note.descsz in {1, 2, 4, 8} else 0


def note_features(elf: ElfImage, note: Note) -> int:
    """elf_note_numeric_array of SUPPORTED_FEATURES: the first 32-bit word."""
    return elf.unsigned(note.desc_offset, 4) if note.descsz and note.descsz % 4 == 0 else 0


def note_bytes(elf: ElfImage, note: Note) -> bytes:
    """The descriptor's bytes, as far as the file has them, 4096 at most."""
    start = note.desc_offset
    return bytes(elf.view[start : start + min(note.descsz, 4096)]) if start >= 0 else b""


def decode(elf: ElfImage, note: Note) -> Value:
    """The descriptor, decoded by its type."""
    if note.is_xen and note.type in _XEN_TYPES:
        return _XEN_TYPES[note.type][1](elf, note)
    if note.owner == b"Linux" and note.type == _BUILD_SALT:
        return _string(elf, note)
    return note_bytes(elf, note)


def _string(elf: ElfImage, note: Note) -> Value:
    text = note_string(elf, note)
    return None if text is None else text.decode("latin-1")


def _words(*names: str, size: int = 8) -> Callable[[ElfImage, Note], Value]:
    """A decoder for named numbers of `size` bytes each; raw bytes where there are not enough."""

    def decoder(elf: ElfImage, note: Note) -> Value:
        if note.descsz < size * len(names):
            return note_bytes(elf, note)
        start = note.desc_offset
        return tuple((name, elf.unsigned(start + size * i, size)) for i, name in enumerate(names))

    return decoder


def _l1_mfn_valid(elf: ElfImage, note: Note) -> Value:
    """Pairs of mask and value, each of a maddr_t: 4 bytes in the first PAE-less guests, else 8."""
    size = 4 if note.descsz == 8 else 8
    raw = note_bytes(elf, note)
    pairs = len(raw) // (2 * size)
    if not pairs:
        return raw
    words = struct.unpack_from(f"{elf.endian}{2 * pairs}{'I' if size == 4 else 'Q'}", raw)
    return tuple((("mask", "value")[i % 2], word) for i, word in enumerate(words))


_Decoder = Callable[[ElfImage, Note], Value]

_XEN_TYPES: dict[int, tuple[str, _Decoder]] = {
    kind: (kind.name, decoder)
    for decoder, kinds in (
        (
            _string,
            "INFO XEN_VERSION GUEST_OS GUEST_VERSION LOADER PAE_MODE FEATURES BSD_SYMTAB",
        ),
        (
            note_numeric,
            "ENTRY HYPERCALL_PAGE VIRT_BASE PADDR_OFFSET HV_START_LOW SUSPEND_CANCEL INIT_P2M MOD_START_PFN",
        ),
        (note_numeric, "PHYS32_ENTRY"),
        (note_features, "SUPPORTED_FEATURES"),
        (_l1_mfn_valid, "L1_MFN_VALID"),
        # crash_xen_info_t, xen/include/xen/elfcore.h; crash_xen_core_t, asm-x86/x86_64/elf.h
        (
            _words(
                "xen_major_version",
                "xen_minor_version",
                "xen_extra_version",
                "xen_changeset",
                "xen_compiler",
                "xen_compile_date",
                "xen_compile_time",
                "tainted",
                "xen_phys_start",
                "dom0_pfn_to_mfn_frame_list_list",
            ),
            "CRASH_INFO",
        ),
        (_words("cr0", "cr2", "cr3", "cr4"), "CRASH_REGS"),
        # struct xen_dumpcore_elfnote_*_desc, tools/libs/guest/xg_core.h
        (note_bytes, "DUMPCORE_NONE"),
        (_words("xch_magic", "xch_nr_vcpus", "xch_nr_pages", "xch_page_size"), "DUMPCORE_HEADER"),
        (_words("major_version", "minor_version"), "DUMPCORE_XEN_VERSION"),
        (_words("version"), "DUMPCORE_FORMAT_VERSION"),
    )
    for kind in map(ElfNote.__getitem__, kinds.split())
}

STRING_TYPES = frozenset(kind for kind, (_, decoder) in _XEN_TYPES.items() if decoder is _string)
NUMERIC_TYPES = frozenset(kind for kind, (_, decoder) in _XEN_TYPES.items() if decoder is note_numeric)

_BUILD_SALT = 0x100  # LINUX_ELFNOTE_BUILD_SALT, include/linux/build-salt.h
_FOREIGN_TYPES = {
    ("GNU", 1): "NT_GNU_ABI_TAG",
    ("GNU", 3): "NT_GNU_BUILD_ID",
    ("GNU", 5): "NT_GNU_PROPERTY_TYPE_0",
    ("Linux", _BUILD_SALT): "LINUX_ELFNOTE_BUILD_SALT",
    ("Linux", 0x101): "LINUX_ELFNOTE_LTO_INFO",
}


# FEATURES


class Features(NamedTuple):
    """A FEATURES string, parsed: names in order, and the bits of those that Xen 4.17 knows."""

    supported: int
    required: int
    names: tuple[str, ...]  # a required one keeps its "!"
    unknown: tuple[str, ...]
    refused: str | None  # the first required feature that Xen does not know, at which it stops


def elf_xen_parse_features(text: bytes) -> Features:
    """The grammar of libelf-dominfo.c: names between "|", "!" for required, 63 bytes of each at most."""
    supported = required = pos = 0
    names: list[str] = []
    unknown: list[str] = []
    while pos < len(text):
        chunk = text[pos : pos + 63]
        bar = chunk.find(b"|")
        name = (chunk if bar < 0 else chunk[:bar]).decode("latin-1")
        pos += len(chunk) if bar < 0 else bar + 1
        names.append(name)
        feature = KNOWN_FEATURES.get(name.removeprefix("!"))
        if feature is not None:
            supported |= 1 << feature
            required |= (1 << feature) if name.startswith("!") else 0
            continue
        if name:
            unknown.append(name)
        if name.startswith("!"):
            return Features(supported, required, tuple(names), tuple(unknown), name[1:])
    return Features(supported, required, tuple(names), tuple(unknown), None)


def feature_names(bits: int) -> tuple[str, ...]:
    """The names of the XENFEAT_* bits, lowest first; "bit N" where there is no name."""
    known = {int(feature): feature.name for feature in XenFeat}
    return tuple(known.get(bit, f"bit {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1)


# __xen_guest


class GuestKey(NamedTuple):
    """One KEY=VALUE of `__xen_guest`, at `offset` in the image."""

    key: str
    value: str
    offset: int


class GuestInfo(NamedTuple):
    """The legacy `__xen_guest` section. `used`: Xen reads it, for want of notes of its own."""

    section: Section
    keys: tuple[GuestKey, ...]
    used: bool


_NAME = re.compile(rb"[^\0,=]{0,31}")
_VALUE = re.compile(rb"[^\0,]{0,127}")


def find_guest_info(elf: ElfImage, notes: Notes) -> GuestInfo | None:
    """The `__xen_guest` section, split as elf_xen_parse_guest_info splits it; None where there is none.

    Raises NotesError where the string does not end within 64 KiB.
    """
    section = elf.section_by_name("__xen_guest")
    if section is None:
        return None
    start = section.offset
    text = bytes(elf.view[start : start + MAX_GUEST_INFO])
    if b"\0" not in text:
        if len(text) == MAX_GUEST_INFO:
            raise NotesError(
                "__xen_guest does not end",
                where=elf.where(start),
                expected=f"a NUL within {MAX_GUEST_INFO} bytes",
            )
        text += b"\0"  # the end of the file reads as 0
    return GuestInfo(section, tuple(_guest_keys(text, start)), not notes.source)


def _guest_keys(text: bytes, start: int) -> Iterator[GuestKey]:
    """Names hold 31 bytes and values 127; what is longer becomes the next name, as in Xen."""
    at = 0
    while text[at]:
        begin = at
        name = _matched(_NAME, text, at)
        at += len(name)
        value = b""
        if len(name) < 31:
            if text[at] == ord("="):
                value = _matched(_VALUE, text, at + 1)
                at += 1 + len(value)
            if len(value) < 127 and text[at] == ord(","):
                at += 1
        yield GuestKey(name.decode("latin-1"), value.decode("latin-1"), start + begin)


def _matched(pattern: re.Pattern[bytes], text: bytes, at: int) -> bytes:
    match = pattern.match(text, at)
    return match.group() if match else b""
