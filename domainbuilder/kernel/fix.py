"""`domainbuilder notes fix`: repair what can be repaired in a kernel's notes.

Repaired are notes that Xen does not come to (padded to 8 bytes, behind a wrong size or garbage, outside of
what Xen reads), the owner ("name", as GNU Mach has it, or "XEN"), strings whose size runs past the end of
their segment, values in the words of `__xen_guest`, an alignment that is not the notes', and a
missing PT_NOTE. The code and data that get loaded are never touched; the result is inspected before
it is written, and a kernel that Xen took before and would refuse afterwards is not written at all.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from domainbuilder.errors import ElfError, KernelFormatError, NotesError, Where
from domainbuilder.kernel.elf import PT_NOTE, ElfImage, ProgramHeader, parse_elf
from domainbuilder.kernel.elfnotes import OWNER, STRING_TYPES, Note, note_string, notes_in, quoted, round4
from domainbuilder.kernel.inspection import Inspection, inspect, inspect_kernel
from domainbuilder.kernel.kernel_file import KernelFile
from domainbuilder.kernel.lief_edit import PT_GNU_STACK, Edits, edit
from domainbuilder.kernel.lost_notes import disguised, names
from domainbuilder.kernel.parms import ElfDomParms
from domainbuilder.output import write_whole
from hvcore.public.elfnote import ElfNote


@dataclass(frozen=True, slots=True)
class FixResult:
    """What was done: `changes` in the order made (none: the file is a copy), `left` what could not be."""

    path: str
    output: str
    changes: tuple[str, ...]
    left: tuple[str, ...]
    inspection: Inspection


@dataclass(frozen=True, slots=True)
class _Range:
    """Consecutive notes in the file, and the bytes they become."""

    source: str
    header: int
    offset: int
    size: int
    data: bytes


def fix(path: str | os.PathLike[str], output: str | os.PathLike[str]) -> FixResult:
    """Repair the notes of the ELF kernel at `path` (gzipped or not) and write it, unzipped, to `output`.

    Raises the errors of `inspect`; KernelFormatError for a bzImage; NotesError where nothing like a
    Xen note is in the file, or Xen would refuse the result; OSError where `output` cannot be written.
    """
    before = inspect(path)
    if before.kernel.container == "bzimage":
        raise KernelFormatError(
            "a bzImage would have to be packed again",
            where=Where(before.kernel.path),
            expected="the ELF file it was made from (vmlinux)",
        )
    changes = ["unzipped"] if before.kernel.container == "gzip" else []
    left: list[str] = []
    ranges = _ranges(before, changes, left)
    image = _patched(before, ranges, changes)
    after = _inspected(before, image)
    _check(before, after, ranges, left)
    write_whole(output, image)
    return FixResult(before.kernel.path, os.fspath(output), tuple(changes), tuple(left), after)


# notes


def _ranges(before: Inspection, changes: list[str], left: list[str]) -> list[_Range]:
    """The ranges that hold Xen's notes or such as ought to be, with the repairs made."""
    elf, wrong = before.elf, disguised(before.elf, before.notes)
    ranges: list[_Range] = []
    for source, header, notes, start, end in _groups(before, wrong, changes):
        if not 0 <= start <= end <= len(elf.view):
            left.append(f"the notes at {start:#x} run past the end of the file")
            continue
        if any(start < one.offset + one.size and one.offset < end for one in ranges):
            left.append(f"the notes at {start:#x} share bytes with others")
            continue
        renamed = [_name(note) for note in notes if note.owner in wrong]
        if renamed:
            owners = ", ".join(quoted(owner.decode("latin-1")) for owner in wrong)
            changes.append(f'owner {owners} becomes "Xen" at {start:#x}: {", ".join(renamed)}')
        data = b"".join(_repaired(elf, note, wrong, changes) for note in notes)
        if len(data) > end - start:
            raise NotesError("the repaired notes do not fit into their place", where=elf.where(start))
        ranges.append(_Range(source, header, start, end - start, data))
    if not ranges:
        raise NotesError("nothing to repair: no notes that are, or look like, Xen's", where=elf.where())
    return ranges


