"""A kernel's symbols as an ELF file of nothing else, for debuggers that read no kallsyms tables."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from domainbuilder.symbols.table import ABSOLUTE, FUNCTION, LABEL, Symbols

_EHDR = {64: struct.Struct("<16sHHIQQQIHHHHHH"), 32: struct.Struct("<16sHHIIIIIHHHHHH")}
_SHDR = {64: struct.Struct("<IIQQQQIIQQ"), 32: struct.Struct("<IIIIIIIIII")}
_SYM = {64: struct.Struct("<IBBHQQ"), 32: struct.Struct("<IIIBBH")}
_ET_EXEC, _EM_386, _EM_X86_64 = 2, 3, 62
_SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 2, 3, 8
_SHF_ALLOC, _SHF_EXECINSTR = 2, 4
_SHN_ABS = 0xFFF1
_STB_GLOBAL, _STT_OBJECT, _STT_FUNC = 1 << 4, 1, 2
_TEXT = 1
_NAMES = b"\0.text\0.symtab\0.strtab\0.shstrtab\0"


def symbol_file(symbols: Symbols, *, is_64bit: bool) -> bytes:
    """An executable of a section without contents, which the functions are in, and a symbol table."""
    bits, limit = (64, 1 << 64) if is_64bit else (32, 1 << 32)
    known = [s for s in symbols if s.kind != ABSOLUTE and 0 < s.value < limit]
    code = [s.value for s in known if s.kind in (FUNCTION, LABEL)]
    start, end = (min(code), max(code) + 1) if code else (0, 0)
    strings, table = bytearray(b"\0"), bytearray(_SYM[bits].size)
    for s in known:
        in_code = s.kind in (FUNCTION, LABEL)
        info = _STB_GLOBAL | (_STT_FUNC if in_code else _STT_OBJECT)
        section = _TEXT if in_code else _SHN_ABS
        if bits == 64:
            table += _SYM[64].pack(len(strings), info, 0, section, s.value, s.size)
        else:
            table += _SYM[32].pack(len(strings), s.value, s.size, info, 0, section)
        strings += s.name.encode("utf-8", "replace").replace(b"\0", b"?") + b"\0"
    header, at = _EHDR[bits].size, 0
    parts = [bytes(table), bytes(strings), _NAMES]
    offsets = []
    at = header
    for part in parts:
        offsets.append(at)
        at += len(part)
    sections = (
        (0,) * 10,
        (1, _SHT_NOBITS, _SHF_ALLOC | _SHF_EXECINSTR, start, header, end - start, 0, 0, 1, 0),
        (7, _SHT_SYMTAB, 0, 0, offsets[0], len(table), 3, 1, 8, _SYM[bits].size),
        (15, _SHT_STRTAB, 0, 0, offsets[1], len(strings), 0, 0, 1, 0),
        (23, _SHT_STRTAB, 0, 0, offsets[2], len(_NAMES), 0, 0, 1, 0),
    )
    ident = b"\x7fELF" + bytes((2 if is_64bit else 1, 1, 1)) + bytes(9)
    machine = _EM_X86_64 if is_64bit else _EM_386
    head = _EHDR[bits].pack(
        ident, _ET_EXEC, machine, 1, 0, 0, at, 0, header, 0, 0, _SHDR[bits].size, len(sections), 4
    )
    return b"".join((head, *parts, *_section_headers(sections, bits)))


def _section_headers(sections: tuple[tuple[int, ...], ...], bits: int) -> Iterator[bytes]:
    for section in sections:
        yield _SHDR[bits].pack(*section)
