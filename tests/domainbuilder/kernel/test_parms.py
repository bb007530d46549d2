"""What Xen accepts: against libxenguest's dumps of real kernels, libelf's verdicts, and its source."""

from __future__ import annotations

import ctypes
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domainbuilder.errors import ElfError, NotesError
from domainbuilder.kernel.elf import parse_elf
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.kernel.parms import (
    UNSET_ADDR,
    UNSET_ADDR32,
    ElfDomParms,
    RefusedError,
    XenPaeType,
    strtoull,
    xc_dom_parse_elf_kernel,
)
from tests.domainbuilder.elfwriter import SHT_NOTE, ElfWriter, legacy_kernel, note, xen_kernel, xen_notes
from tests.domainbuilder.xenguest import Xenguest

DATA = Path(__file__).parents[1] / "data"

KERNELS = {
    "gnumach-git20201129-4": "gnumach-bullseye-i386.gz",
    "gnumach-git20221224-2": "gnumach-bookworm-i386.gz",
    "gnumach-git20250702-1": "gnumach-trixie-i386.gz",
    "gnumach": "gnumach-bookworm-amd64.gz",
    "grub-i386-xen.bin": "grub-i386-xen.bin",
    "grub-x86_64-xen.bin": "grub-x86_64-xen.bin",
    "grub-i386-xen_pvh.bin": "grub-i386-xen_pvh.bin",
    "vmlinuz-deb": "vmlinuz-bookworm-amd64",
}


# What libxenguest's public interface tells.
PUBLIC = ("guest_type", "guest_os", "virt_base", "virt_entry", "virt_hypercall", "virt_kstart", "virt_kend")


def parse(writer: ElfWriter | bytes, *, hvm: bool = False) -> ElfDomParms:
    image = writer if isinstance(writer, bytes) else writer.build()
    return xc_dom_parse_elf_kernel(parse_elf(image, "kernel"), hvm=hvm)


def refused(writer: ElfWriter, *, hvm: bool = False) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse(writer, hvm=hvm)
    return caught.value


# real kernels


@pytest.mark.guest
@pytest.mark.parametrize("name", KERNELS)
def test_real_kernel_is_what_libxenguest_says(
    name: str, guest_kernel: Callable[[str], Path], xenguest: Xenguest
) -> None:
    """The installed library, of whatever version there is; and what was seen of the pinned one."""
    path = guest_kernel(KERNELS[name])
    theirs = xenguest.build(path, 256)
    kernel = load_kernel(path)
    elf = parse_elf(kernel.image, kernel.path)
    if theirs.refusal:
        with pytest.raises(NotesError) as caught:
            xc_dom_parse_elf_kernel(elf)
        assert "no loader found" in theirs.refusal
        assert "no loader found" in str(caught.value)
        return
    parms = xc_dom_parse_elf_kernel(elf)
    for field in PUBLIC:
        assert getattr(parms, field) == theirs.facts[field], field
    facts = json.loads((DATA / "libxenguest" / f"{name}.json").read_text())
    raw = kernel.image if kernel.container == "gzip" else path.read_bytes()
    if hashlib.sha256(raw).hexdigest() == facts["sha256"]:
        assert parms.guest_type == facts["guest_type"]
        assert {field: getattr(parms, field) for field in facts["parms"]} == facts["parms"]
        assert len(kernel.image) == facts["kernel_size"]


# libelf's verdicts on broken kernels

LIBELF: dict[str, Any] = json.loads((DATA / "libelf" / "verdicts.json").read_text())


def seeds() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for width in (32, 64):
        full: dict[str, Any] = {
            "FEATURES": "!writable_page_tables|pae_pgdir_above_4gb",
            "BSD_SYMTAB": "yes",
            "HYPERCALL_PAGE": 0xC0101000,
            "INIT_P2M": 0x8000,
            "MOD_START_PFN": 1,
            "SUPPORTED_FEATURES": b"\x11\0\0\0",
            "PHYS32_ENTRY": 0x100000,
            "PADDR_OFFSET": 0,
        }
        gnumach = (
            "GUEST_OS=GNU Mach,GUEST_VERSION=1.3,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,"
            "ELF_PADDR_OFFSET=0xC0000000,HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],LOADER=generic,FEATURES=pae_pgdir_above_4gb,BSD_SYMTAB"
        )
        other = "XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,LOADER=generic,PAE=yes,FEATURES=!foo|dom0,GUEST_OS=x"
        sections = xen_kernel(elf_class=width)
        notes = sections.segments.pop().data
        writers = {
            "plain": xen_kernel(elf_class=width),
            "full": xen_kernel(elf_class=width, **full).symbols([("a", 1, 2, 3), ("b", 4, 5, 6)]),
            "sections": sections.section(".note", SHT_NOTE, notes).section(".note.b", SHT_NOTE, note(17, 3)),
            "legacy": legacy_kernel(gnumach, elf_class=width).symbols([("x", 0xC0000000, 0, 2)]),
            "legacy-and-gnu": legacy_kernel(other, elf_class=width).note_segment(
                note(3, b"abcd", owner=b"GNU")
            ),
        }
        found |= {f"{name}-{width}": writer.build() for name, writer in writers.items()}
    return found


