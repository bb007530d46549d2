"""ELF images as Xen's libelf reads them: headers, segments, sections, symbols.

Follows xen/common/libelf/libelf-loader.c and libelf-tools.c of Xen 4.17. What libelf refuses is an
ElfError; what it lets pass (a read past the end is 0 there, and the image "broken") passes here too
and is remembered in `ElfImage.broken`. In one thing this is stricter: bytes of a LOAD segment that
are missing from the file are an error here, where libelf leaves them zero and goes on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from typing import NamedTuple

from domainbuilder.errors import ElfError, Where

EM_386 = 3
EM_ARM = 40
EM_X86_64 = 62

PT_LOAD = 1
PT_NOTE = 4
PF_X, PF_W, PF_R = 1, 2, 4

SHT_SYMTAB = 2
SHT_STRTAB = 3
SHT_NOTE = 7
SHT_NOBITS = 8
SHF_ALLOC = 2

ELF_MAX_STRING_LENGTH = 4096  # xen/include/xen/libelf.h
_MASK = (1 << 64) - 1

MACHINES = {EM_386: "i386", EM_ARM: "ARM", EM_X86_64: "x86-64"}


class _Layout(NamedTuple):
    """Where a class of ELF keeps its fields; each format starts at the structure's first field."""

    ehdr: str  # from e_type, at 16
    ehdr_size: int
    phdr: str
    phdr_order: tuple[int, ...]  # of type, flags, offset, vaddr, paddr, filesz, memsz, align
    shdr: str
    round: int  # elf_round_up


_LAYOUTS = {
    32: _Layout("HHIIIIIHHHHHH", 52, "8I", (0, 6, 1, 2, 3, 4, 5, 7), "10I", 4),
    64: _Layout("HHIQQQIHHHHHH", 64, "2I6Q", (0, 1, 2, 3, 4, 5, 6, 7), "2I4Q2I2Q", 8),
}


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """Elf32_Phdr or Elf64_Phdr. `header_offset` is where the header itself is in the image."""

    index: int
    header_offset: int
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    @property
    def loadable(self) -> bool:
        """elf_phdr_is_loadable: PT_LOAD with some permission at all."""
        return self.type == PT_LOAD and bool(self.flags & (PF_R | PF_W | PF_X))


@dataclass(frozen=True, slots=True)
class Section:
    """Elf32_Shdr or Elf64_Shdr, and the section's name ("" where it cannot be read)."""

    index: int
    header_offset: int
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    link: int
    info: int
    addralign: int
    entsize: int


class _Ehdr(NamedTuple):
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


