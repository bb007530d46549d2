"""The symbol table of an ELF image: .symtab and its strings."""

from __future__ import annotations

from collections.abc import Iterator

from domainbuilder.kernel.elf import ELF_MAX_STRING_LENGTH, ElfImage
from domainbuilder.symbols.table import ABSOLUTE, FUNCTION, LABEL, OBJECT, Symbols

_KINDS = {0: LABEL, 1: OBJECT, 2: FUNCTION, 10: FUNCTION}  # STT_NOTYPE, _OBJECT, _FUNC, _GNU_IFUNC
_SHN_ABS = 0xFFF1
_WORDS = {32: 4, 64: 6}  # 32-bit words of a symbol


class _StringTable:
    """Names as offsets into .strtab."""

    def __init__(self, offsets: list[int], strings: bytes) -> None:
        self._offsets, self._strings = offsets, strings

    def __getitem__(self, index: int) -> str:
        start = self._offsets[index]
        end = self._strings.find(0, start, start + ELF_MAX_STRING_LENGTH + 1)
        return self._strings[start:end].decode("latin-1") if end >= 0 else ""

    def find(self, name: str) -> Iterator[int]:
        """String tables share tails, so every occurrence of the name counts."""
        wanted, offsets, at = name.encode() + b"\0", set(), -1
        while (at := self._strings.find(wanted, at + 1)) >= 0:
            offsets.add(at)
        if offsets:
            yield from (index for index, offset in enumerate(self._offsets) if offset in offsets)


def symtab_symbols(elf: ElfImage) -> Symbols | None:
    """The defined functions, objects and labels of `elf`, in the table's order.

    None where it has no symbol table, or is not little-endian.
    """
    symtab = elf.symtab
    if symtab is None or elf.endian != "<":
        return None
    per = _WORDS[elf.elf_class]
    table = bytes(elf.section_bytes(symtab))
    words = memoryview(table[: len(table) // (4 * per) * 4 * per]).cast("I")
    strings = bytes(elf.section_bytes(elf.sections[symtab.link]))
    infos = words[1 if per == 6 else 3 :: per].tolist()
    offsets = words[::per].tolist()
    kept = [
        i for i, info in enumerate(infos) if info & 15 in _KINDS and info >> 16 and offsets[i] < len(strings)
    ]
    kept = [i for i in kept if strings[offsets[i]]]
    if per == 6:
        quads = words.cast("B").cast("Q")
        values, sizes = quads[1::3].tolist(), quads[2::3].tolist()
    else:
        values, sizes = words[1::4].tolist(), words[2::4].tolist()
    return Symbols(
        [values[i] for i in kept],
        [ABSOLUTE if infos[i] >> 16 == _SHN_ABS else _KINDS[infos[i] & 15] for i in kept],
        _StringTable([offsets[i] for i in kept], strings),
        origin="symbol table",
        sizes=[sizes[i] for i in kept],
        sections=[infos[i] >> 16 for i in kept],
    )
