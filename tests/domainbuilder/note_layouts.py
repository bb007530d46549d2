"""Kernels with notes laid out at random: as they should be, as bug reports describe them, and worse."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from .elfwriter import EM_386, EM_X86_64, SHT_NOTE, SHT_PROGBITS, ElfWriter

KERNEL = 0x100000  # where the kernel is loaded; it is 0x3000 bytes long
Note = tuple[int, bytes]


def _values(random_: random.Random, wide: bool) -> list[Note]:
    """The notes of a PV kernel, some of them wrong, left out or given twice."""
    base = 0xFFFFFFFF80000000 if wide else 0xC0000000
    size = "<Q" if wide else "<I"
    mask = (1 << 64) - 1 if wide else (1 << 32) - 1
    odds = random_.choice((0.0, 0.0, 0.1))  # of a wrong value

    def number(right: int, *wrong: int) -> bytes:
        raw = struct.pack(size, (random_.choice(wrong) if random_.random() < odds else right) & mask)
        return raw[: random_.choice((1, 2, 3, 4))] if random_.random() < odds / 2 else raw

    def text(right: bytes, *wrong: bytes) -> bytes:
        chosen = random_.choice(wrong) if random_.random() < odds else right
        return chosen if random_.random() < odds / 2 else chosen + b"\0"

    offset = random_.choice((0, 0, 0, 0, base, KERNEL))
    start = base - offset + KERNEL
    notes = [
        (6, text(b"test", b"linux", b"linux-like", b"", b"x" * 40)),
        (5, text(b"xen-3.0", b"xen-3.1", b"xen-3.0-x86_32p", b"XEN-3.0", b"")),
        (8, text(b"generic", b"generic-ish", b"grub", b"")),
        (9, text(b"yes", b"no", b"bimodal", b"yes,bimodal", b"maybe")),
        (3, number(base, base + KERNEL, 0x40000000, 0, start + 0x1000)),
        (4, number(offset, 0, base, 1)),
        (1, number(start, start + 0x2FFF, start + 0x3000, start + 0x3001, start - 1, KERNEL)),
        (2, number(start + 0x1000, start + 1, base + (1 << 30))),
    ]
    more = [
        (10, text(b"!writable_page_tables|pae_pgdir_above_4gb", b"!unknown", b"unknown", b"!dom0", b"|")),
        (11, text(b"yes", b"no", b"")),
        (12, number(0xF5800000, 0)),
        (15, number(base - (1 << 39), start, start + 0x800, 0x1000, 0x8000000001)),
        (16, number(1, 0)),
        (17, random_.randbytes(random_.choice((0, 3, 4, 8))) if random_.random() < 0.5 else b"\1\0\0\0"),
        (18, struct.pack("<I", KERNEL)),
        (0, text(b"KEY=value", b"")),
        (99, b"what is it"),
    ]
    notes += random_.sample(more, random_.choice((0, 0, 1, 3)))
    if random_.random() < odds:
        notes.remove(random_.choice(notes))
    if random_.random() < 0.1:
        notes.append(random_.choice(notes))
    if random_.random() < 0.3:
        random_.shuffle(notes)
    return notes


def _encode(random_: random.Random, note: Note, owner: bytes, align: int, wrong: float) -> bytes:
    """One note; with the odds `wrong`, a size in it or its padding is not what it should be."""
    name, desc = owner + b"\0", note[1]
    namesz, descsz = len(name), len(desc)
    slip = random_.random() < wrong
    if slip:
        namesz, descsz = random_.choice(
            (
                (namesz - 1, descsz),
                (namesz + 1, descsz),
                (namesz + 4, descsz),
                (0, descsz),
                (namesz, descsz + random_.choice((1, 4, 16, 60))),
                (namesz, max(descsz - 4, 0)),
                (namesz, random_.choice((0xC0010001, 0xFFFFFFFF, 0xFFFFFFF0, 0x7FFFFFFF, 0x1000))),
            )
        )
    raw = struct.pack("<III", namesz, descsz, note[0]) + name
    raw += bytes(-len(raw) % align) + desc
    return raw + bytes(-len(raw) % (random_.choice((1, 4, 8)) if slip else align))


def _blob(random_: random.Random, notes: list[Note]) -> bytes:
    """Notes, one behind the other, perhaps with others and with garbage among them."""
    align = random_.choice((*[4] * 5, 8))
    owner = random_.choice((*[b"Xen"] * 40, b"xen", b"XEN", b"name", b"Xen\0", b"Xenon"))
    wrong = random_.choice((0.0, 0.0, 0.0, 0.05, 0.3))
    parts = [_encode(random_, note, owner, align, wrong) for note in notes]
    if random_.random() < 0.3:
        foreign = _encode(
            random_, (3, random_.randbytes(random_.choice((1, 20, 16)))), b"GNU", align, 2 * wrong
        )
        parts.insert(random_.randrange(len(parts) + 1), foreign)
    if random_.random() < 0.1:
        garbage = random_.choice(
            (bytes(4), bytes(12), bytes(16), random_.randbytes(8), b"\4\0\0\0", b"\xff" * 12)
        )
        parts.insert(random_.randrange(len(parts) + 1), garbage)
    return b"".join(parts)


def _in_segment(random_: random.Random, writer: ElfWriter, blob: bytes) -> None:
    writer.note_segment(blob, align=random_.choice((1, 4, 8)))


def _in_section(_random: random.Random, writer: ElfWriter, blob: bytes) -> None:
    writer.section(".notes", SHT_NOTE, blob)


def _in_both(random_: random.Random, writer: ElfWriter, blob: bytes) -> None:
    _in_segment(random_, writer, blob)
    cut = random_.choice((0, 0, 4, 20, len(blob) // 2))
    if cut:
        writer.segments[-1].filesz = len(blob) - cut
    inside = (len(writer.segments) - 1, 0)
    writer.section(".notes", SHT_NOTE, blob, inside=inside)


def _in_two_segments(random_: random.Random, writer: ElfWriter, blob: bytes) -> None:
    at = random_.randrange(len(blob) + 1) & ~3
    _in_segment(random_, writer, blob[:at])
    _in_segment(random_, writer, blob[at:])


def _nowhere(_random: random.Random, writer: ElfWriter, blob: bytes) -> None:
    writer.section(".notes", SHT_PROGBITS, blob)


def _beyond(random_: random.Random, writer: ElfWriter, blob: bytes) -> None:
    _in_segment(random_, writer, blob)
    writer.segments[-1].filesz = len(blob) + random_.choice((4, 8, 12, 64, 0x10000))


def _legacy(random_: random.Random, writer: ElfWriter, blob: bytes) -> None:
    base = writer.entry - KERNEL
    text = f"GUEST_OS=test,XEN_VER=xen-3.0,VIRT_BASE={base:#x},LOADER=generic,PAE=yes,HYPERCALL_PAGE=0x101"
    more = random_.choice(
        ("", ",ELF_PADDR_OFFSET=0", ",ELF_PADDR_OFFSET=0x0,BSD_SYMTAB", ",FEATURES=!unknown")
    )
    writer.section("__xen_guest", SHT_PROGBITS, (text + more).encode() + b"\0")
    if random_.random() < 0.3:
        _in_segment(random_, writer, blob)


_PLACES: tuple[Callable[[random.Random, ElfWriter, bytes], None], ...] = (
    *[_in_segment] * 8,
    *(_in_section, _in_section, _in_both, _in_both, _in_two_segments, _nowhere, _beyond, _legacy),
)


def layout(seed: int) -> bytes:
    """Kernel number `seed`."""
    random_ = random.Random(seed)
    wide = random_.random() < 0.6
    machine = EM_X86_64 if wide or random_.random() < 0.03 else EM_386
    if random_.random() < 0.02:
        machine = random_.choice((40, 183))
    base = 0xFFFFFFFF80000000 if wide else 0xC0000000
    writer = ElfWriter(64 if wide else 32, machine, entry=base + KERNEL)
    writer.load(bytes(range(256)) * 16, paddr=KERNEL, vaddr=base + KERNEL, memsz=0x3000, flags=5, align=4096)
    random_.choice(_PLACES)(random_, writer, _blob(random_, _values(random_, wide)))
    if random_.random() < 0.2:
        writer.symbols([("start", base + KERNEL, 16, 2)])
    return writer.build()