@dataclass(frozen=True)
class ElfImage:
    """An ELF image. Addresses and offsets are bytes; `view` is the whole image."""

    name: str
    view: memoryview
    elf_class: int  # 32 or 64: libelf takes whatever is not ELFCLASS64 for 32
    endian: str  # "<" or ">"
    ehdr: _Ehdr
    phdrs: tuple[ProgramHeader, ...]
    broken: str  # what libelf would say of a malformed but acceptable image, or ""

    @property
    def machine(self) -> int:
        """e_machine."""
        return self.ehdr.machine

    @property
    def entry(self) -> int:
        """e_entry."""
        return self.ehdr.entry

    @property
    def machine_name(self) -> str:
        """The machine in words."""
        return MACHINES.get(self.machine, f"machine {self.machine:#x}")

    @cached_property
    def load_segments(self) -> tuple[ProgramHeader, ...]:
        """The segments that libelf loads, in the order of their headers."""
        return tuple(phdr for phdr in self.phdrs if phdr.loadable)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """All section headers, the first (null) one included; read when first asked for."""
        return tuple(_read_sections(self))

    @cached_property
    def symtab(self) -> Section | None:
        """The symbol table elf_init finds: the first SHT_SYMTAB, if its string table exists."""
        for section in self.sections[1:]:
            if section.type == SHT_SYMTAB:
                return section if 0 < section.link < len(self.sections) else None
        return None

    @property
    def pstart(self) -> int:
        """Lowest physical address of the loadable segments (elf_parse_binary; 2**64-1 if none)."""
        return min((phdr.paddr for phdr in self.load_segments), default=_MASK)

    @property
    def pend(self) -> int:
        """End of the highest loadable segment, physical (elf_parse_binary; 0 if none)."""
        return max(((phdr.paddr + phdr.memsz) & _MASK for phdr in self.load_segments), default=0)

    def segment_bytes(self, phdr: ProgramHeader) -> memoryview:
        """The `filesz` bytes of a segment."""
        return self.view[phdr.offset : phdr.offset + phdr.filesz]

    def section_by_name(self, name: str) -> Section | None:
        """elf_shdr_by_name: the first section so named, the null section apart."""
        return next((section for section in self.sections[1:] if section.name == name), None)

    def section_bytes(self, section: Section) -> memoryview:
        """A section's bytes, as far as the file has them; none for SHT_NOBITS."""
        if section.type == SHT_NOBITS:
            return self.view[:0]
        return self.view[section.offset : section.offset + section.size]

    def unsigned(self, offset: int, size: int) -> int:
        """elf_access_unsigned: `size` bytes at `offset` as a number, 0 where they are not there."""
        if not 0 <= offset <= len(self.view) - size:
            return 0
        return int.from_bytes(self.view[offset : offset + size], "little" if self.endian == "<" else "big")

    def strval(self, offset: int) -> bytes | None:
        """elf_strval: the string at `offset` without its NUL; None: none within 4096 bytes or the file."""
        if not 0 <= offset < len(self.view):
            return None
        for most in (64, ELF_MAX_STRING_LENGTH + 1):
            chunk = bytes(self.view[offset : offset + most])
            end = chunk.find(0)
            if end >= 0:
                return chunk[:end]
        return None

    def where(self, offset: int | None = None) -> Where:
        """A place in this image, for messages."""
        return Where(self.name, offset)


