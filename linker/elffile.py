"""Linked ELF files: sections, segments, symbols, notes.

Read with `struct` over a mapping and not with a library: the symbol table of a 66 MB vmlinux has 130,000
entries, and a library's objects for them cost more time and memory than the whole run may take.
Layouts from the System V gABI, chapters 4 and 5; nothing outside of the file is ever read, whatever its
headers say.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Literal, NamedTuple, TypeAlias

from .errors import LayoutInputError
from .source import read_stream

SHT_SYMTAB = 2
SHT_NOTE = 7
SHT_NOBITS = 8
SHF_WRITE = 1
SHF_ALLOC = 2
SHF_EXECINSTR = 4
SHF_TLS = 0x400
PT_LOAD = 1
PT_INTERP = 3
PT_NOTE = 4
PF_X = 1
PF_W = 2
SHN_UNDEF = 0
SHN_ABS = 0xFFF1

MAX_SECTIONS = 100_000
MAX_SYMBOLS = 20_000_000
MAX_PIPED = 1 << 30  # of a file that comes through a pipe and must be held in memory

_SEGMENT_NAMES = {
    0: "NULL",
    1: "LOAD",
    2: "DYNAMIC",
    3: "INTERP",
    4: "NOTE",
    5: "SHLIB",
    6: "PHDR",
    7: "TLS",
    0x6474E550: "GNU_EH_FRAME",
    0x6474E551: "GNU_STACK",
    0x6474E552: "GNU_RELRO",
    0x6474E553: "GNU_PROPERTY",
}


class ElfSection(NamedTuple):
    """A section header; address, offset, size and alignment in bytes."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    alignment: int
    link: int

    @property
    def allocated(self) -> bool:
        """Tell whether it takes part of the memory image."""
        return bool(self.flags & SHF_ALLOC)

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.address + self.size

    @property
    def occupies(self) -> bool:
        """Tell whether it takes addresses: allocated, not empty, and no thread-local zero data."""
        thread_bss = self.type == SHT_NOBITS and self.flags & SHF_TLS
        return self.allocated and self.size > 0 and not thread_bss


class Segment(NamedTuple):
    """A program header; addresses, offset and sizes in bytes."""

    type: int
    flags: int
    offset: int
    address: int
    load_address: int
    file_size: int
    size: int
    alignment: int
    number: int

    @property
    def name(self) -> str:
        """The name readelf would give, with its number in the table."""
        return f"{_SEGMENT_NAMES.get(self.type, hex(self.type))}[{self.number}]"

    @property
    def end(self) -> int:
        """The address after its last byte."""
        return self.address + self.size

    def holds(self, address: int) -> bool:
        """Tell whether the address lies inside."""
        return self.address <= address < self.end


class ElfSymbol(NamedTuple):
    """A symbol; `section` is an index of the section table or a reserved number."""

    name: str
    address: int
    size: int
    info: int
    section: int


class Note(NamedTuple):
    """A note of a segment; `offset` is where it starts in the file."""

    owner: bytes
    type: int
    data: bytes
    offset: int


class NoteProblem(NamedTuple):
    """Why walking the notes of a segment ended early."""

    message: str
    offset: int


class _Formats(NamedTuple):
    header: Struct
    section: Struct
    segment: Struct
    symbol: Struct


def _formats(bits: int, order: str) -> _Formats:
    if bits == 64:
        return _Formats(
            Struct(order + "HHIQQQIHHHHHH"),
            Struct(order + "IIQQQQIIQQ"),
            Struct(order + "IIQQQQQQ"),
            Struct(order + "IBBHQQ"),
        )
    return _Formats(
        Struct(order + "HHIIIIIHHHHHH"),
        Struct(order + "IIIIIIIIII"),
        Struct(order + "IIIIIIII"),
        Struct(order + "IIIBBH"),
    )


