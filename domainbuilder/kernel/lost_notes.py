"""Xen notes that are in a kernel and that Xen does not read, and what keeps it from them.

Xen goes from note to note by the sizes they state, and pads these to 4 bytes. One wrong size, or padding to
8, and it reads headers where there are none: the notes behind are lost, and what Xen complains of is that a
value is missing. Here the notes are found by their looks, wherever they are, and compared with those that
Xen reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from domainbuilder.kernel.elf import ElfImage
from domainbuilder.kernel.elfnotes import (
    NUMERIC_TYPES,
    OWNER,
    STRING_TYPES,
    Note,
    Notes,
    note_bytes,
    note_sections,
    note_segments,
    note_string,
    notes_in,
    quoted,
    round4,
)
from hvcore.public.elfnote import ELFNOTE_MAX, ElfNote

_MOST = 1024  # notes looked for; a kernel has twenty
_MOST_RANGES = 64
_MOST_NAMED = 6
_HEADS = {
    "<": re.compile(rb"\x04\0\0\0(?s:.{4})[\0-\x12]\0\0\0Xen\0"),
    ">": re.compile(rb"\0\0\0\x04(?s:.{4})\0\0\0[\0-\x12]Xen\0"),
}

Found = tuple[Note, ...]
_MUST_HAVE = {ElfNote.XEN_VERSION, ElfNote.LOADER, ElfNote.GUEST_OS}


class Loss(NamedTuple):
    """Notes that Xen does not read for one reason.

    `slug` is the kind of finding, `offset` where to look, `cause` what there is and what Xen makes of it.
    `source` and `header` say which PT_NOTE or SHT_NOTE the notes are in ("" and -1: none that Xen walks), and
    `kept` what a repaired range would hold, the notes lost and the sound ones before and between them.
    """

    slug: str
    offset: int
    cause: str
    lost: Found
    source: str
    header: int
    kept: Found


def lost_notes(elf: ElfImage, notes: Notes, *, everywhere: bool) -> tuple[Loss, ...]:
    """What Xen misses among the notes of `elf`: in segments and sections of notes, or `everywhere`.

    What looks like a note in the middle of a kernel's data may be data: look there only when in need.
    """
    ranges = _ranges(elf)
    places = [(0, len(elf.view))] if everywhere else [(start, end) for _, _, start, end in ranges]
    read = {note.offset for note in notes.used}
    found = {note.offset: note for place in places for note in _look(elf, *place) if note.offset not in read}
    losses: list[Loss] = []
    for source, header, start, end in ranges:
        inside = tuple(found[offset] for offset in sorted(found) if start <= offset < end)
        walked = source == "PT_NOTE" or notes.source != "PT_NOTE"
        read_there = notes_in(elf, source, header) if inside and walked else []
        if read_there:
            losses.append(_derailed(elf, read_there, inside))
            for note in inside:
                del found[note.offset]
    return (*losses, *_unwalked(elf, tuple(found[offset] for offset in sorted(found))))


def disguised(elf: ElfImage, notes: Notes) -> dict[bytes, list[Note]]:
    """Notes that are Xen's in all but the owner, by owner."""
    by_owner: dict[bytes, list[Note]] = {}
    for note in notes.notes:
        if note.owner is not None and note.owner != OWNER and note.type <= ELFNOTE_MAX:
            by_owner.setdefault(note.owner, []).append(note)
    return {
        owner: group
        for owner, group in by_owner.items()
        if owner.strip().lower() == OWNER.lower() or _looks_like_xen(elf, group)
    }


def cause(elf: ElfImage, notes: Notes, losses: Sequence[Loss]) -> tuple[str, int] | None:
    """Why Xen finds too little in the notes of a kernel that it refuses, and where; None if it read all."""
    if losses:
        return losses[0].cause, losses[0].offset
    for owner, group in disguised(elf, notes).items():
        wrong = quoted(owner[:60].decode("latin-1"))
        return f'{len(group)} notes at {group[0].offset:#x} have the owner {wrong}, not "Xen"', group[
            0
        ].offset
    return None


def _looks_like_xen(elf: ElfImage, notes: list[Note]) -> bool:
    strings = {note.type: note_string(elf, note) or b"" for note in notes if note.type in _MUST_HAVE}
    return strings.get(ElfNote.XEN_VERSION, b"").startswith(b"xen-") or (
        strings.get(ElfNote.LOADER, b"").startswith(b"generic")
    )


def names(notes: Sequence[Note]) -> str:
    """Their types, as many as one wants to read."""
    shown = ", ".join(note.type_name or f"type {note.type:#x}" for note in notes[:_MOST_NAMED])
    return f"{shown} and {len(notes) - _MOST_NAMED} more" if len(notes) > _MOST_NAMED else shown


def _ranges(elf: ElfImage) -> list[tuple[str, int, int, int]]:
    """(source, header, start, end) of every PT_NOTE that Xen does not skip and every SHT_NOTE."""
    size = len(elf.view)
    ranges = [("PT_NOTE", p.index, p.offset, p.offset + p.filesz) for p in note_segments(elf) if p.offset]
    ranges += [("SHT_NOTE", s.index, s.offset, s.offset + s.size) for s in note_sections(elf)]
    unique = {(start, min(end, size)): (source, header) for source, header, start, end in reversed(ranges)}
    kept = [
        (source, header, *span) for span, (source, header) in reversed(unique.items()) if span[0] < span[1]
    ]
    return kept[:_MOST_RANGES]