def _groups(
    before: Inspection, wrong: Container[bytes | None], changes: list[str]
) -> Iterator[tuple[str, int, Sequence[Note], int, int]]:
    """(source, header, notes, start, end) of each range to rewrite, with the notes that it is to hold."""
    losses = {(loss.source, loss.header): loss for loss in before.losses if loss.source}
    wanted = [note for note in before.notes.notes if note.is_xen or note.owner in wrong]
    for source, header in dict.fromkeys([*losses, *((note.source, note.header) for note in wanted)]):
        walked = notes_in(before.elf, source, header)
        loss = losses.get((source, header))
        if loss is not None:
            changes.append(
                f"{source} at {walked[0].offset:#x}: packed to 4 bytes, {len(loss.kept)} notes, "
                f"of which Xen lost {names(loss.lost)}"
            )
        yield source, header, loss.kept if loss else walked, walked[0].offset, walked[0].end
    for loss in before.losses:
        if not loss.source:
            first, last = loss.kept[0], loss.kept[-1]
            yield "", -1, loss.kept, first.offset, last.desc_offset + round4(last.descsz)


def _repaired(elf: ElfImage, note: Note, wrong: Container[bytes | None], changes: list[str]) -> bytes:
    """One note, encoded again, padded to 4 bytes."""
    if note.next_offset > note.end and not note.is_xen and note.owner not in wrong:
        return bytes(elf.view[note.offset : note.end])
    desc = bytes(elf.view[note.desc_offset : min(note.desc_offset + note.descsz, note.end)])
    name = bytes(elf.view[note.offset + 12 : note.offset + 12 + note.namesz])
    if note.is_xen or note.owner in wrong:
        name = OWNER + b"\0"
        if note.type in STRING_TYPES:
            desc = _repaired_string(elf, note, desc, changes)
    head = struct.pack(f"{elf.endian}III", len(name), len(desc), note.type)
    return head + name + bytes(-len(name) % 4) + desc + bytes(-len(desc) % 4)


def _repaired_string(elf: ElfImage, note: Note, desc: bytes, changes: list[str]) -> bytes:
    if len(desc) < note.descsz and note_string(elf, note) is not None:
        desc = desc[: desc.find(0) + 1] or desc
        changes.append(f"{_name(note)} at {note.offset:#x}: size {note.descsz} becomes {len(desc)}")
    text = desc.rstrip(b"\0")
    if note.type == ElfNote.PAE_MODE and text.startswith(b"yes[") and b"bimodal" not in text:
        changes.append(
            f'{_name(note)} {quoted(text.decode("latin-1"))} becomes "yes", the word notes have for it'
        )
        return b"yes\0"
    if note.type == ElfNote.FEATURES and text.startswith(b"\0"):
        changes.append(
            f"{_name(note)}: the NUL before {quoted(text.lstrip(bytes(1)).decode('latin-1'))} is dropped"
        )
        return text.lstrip(b"\0") + b"\0"
    return desc


def _name(note: Note) -> str:
    return ElfNote(note.type).name if note.type in set(ElfNote) else f"type {note.type:#x}"


# the file


def _patched(before: Inspection, ranges: list[_Range], changes: list[str]) -> bytes:
    """The repaired file: notes in place, sizes and program headers by lief."""
    image = bytearray(before.elf.view)
    for one in ranges:
        image[one.offset : one.offset + one.size] = one.data.ljust(one.size, b"\0")
    misaligned = {finding.offset for finding in before.findings if finding.rule.slug == "alignment"}
    packed = {loss.header for loss in before.losses if loss.source == "PT_NOTE"}
    phdrs = before.elf.phdrs
    misaligned |= {phdr.header_offset for phdr in phdrs if phdr.index in packed and phdr.align == 8}
    homeless = [one for one in ranges if one.source != "PT_NOTE"]
    edits = Edits(
        resize=[(one.offset, one.size, len(one.data)) for one in ranges if len(one.data) != one.size],
        align=[phdr.index for phdr in phdrs if phdr.header_offset in misaligned],
        home=[(one.offset, len(one.data)) for one in homeless],
    )
    if not edits:
        return bytes(image)
    edited, homes = edit(bytes(image), edits, before.kernel.path)
    changes += [f"PT_NOTE {index}: alignment 8 becomes 4" for index in edits.align]
    for offset, (index, kind) in homes.items():
        words = "PT_GNU_STACK" if kind == PT_GNU_STACK else "PT_NULL"
        changes.append(f"program header {index}, a {words}, becomes the PT_NOTE of the notes at {offset:#x}")
    return _with_new_headers(edited, [one for one in homeless if one.offset not in homes], changes)


