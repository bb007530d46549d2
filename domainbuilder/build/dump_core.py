"""A built domain into a file: Xen's dump-core format (docs/misc/dump-core-format.txt of Xen 4.17).

The file is what `xl dump-core` would have written at the guest's first instruction (xc_domain_dumpcore of
tools/libs/guest/xg_core.c), and one section more, `.note.domainbuilder`, that says what the domain was built
from (docs/builder.md). Pages that are zero are holes in the file.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterator

from domainbuilder.build.build_note import build_note
from domainbuilder.build.domain_image import DomainImage
from domainbuilder.build.guest_memory import GuestMemory
from domainbuilder.errors import ImageError, Where
from domainbuilder.kernel.elf import EM_386, EM_X86_64
from domainbuilder.output import atomic_output, write_at
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT_SIZE
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

ET_CORE = 4
XC_CORE_MAGIC = 0xF00FEBED  # tools/libs/guest/xg_core.h: a paravirtualized domain
FORMAT_VERSION = 0 << 32 | 1  # major, minor
XEN_ELFNOTE_DUMPCORE_NONE = 0x2000000  # xen/include/public/elfnote.h
XEN_ELFNOTE_DUMPCORE_HEADER = 0x2000001
XEN_ELFNOTE_DUMPCORE_XEN_VERSION = 0x2000002
XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION = 0x2000003

OWNER = "domainbuilder"
NOTE_BUILD, NOTE_RUN = 1, 2  # the types of our own notes: a domain to be started, one that ran; JSON

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SHT_PROGBITS, _SHT_STRTAB, _SHT_NOTE = 1, 3, 7
_SECTIONS = (  # name, type, alignment, entry size
    ("", 0, 0, 0),
    (".shstrtab", _SHT_STRTAB, 1, 0),
    (".note.Xen", _SHT_NOTE, 4, 0),
    (".note.domainbuilder", _SHT_NOTE, 4, 0),
    (".xen_prstatus", _SHT_PROGBITS, 8, VCPU_GUEST_CONTEXT_SIZE[8]),
    (".xen_shared_info", _SHT_PROGBITS, 8, PAGE_SIZE),
    (".xen_pages", _SHT_PROGBITS, PAGE_SIZE, PAGE_SIZE),
    (".xen_p2m", _SHT_PROGBITS, 8, 16),
)
_ZERO_PAGE = bytes(PAGE_SIZE)


def save_image(image: DomainImage, path: str | os.PathLike[str]) -> int:
    """Write `image` to `path`, all of it or nothing; returns the bytes that are no holes.

    Raises ImageError when the file cannot be written.
    """
    try:
        with atomic_output(path) as fd:
            return _write(image, fd)
    except OSError as error:
        raise ImageError(f"cannot be written: {error.strerror}", where=Where(os.fspath(path))) from error


def _write(image: DomainImage, fd: int) -> int:
    nr_pages, width = image.plan.nr_pages, image.plan.guest.width
    p2m = array("Q", bytes(16 * nr_pages))
    p2m[::2] = array("Q", range(nr_pages))
    p2m[1::2] = image.p2m
    note = build_note(image.plan, image.first_mfn, image.shared_info_mfn)
    written, pages = write_core(
        fd,
        width,
        p2m,
        [image.context.pack(width)],
        image.shared_info,
        (NOTE_BUILD, json.dumps(note).encode()),
    )
    return written + _write_pages(image.memory, nr_pages, fd, pages)


def write_core(
    fd: int, width: int, p2m: array[int], contexts: list[bytes], shared_info: bytes, note: tuple[int, bytes]
) -> tuple[int, int]:
    """A dump-core file but for its pages: how much was written, and where in the file the pages belong.

    `p2m` are pairs of pseudo-physical and machine frame, in the order of the pages; `contexts` are packed,
    one a vCPU; `note` is the type and the contents of our own.
    """
    nr_pages = len(p2m) // 2
    names = b"\0".join(name.encode() for name, *_ in _SECTIONS) + b"\0"
    contents: dict[str, bytes | memoryview] = {
        ".shstrtab": names,
        ".note.Xen": _xen_notes(nr_pages, width, len(contexts)),
        ".note.domainbuilder": _note(OWNER, *note),
        ".xen_prstatus": b"".join(context.ljust(VCPU_GUEST_CONTEXT_SIZE[8], b"\0") for context in contexts),
        ".xen_shared_info": shared_info,
        ".xen_p2m": memoryview(p2m).cast("B"),
    }
    offset = EHDR.size + len(_SECTIONS) * _SHDR.size
    headers, places = [], {}
    for index, (name, kind, align, entsize) in enumerate(_SECTIONS):
        size = nr_pages << PAGE_SHIFT if name == ".xen_pages" else len(contents.get(name, b""))
        offset = -(-offset // max(align, 1)) * max(align, 1)
        place = offset if index else 0
        headers.append(
            _SHDR.pack(names.index(name.encode() + b"\0"), kind, 0, 0, place, size, 0, 0, align, entsize)
        )
        places[name] = place
        offset += size
    machine = EM_X86_64 if width == 8 else EM_386
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    counts = (EHDR.size, 0, 0, _SHDR.size, len(_SECTIONS), 1)
    head = EHDR.pack(ident, ET_CORE, machine, 1, 0, 0, EHDR.size, 0, *counts) + b"".join(headers)
    os.ftruncate(fd, offset)
    written = write_at(fd, head, 0)
    for name, data in contents.items():
        written += write_at(fd, data, places[name])
    return written, places[".xen_pages"]


def _write_pages(memory: GuestMemory, nr_pages: int, fd: int, base: int) -> int:
    """Every page that is not zero, in the order of pseudo-physical frames."""
    written = 0
    for pfn, start, count in memory.runs(0, nr_pages):
        data = memory.ram[start : start + (count << PAGE_SHIFT)]
        for at, length in nonzero_runs(bytes(data)):
            written += write_at(fd, data[at : at + length], base + (pfn << PAGE_SHIFT) + at)
    return written


def nonzero_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of the runs of pages that are not all zero."""
    if data == bytes(len(data)):
        return
    start = None
    for at in range(0, len(data), PAGE_SIZE):
        if data[at : at + PAGE_SIZE] != _ZERO_PAGE:
            start = at if start is None else start
        elif start is not None:
            yield start, at - start
            start = None
    if start is not None:
        yield start, len(data) - start