def _look(elf: ElfImage, start: int, end: int) -> Iterator[Note]:
    """What looks like a note of Xen's in [start, end)."""
    for count, match in enumerate(_HEADS[elf.endian].finditer(elf.view, start, end)):
        if count == _MOST:
            return
        at = match.start()
        size, kind = elf.unsigned(at + 4, 4), elf.unsigned(at + 8, 4)
        note = Note(OWNER, kind, 4, size, at, "", -1, at + 16 + size, False)
        if _sound(elf, note):
            yield note


def _sound(elf: ElfImage, note: Note) -> bool:
    """Whether the descriptor is what its type promises."""
    size = note.descsz
    if note.type > ELFNOTE_MAX or size > 4096 or note.end > len(elf.view):
        return False
    if note.type in NUMERIC_TYPES:
        return size in {1, 2, 4, 8}
    if note.type in STRING_TYPES:
        text, end, rest = note_bytes(elf, note).partition(b"\0")
        return bool(end) and text.isascii() and not rest.strip(b"\0")
    return note.type != ElfNote.SUPPORTED_FEATURES or size % 4 == 0


def _derailed(elf: ElfImage, walked: list[Note], lost: Found) -> Loss:
    """Why Xen, which goes from note to note as in `walked`, does not come to the first of `lost`."""
    first, head = lost[0], walked[0]
    before = next((note for note in reversed(walked) if note.offset < first.offset and _credible(note)), None)
    culprit = next(note for note in reversed(walked) if note.offset < first.offset)
    resumed = head.offset if before is None else before.next_offset
    gap = bytes(elf.view[resumed : first.offset])
    if before is not None and 0 < len(gap) < 8 and not any(gap):
        slug, at = "note-padding", before.offset
        fields = zip(("name size", "descriptor size", "type"), (0, 4, 8), strict=True)
        read = ", ".join(f"{what} {elf.unsigned(resumed + skip, 4):#x}" for what, skip in fields)
        cause = (
            f"{_name(before)} at {at:#x} is padded to 8 bytes and Xen pads to 4: "
            f"it reads the next header at {resumed:#x} ({read}) and not at {first.offset:#x}"
        )
    elif before is culprit or culprit.next_offset >= first.offset + 16:
        slug, at = "note-covers", culprit.offset
        end = culprit.next_offset
        beyond = f", past the end of its {head.source} at {head.end:#x}" if end > head.end else ""
        cause = (
            f"the note at {at:#x} ({_name(culprit)}) says that its name has {culprit.namesz:#x} bytes "
            f"and its descriptor {culprit.descsz:#x}: for Xen it ends at {end:#x}{beyond}"
        )
    else:
        slug, at = "note-garbage", resumed
        cause = (
            f"the {first.offset - at:#x} bytes at {at:#x}, before {_name(first)} at {first.offset:#x}, "
            "are no note, and Xen reads them as one"
        )
    kept = _salvaged(elf, head.offset, min(head.end, len(elf.view)), lost)
    return Loss(slug, at, f"{cause}, and loses {names(lost)}", lost, head.source, head.header, kept)


def _salvaged(elf: ElfImage, start: int, end: int, lost: Found) -> Found:
    """The notes of a range as they are meant: none reaches into the next of Xen's, garbage is left out."""
    xen = sorted({note.offset for note in (*lost, *_look(elf, start, end))})
    kept, at = [], start
    while at + 12 <= end:
        namesz, descsz, kind = (elf.unsigned(at + skip, 4) for skip in (0, 4, 8))
        note = Note(elf.strval(at + 12), kind, namesz, descsz, at, "", -1, end, False)
        limit = next((offset for offset in xen if offset > at), end)
        if not _credible(note) or note.desc_offset > limit:
            at = min(at + 4, limit)
            continue
        if note.desc_offset + descsz > limit:
            note = note._replace(descsz=limit - note.desc_offset)
        kept.append(note)
        at = min(note.next_offset, limit)
    return tuple(kept)


def _credible(note: Note) -> bool:
    """Whether a header that Xen reads can be meant: a name of the size it states."""
    owner = note.owner
    return owner is not None and 0 < len(owner) < note.namesz <= len(owner) + 8 and owner.isascii()


def _unwalked(elf: ElfImage, found: Found) -> Iterator[Loss]:
    """Notes where Xen does not look at all, those that follow one another together."""
    runs: list[list[Note]] = []
    for note in found:
        if runs and 0 <= note.offset - (runs[-1][-1].offset + 16 + round4(runs[-1][-1].descsz)) < 8:
            runs[-1].append(note)
        else:
            runs.append([note])
    for run in runs[:_MOST_RANGES]:
        first = run[0]
        section = next((s for s in elf.sections[1:] if s.offset <= first.offset < s.offset + s.size), None)
        where = "in no section" if section is None else f"in section {quoted(section.name)}"
        if section is not None and section in note_sections(elf):
            why = "Xen reads no section once a PT_NOTE has a Xen note"
        else:
            why = "Xen reads PT_NOTE segments, and SHT_NOTE sections where these have no Xen note"
        many = "s" if len(run) > 1 else ""
        yield Loss(
            "note-unread",
            first.offset,
            f"the note{many} {names(run)} at {first.offset:#x} {'are' if many else 'is'} {where} "
            f"and in no PT_NOTE that Xen walks: {why}",
            tuple(run),
            "",
            -1,
            tuple(run),
        )


def _name(note: Note) -> str:
    if note.type_name:
        return note.type_name
    return f"owner {quoted(note.owner_text[:24])}, type {note.type:#x}"
