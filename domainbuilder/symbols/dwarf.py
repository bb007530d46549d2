"""The debug sections of an ELF image as pyelftools wants them, read where they are and not copied."""

from __future__ import annotations

import inspect
import io
import zlib
from typing import TYPE_CHECKING, Any

from domainbuilder.kernel.elf import SHT_NOBITS, ElfImage, Section

if TYPE_CHECKING:
    from elftools.dwarf.dwarfinfo import DWARFInfo

SHF_COMPRESSED = 0x800
_ELFCOMPRESS_ZLIB = 1
_MAX_UNPACKED = 1 << 30
_PAGE = 4096


class _Window(io.RawIOBase):
    """A file of some bytes that are in memory already: a section of a mapped vmlinux has 300 MB."""

    def __init__(self, data: memoryview) -> None:
        super().__init__()
        self._data, self._at = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def section_data(elf: ElfImage, name: str) -> memoryview | None:
    """The bytes of a debug section, unpacked where it is compressed; None where there is no such section.

    Raises ValueError where it cannot be unpacked.
    """
    section = elf.section_by_name(name)
    if section is None or section.type == SHT_NOBITS or not section.size:
        return None
    data = elf.section_bytes(section)
    return _unpacked(elf, section, data) if section.flags & SHF_COMPRESSED else data


def _unpacked(elf: ElfImage, section: Section, data: memoryview) -> memoryview:
    """Elf32_Chdr or Elf64_Chdr, and a stream of zlib's."""
    word = elf.elf_class // 8
    size = elf.unsigned(section.offset + word, word)
    if elf.unsigned(section.offset, 4) != _ELFCOMPRESS_ZLIB or size > _MAX_UNPACKED:
        raise ValueError(f"{section.name} is compressed in a way that is not read")
    try:
        unpacked = zlib.decompressobj().decompress(data[24 if word == 8 else 12 :], size)
    except zlib.error as error:
        raise ValueError(f"{section.name}: {error}") from error
    return memoryview(unpacked)


def stream(data: memoryview) -> io.BufferedReader:
    """`data` as a binary file."""
    return io.BufferedReader(_Window(data), _PAGE)


def dwarf_info(elf: ElfImage) -> DWARFInfo | None:
    """The debug information of `elf` as pyelftools has it; None where there is no line table."""
    from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

    if section_data(elf, ".debug_line") is None or section_data(elf, ".debug_info") is None:
        return None
    sections: dict[str, DebugSectionDescriptor | None] = {}
    for parameter in list(inspect.signature(DWARFInfo.__init__).parameters)[1:]:
        name = parameter.removesuffix("_sec")
        if name == parameter and name != "gnu_debugaltlink":
            continue  # the configuration
        data = section_data(elf, f".{name}") if name.startswith("debug_") else None
        described = None
        if data is not None:
            described = DebugSectionDescriptor(
                stream=stream(data), name=f".{name}", global_offset=0, size=len(data), address=0
            )
        sections[parameter] = described
    config = DwarfConfig(
        little_endian=elf.endian == "<",
        default_address_size=elf.elf_class // 8,
        machine_arch="x64" if elf.elf_class == 64 else "x86",
    )
    info = DWARFInfo(config=config, **sections)
    info.supplementary_dwarfinfo = None
    return info
