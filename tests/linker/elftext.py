"""Builds an ELF file from the few words in which the rules' examples describe one.

elf32 entry=0x1000                    first line: class, byte order (be), entry
load ADDRESS SIZE FLAGS [align= offset= paddr= nofile]
segment note ADDRESS SIZE|auto FLAGS [align=]
section NAME ADDRESS SIZE FLAGS [align= nobits bytes=HEX]
note NAME|+ ADDRESS owner= type= data=HEX pad=4|8     `+` continues the section before
symbol NAME ADDRESS
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from struct import pack, unpack_from
from typing import NamedTuple

BASE = 0x1000  # where the first loaded byte stands in the file, unless offset= says otherwise


class _Section:
    def __init__(
        self, name: str, address: int, size: int, flags: int, kind: int, data: bytes, align: int = 1
    ) -> None:
        self.name, self.address, self.size, self.flags = name, address, size, flags
        self.kind, self.data, self.align, self.offset, self.link = kind, data, align, 0, 0
        self.entry = 0


class _Segment(NamedTuple):
    kind: int
    flags: int
    offset: int
    address: int
    load_address: int
    file_size: int
    size: int
    align: int


class _Described(NamedTuple):
    """What a text says: header, sections, segments as lists of words, symbols with their values."""

    head: dict[str, int]
    sections: list[_Section]
    segments: list[list[str]]
    symbols: list[tuple[str, int]]


def _options(words: Iterable[str]) -> dict[str, str]:
    return dict(word.partition("=")[::2] for word in words)


def _note(options: Mapping[str, str]) -> bytes:
    owner = options["owner"].encode() + b"\0"
    data, pad = bytes.fromhex(options["data"]), int(options["pad"])
    out = pack("<III", len(owner), len(data), int(options["type"])) + owner
    out += b"\0" * (-len(out) % pad) + data
    return out + b"\0" * (-len(out) % pad)


def _flags(text: str, letters: Mapping[str, int]) -> int:
    return sum(bit for letter, bit in letters.items() if letter in text)


def _read(text: str) -> _Described:
    out = _Described({}, [], [], [])
    sections = out.sections
    for line in text.splitlines():
        words = line.split()
        options = _options(words)
        match words[0]:
            case "elf32" | "elf64":
                out.head.update(bits=int(words[0][3:]), entry=int(options["entry"], 0))
            case "section":
                kind = 8 if "nobits" in options else 1
                data = bytes.fromhex(options.get("bytes", ""))
                flags = _flags(words[4], {"w": 1, "a": 2, "x": 4})
                sections.append(
                    _Section(
                        words[1], int(words[2], 0), int(words[3], 0), flags, kind, data,
                        int(options.get("align", "1"), 0),
                    )
                )  # fmt: skip
            case "note":
                if words[1] == "+":
                    sections[-1].data += _note(options)
                    sections[-1].size = len(sections[-1].data)
                else:
                    data = _note(options)
                    sections.append(_Section(words[1], int(words[2], 0), len(data), 2, 7, data, 4))
            case "load" | "segment":
                out.segments.append(words)
            case "symbol":
                out.symbols.append((words[1], int(words[2], 0)))
    return out


def _segments(rows: Iterable[list[str]], sections: Iterable[_Section]) -> list[_Segment]:
    loads = [row for row in rows if row[0] == "load"]
    low = min((int(row[1], 0) for row in loads), default=0)
    out = []
    for row in rows:
        options = _options(row)
        words = row[1:] if row[0] == "load" else row[2:]
        address = int(words[0], 0)
        own = [item for item in sections if item.address == address and item.kind == 7]
        size = own[0].size if words[1] == "auto" else int(words[1], 0)
        align = int(options.get("align", "4" if row[0] == "segment" else "0x10"), 0)
        offset = int(options["offset"], 0) if "offset" in options else BASE + address - low
        load_address = int(options.get("paddr", hex(address)), 0)
        flags = _flags(words[2], {"x": 1, "w": 2, "r": 4})
        file_size = 0 if "nofile" in options else size
        kind = 1 if row[0] == "load" else 4
        out.append(_Segment(kind, flags, offset, address, load_address, file_size, size, align))
    return out


def _place(sections: Iterable[_Section], segments: list[_Segment]) -> None:
    for section in sections:
        for segment in segments:
            end = segment.address + segment.size
            if (
                segment.kind == 1
                and segment.address <= section.address <= section.address + section.size <= end
            ):
                section.offset = segment.offset + section.address - segment.address
                break
        else:
            section.offset = BASE + section.address


def build(text: str) -> bytes:
    """Return the bytes of the ELF file that `text` describes."""
    head, sections, rows, symbols = _read(text)
    wide = head["bits"] == 64
    segments = _segments(rows, sections)
    _place(sections, segments)
    image = bytearray(
        max(
            [BASE]
            + [segment.offset + segment.file_size for segment in segments]
            + [section.offset + (section.size if section.kind != 8 else 0) for section in sections]
        )
    )
    for section in sections:
        if section.kind != 8:
            data = section.data.ljust(section.size, b"\x90")
            image[section.offset : section.offset + section.size] = data[: section.size]
    names = b"\0" + b"".join(name.encode() + b"\0" for name, _ in symbols)
    table = bytearray(24 if wide else 16)
    for name, value in symbols:
        index = next(
            (n for n, s in enumerate(sections, 1) if s.address <= value <= s.address + s.size), 0xFFF1
        )
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        row = (at, 0x10, 0, index, value, 0) if wide else (at, value, 0, 0x10, 0, index)
        table += pack("<IBBHQQ" if wide else "<IIIBBH", *row)
    count = len(sections)
    symtab = _Section(".symtab", 0, len(table), 0, 2, bytes(table), 8)
    symtab.link, symtab.entry = count + 2, 24 if wide else 16
    strtab = _Section(".strtab", 0, len(names), 0, 3, names)
    shstrtab = _Section(".shstrtab", 0, 0, 0, 3, b"")
    everything = [*sections, symtab, strtab, shstrtab]
    shstrtab.data = b"\0" + b"".join(section.name.encode() + b"\0" for section in everything)
    shstrtab.size = len(shstrtab.data)
    for section in (symtab, strtab, shstrtab):
        image += b"\0" * (-len(image) % 8)
        section.offset = len(image)
        image += section.data
    image += b"\0" * (-len(image) % 8)
    shoff = len(image)
    rows_out = [(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)]
    for section in everything:
        at = shstrtab.data.index(b"\0" + section.name.encode() + b"\0") + 1
        rows_out.append(
            (at, section.kind, section.flags, section.address, section.offset, section.size, section.link, 0,
             section.align, section.entry)
        )  # fmt: skip
    for numbers in rows_out:
        image += pack("<IIQQQQIIQQ" if wide else "<IIIIIIIIII", *numbers)
    _headers(image, head, segments, shoff, len(rows_out), wide)
    return bytes(image)


def _headers(
    image: bytearray, head: Mapping[str, int], segments: list[_Segment], shoff: int, sections: int, wide: bool
) -> None:
    ehsize, phentsize, shentsize = (64, 56, 64) if wide else (52, 32, 40)
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + b"\0" * 9
    image[: len(ident)] = ident
    header = pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH", 2, 62 if wide else 3, 1, head["entry"],
        ehsize if segments else 0, shoff, 0, ehsize, phentsize, len(segments), shentsize, sections,
        sections - 1,
    )  # fmt: skip
    image[16 : 16 + len(header)] = header
    at = ehsize
    for kind, flags, *places, align in segments:
        row = (
            pack("<IIQQQQQQ", kind, flags, *places, align)
            if wide
            else pack("<IIIIIIII", kind, *places, flags, align)
        )
        image[at : at + len(row)] = row
        at += len(row)
    assert at <= BASE, "the headers of the example do not fit"
    assert unpack_from("<I", image, 0)[0] == 0x464C457F
