"""A built domain on disk and back: `save_image`, `load_image`, `is_image`; the format is dump_core.py's.

Reading trusts nothing: the plan is worked out again from what the file says it was built from, and registers,
start_info and frames have to be those of that plan. Only the contents of memory are taken as they are.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import struct
from array import array
from dataclasses import replace
from typing import NamedTuple

from domainbuilder.build.build_note import Built, read_build_note
from domainbuilder.build.domain_image import DomainImage
from domainbuilder.build.dump_core import (
    EHDR,
    ET_CORE,
    FORMAT_VERSION,
    NOTE_BUILD,
    NOTE_RUN,
    OWNER,
    XC_CORE_MAGIC,
    XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION,
    XEN_ELFNOTE_DUMPCORE_HEADER,
    nonzero_runs,
    save_image,
)
from domainbuilder.build.guest_memory import GuestMemory, allocate_ram
from domainbuilder.errors import BuildError, ImageError, Where
from domainbuilder.inputs import LIMITS, beginning
from domainbuilder.kernel.elf import ElfImage, Section, parse_elf
from domainbuilder.plan.domain_plan import DomainPlan
from domainbuilder.plan.start_info import START_INFO_SIZE, StartInfo
from domainbuilder.plan.vcpu_context import VcpuContext
from hvcore.public.vcpu_guest_context import xen_pfn_to_cr3
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

__all__ = ["is_image", "load_image", "save_image"]

_CHUNK = 2 << 20
_MAX_NOTES = LIMITS["image notes"].size


def is_image(path: str | os.PathLike[str]) -> bool:
    """Whether the file starts like a dump-core file: a 64-bit little-endian ELF core without segments."""
    head = beginning(path, EHDR.size)
    if len(head) < EHDR.size:
        return False
    (kind,) = struct.unpack_from("<H", head, 16)
    (phnum,) = struct.unpack_from("<H", head, 56)
    return head[:6] == b"\x7fELF\x02\x01" and bool(kind == ET_CORE) and not phnum


class _File(NamedTuple):
    """An opened image: its ELF structure, and errors that name it."""

    elf: ElfImage
    fd: int
    size: int

    def fail(
        self, reason: str, offset: int | None = None, *, found: object = None, expected: object = None
    ) -> ImageError:
        return ImageError(reason, where=Where(self.elf.name, offset), found=found, expected=expected)

    def section(self, name: str, size: int | None = None) -> Section:
        """A section that must exist, lie within the file, and be of `size` bytes if that is given."""
        section = self.elf.section_by_name(name)
        if section is None:
            raise self.fail(f"no {name} section: not a dump-core file of a PV domain")
        if section.offset + section.size > self.size:
            raise self.fail(
                f"{name} is cut short",
                section.offset,
                found=self.size,
                expected=section.offset + section.size,
            )
        if size is not None and section.size != size:
            raise self.fail(f"{name} has the wrong size", section.offset, found=section.size, expected=size)
        return section

    def read(self, section: Section, limit: int) -> bytes:
        if section.size > limit:
            raise self.fail(
                f"{section.name} is too large",
                section.offset,
                found=section.size,
                expected=f"at most {limit:#x}",
            )
        return bytes(self.elf.view[section.offset : section.offset + section.size])


def load_image(path: str | os.PathLike[str], ram: memoryview | None = None) -> DomainImage:
    """Read a built domain back.

    `ram` is where to put its memory, zeroed, nr_pages << 12 bytes; without it memory is mapped. Raises
    ImageError: not a dump-core file that `domainbuilder build` has written, damaged, or at odds with itself.
    """
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be opened: {error}", where=Where(name)) from error
    try:
        view = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)  # goes away with the last view of it
        return _load(_File(parse_elf(view, name), fd, len(view)), ram)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot be read: {error}", where=Where(name)) from error
    except BuildError as error:
        raise ImageError(f"not a built domain: {error.reason}", where=error.where or Where(name)) from error
    finally:
        os.close(fd)


def _load(file: _File, ram: memoryview | None) -> DomainImage:
    if file.elf.elf_class != 64 or file.elf.ehdr.type != ET_CORE or file.elf.endian != "<":
        raise file.fail("not a dump-core file", 0, expected="a little-endian 64-bit ELF core")
    header = _header(file)
    built = _built(file)
    if header["nr_pages"] != built.nr_pages:
        raise file.fail("the notes disagree on nr_pages", found=header["nr_pages"], expected=built.nr_pages)
    p2m = _p2m(file, built)
    pages = file.section(".xen_pages", built.nr_pages << PAGE_SHIFT)
    shared_info = file.read(file.section(".xen_shared_info", PAGE_SIZE), PAGE_SIZE)
    plan = built.plan()
    start_info = _start_info(file, plan, built, pages, p2m)
    plan = replace(plan, start_info=plan.start_info._replace(cmd_line=start_info.cmd_line))
    context = _context(file, plan, p2m)
    if ram is None:
        ram = allocate_ram(built.nr_pages)
    if ram.format != "B" or ram.readonly or len(ram) != built.nr_pages << PAGE_SHIFT:
        raise file.fail("memory of the wrong size was given for this domain", found=len(ram))
    memory = GuestMemory(ram, p2m, built.first_mfn)
    _read_pages(file, pages, memory)
    return DomainImage(
        plan, p2m, ram, built.first_mfn, built.shared_info_mfn, context, start_info, shared_info
    )


def _notes(file: _File, name: str) -> dict[tuple[bytes, int], bytes]:
    """(owner, type) -> descriptor of a note section, aligned to 4 bytes."""
    section = file.section(name)
    data = file.read(section, _MAX_NOTES)
    notes: dict[tuple[bytes, int], bytes] = {}
    at = 0
    while at < len(data):
        if at + 12 > len(data):
            raise file.fail(f"a note in {name} is cut short", section.offset + at)
        namesz, descsz, kind = struct.unpack_from("<III", data, at)
        desc = at + 12 + -(-namesz // 4) * 4
        end = desc + -(-descsz // 4) * 4
        if end > len(data):
            raise file.fail(
                f"a note in {name} is cut short", section.offset + at, found=end - at, expected=len(data) - at
            )
        notes[data[at + 12 : at + 12 + namesz].rstrip(b"\0"), kind] = data[desc : desc + descsz]
        at = end
    return notes


def _header(file: _File) -> dict[str, int]:
    notes = _notes(file, ".note.Xen")
    desc = notes.get((b"Xen", XEN_ELFNOTE_DUMPCORE_HEADER), b"")
    version = notes.get((b"Xen", XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION), b"")
    if len(desc) != 32 or len(version) != 8:
        raise file.fail(".note.Xen lacks the dump-core header or the format version")
    if version[4:] != bytes(4):
        raise file.fail(
            "a dump-core format this does not know",
            found=int.from_bytes(version, "little"),
            expected=FORMAT_VERSION,
        )
    magic, vcpus, nr_pages, page_size = struct.unpack("<4Q", desc)
    if (magic, vcpus, page_size) != (XC_CORE_MAGIC, 1, PAGE_SIZE):
        raise file.fail(
            "not a PV domain of one vcpu",
            found=f"{magic:#x}, {vcpus} vcpus, pages of {page_size:#x} bytes",
            expected=f"{XC_CORE_MAGIC:#x}, 1, {PAGE_SIZE:#x}",
        )
    return {"nr_pages": nr_pages}


def _built(file: _File) -> Built:
    if file.elf.section_by_name(".note.domainbuilder") is None:
        raise file.fail(
            "no .note.domainbuilder section: only freshly built domains can be run, and this is another dump"
        )
    notes = _notes(file, ".note.domainbuilder")
    if (OWNER.encode(), NOTE_RUN) in notes:
        raise file.fail("a dump of a domain that ran, which `domainbuilder inspect` shows")
    desc = notes.get((OWNER.encode(), NOTE_BUILD), b"")
    try:
        raw = json.loads(desc)
    except (ValueError, RecursionError) as error:
        raise file.fail("the build note is no JSON") from error
    return read_build_note(raw, file.fail)


def _p2m(file: _File, built: Built) -> array[int]:
    """The p2m list: frames in order, and every machine frame of the domain's range exactly once."""
    nr_pages = built.nr_pages
    section = file.section(".xen_p2m", 16 * nr_pages)
    if not nr_pages:
        raise file.fail("a domain without memory")
    p2m, seen = array("Q"), bytearray(nr_pages)
    for at in range(0, section.size, _CHUNK):  # a sparse file can claim a lot: stop where it goes wrong
        start = section.offset + at
        pairs = array("Q", bytes(file.elf.view[start : start + min(_CHUNK, section.size - at)]))
        mfns = pairs[1::2]
        in_order = pairs[::2] == array("Q", range(len(p2m), len(p2m) + len(mfns)))
        if not in_order or min(mfns) < built.first_mfn or max(mfns) >= built.first_mfn + nr_pages:
            break
        p2m.extend(mfns)
        for mfn in mfns:
            seen[mfn - built.first_mfn] = 1
    if seen.count(1) != nr_pages:
        raise file.fail(
            ".xen_p2m is not a list of this domain's frames",
            section.offset,
            expected=f"{nr_pages:#x} frames from {built.first_mfn:#x}",
        )
    return p2m