SEEDS = seeds()


def test_the_seeds_are_those_that_libelf_saw() -> None:
    assert {name: hashlib.sha256(image).hexdigest() for name, image in SEEDS.items()} == LIBELF["seeds"]


def ours(image: bytes, *, hvm: bool) -> list[Any]:
    try:
        parms = parse(image, hvm=hvm)
    except ElfError:
        return ["init"]
    except RefusedError as error:
        # these three are decided after elf_xen_parse, by xc_dom_parse_elf_kernel
        return ["ok"] if error.code in {"dom0-only", "not-pvh", "machine"} else ["refused", error.libelf]
    return ["ok", *(getattr(parms, field) for field in LIBELF["fields"])]


def test_every_verdict_is_libelfs() -> None:
    wrong = []
    for seed, edits, hvm, verdict in LIBELF["cases"]:
        image = bytearray(SEEDS[seed])
        for offset, data in edits:
            image[offset : offset + len(data) // 2] = bytes.fromhex(data)
        found = ours(bytes(image), hvm=bool(hvm))
        if found != verdict[: len(found)]:
            wrong.append((seed, edits, hvm, verdict, found))
    assert wrong == []
    assert len(LIBELF["cases"]) > 500


# the rules, one by one


@pytest.mark.parametrize(
    ("changes", "code", "libelf"),
    [
        (
            {"LOADER": "grub"},
            "loader",
            "built for the generic loader or Linux images (Not 'grub' and 'test') or with PHYS32_ENTRY set",
        ),
        (
            {"XEN_VERSION": "xen-2.0"},
            "xen-version",
            "Xen will only load images built for Xen v3.0 (Not 'xen-2.0')",
        ),
        ({"XEN_VERSION": None}, "xen-version", "Xen will only load images built for Xen v3.0 (Not '')"),
        (
            {"VIRT_BASE": None, "PADDR_OFFSET": 0},
            "paddr-offset",
            "ERROR: ELF_PADDR_OFFSET set, VIRT_BASE unset",
        ),
        ({"ENTRY": 0xC0200000}, "out-of-bounds", "ERROR: ELF start or entries are out of bounds"),
        ({"VIRT_BASE": 0xC0000000, "PADDR_OFFSET": 0x200000}, "out-of-bounds", "out of bounds"),
        ({"INIT_P2M": 0xC0101000}, "p2m-out-of-bounds", "ERROR: P->M table base is out of bounds"),
        ({"FEATURES": "!hvm_pirqs"}, "unknown-required-feature", ""),
        ({"FEATURES": "!"}, "unknown-required-feature", ""),
    ],
)
def test_refusals(changes: dict[str, Any], code: str, libelf: str) -> None:
    error = refused(xen_kernel(**changes))
    assert error.code == code
    assert libelf in error.libelf
    assert str(error).startswith("kernel")
    assert "xc_dom_find_loader: no loader found: Invalid kernel" in str(error)


@pytest.mark.parametrize(
    ("paddr", "notes", "words"),
    [
        (0xC0100000, {}, "the physical addresses of its segments are virtual ones"),
        (0x100000, {}, "Xen adds VIRT_BASE to the physical addresses of its segments, and ENTRY is"),
        (
            0xC0100000,
            {"VIRT_BASE": 0, "PADDR_OFFSET": 0xC0000000},
            "Xen adds VIRT_BASE 0x0 less PADDR_OFFSET 0xc0000000 to the physical addresses of its segments",
        ),
    ],
)
def test_an_entry_that_is_outside_by_virt_base(paddr: int, notes: dict[str, Any], words: str) -> None:
    """A linker script without AT(), and no PADDR_OFFSET; or ENTRY is a physical address."""
    writer = ElfWriter(32, 3, entry=paddr).load(b"\xcc" * 64, paddr=paddr, vaddr=paddr)
    writer.note_segment(b"".join(xen_notes(ENTRY=paddr, **notes)))
    assert words in str(refused(writer))


def test_required_dom0_is_refused_in_libxenguests_words() -> None:
    error = refused(xen_kernel(FEATURES="!dom0"))
    assert "xc_dom_parse_elf_kernel: Kernel does not support unprivileged (DomU) operation" in str(error)


def test_other_machines_are_refused() -> None:
    assert "xc_dom_guest_type: unknown image type 40" in str(refused(xen_kernel(machine=40)))


def test_linux_needs_no_loader() -> None:
    assert parse(xen_kernel(LOADER=None, GUEST_OS="linux 6.1")).guest_os == "linux 6.1"


def test_defaults() -> None:
    writer = xen_kernel(VIRT_BASE=None, ENTRY=None, PAE_MODE=None)
    parms = parse(writer)
    assert (parms.virt_base, parms.elf_paddr_offset, parms.virt_entry) == (0, 0, 0x100000)
    assert (parms.virt_kstart, parms.virt_kend) == (0x100000, 0x103000)
    unset = (parms.virt_hypercall, parms.virt_hv_start_low, parms.p2m_base, parms.phys_entry)
    assert unset == (UNSET_ADDR, UNSET_ADDR, UNSET_ADDR, UNSET_ADDR32)
    assert parms.guest_type == "xen-3.0-x86_32"


def test_legacy_paddr_offset_defaults_to_virt_base() -> None:
    parms = parse(legacy_kernel("XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000,PAE=yes"))
    assert (parms.elf_paddr_offset, parms.virt_offset, parms.pae) == (0xC0000000, 0, XenPaeType.YES)


@pytest.mark.parametrize(
    ("pae_mode", "pae", "guest_type"),
    [
        ("yes", XenPaeType.EXTCR3, "xen-3.0-x86_32p"),
        ("no", XenPaeType.NO, "xen-3.0-x86_32"),
        ("bimodal", XenPaeType.BIMODAL, "xen-3.0-x86_32p"),
        ("yes,bimodal", XenPaeType.BIMODAL, "xen-3.0-x86_32p"),
        ("yes[extended-cr3]", XenPaeType.NO, "xen-3.0-x86_32"),
    ],
)
def test_pae_modes(pae_mode: str, pae: XenPaeType, guest_type: str) -> None:
    parms = parse(xen_kernel(PAE_MODE=pae_mode))
    assert (parms.pae, parms.guest_type) == (pae, guest_type)


def test_pvh_needs_only_the_entry() -> None:
    writer = ElfWriter(32, 3, entry=0x100000).load(bytes(16), paddr=0x100000).note_segment(note(18, 0x100000))
    parms = parse(writer, hvm=True)
    assert (parms.guest_type, parms.phys_entry, parms.virt_entry) == ("hvm-3.0-x86_32", 0x100000, 0x100000)
    assert refused(writer).code == "pvh-only"


def test_not_pvh() -> None:
    error = refused(xen_kernel(ENTRY=None, VIRT_BASE=None), hvm=True)
    assert "xc_dom_guest_type: image not capable of booting inside a HVM container" in str(error)


def test_elf64_for_i386_is_accepted() -> None:
    assert parse(xen_kernel(elf_class=64, machine=3)).guest_type == "xen-3.0-x86_32p"


def test_the_last_note_wins_and_every_pt_note_counts() -> None:
    writer = xen_kernel().note_segment(note(6, "second"))
    assert parse(writer).guest_os == "second"


def test_sections_are_looked_at_only_without_notes_in_segments() -> None:
    both = xen_kernel().section(".note", SHT_NOTE, note(6, "section"))
    assert parse(both).guest_os == "test"
    sections = xen_kernel()
    sections.segments.pop()
    sections.section(".note", SHT_NOTE, b"".join(xen_notes(GUEST_OS="section")))
    assert parse(sections).guest_os == "section"


def test_a_pt_note_at_offset_zero_is_skipped() -> None:
    writer = xen_kernel()
    writer.segments[1].offset = 0
    assert refused(writer).code == "no-notes"


def test_legacy_required_feature_stops_the_reading_and_nothing_else() -> None:
    parms = parse(
        legacy_kernel("XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000,FEATURES=dom0|!foo,PAE=yes")
    )
    assert (parms.f_supported, parms.pae) == (1 << 11, XenPaeType.NO)


@given(
    st.text(alphabet=st.sampled_from("0123456789abcdefxXzZ+- \t\n_"), max_size=24)
    | st.integers(-(2**70), 2**70).map(str)
    | st.integers(0, 2**70).map(hex)
)
def test_strtoull_is_the_c_librarys(text: str) -> None:
    function = ctypes.CDLL(None).strtoull
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
    assert strtoull(text) == function(text.encode(), None, 0)