def _with_new_headers(image: bytes, homeless: list[_Range], changes: list[str]) -> bytes:
    """The program headers moved to the end of the file, with a PT_NOTE more for each of `homeless`.

    lief would load the moved table into the guest, behind the kernel, where Xen puts its own pages.
    """
    if not homeless:
        return image
    elf = parse_elf(image, "the repaired kernel")
    wide, ehdr = elf.elf_class == 64, elf.ehdr
    form = elf.endian + ("2I6Q" if wide else "8I")
    table = bytes(image[ehdr.phoff : ehdr.phoff + ehdr.phentsize * ehdr.phnum])
    if ehdr.phentsize != struct.calcsize(form):
        raise ElfError("program headers of an odd size cannot be added to", where=Where(elf.name, 42))
    for one in homeless:
        size = len(one.data)
        if wide:
            table += struct.pack(form, PT_NOTE, 4, one.offset, 0, 0, size, 0, 4)
        else:
            table += struct.pack(form, PT_NOTE, one.offset, 0, 0, size, 0, 4, 4)
        changes.append(
            f"a PT_NOTE for the notes at {one.offset:#x}; the program headers move to the end of the file"
        )
    patched = bytearray(image + bytes(-len(image) % 8))
    struct.pack_into(elf.endian + ("Q" if wide else "I"), patched, 32 if wide else 28, len(patched))
    struct.pack_into(elf.endian + "H", patched, 56 if wide else 44, ehdr.phnum + len(homeless))
    return bytes(patched + table)


# before and after


def _inspected(before: Inspection, image: bytes) -> Inspection:
    return inspect_kernel(KernelFile(before.kernel.path, "elf", "", 0, image))


def _loaded(elf: ElfImage, ranges: list[_Range]) -> list[tuple[ProgramHeader, bytes]]:
    """What gets loaded, with the notes themselves blotted out."""
    loads = []
    for phdr in elf.load_segments:
        data = bytearray(elf.segment_bytes(phdr))
        for one in ranges:
            start, end = one.offset - phdr.offset, one.offset + one.size - phdr.offset
            if start < len(data) and end > 0:
                data[max(start, 0) : max(end, 0)] = bytes(max(min(end, len(data)) - max(start, 0), 0))
        loads.append((phdr, bytes(data)))
    return loads


def _check(before: Inspection, after: Inspection, ranges: list[_Range], left: list[str]) -> None:
    old, new = _loaded(before.elf, ranges), _loaded(after.elf, ranges)
    same = len(old) == len(new) and all(
        (one.offset, one.vaddr, one.paddr, one.filesz, one.memsz, one.flags, data)
        == (two.offset, two.vaddr, two.paddr, two.filesz, two.memsz, two.flags, more)
        for (one, data), (two, more) in zip(old, new, strict=True)
    )
    if not same or before.elf.entry != after.elf.entry:
        raise ElfError("the repair would change what gets loaded", where=Where(before.kernel.path))
    if before.pv is not None and after.pv is None:
        why = after.pv_refusal.plain if after.pv_refusal else ""
        raise NotesError(
            f"Xen takes it now and would refuse it repaired: {why}", where=Where(before.kernel.path)
        )
    if before.pv is not None and after.pv is not None:
        left += _differences(before.pv, after.pv)
    left += [f"{one.rule.id} {one.rule.slug}: {one.message}" for one in after.errors]


def _differences(before: ElfDomParms, after: ElfDomParms) -> list[str]:
    """The notes may say other things than the `__xen_guest` that Xen read so far."""
    found = []
    for name in ElfDomParms._fields:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            shown = [quoted(one) if isinstance(one, str) else f"{int(one):#x}" for one in (old, new)]
            found.append(f"{name} was {shown[0]} and is {shown[1]} now, as the notes have it")
    return found
