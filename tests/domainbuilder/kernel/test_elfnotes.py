"""Finding and decoding notes, the FEATURES grammar, and the `__xen_guest` string."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from domainbuilder.errors import NotesError
from domainbuilder.kernel.elf import parse_elf
from domainbuilder.kernel.elfnotes import (
    decode,
    elf_xen_parse_features,
    feature_names,
    find_guest_info,
    find_notes,
    note_segments,
    notes_in,
    quoted,
)
from hvcore.public.elfnote import ELFNOTE_MAX, ElfNote
from hvcore.public.features import XenFeat
from tests.domainbuilder.elfwriter import SHT_NOTE, ElfWriter, legacy_kernel, note, xen_kernel

# xen/include/public/elfnote.h and features.h of Xen 4.17, read independently of ours
TYPES = {
    "INFO": 0,
    "ENTRY": 1,
    "HYPERCALL_PAGE": 2,
    "VIRT_BASE": 3,
    "PADDR_OFFSET": 4,
    "XEN_VERSION": 5,
    "GUEST_OS": 6,
    "GUEST_VERSION": 7,
    "LOADER": 8,
    "PAE_MODE": 9,
    "FEATURES": 10,
    "BSD_SYMTAB": 11,
    "HV_START_LOW": 12,
    "L1_MFN_VALID": 13,
    "SUSPEND_CANCEL": 14,
    "INIT_P2M": 15,
    "MOD_START_PFN": 16,
    "SUPPORTED_FEATURES": 17,
    "PHYS32_ENTRY": 18,
    "CRASH_INFO": 0x1000001,
    "CRASH_REGS": 0x1000002,
    "DUMPCORE_NONE": 0x2000000,
    "DUMPCORE_HEADER": 0x2000001,
    "DUMPCORE_XEN_VERSION": 0x2000002,
    "DUMPCORE_FORMAT_VERSION": 0x2000003,
}


def one(kind: int, desc: bytes | str | int, **more: Any) -> tuple[str, object]:
    """The name and the value of a single note."""
    elf = parse_elf(ElfWriter().note_segment(note(kind, desc, **more)).build(), "kernel")
    (found,) = find_notes(elf).notes
    return found.type_name, decode(elf, found)


def test_the_types_are_those_of_the_header() -> None:
    assert {kind.name: kind.value for kind in ElfNote} == TYPES
    assert ELFNOTE_MAX == 18


@pytest.mark.parametrize("name", TYPES)
def test_every_type_has_its_name(name: str) -> None:
    assert one(TYPES[name], bytes(80))[0] == name


@pytest.mark.parametrize(
    ("kind", "desc", "size", "value"),
    [
        (6, "GNU Mach", 4, "GNU Mach"),
        (0, "KEY=value", 4, "KEY=value"),
        (1, 0xC0100000, 4, 0xC0100000),
        (3, 0xFFFFFFFF80000000, 8, 0xFFFFFFFF80000000),
        (14, 1, 1, 1),
        (16, 1, 2, 1),
        (1, b"\1\2\3", 4, 0),
        (17, 0x8801, 4, 0x8801),
        (17, b"\1", 4, 0),
        (13, struct.pack("<QQ", 1, 1), 4, (("mask", 1), ("value", 1))),
        (13, struct.pack("<II", 2, 3), 4, (("mask", 2), ("value", 3))),
        (13, struct.pack("<4Q", 1, 2, 3, 4), 4, (("mask", 1), ("value", 2), ("mask", 3), ("value", 4))),
        (13, b"\1\2", 4, b"\1\2"),
        (0x1000002, struct.pack("<4Q", 1, 2, 3, 4), 4, (("cr0", 1), ("cr2", 2), ("cr3", 3), ("cr4", 4))),
        (0x1000002, b"short", 4, b"short"),
        (0x2000003, struct.pack("<Q", 1), 4, (("version", 1),)),
        (0x22, b"\xff\0", 4, b"\xff\0"),
    ],
)
def test_decoding(kind: int, desc: bytes | str | int, size: int, value: object) -> None:
    assert one(kind, desc, size=size)[1] == value


def test_crash_info_and_dumpcore_header_name_their_words() -> None:
    crash = one(0x1000001, struct.pack("<10Q", *range(10)))[1]
    assert isinstance(crash, tuple)
    assert crash[0] == ("xen_major_version", 0)
    assert crash[-1] == ("dom0_pfn_to_mfn_frame_list_list", 9)
    header = one(0x2000001, struct.pack("<4Q", 0xF00FEBEE, 1, 2, 4096))[1]
    assert header == (
        ("xch_magic", 0xF00FEBEE),
        ("xch_nr_vcpus", 1),
        ("xch_nr_pages", 2),
        ("xch_page_size", 4096),
    )


def test_foreign_and_unknown_notes_are_shown() -> None:
    writer = xen_kernel().note_segment(
        note(3, b"abcd", owner=b"GNU") + note(0x100, "6.1", owner=b"Linux") + note(99, b"")
    )
    elf = parse_elf(writer.build(), "kernel")
    shown = [(found.owner_text, found.type_name, found.used) for found in find_notes(elf).notes[-3:]]
    assert shown == [
        ("GNU", "NT_GNU_BUILD_ID", False),
        ("Linux", "LINUX_ELFNOTE_BUILD_SALT", False),
        ("Xen", "", True),
    ]
    assert decode(elf, find_notes(elf).notes[-2]) == "6.1"


def test_notes_in_sections_beside_notes_in_segments_are_shown_and_not_used() -> None:
    elf = parse_elf(xen_kernel().section(".note", SHT_NOTE, note(6, "other")).build(), "kernel")
    notes = find_notes(elf)
    assert notes.source == "PT_NOTE"
    assert [(found.source, found.used) for found in notes.notes[-2:]] == [
        ("PT_NOTE", True),
        ("SHT_NOTE", False),
    ]
    assert len(notes.used) == len(notes.notes) - 1


def test_the_same_notes_in_segment_and_section_are_shown_once() -> None:
    writer = xen_kernel()
    data = writer.segments[1].data
    elf = parse_elf(writer.section(".note", SHT_NOTE, data, inside=(1, 0)).build(), "kernel")
    assert len(find_notes(elf).notes) == 6
    assert [found.offset for found in notes_in(elf, "PT_NOTE", 1)] == [
        found.offset for found in find_notes(elf).notes
    ]
    assert [phdr.index for phdr in note_segments(elf)] == [1]


def test_the_owner_is_read_to_its_nul_whatever_namesz_says() -> None:
    raw = struct.pack("<III", 8, 4, 3) + b"Xen\0\0\0\0\0" + struct.pack("<I", 7)
    elf = parse_elf(ElfWriter().note_segment(raw).build(), "kernel")
    (found,) = find_notes(elf).used
    assert decode(elf, found) == 7


def test_note_sizes_wrap_at_32_bits() -> None:
    raw = struct.pack("<III", 0xFFFFFFFF, 0, 3) + note(6, "x")
    elf = parse_elf(ElfWriter().note_segment(raw).build(), "kernel")
    assert [found.type for found in find_notes(elf).notes] == [3, 6]


def test_too_many_notes() -> None:
    elf = parse_elf(ElfWriter().note_segment(bytes(12) * 70000).build(), "kernel")
    notes = find_notes(elf)
    assert (len(notes.notes), notes.broken) == (65536, "too many ELF notes")


# FEATURES


def bits(*names: str) -> int:
    return sum(1 << XenFeat[name] for name in names)


@pytest.mark.parametrize(
    ("text", "supported", "required", "unknown", "refused"),
    [
        (b"", (), (), (), None),
        (b"|", (), (), (), None),
        (b"dom0", ("dom0",), (), (), None),
        (
            b"!writable_page_tables|pae_pgdir_above_4gb",
            ("writable_page_tables", "pae_pgdir_above_4gb"),
            ("writable_page_tables",),
            (),
            None,
        ),
        (b"hvm_pirqs|dom0", ("dom0",), (), ("hvm_pirqs",), None),
        (b"dom0|!hvm_pirqs|hvm_callback_vector", ("dom0",), (), ("!hvm_pirqs",), "hvm_pirqs"),
        (b"!", (), (), ("!",), ""),
        (b"!!dom0", (), (), ("!!dom0",), "!dom0"),
        (b"dom0 ", (), (), ("dom0 ",), None),
        (b"x" * 63 + b"dom0", ("dom0",), (), ("x" * 63,), None),
        (b"x" * 62 + b"|dom0", ("dom0",), (), ("x" * 62,), None),
    ],
)
def test_features(
    text: bytes,
    supported: tuple[str, ...],
    required: tuple[str, ...],
    unknown: tuple[str, ...],
    refused: str | None,
) -> None:
    found = elf_xen_parse_features(text)
    assert (found.supported, found.required) == (bits(*supported), bits(*required))
    assert (found.unknown, found.refused) == (unknown, refused)


def test_feature_names() -> None:
    assert feature_names(0x8801) == ("writable_page_tables", "dom0", "linux_rsdp_unrestricted")
    assert feature_names(1 << 30) == ("bit 30",)


# __xen_guest


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("A=1,B=2", [("A", "1"), ("B", "2")]),
        ("BSD_SYMTAB", [("BSD_SYMTAB", "")]),
        ("A,B=", [("A", ""), ("B", "")]),
        (",,", [("", ""), ("", "")]),
        ("=5", [("", "5")]),
        ("A=1=2", [("A", "1=2")]),
        ("N" * 31 + "=v", [("N" * 31, ""), ("", "v")]),
        ("N" * 30 + "=v", [("N" * 30, "v")]),
        ("A=" + "v" * 127 + ",B=1", [("A", "v" * 127), ("", ""), ("B", "1")]),
        ("A=" + "v" * 126 + ",B=1", [("A", "v" * 126), ("B", "1")]),
    ],
)
def test_guest_info(text: str, pairs: list[tuple[str, str]]) -> None:
    elf = parse_elf(legacy_kernel(text).build(), "kernel")
    info = find_guest_info(elf, find_notes(elf))
    assert info is not None
    assert [(entry.key, entry.value) for entry in info.keys] == pairs
    assert info.used


def test_guest_info_that_does_not_end() -> None:
    elf = parse_elf(legacy_kernel("A" * 70000).build(), "kernel")
    with pytest.raises(NotesError, match="__xen_guest does not end"):
        find_guest_info(elf, find_notes(elf))


def test_quoting_keeps_terminals_safe() -> None:
    assert quoted('a"\x1b[31m\\') == '"a\\"\\x1b[31m\\\\"'
