"""Headers and sections, against pyelftools; libelf's leniencies, against its source."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given
from hypothesis import strategies as st

from domainbuilder.errors import ElfError
from domainbuilder.kernel.elf import elf_parse_bsdsyms, parse_elf
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.symbols.symtab import symtab_symbols
from tests.domainbuilder.elfwriter import SHT_NOBITS, SHT_PROGBITS, ElfWriter, xen_kernel

SYMBOLS = [("start", 0xC0100000, 16, 2), ("_start", 0xC0100000, 0, 0), ("data", 0xC0100800, 8, 1)]


def full(elf_class: int = 32) -> ElfWriter:
    writer = xen_kernel(elf_class=elf_class).section(
        ".text", SHT_PROGBITS, b"", addr=0xC0100000, inside=(0, 0)
    )
    return writer.symbols(SYMBOLS).section(".bss", SHT_NOBITS, b"", size=0x2000)


def same_as_pyelftools(image: bytes) -> None:
    elf, other = parse_elf(image, "kernel"), ELFFile(io.BytesIO(image))
    assert (elf.elf_class, elf.entry) == (other.elfclass, other.header.e_entry)
    assert elf.ehdr.machine == struct.unpack_from("<H", image, 18)[0]
    for ours, theirs in zip(elf.phdrs, other.iter_segments(), strict=True):
        head = theirs.header
        assert (ours.flags, ours.offset, ours.vaddr, ours.paddr) == (
            *(head.p_flags, head.p_offset, head.p_vaddr, head.p_paddr),
        )
        assert (ours.filesz, ours.memsz, ours.align) == (head.p_filesz, head.p_memsz, head.p_align)
    for mine, its in zip(elf.sections, other.iter_sections(), strict=True):
        assert (mine.name, mine.addr, mine.offset, mine.size, mine.link, mine.entsize) == (
            *(its.name, its.header.sh_addr, its.header.sh_offset, its.header.sh_size),
            *(its.header.sh_link, its.header.sh_entsize),
        )
    table, symbols = other.get_section_by_name(".symtab"), symtab_symbols(elf)
    if table is not None:
        assert isinstance(table, SymbolTableSection)
        assert symbols is not None
        kinds = {"STT_NOTYPE": "label", "STT_OBJECT": "object", "STT_FUNC": "function"}
        defined = [s for s in table.iter_symbols() if s.name and s["st_shndx"] != "SHN_UNDEF"]
        assert [(s.name, s.value, s.size, s.kind) for s in symbols if s.kind != "absolute"] == [
            (s.name, s["st_value"], s["st_size"], kinds[s["st_info"]["type"]])
            for s in defined
            if s["st_info"]["type"] in kinds and isinstance(s["st_shndx"], int)
        ]


@pytest.mark.parametrize("elf_class", [32, 64])
def test_a_written_elf_reads_as_pyelftools_reads_it(elf_class: int) -> None:
    same_as_pyelftools(full(elf_class).build())


@pytest.mark.guest
@pytest.mark.parametrize("name", ["grub-i386-xen.bin", "grub-x86_64-xen.bin", "gnumach-bookworm-amd64.gz"])
def test_real_kernels_read_as_pyelftools_reads_them(name: str, guest_kernel: Callable[[str], Path]) -> None:
    same_as_pyelftools(bytes(load_kernel(guest_kernel(name)).image[:]))


@pytest.mark.parametrize(("elf_class", "headers"), [(32, 52 + 3 * 40), (64, 64 + 3 * 64)])
def test_bsd_symtab_size(elf_class: int, headers: int) -> None:
    """libelf-loader.c: a word, the header (whose Elf64_Ehdr is there in either class), symbols, strings."""
    elf = parse_elf(full(elf_class).build(), "kernel")
    word = elf_class // 8
    strings = 1 + sum(len(name) + 1 for name, *_ in SYMBOLS)

    def up(size: int) -> int:
        return -(-size // word) * word

    size = up(8 + 64 + 3 * (40 if elf_class == 32 else 64))
    size = up(up(size + 4 * (16 if elf_class == 32 else 24)) + strings)
    assert elf_parse_bsdsyms(elf, 0x1003) == (up(0x1003), up(0x1003) + size)
    assert size > headers


def test_bsd_symtab_needs_one() -> None:
    assert elf_parse_bsdsyms(parse_elf(xen_kernel().build(), "kernel"), 0) is None


@pytest.mark.parametrize("elf_class", [32, 64])
def test_truncated_anywhere(elf_class: int) -> None:
    image = full(elf_class).build()
    for end in range(len(image)):
        with pytest.raises(ElfError) as caught:
            parse_elf(image[:end], "kernel")
        assert str(caught.value).startswith("kernel")


@pytest.mark.parametrize(
    ("at", "value", "match"),
    [
        (28, struct.pack("<I", 0x7FFFFFFF), r"ELF: phdr overflow \(off .* > size .*\)"),
        (44, struct.pack("<H", 0xFFFF), "ELF: phdr overflow"),
        (32, struct.pack("<I", 0xFFFFFFF0), "ELF: shdr overflow"),
        (52 + 16, struct.pack("<I", 0xFFFFFFFF), "LOAD segment 0 is cut short"),
        (52 + 4, struct.pack("<I", 0xFFFFFFFF), "LOAD segment 0 is cut short"),
        (0, b"\x7fELG", "ELF: not an ELF binary"),
    ],
)
def test_huge_counts_and_offsets(at: int, value: bytes, match: str) -> None:
    image = bytearray(full().build())
    image[at : at + len(value)] = value
    with pytest.raises(ElfError, match=match):
        parse_elf(bytes(image), "kernel")


def test_insane_section_counts_are_cut_and_told() -> None:
    image = bytearray(xen_kernel().build())
    struct.pack_into("<HH", image, 46, 0, 0xFFFF)  # e_shentsize 0: any number of headers fits
    elf = parse_elf(bytes(image), "kernel")
    assert elf.broken == "far too many section headers"
    assert len(elf.sections) == len(image) // 40


def test_whatever_is_not_class_64_is_32() -> None:
    image = bytearray(xen_kernel().build())
    image[4] = 77
    assert parse_elf(bytes(image), "kernel").elf_class == 32


def test_only_segments_with_a_permission_are_loaded() -> None:
    elf = parse_elf(xen_kernel().load(b"x", paddr=0x900000, flags=0).build(), "kernel")
    assert [phdr.index for phdr in elf.load_segments] == [0]
    assert (elf.pstart, elf.pend) == (0x100000, 0x103000)


def test_no_segments() -> None:
    elf = parse_elf(ElfWriter().build(), "kernel")
    assert (elf.load_segments, elf.pstart, elf.pend) == ((), (1 << 64) - 1, 0)


@given(st.binary(max_size=200), st.integers(0, 210))
def test_strings_end_at_a_nul_or_nowhere(data: bytes, at: int) -> None:
    elf = parse_elf(ElfWriter().build() + data, "kernel")
    rest = bytes(elf.view)[at:]
    assert elf.strval(at) == (rest.split(b"\0")[0] if b"\0" in rest else None)


def test_strings_end_within_4096_bytes() -> None:
    image = ElfWriter().build()
    for length, found in ((4096, b"x" * 4096), (4097, None)):
        assert parse_elf(image + b"x" * length + b"\0", "kernel").strval(len(image)) == found
