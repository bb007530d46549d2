"""The symbol table that a kernel with BSD_SYMTAB=yes finds behind itself, as a small ELF image of its own.

elf_load_bsdsyms of xen/common/libelf/libelf-loader.c, Xen 4.17. Behind the kernel come a size word, an ELF
header, three section headers (none, symbols, strings), the symbols and the strings.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from domainbuilder.errors import ElfError
from domainbuilder.kernel.elf import SHT_STRTAB, ElfImage, Section, elf_parse_bsdsyms, elf_round_up

_SIZE_WORD = 4
_EHDR_UNION = 64  # struct elf_sym_header keeps room for the larger class in either class
_SHDR_UNION = 64
_SECTIONS = 3
_SYMTAB_INDEX, _STRTAB_INDEX = 1, 2
_EV_CURRENT = 1


class _Class(NamedTuple):
    ehdr_size: int
    shdr_size: int
    word: str  # of e_phoff, e_shoff, sh_offset
    sh_offset: int
    sh_link: int


_CLASSES = {32: _Class(52, 40, "I", 16, 24), 64: _Class(64, 64, "Q", 24, 40)}


def load_bsdsyms(elf: ElfImage, pend: int) -> list[tuple[int, bytes | memoryview]]:
    """What to store, as (physical address, bytes), for a kernel whose segments end at `pend`.

    Empty when there is no symbol table to load. Raises ElfError when its section header is cut short.
    """
    place = elf_parse_bsdsyms(elf, pend)
    symtab = elf.symtab
    if place is None or symtab is None:
        return []
    start = place[0]
    form = _CLASSES[elf.elf_class]
    strtab = elf.sections[symtab.link]
    header_base = start + _SIZE_WORD
    symtab_base = elf_round_up(elf, start + _SIZE_WORD + _EHDR_UNION + _SECTIONS * _SHDR_UNION)
    strtab_base = elf_round_up(elf, symtab_base + symtab.size)
    headers = (
        bytes(form.shdr_size),
        _section_header(elf, symtab, symtab_base - header_base, _STRTAB_INDEX),
        _section_header(elf, strtab, strtab_base - header_base, None),
    )
    size = strtab_base + strtab.size - header_base
    lead = struct.pack(elf.endian + "I", size) + _elf_header(elf, form)
    chunks: list[tuple[int, bytes | memoryview]] = [
        (symtab_base, elf.section_bytes(symtab)),
        (strtab_base, elf.section_bytes(strtab)),
        (start, lead.ljust(_SIZE_WORD + _EHDR_UNION, b"\0")),
    ]
    at = start + _SIZE_WORD + _EHDR_UNION
    for header in headers:
        chunks.append((at, header))
        at += form.shdr_size
    return chunks


def _elf_header(elf: ElfImage, form: _Class) -> bytes:
    """The kernel's ELF header, with its tables replaced by the three section headers."""
    header = bytearray(elf.view[: form.ehdr_size])
    words = struct.calcsize("<" + form.word)
    phoff = 24 + words  # behind e_version and e_entry
    shoff = phoff + words
    struct.pack_into(f"{elf.endian}I", header, 20, _EV_CURRENT)
    struct.pack_into(f"{elf.endian}2{form.word}", header, phoff, 0, _EHDR_UNION)
    struct.pack_into(
        f"{elf.endian}6H", header, shoff + words + 4, form.ehdr_size, 0, 0, form.shdr_size, _SECTIONS, 0
    )
    return bytes(header)


def _section_header(elf: ElfImage, section: Section, offset: int, link: int | None) -> bytes:
    form = _CLASSES[elf.elf_class]
    header = bytearray(elf.view[section.header_offset : section.header_offset + form.shdr_size])
    if len(header) < form.shdr_size:
        raise ElfError("section header is cut short", where=elf.where(section.header_offset))
    if link is None and section.type != SHT_STRTAB:
        raise ElfError("strtab not found", where=elf.where(section.header_offset))
    struct.pack_into(elf.endian + form.word, header, form.sh_offset, offset)
    if link is not None:
        struct.pack_into(elf.endian + "I", header, form.sh_link, link)
    return bytes(header)