def _note(owner: str, kind: int, desc: bytes) -> bytes:
    name = owner.encode() + b"\0"
    padded = name.ljust(-(-len(name) // 4) * 4, b"\0")
    return (
        struct.pack("<III", len(name), len(desc), kind) + padded + desc.ljust(-(-len(desc) // 4) * 4, b"\0")
    )


def _xen_notes(nr_pages: int, width: int, nr_vcpus: int) -> bytes:
    """The four notes of `.note.Xen`; the version is that of the Xen whose builder this is."""
    virt_start = 0xFFFF800000000000 if width == 8 else 0xF5800000
    caps = b"xen-3.0-x86_64 xen-3.0-x86_32p "
    # xen_ulong_t virt_start, then a uint64_t: 4 bytes earlier in the file of a 32-bit domain
    tail = struct.pack("<QQ" if width == 8 else "<IQ", virt_start, PAGE_SIZE).ljust(16, b"\0")
    version = struct.pack("<QQ16s144s1024s64s", 4, 17, b"", b"domainbuilder", caps, b"") + tail
    return b"".join(
        (
            _note("Xen", XEN_ELFNOTE_DUMPCORE_NONE, b""),
            _note(
                "Xen",
                XEN_ELFNOTE_DUMPCORE_HEADER,
                struct.pack("<4Q", XC_CORE_MAGIC, nr_vcpus, nr_pages, PAGE_SIZE),
            ),
            _note("Xen", XEN_ELFNOTE_DUMPCORE_XEN_VERSION, version),
            _note("Xen", XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION, struct.pack("<Q", FORMAT_VERSION)),
        )
    )
