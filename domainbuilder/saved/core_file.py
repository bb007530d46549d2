"""A dump-core file of a PV domain, ours or of `xl dump-core`: its vCPUs and its memory, as they were.

Nothing in it is believed: what leads nowhere ends a walk, what cannot be is one error with its offset.
Source: docs/misc/dump-core-format.txt of Xen 4.17.
"""

from __future__ import annotations

import json
import os
import struct
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

from domainbuilder.build.dump_core import ET_CORE, NOTE_RUN, OWNER, XC_CORE_MAGIC, XEN_ELFNOTE_DUMPCORE_HEADER
from domainbuilder.errors import BuildError, ImageError, Where
from domainbuilder.inputs import LIMITS, open_input
from domainbuilder.kernel.elf import EM_386, EM_X86_64, Section, parse_elf
from domainbuilder.saved.stream_format import MFN_MASK
from hvcore.public.vcpu_guest_context import VCPU_GUEST_CONTEXT, VCPU_GUEST_CONTEXT_SIZE, xen_cr3_to_pfn
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

_PRESENT, _RW, _USER, _PSE, _NX = 1, 2, 4, 0x80, 1 << 63
_LEVELS = {4: 3, 8: 4}
_MOST_VCPUS = 8192
_MOST_PAGES = LIMITS["saved memory"].size >> 8  # of a file whose pages may be holes
_XENS = range(256, 272)  # slots of a 64-bit guest's L4 that are no memory of its own
_GPRS = {
    "rax": "ax",
    "rcx": "cx",
    "rdx": "dx",
    "rbx": "bx",
    "rsp": "sp",
    "rbp": "bp",
    "rsi": "si",
    "rdi": "di",
}


class Mapped(NamedTuple):
    """A stretch of virtual addresses that is mapped alike: from `start` up to `end`."""

    start: int
    end: int
    is_writable: bool
    is_user: bool
    is_code: bool


