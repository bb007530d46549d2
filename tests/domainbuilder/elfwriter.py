"""Write small ELF files, well-formed or not, for tests to read."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

EM_386 = 3
EM_X86_64 = 62
PT_LOAD, PT_NOTE = 1, 4
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 1, 2, 3, 7, 8
RX, RW, RWX, R = 5, 6, 7, 4


def note(
    kind: int, desc: bytes | str | int, *, owner: bytes = b"Xen", size: int = 4, align: int = 4
) -> bytes:
    """One ELF note: a string gets its NUL, a number `size` bytes; name and descriptor padded to `align`."""
    if isinstance(desc, str):
        desc = desc.encode() + b"\0"
    elif isinstance(desc, int):
        desc = desc.to_bytes(size, "little")
    name = owner + b"\0"
    head = struct.pack("<III", len(name), len(desc), kind) + name
    head += bytes(-len(head) % align)
    return head + desc + bytes(-len(desc) % align)


@dataclass
class Segment:
    type: int
    data: bytes
    vaddr: int = 0
    paddr: int = 0
    memsz: int | None = None
    flags: int = RWX
    align: int = 4
    offset: int | None = None  # override, for broken files
    filesz: int | None = None


@dataclass
class Section:
    name: str
    type: int
    data: bytes
    addr: int = 0
    flags: int = 0
    link: int = 0
    info: int = 0
    align: int = 4
    entsize: int = 0
    size: int | None = None  # override: of SHT_NOBITS, or for broken files
    inside: tuple[int, int] | None = None  # (segment index, offset in it): share the segment's bytes


@dataclass
class ElfWriter:
    """An ELF file: headers, then segments' bytes, then sections' bytes, names and section headers."""

    elf_class: int = 32
    machine: int = EM_386
    entry: int = 0
    data: int = 1  # ELFDATA2LSB
    type: int = 2
    segments: list[Segment] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    page_align: int = 16

    def load(self, data: bytes, paddr: int = 0, vaddr: int | None = None, **more: int) -> ElfWriter:
        self.segments.append(Segment(PT_LOAD, data, paddr if vaddr is None else vaddr, paddr, **more))
        return self

    def note_segment(self, data: bytes, **more: int) -> ElfWriter:
        self.segments.append(Segment(PT_NOTE, data, memsz=0, **more))
        return self

    def section(self, name: str, kind: int, data: bytes, **more: Any) -> ElfWriter:
        self.sections.append(Section(name, kind, data, **more))
        return self

    def symbols(self, symbols: list[tuple[str, int, int, int]], shndx: int = 1) -> ElfWriter:
        """A .symtab and .strtab of (name, value, size, type) symbols."""
        strings, table = b"\0", bytes(24 if self.elf_class == 64 else 16)
        for name, value, size, kind in symbols:
            where, info = len(strings), 0x10 | kind
            strings += name.encode() + b"\0"
            if self.elf_class == 64:
                table += struct.pack("<IBBHQQ", where, info, 0, shndx, value, size)
            else:
                table += struct.pack("<IIIBBH", where, value, size, info, 0, shndx)
        entsize = 24 if self.elf_class == 64 else 16
        index = len(self.sections) + 2
        self.section(".symtab", SHT_SYMTAB, table, link=index, info=1, entsize=entsize)
        return self.section(".strtab", SHT_STRTAB, strings)

    def build(self) -> bytes:
        wide = self.elf_class == 64
        ehsize, phsize, shsize = (64, 56, 64) if wide else (52, 32, 40)
        out = bytearray(ehsize + phsize * len(self.segments))
        starts = []
        for segment in self.segments:
            out += bytes(-len(out) % self.page_align)
            starts.append(len(out) if segment.offset is None else segment.offset)
            out += segment.data
        offsets, names = [], b"\0"
        sections = [*self.sections, Section(".shstrtab", SHT_STRTAB, b"")] if self.sections else []
        name_at = []
        for section in sections:
            name_at.append(len(names))
            names += section.name.encode() + b"\0"
        if sections:
            sections[-1].data = names
        for section in sections:
            if section.inside is not None:
                offsets.append(starts[section.inside[0]] + section.inside[1])
                continue
            out += bytes(-len(out) % 8)
            offsets.append(len(out))
            out += section.data
        out += bytes(-len(out) % 8)
        shoff = len(out) if sections else 0
        shnum = len(sections) + 1 if sections else 0
        out += bytes(shsize if sections else 0)
        for section, offset, where in zip(sections, offsets, name_at, strict=True):
            size = len(section.data) if section.size is None else section.size
            out += struct.pack(
                "<2I4Q2I2Q" if wide else "<10I",
                *(where, section.type, section.flags, section.addr, offset, size),
                *(section.link, section.info, section.align, section.entsize),
            )
        for index, (segment, start) in enumerate(zip(self.segments, starts, strict=True)):
            filesz = len(segment.data) if segment.filesz is None else segment.filesz
            memsz = filesz if segment.memsz is None else segment.memsz
            tail = (start, segment.vaddr, segment.paddr, filesz, memsz)
            fields = (
                (segment.type, segment.flags, *tail, segment.align)
                if wide
                else (segment.type, *tail, segment.flags, segment.align)
            )
            struct.pack_into("<2I6Q" if wide else "<8I", out, ehsize + phsize * index, *fields)
        ident = b"\x7fELF" + bytes([2 if wide else 1, self.data, 1]) + bytes(9)
        shstrndx = len(sections) if sections else 0
        struct.pack_into(
            "<16sHHIQQQIHHHHHH" if wide else "<16sHHIIIIIHHHHHH",
            *(out, 0, ident, self.type, self.machine, 1, self.entry, ehsize, shoff, 0),
            *(ehsize, phsize, len(self.segments), shsize, shnum, shstrndx),
        )
        return bytes(out)


def xen_notes(size: int = 4, **changes: bytes | str | int | None) -> list[bytes]:
    """The notes of a plain PV kernel at 0xC0000000, one or the other changed, added or (None) left out."""
    numbers = {
        "ENTRY": 1, "HYPERCALL_PAGE": 2, "VIRT_BASE": 3, "PADDR_OFFSET": 4, "XEN_VERSION": 5, "GUEST_OS": 6,
        "GUEST_VERSION": 7, "LOADER": 8, "PAE_MODE": 9, "FEATURES": 10, "BSD_SYMTAB": 11, "HV_START_LOW": 12,
        "L1_MFN_VALID": 13, "SUSPEND_CANCEL": 14, "INIT_P2M": 15, "MOD_START_PFN": 16,
        "SUPPORTED_FEATURES": 17, "PHYS32_ENTRY": 18, "INFO": 0,
    }  # fmt: skip
    values: dict[str, bytes | str | int | None] = {
        "GUEST_OS": "test",
        "XEN_VERSION": "xen-3.0",
        "LOADER": "generic",
        "VIRT_BASE": 0xC0000000,
        "ENTRY": 0xC0100000,
        "PAE_MODE": "yes",
    }
    values.update(changes)
    return [note(numbers[name], value, size=size) for name, value in values.items() if value is not None]


def xen_kernel(
    *, elf_class: int = 32, machine: int | None = None, **changes: bytes | str | int | None
) -> ElfWriter:
    """A kernel that Xen takes: 0x1000 bytes at physical 0x100000, notes in a PT_NOTE."""
    default = EM_X86_64 if elf_class == 64 else EM_386
    writer = ElfWriter(elf_class, default if machine is None else machine, entry=0x100000)
    writer.load(bytes(range(256)) * 16, paddr=0x100000, vaddr=0xC0100000, memsz=0x3000, flags=RX, align=4096)
    writer.note_segment(b"".join(xen_notes(elf_class // 8, **changes)))
    return writer


def legacy_kernel(guest_info: str, *, elf_class: int = 32, machine: int = EM_386) -> ElfWriter:
    """A kernel with a `__xen_guest` section and no notes."""
    writer = ElfWriter(elf_class, machine, entry=0xC0000000)
    writer.load(bytes(range(256)) * 16, paddr=0xC0000000, memsz=0x3000, flags=RX, align=4096)
    return writer.section("__xen_guest", SHT_PROGBITS, guest_info.encode() + b"\0")