def parse_elf(image: bytes | mmap | memoryview, name: str) -> ElfImage:
    """elf_init of libelf-loader.c. `name` is what messages call the image.

    Raises ElfError: no ELF header, header tables outside the file, a LOAD segment cut short.
    """
    view = memoryview(image)
    if len(view) < _LAYOUTS[32].ehdr_size or bytes(view[:4]) != b"\x7fELF":
        raise ElfError(
            "ELF: not an ELF binary",
            where=Where(name, 0),
            found=f"{bytes(view[:4]).hex(' ')} in {len(view)} bytes" if view else "nothing",
            expected=f"7f 45 4c 46 and at least {_LAYOUTS[32].ehdr_size} bytes",
        )
    elf_class = 64 if view[4] == 2 else 32
    endian = "<" if view[5] == 1 else ">"
    ehdr = _Ehdr(*_fields(view, 16, endian, _LAYOUTS[elf_class].ehdr))
    shnum = min(ehdr.shnum, len(view) // 40)
    _check_table(view, name, "phdr", ehdr.phoff, ehdr.phentsize * ehdr.phnum, ehdr.phnum)
    _check_table(view, name, "shdr", ehdr.shoff, ehdr.shentsize * shnum, shnum)
    phdrs = tuple(_read_phdrs(view, endian, elf_class, ehdr))
    broken = "far too many section headers" if shnum < ehdr.shnum else ""
    if len(phdrs) < ehdr.phnum:
        broken = broken or "out of range access"
    elf = ElfImage(name, view, elf_class, endian, ehdr, phdrs, broken)
    for phdr in elf.load_segments:
        if phdr.offset + phdr.filesz > len(view):
            raise ElfError(
                f"LOAD segment {phdr.index} is cut short",
                where=Where(name, phdr.header_offset),
                found=f"a file of {len(view):#x} bytes",
                expected=f"{phdr.filesz:#x} bytes at {phdr.offset:#x}",
            )
    return elf


def _check_table(view: memoryview, name: str, what: str, offset: int, size: int, count: int) -> None:
    end = (offset + size) & _MASK
    if end > len(view):
        raise ElfError(
            f"ELF: {what} overflow (off {end:x} > size {len(view):x})",
            where=Where(name, offset),
            found=f"{count} headers in {size:#x} bytes at {offset:#x}",
            expected=f"within the file's {len(view):#x} bytes; is it cut short?",
        )


def _fields(view: memoryview, offset: int, endian: str, form: str) -> tuple[int, ...]:
    """A structure's fields; those that do not lie in the file wholly are 0, as libelf reads them."""
    packed = struct.Struct(endian + form)
    if offset + packed.size <= len(view):
        return packed.unpack_from(view, offset)
    values = []
    zeros = struct.unpack(endian + form, bytes(packed.size))
    spread = "".join(code * int(count or 1) for count, code in _codes(form))
    for code, _ in zip(spread, zeros, strict=True):
        size = struct.calcsize(endian + code)
        inside = offset + size <= len(view)
        values.append(struct.unpack_from(endian + code, view, offset)[0] if inside else 0)
        offset += size
    return tuple(values)


def _codes(form: str) -> Iterator[tuple[str, str]]:
    count = ""
    for char in form:
        if char.isdigit():
            count += char
        else:
            yield count, char
            count = ""


def _read_phdrs(view: memoryview, endian: str, elf_class: int, ehdr: _Ehdr) -> Iterator[ProgramHeader]:
    layout = _LAYOUTS[elf_class]
    for index in range(ehdr.phnum):
        offset = (ehdr.phoff + ehdr.phentsize * index) & _MASK
        if offset >= len(view):
            return
        raw = _fields(view, offset, endian, layout.phdr)
        yield ProgramHeader(index, offset, *(raw[i] for i in layout.phdr_order))


def _read_sections(elf: ElfImage) -> Iterator[Section]:
    ehdr, layout = elf.ehdr, _LAYOUTS[elf.elf_class]
    count = min(ehdr.shnum, len(elf.view) // 40)

    def header(index: int) -> tuple[int, tuple[int, ...]] | None:
        offset = (ehdr.shoff + ehdr.shentsize * index) & _MASK
        if offset >= len(elf.view):
            return None
        return offset, _fields(elf.view, offset, elf.endian, layout.shdr)

    strtab = header(ehdr.shstrndx) if ehdr.shstrndx < count else None
    for index in range(count):
        found = header(index)
        if found is None:
            return
        offset, raw = found
        name = elf.strval((strtab[1][4] + raw[0]) & _MASK) if strtab else b"unknown"
        yield Section(index, offset, (name or b"").decode("latin-1"), *raw[1:])


def elf_round_up(elf: ElfImage, address: int) -> int:
    """Round up to the class's word: 4 or 8 bytes."""
    unit = _LAYOUTS[elf.elf_class].round
    return (address + unit - 1) & ~(unit - 1) & _MASK


def elf_parse_bsdsyms(elf: ElfImage, pstart: int) -> tuple[int, int] | None:
    """Where the symbol table goes that a BSD kernel asks for: (start, end), physical bytes.

    None where there is no symbol table with a string table. libelf-loader.c.
    """
    symtab = elf.symtab
    if symtab is None:
        return None
    strtab = elf.sections[symtab.link]
    if strtab.type != SHT_STRTAB:
        return None
    start = elf_round_up(elf, pstart)
    # a size word, then struct elf_sym_header (packed: another size word, and the larger Elf64_Ehdr in
    # either class) up to its three section headers, then these, the symbols, the strings
    shdr_size = struct.calcsize("<" + _LAYOUTS[elf.elf_class].shdr)
    size = elf_round_up(elf, 4 + 4 + 64 + 3 * shdr_size)
    size = elf_round_up(elf, size + symtab.size)
    size = elf_round_up(elf, size + strtab.size)
    return start, (start + size) & _MASK