class CoreFile:
    """The file, opened. Raises ImageError for one that is no dump of a PV domain, OSError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            self.elf = parse_elf(open_input(path), self.name)
        except ValueError as error:
            raise ImageError(f"cannot be read: {error}", where=Where(self.name)) from None
        except BuildError as error:
            where = error.where or Where(self.name)
            raise ImageError(f"not a dump-core file: {error.reason}", where=where) from None
        self.view = self.elf.view
        machine = self.elf.ehdr.machine
        if self.elf.ehdr.type != ET_CORE or machine not in (EM_386, EM_X86_64):
            raise self.fail("not a dump-core file", 0, found=f"type {self.elf.ehdr.type}, machine {machine}")
        self.width = 8 if machine == EM_X86_64 else 4
        header = self._notes(".note.Xen").get(("Xen", XEN_ELFNOTE_DUMPCORE_HEADER), b"")
        if len(header) != 32:
            raise self.fail(".note.Xen lacks the dump-core header")
        magic, self.nr_vcpus, self.nr_pages, page_size = struct.unpack("<4Q", header)
        if (magic, page_size) != (XC_CORE_MAGIC, PAGE_SIZE):
            raise self.fail("not a PV domain's", found=f"{magic:#x}", expected=f"{XC_CORE_MAGIC:#x}")
        if not 0 < self.nr_vcpus <= _MOST_VCPUS or not 0 < self.nr_pages <= _MOST_PAGES:
            raise self.fail("a domain that cannot be", found=f"{self.nr_vcpus} vCPUs, {self.nr_pages} pages")
        self._status = self.section(".xen_prstatus", self.nr_vcpus * VCPU_GUEST_CONTEXT_SIZE[8])
        self.pages = self.section(".xen_pages", self.nr_pages << PAGE_SHIFT)
        p2m = self.section(".xen_p2m", 16 * self.nr_pages)
        pairs = array("Q", bytes(self.view[p2m.offset : p2m.offset + p2m.size]))
        self._by_mfn = {mfn: index for index, mfn in enumerate(pairs[1::2])}
        self._by_pfn = {pfn: index for index, pfn in enumerate(pairs[::2])}
        self.about = self._about()

    def fail(
        self, reason: str, offset: int | None = None, *, found: object = None, expected: object = None
    ) -> ImageError:
        """An error that names the file."""
        return ImageError(reason, where=Where(self.name, offset), found=found, expected=expected)

    def section(self, name: str, size: int | None = None) -> Section:
        """A section that must be there, within the file and of that size."""
        section = self.elf.section_by_name(name)
        if section is None:
            raise self.fail(f"no {name} section: not a dump-core file of a PV domain")
        if section.offset + section.size > len(self.view):
            raise self.fail(f"{name} is cut short", section.offset, found=len(self.view))
        if size is not None and section.size != size:
            raise self.fail(f"{name} has the wrong size", section.offset, found=section.size, expected=size)
        return section

    def _notes(self, name: str) -> dict[tuple[str, int], bytes]:
        section = self.section(name)
        if section.size > LIMITS["core notes"].size:
            raise self.fail(f"{name} is too large", section.offset, found=section.size)
        data = bytes(self.view[section.offset : section.offset + section.size])
        notes, at = {}, 0
        while at + 12 <= len(data):
            namesz, descsz, kind = struct.unpack_from("<III", data, at)
            desc = at + 12 + -(-namesz // 4) * 4
            end = desc + -(-descsz // 4) * 4
            if end > len(data):
                raise self.fail(f"a note in {name} is cut short", section.offset + at)
            owner = data[at + 12 : at + 12 + namesz].rstrip(b"\0").decode("latin-1")
            notes[owner, kind] = data[desc : desc + descsz]
            at = end
        return notes

    def _about(self) -> dict[str, Any]:
        """Our own note; empty where the file is another's, or not to be made sense of."""
        if self.elf.section_by_name(".note.domainbuilder") is None:
            return {}
        try:
            about = json.loads(self._notes(".note.domainbuilder").get((OWNER, NOTE_RUN), b"{}"))
        except (ValueError, RecursionError):
            raise self.fail("our own note is no JSON") from None
        return about if isinstance(about, dict) else {}

    # -- memory

    def _page(self, index: int) -> memoryview:
        start = self.pages.offset + (index << PAGE_SHIFT)
        return self.view[start : start + PAGE_SIZE]

    def frame(self, mfn: int) -> memoryview | None:
        """A machine frame; None where the file has it not."""
        index = self._by_mfn.get(mfn)
        return None if index is None else self._page(index)

    def frame_of_pfn(self, pfn: int) -> memoryview | None:
        """A pseudo-physical frame; None where the file has it not."""
        index = self._by_pfn.get(pfn)
        return None if index is None else self._page(index)

    def offset_of_pfn(self, pfn: int) -> int | None:
        """Where in the file a pseudo-physical frame is."""
        index = self._by_pfn.get(pfn)
        return None if index is None else self.pages.offset + (index << PAGE_SHIFT)

    def _entry(self, mfn: int, slot: int) -> int:
        page = self.frame(mfn)
        return 0 if page is None else int.from_bytes(page[8 * slot : 8 * slot + 8], "little")

    def walk(self, root: int, va: int) -> tuple[int, int] | None:
        """(machine address, flags of all levels put together) of a virtual address; None where unmapped."""
        mfn, flags = root, _RW | _USER
        for level in range(_LEVELS[self.width], 0, -1):
            shift = PAGE_SHIFT + 9 * (level - 1)
            entry = self._entry(mfn, va >> shift & 511)
            if not entry & _PRESENT:
                return None
            flags = flags & entry | (flags | entry) & _NX
            mfn = entry >> PAGE_SHIFT & MFN_MASK
            if level > 1 and entry & _PSE:
                return (mfn << PAGE_SHIFT) + (va & (1 << shift) - 1), flags
        return (mfn << PAGE_SHIFT) + (va & PAGE_SIZE - 1), flags

    def read(self, root: int, va: int, size: int) -> bytes:
        """The bytes at a virtual address, as many of `size` as are mapped and in the file."""
        parts = []
        mask = (1 << 8 * self.width) - 1
        while size > 0:
            va &= mask
            step = min(size, PAGE_SIZE - va % PAGE_SIZE)
            found = self.walk(root, va)
            page = self.frame(found[0] >> PAGE_SHIFT) if found else None
            if page is None:
                break
            parts.append(bytes(page[va % PAGE_SIZE : va % PAGE_SIZE + step]))
            va, size = va + step, size - step
        return b"".join(parts)

    def mappings(self, root: int) -> Iterator[Mapped]:
        """What is mapped, in the order of addresses, what is alike put together."""
        last: Mapped | None = None
        for start, size, flags in self._leaves(root, _LEVELS[self.width], 0, _RW | _USER, []):
            here = Mapped(start, start + size, bool(flags & _RW), bool(flags & _USER), not flags & _NX)
            if last is not None and last.end == here.start and last[2:] == here[2:]:
                last = last._replace(end=here.end)
                continue
            if last is not None:
                yield last
            last = here
        if last is not None:
            yield last

    def _leaves(
        self, mfn: int, level: int, base: int, flags: int, above: list[int]
    ) -> Iterator[tuple[int, int, int]]:
        page = self.frame(mfn)
        if page is None or mfn in above:  # Xen's own, or a table that maps itself
            return
        shift, top = PAGE_SHIFT + 9 * (level - 1), level == _LEVELS[self.width]
        entries = page.cast("Q")[: 4 if top and self.width == 4 else 512].tolist()
        for slot, entry in enumerate(entries):
            if not entry & _PRESENT or (top and self.width == 8 and slot in _XENS):
                continue
            va = base + (slot << shift)
            if top and self.width == 8 and slot >= 256:
                va |= 0xFFFF << 48
            here, target = flags & entry | (flags | entry) & _NX, entry >> PAGE_SHIFT & MFN_MASK
            if level == 1 or entry & _PSE:
                yield va, 1 << shift, here
            else:
                yield from self._leaves(target, level - 1, va, here, [*above, mfn])

    # -- vCPUs

    def context(self, index: int) -> dict[str, Any]:
        """A vCPU's `struct vcpu_guest_context`, by field; those of one number are that number."""
        start = self._status.offset + index * VCPU_GUEST_CONTEXT_SIZE[8]
        fields = {}
        for name, (offset, code) in VCPU_GUEST_CONTEXT[self.width].items():
            values = struct.unpack_from("<" + code, self.view, start + offset)
            fields[name] = values[0] if len(values) == 1 else values
        return fields

    def root(self, context: dict[str, Any], *, is_user: bool) -> int:
        """The frame of the top-level page table that a vCPU stood on."""
        if is_user and self.width == 8 and context["ctrlreg"][1]:
            return int(context["ctrlreg"][1]) >> PAGE_SHIFT
        return xen_cr3_to_pfn(int(context["cr3"]), self.width)

    def general(self, context: dict[str, Any]) -> dict[str, int]:
        """The general registers by the names that reports have for them."""
        named = {name: context[short] for name, short in _GPRS.items()}
        return named | {f"r{n}": context.get(f"r{n}", 0) for n in range(8, 16)}
