"""Rules about what a loader looks for at the start of an image and in its notes."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from linker.elffile import PT_INTERP, PT_NOTE, SHT_NOTE, Elf
from linker.findings import ERROR, WARNING, Context, Example, Hit, Rule, elf_place

from .given import elf_of

MULTIBOOT1 = 0x1BADB002
MULTIBOOT2 = 0xE85250D6
MULTIBOOT1_SEARCH = 8192  # Multiboot 0.6.96, 3.1: the first 8192 bytes, 4-byte aligned
MULTIBOOT2_SEARCH = 32768  # Multiboot 2.0, 3.1: the first 32768 bytes, 8-byte aligned
_FAR = 1 << 22  # how far a misplaced header is looked for


def entry_not_first(context: Context) -> Iterator[Hit]:
    """A note lies where a raw image starts, before the code of the entry."""
    elf = elf_of(context)
    if any(segment.type == PT_INTERP for segment in elf.segments):
        return
    placed = [section for section in elf.sections if section.occupies]
    first = min(placed, key=lambda section: section.address, default=None)
    if first is None or first.type != SHT_NOTE:
        return
    # With the ELF header in memory before it, the file is meant for an ELF loader.
    if any(segment.offset == 0 and segment.file_size for segment in elf.loads):
        return
    if not first.address <= elf.entry < first.end:
        yield Hit(
            f"{first.name} at {first.address:#x} comes before the entry at {elf.entry:#x}",
            elf_place(first.name, first.address),
        )


def _find_header(data: bytes, magic: int, step: int) -> int | None:
    """Return the offset of the first header whose checksum is right."""
    key = magic.to_bytes(4, "little")
    words = Struct("<III") if magic == MULTIBOOT1 else Struct("<IIII")
    position = data.find(key)
    while position >= 0:
        whole = position % step == 0 and position + words.size <= len(data)
        if whole and sum(words.unpack_from(data, position)) & 0xFFFFFFFF == 0:
            return position
        position = data.find(key, position + 1)
    return None


def multiboot_offset(context: Context) -> Iterator[Hit]:
    """A Multiboot header lies further into the file than boot loaders look."""
    elf = elf_of(context)
    data = elf.bytes_at(0, _FAR)
    kinds = ((1, MULTIBOOT1, 4, MULTIBOOT1_SEARCH), (2, MULTIBOOT2, 8, MULTIBOOT2_SEARCH))
    for version, magic, step, limit in kinds:
        offset = _find_header(data, magic, step)
        size = 12 if version == 1 else 16
        if offset is not None and offset + size > limit:
            yield Hit(
                f"the Multiboot {version} header is at file offset {offset:#x}; loaders look at the first "
                f"{limit} bytes",
                elf_place("multiboot", None),
            )


def _note_segments(elf: Elf) -> Iterator[tuple[str, int, int, int]]:
    for segment in elf.segments:
        if segment.type == PT_NOTE and segment.file_size:
            yield segment.name, segment.offset, min(segment.file_size, 1 << 20), segment.alignment


def corrupt_notes(context: Context) -> Iterator[Hit]:
    """A NOTE segment can be walked at no alignment."""
    elf = elf_of(context)
    for name, offset, size, _ in _note_segments(elf):
        _, at4 = elf.walk_notes(offset, size, 4)
        _, at8 = elf.walk_notes(offset, size, 8)
        if at4 is not None and at8 is not None and not _readable(elf, at4.offset, offset + size):
            yield Hit(f"{name}: {at4.message} (file offset {at4.offset:#x})", elf_place(name, None))


def note_cut_short(context: Context) -> Iterator[Hit]:
    """The last note of a NOTE segment runs past its end, and what there is of it is a whole string."""
    elf = elf_of(context)
    for name, offset, size, _ in _note_segments(elf):
        _, at4 = elf.walk_notes(offset, size, 4)
        _, at8 = elf.walk_notes(offset, size, 8)
        if at4 is not None and at8 is not None and _readable(elf, at4.offset, offset + size):
            yield Hit(f"{name}: {at4.message} (file offset {at4.offset:#x})", elf_place(name, None))


def _readable(elf: Elf, offset: int, end: int) -> bool:
    """Tell whether the note at `offset`, longer than its segment, holds a whole string all the same."""
    head = elf.bytes_at(offset, min(12, end - offset))
    if len(head) < 12:
        return False
    namesz, _descsz, _kind = Struct(elf.order + "III").unpack(head)
    if not 0 < namesz <= 64:
        return False
    rest = elf.bytes_at(offset + 12 + -(-namesz // 4) * 4, end - offset)
    return b"\0" in rest[: max(end - offset - 12 - -(-namesz // 4) * 4, 0)]


def note_alignment(context: Context) -> Iterator[Hit]:
    """Loaders that walk notes at 4 bytes and those that go by p_align see different notes."""
    elf = elf_of(context)
    for name, offset, size, alignment in _note_segments(elf):
        at4, bad4 = elf.walk_notes(offset, size, 4)
        at8, bad8 = elf.walk_notes(offset, size, 8)
        if bad4 is not None and bad8 is not None:
            continue
        declared = 8 if alignment == 8 else 4
        four, eight = ([(note.owner, note.type, note.data) for note in notes] for notes in (at4, at8))
        if four == eight:
            continue
        works = 4 if bad4 is None and (bad8 is not None or len(at4) >= len(at8)) else 8
        if works != declared:
            yield Hit(
                f"{name} says alignment {alignment} and its notes are padded to {works}: Xen and GRUB walk "
                f"at 4 and find {len(four)}, loaders that go by p_align find "
                f"{len(eight if declared == 8 else four)}",
                elf_place(name, None),
            )
        elif declared == 8:
            yield Hit(
                f"{name} is padded to 8: Xen, which walks at 4, finds {len(four)} of {len(eight)} notes",
                elf_place(name, None),
            )


_NOTE4 = (
    "note .note.Xen 0x2000 owner=Xen type=6 data=6c696e757800 pad=4\n"
    "note + owner=GNU type=3 data=0102 pad=4\n"
)
_NOTE8 = (
    "note .note.Xen 0x2000 owner=Xenon type=6 data=6c696e757800 pad=8\n"
    "note + owner=GNU type=3 data=01 pad=8\n"
)
_TEXT = "section .text 0x1000 0x100 ax\nload 0x1000 0x2000 rx\n"

RULES = (
    Rule(
        "entry-not-first",
        ERROR,
        "a note comes before the entry in an image without ELF headers",
        "--build-id makes an allocated note; in an image that is copied to memory and entered at its start, "
        "the processor executes the note (riscv-pk issue 88, xinu issue 3, opentitan issue 966).",
        "place .note.gnu.build-id behind the code, or link with --build-id=none.",
        ("E",),
        entry_not_first,
        Example(
            elf="elf32 entry=0x1024\nload 0x1000 0x200 rx\nnote .note.gnu.build-id 0x1000 owner=GNU type=3 "
            "data=00112233445566778899aabbccddeeff00112233 pad=4\nsection .text 0x1024 0x100 ax\n"
        ),
        Example(
            elf="elf32 entry=0x1000\nload 0x1000 0x200 rx\nsection .text 0x1000 0x100 ax\n"
            "note .note.gnu.build-id 0x1100 owner=GNU type=3 "
            "data=00112233445566778899aabbccddeeff00112233 pad=4\n"
        ),
    ),
    Rule(
        "multiboot-offset",
        ERROR,
        "the Multiboot header is too far into the file",
        "A boot loader looks for it in the first 8 KiB (Multiboot 2: 32 KiB) of the file and says that there "
        "is no header (x86-bare-metal-examples issue 2, HellOS issue 7).",
        "place its section first: .text : { KEEP(*(.multiboot)) *(.text) }, link with -z max-page-size=4096.",
        ("E",),
        multiboot_offset,
        Example(
            elf="elf32 entry=0x1000\nload 0x1000 0x4000 rx\nsection .text 0x1000 0x3000 ax\n"
            "section .multiboot 0x4000 0xc a bytes=02b0ad1b00000000fe4f52e4\n"
        ),
        Example(
            elf="elf32 entry=0x100c\nload 0x1000 0x4000 rx\n"
            "section .multiboot 0x1000 0xc a bytes=02b0ad1b00000000fe4f52e4\n"
            "section .text 0x1010 0x3000 ax\n"
        ),
    ),
    Rule(
        "corrupt-notes",
        ERROR,
        "a NOTE segment cannot be walked",
        "Sizes in a note run past the segment, so every note behind it is lost (OSv issue 1113). Often a "
        "pattern put something that is no note into the note section.",
        "let the output section hold note sections only, and cover it exactly by the NOTE program header.",
        ("E",),
        corrupt_notes,
        Example(
            elf="elf32 entry=0x1000\n" + _TEXT + "segment note 0x2000 0x20 r\n"
            "section .note 0x2000 0x20 a bytes=04000000ffffff0f0600000058656e00\n"
        ),
        Example(elf="elf32 entry=0x1000\n" + _TEXT + "segment note 0x2000 auto r align=4\n" + _NOTE4),
    ),
    Rule(
        "note-cut-short",
        WARNING,
        "the last note of a NOTE segment is longer than the segment",
        "Readers that look at nothing but the string in it, as Xen does, find it whole; those that check "
        "sizes say that the notes are corrupt (GRUB's i386 image for Xen, and readelf).",
        "cover the last note wholly by the NOTE program header, or state its true size.",
        ("E",),
        note_cut_short,
        Example(
            elf="elf32 entry=0x1000\n" + _TEXT + "segment note 0x2000 0x14 r\n"
            "section .note 0x2000 0x14 a bytes=040000000c0000000900000058656e0079657300\n"
        ),
        Example(elf="elf32 entry=0x1000\n" + _TEXT + "segment note 0x2000 auto r align=4\n" + _NOTE4),
    ),
    Rule(
        "note-alignment",
        WARNING,
        "loaders disagree on where the notes are",
        "The gABI pads notes to 8 bytes in 64-bit files, almost everybody pads to 4. Xen and GRUB walk at 4, "
        "some loaders go by p_align and lose the note they look for (Qubes issue 8032, linux-loader issue "
        "128).",
        "align note sections to 4; give .note.gnu.property, which is padded to 8, a segment of its own.",
        ("E",),
        note_alignment,
        Example(elf="elf64 entry=0x1000\n" + _TEXT + "segment note 0x2000 auto r align=8\n" + _NOTE8),
        Example(elf="elf64 entry=0x1000\n" + _TEXT + "segment note 0x2000 auto r align=4\n" + _NOTE4),
    ),
)