def _context(file: _File, plan: DomainPlan, p2m: array[int]) -> VcpuContext:
    """The registers, which have to be those that such a domain starts with."""
    width = plan.guest.width
    section = file.section(".xen_prstatus")
    expected = replace(plan.vcpu, cr3=xen_pfn_to_cr3(p2m[plan.pgtables_pfn], width))
    if file.read(section, PAGE_SIZE * 2).rstrip(b"\0") != expected.pack(width).rstrip(b"\0"):
        raise file.fail("the registers are not those of a domain that has yet to start", section.offset)
    return expected


def _start_info(file: _File, plan: DomainPlan, built: Built, pages: Section, p2m: array[int]) -> StartInfo:
    """The start_info page: its machine frames and ports are taken from it, all else has to agree."""
    width = plan.guest.width
    offset = pages.offset + (plan.start_info_pfn << PAGE_SHIFT)
    found = file.elf.view[offset : offset + START_INFO_SIZE[width]]
    info = StartInfo.unpack(found, width)
    expected = plan.start_info._replace(
        shared_info=built.shared_info_mfn << PAGE_SHIFT,
        store_mfn=p2m[plan.xenstore_pfn],
        store_evtchn=info.store_evtchn,
        console_mfn=p2m[plan.console_pfn],
        console_evtchn=info.console_evtchn,
        cmd_line=info.cmd_line,
    )
    if info != expected:
        raise file.fail("the start_info page is not that of this domain", offset)
    return info


def _read_pages(file: _File, section: Section, memory: GuestMemory) -> None:
    """Fill memory with the pages that are not zero."""
    end = section.offset + section.size
    at = section.offset
    while at < end:
        at = section.offset + (_next_data(file.fd, at, end) - section.offset >> PAGE_SHIFT << PAGE_SHIFT)
        data = os.pread(file.fd, min(_CHUNK, end - at), at)
        if not data:
            return
        for start, length in nonzero_runs(data):
            memory.write((at - section.offset + start) >> PAGE_SHIFT, data[start : start + length])
        at += len(data)


def _next_data(fd: int, at: int, end: int) -> int:
    """Where the file goes on after a hole at `at`; `at` itself where holes cannot be seen."""
    try:
        return min(os.lseek(fd, at, os.SEEK_DATA), end)
    except OSError as error:
        return end if error.errno == errno.ENXIO else at  # ENXIO: a hole up to the end