class Elf:
    """An ELF file over a buffer of bytes. Raises LayoutInputError when it cannot be read."""

    def __init__(self, path: str, data: bytes | mmap.mmap) -> None:
        self.path = path
        self.data = data
        if data[:4] != b"\x7fELF":
            raise self._bad("this is no ELF file", 0, bytes(data[:4]).hex() or "an empty file", "7f454c46")
        if len(data) < 20:
            raise self._bad("the ELF header is cut short", 0, f"{len(data)} bytes", "52 or 64")
        bits = {1: 32, 2: 64}.get(data[4])
        order = {1: "<", 2: ">"}.get(data[5])
        if bits is None:
            raise self._bad("unknown ELF class", 4, data[4], "1 or 2")
        if order is None:
            raise self._bad("unknown byte order", 5, data[5], "1 or 2")
        self.bits: int = bits
        self.order: str = order
        self.byteorder: Literal["little", "big"] = "little" if order == "<" else "big"
        self._f = _formats(bits, order)
        try:
            header = self._f.header.unpack_from(data, 16)
        except struct.error as error:
            raise self._bad("the ELF header is cut short", 16, f"{len(data)} bytes", None) from error
        (self.type, self.machine, _, self.entry, self._phoff, self._shoff, self.flags, _, self._phentsize,
         self._phnum, self._shentsize, self._shnum, self._shstrndx) = header  # fmt: skip

    def _bad(self, reason: str, offset: int, found: object, expected: object) -> LayoutInputError:
        return LayoutInputError(reason, file=self.path, offset=offset, found=found, expected=expected)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return bytes of the file, fewer when it ends before."""
        if offset >= len(self.data) or size <= 0:
            return b""
        return bytes(self.data[offset : min(offset + size, len(self.data))])

    # Section table

    @cached_property
    def sections(self) -> tuple[ElfSection, ...]:
        """The section headers, without the first that stands for none, in the order of the file."""
        return self._all_sections[1:]

    @cached_property
    def _all_sections(self) -> tuple[ElfSection, ...]:
        if not self._shoff:
            return ()
        layout = self._f.section
        if self._shentsize != layout.size:
            raise self._bad("unknown size of section headers", 0, self._shentsize, layout.size)
        raw = self._table(self._shoff, 1, layout, "section headers")
        count = self._shnum or raw[0][5]
        names = self._shstrndx if self._shstrndx != 0xFFFF else raw[0][6]
        if count > MAX_SECTIONS:
            raise self._bad("too many section headers", self._shoff, count, f"at most {MAX_SECTIONS}")
        raw = self._table(self._shoff, count, layout, "section headers")
        strings = b""
        if 0 < names < len(raw):
            strings = self.bytes_at(raw[names][4], raw[names][5])
        return tuple(
            ElfSection(_string(strings, name), kind, flags, address, offset, size, align, link)
            for name, kind, flags, address, offset, size, link, _info, align, _entry in raw
        )

    def _table(self, offset: int, count: int, layout: Struct, what: str) -> list[tuple[int, ...]]:
        end = offset + count * layout.size
        if end > len(self.data):
            raise self._bad(f"the {what} lie outside of the file", offset, f"end {end:#x}", len(self.data))
        return list(layout.iter_unpack(self.data[offset:end]))

    # Program headers

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The program headers in the order of the file."""
        if not self._phoff or not self._phnum:
            return ()
        layout = self._f.segment
        if self._phentsize != layout.size:
            raise self._bad("unknown size of program headers", 0, self._phentsize, layout.size)
        rows = self._table(self._phoff, self._phnum, layout, "program headers")
        out = []
        for index, row in enumerate(rows):
            if self.bits == 64:
                kind, flags, offset, vaddr, paddr, filesz, memsz, align = row
            else:
                kind, offset, vaddr, paddr, filesz, memsz, flags, align = row
            out.append(Segment(kind, flags, offset, vaddr, paddr, filesz, memsz, align, index))
        return tuple(out)

    @cached_property
    def loads(self) -> tuple[Segment, ...]:
        """The LOAD segments."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD)

    def segment_of(self, section: ElfSection) -> Segment | None:
        """Return the LOAD segment that a section lies in, by address."""
        for segment in self.loads:
            if segment.address <= section.address and section.end <= segment.end:
                return segment
        return None

    def load_address(self, section: ElfSection) -> int | None:
        """Return the load address of a section, from the segment it lies in."""
        segment = self.segment_of(section)
        return None if segment is None else segment.load_address + section.address - segment.address

    # Symbols

    def _symbol_tables(self) -> Iterator[tuple[ElfSection, bytes]]:
        for section in self.sections:
            if section.type == SHT_SYMTAB:
                table = self._all_sections
                strings = b""
                if section.link < len(table):
                    strings = self.bytes_at(table[section.link].offset, table[section.link].size)
                yield section, strings

    def _rows(self, section: ElfSection) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield (name, value, size, info, section index) of a symbol table."""
        layout = self._f.symbol
        count = min(section.size // layout.size, MAX_SYMBOLS)
        data = self.bytes_at(section.offset, count * layout.size)
        data = data[: len(data) // layout.size * layout.size]
        if self.bits == 64:
            for name, info, _other, index, value, size in layout.iter_unpack(data):
                yield name, value, size, info, index
        else:
            for name, value, size, info, _other, index in layout.iter_unpack(data):
                yield name, value, size, info, index

    def find(self, names: Iterable[str]) -> dict[str, ElfSymbol]:
        """Return the defined symbols of these names; a global one wins over local ones.

        Names are not decoded one by one: the string table is searched for the few that are wanted.
        """
        wanted = {name for name in names if name}
        found: dict[str, ElfSymbol] = {}
        for section, strings in self._symbol_tables():
            offsets: dict[int, str] = {}
            for name in wanted:
                key = name.encode("utf-8", errors="surrogateescape") + b"\0"
                position = strings.find(key)
                while position >= 0:
                    offsets[position] = name
                    position = strings.find(key, position + 1)
            for offset, value, size, info, index in self._rows(section):
                if offset in offsets and index != SHN_UNDEF:
                    name = offsets[offset]
                    if name not in found or info >> 4:
                        found[name] = ElfSymbol(name, value, size, info, index)
        return found

    def symbols(self) -> Iterator[ElfSymbol]:
        """Yield every defined symbol that has a name."""
        for section, strings in self._symbol_tables():
            for offset, value, size, info, index in self._rows(section):
                if offset and index != SHN_UNDEF:
                    yield ElfSymbol(_string(strings, offset), value, size, info, index)

    def section_index(self, index: int) -> ElfSection | None:
        """Return the section a symbol's index means."""
        return self._all_sections[index] if 0 < index < len(self._all_sections) else None

    @cached_property
    def by_name(self) -> dict[str, ElfSection]:
        """Sections by name, the first of each."""
        out: dict[str, ElfSection] = {}
        for section in self.sections:
            out.setdefault(section.name, section)
        return out

    # Notes

    def notes(self, segment: Segment, alignment: int) -> tuple[list[Note], NoteProblem | None]:
        """Walk a NOTE segment, names and descriptors padded to `alignment` bytes."""
        size = min(segment.file_size, 1 << 20)
        return self.walk_notes(segment.offset, size, alignment)

    def walk_notes(self, start: int, size: int, alignment: int) -> tuple[list[Note], NoteProblem | None]:
        """Walk notes in a range of the file. Sizes are bounds-checked; the first bad one ends the walk."""
        header = Struct(self.order + "III")
        data = self.bytes_at(start, size)
        # Zeros at the end are padding of the segment, not notes.
        meaningful = len(data.rstrip(b"\0"))
        notes: list[Note] = []
        position = 0
        while position < meaningful:
            where = start + position
            if len(data) - position < header.size:
                return notes, NoteProblem(f"{len(data) - position} bytes are left over", where)
            namesz, descsz, kind = header.unpack_from(data, position)
            name_at = position + header.size
            desc_at = position + header.size + _round(namesz, alignment)
            if alignment == 8:
                desc_at = _round(position + header.size + namesz, 8)
            end = desc_at + descsz
            if end > len(data):
                sizes = f"name {namesz:#x}, descriptor {descsz:#x}"
                return notes, NoteProblem(f"a note runs past the end ({sizes})", where)
            owner = data[name_at : name_at + namesz].rstrip(b"\0")
            notes.append(Note(owner, kind, data[desc_at:end], where))
            position = _round(end, alignment)
        if len(data) < size:
            return notes, NoteProblem("the file ends inside of the notes", start + len(data))
        return notes, None


def _round(value: int, alignment: int) -> int:
    return (value + alignment - 1) // alignment * alignment


def _string(table: bytes, offset: int) -> str:
    if offset >= len(table):
        return ""
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("utf-8", errors="replace")


Unpack: TypeAlias = Callable[[str], bytes | mmap.mmap | None]


def read_elf(path: str, unpack: Unpack | None = None) -> Elf:
    """Map a file into memory and read its headers; raises LayoutInputError.

    `unpack` may know what is packed in it: a bzImage, say, whose ELF image is then read instead.
    """
    image = unpack(path) if unpack is not None else None
    if image is not None:
        return Elf(path, image)
    try:
        with Path(path).open("rb") as stream:
            try:
                return Elf(path, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
            except (ValueError, OSError):
                # Empty files, pipes and devices cannot be mapped.
                head = stream.read(4)
                rest = read_stream(stream, path, MAX_PIPED) if head == b"\x7fELF" else b""
                return Elf(path, head + rest)
    except OSError as error:
        raise LayoutInputError(f"cannot be read: {error.strerror}", file=path) from error
