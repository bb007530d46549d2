"""Notes that Xen does not come to: what is told, where, how it is repaired, and what libxenguest says."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from domainbuilder.errors import BuildError, LayoutError
from domainbuilder.kernel.fix import fix
from domainbuilder.kernel.inspection import Inspection, inspect_kernel
from domainbuilder.kernel.kernel_file import load_kernel_bytes
from domainbuilder.kernel.parms import RefusedError
from domainbuilder.plan.domain_plan import plan
from tests.domainbuilder.elfwriter import SHT_NOTE, SHT_PROGBITS, ElfWriter, note, xen_kernel, xen_notes
from tests.domainbuilder.xenguest import Xenguest

BASE = 0xFFFFFFFF80000000
VALUES: dict[str, Any] = {"GUEST_OS": "h3", "VIRT_BASE": BASE, "ENTRY": BASE + 0x100000}
GNU = struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes(20)


def notes() -> list[bytes]:
    return xen_notes(8, **VALUES)


def kernel(blob: bytes = b"", **more: int) -> ElfWriter:
    writer = xen_kernel(elf_class=64, **VALUES)
    writer.segments.pop()
    return writer.note_segment(blob, **more) if blob else writer


def padded(blobs: list[bytes]) -> bytes:
    return b"".join(one + bytes(-len(one) % 8) for one in blobs)


def with_size(blob: bytes, descsz: int) -> bytes:
    return blob[:4] + struct.pack("<I", descsz) + blob[8:]


def with_section(kind: int, blob: bytes) -> ElfWriter:
    return kernel().section(".xen", kind, blob)


def shorter_segment() -> ElfWriter:
    """A PT_NOTE that ends before the section does."""
    blob = b"".join(notes())
    writer = kernel(blob, filesz=len(blob) - len(notes()[-1]) - len(notes()[-2]))
    return writer.section(".notes", SHT_NOTE, blob, inside=(1, 0))


@dataclass(frozen=True)
class Case:
    """A kernel, the kind of finding, its offset from the first note, and words that must be in it."""

    writer: Callable[[], ElfWriter]
    slug: str
    at: int
    words: tuple[str, ...]


FIRST = len(notes()[0])
CASES = {
    "padded to 8 (OSv 1113)": Case(
        lambda: kernel(padded(notes()), align=8),
        "note-padding",
        0,
        (
            "GUEST_OS at",
            "padded to 8",
            "name size 0x0, descriptor size 0x4, type 0x8",
            "loses XEN_VERSION, LOADER",
        ),
    ),
    "a broken note in front (Qubes 8032)": Case(
        lambda: kernel(with_size(GNU, 0xC0010001) + b"".join(notes())),
        "note-covers",
        0,
        ("NT_GNU_BUILD_ID", "descriptor 0xc0010001", "past the end of its PT_NOTE", "loses GUEST_OS"),
    ),
    "a note that covers the others": Case(
        lambda: kernel(with_size(GNU, 20 + FIRST) + b"".join(notes())),
        "note-covers",
        0,
        ("NT_GNU_BUILD_ID", f"descriptor {20 + FIRST:#x}", "loses GUEST_OS"),
    ),
    "a note of Xen's that covers the next": Case(
        lambda: kernel(with_size(notes()[0], 4 + len(notes()[1])) + b"".join(notes()[1:])),
        "note-covers",
        0,
        ("(GUEST_OS)", "loses XEN_VERSION"),
    ),
    "a name that is too long": Case(
        lambda: kernel(struct.pack("<I", 0x40) + GNU[4:] + b"".join(notes())),
        "note-covers",
        0,
        ("its name has 0x40 bytes", "loses GUEST_OS"),
    ),
    "garbage in front": Case(
        lambda: kernel(b"\1\2\3\4\5\6\7\x08" + b"".join(notes())),
        "note-covers",
        0,
        ("past the end", "loses GUEST_OS"),
    ),
    "zeros in front that are no note": Case(
        lambda: kernel(bytes(16) + b"".join(notes())),
        "note-garbage",
        0,
        ("the 0x10 bytes at", "before GUEST_OS", "are no note"),
    ),
    "in sections, beside a PT_NOTE with one": Case(
        lambda: kernel(notes()[0]).section(".xen", SHT_NOTE, b"".join(notes()[1:])),
        "note-unread",
        FIRST,
        ('in section ".xen"', "no section once a PT_NOTE has a Xen note"),
    ),
    "a PT_NOTE that is too short": Case(
        shorter_segment,
        "note-unread",
        sum(map(len, notes()[:-2])),
        ("ENTRY, PAE_MODE", 'in section ".notes"'),
    ),
    "in a section that is none of notes": Case(
        lambda: with_section(SHT_PROGBITS, b"".join(notes())),
        "note-unread",
        0,
        ('in section ".xen" and in no PT_NOTE that',),
    ),
}


def inspected(writer: ElfWriter) -> Inspection:
    return inspect_kernel(load_kernel_bytes(writer.build(), "kernel"))


@pytest.mark.parametrize("name", CASES)
def test_what_is_told(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    image = case.writer().build()
    inspection = inspect_kernel(load_kernel_bytes(image, "kernel"))
    (finding,) = [finding for finding in inspection.findings if finding.rule.slug.startswith("note-")]
    assert finding.rule.slug == case.slug
    for words in case.words:
        assert words in finding.message
    assert finding.offset is not None
    assert finding.severity.name == ("WARNING" if inspection.accepted else "ERROR")
    blob_at = inspection.elf.phdrs[1].offset if len(inspection.elf.phdrs) > 1 else None
    if blob_at is None or case.slug == "note-unread":
        blob_at = inspection.elf.sections[1].offset
        blob_at -= FIRST if name.startswith("in sections") else 0
    assert finding.offset == blob_at + case.at
    # the same words where the kernel is refused
    if not inspection.accepted:
        path = tmp_path / "kernel"
        path.write_bytes(image)
        with pytest.raises(RefusedError, match="because ") as caught:
            plan(path)
        assert finding.message in str(caught.value)
        assert caught.value.where is not None
        assert caught.value.where.offset == finding.offset
        assert any(finding.message in verdict.reason for verdict in inspection.verdicts)


@pytest.mark.parametrize("name", CASES)
def test_repaired_and_taken_by_libxenguest(name: str, xenguest: Xenguest, tmp_path: Path) -> None:
    broken, repaired = tmp_path / "broken", tmp_path / "repaired"
    broken.write_bytes(CASES[name].writer().build())
    refusal = xenguest.build(broken, 64).refusal
    assert bool(refusal) == (not inspected(CASES[name].writer()).accepted)
    result = fix(broken, repaired)
    assert result.changes
    assert not xenguest.build(repaired, 64).refusal
    assert not result.inspection.losses
    assert [note.type for note in result.inspection.notes.used] == [6, 5, 8, 3, 1, 9]
    assert result.inspection.pv == inspected(kernel(b"".join(notes()))).pv


def test_a_sound_kernel_has_no_losses() -> None:
    for writer in (xen_kernel(), kernel(GNU + b"".join(notes())), with_section(SHT_NOTE, b"".join(notes()))):
        assert not inspected(writer).losses


def test_data_that_looks_like_a_note_is_no_loss_of_a_kernel_that_is_fine() -> None:
    writer = xen_kernel()
    writer.segments[0].data = note(6, "linux") + writer.segments[0].data[64:]
    assert not inspected(writer).losses


# what is no loss, and refused all the same


def test_what_is_no_xen_kernel(tmp_path: Path) -> None:
    """An ordinary program has notes, of others."""
    inspection = inspected(kernel(GNU))
    assert [finding.rule.id for finding in inspection.errors] == ["DBN001"]
    path = tmp_path / "program"
    path.write_bytes(kernel(GNU).build())
    with pytest.raises(RefusedError, match="neither Xen notes that Xen finds nor a __xen_guest section"):
        plan(path)


def test_a_pvh_kernel_is_refused_in_those_words(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(
        ElfWriter(entry=0x100000).load(bytes(16), paddr=0x100000).note_segment(note(18, 0x100000)).build()
    )
    words = r"it is a PVH kernel \(PHYS32_ENTRY 0x100000\) and no PV one, and domainbuilder runs PV guests"
    with pytest.raises(RefusedError, match=words):
        plan(path)


def test_addresses_that_contradict_each_other(xenguest: Xenguest, tmp_path: Path) -> None:
    """gnumach-image-1.8-xen-amd64 of trixie: VIRT_BASE 0x40000000, the kernel at 0xffffffff80000000."""
    path = tmp_path / "kernel"

    def write(values: dict[str, Any]) -> Inspection:
        writer = xen_kernel(elf_class=64, **values)
        path.write_bytes(writer.build())
        return inspected(writer)

    inspection = write(VALUES | {"VIRT_BASE": 0x40000000, "PADDR_OFFSET": 0x40000000 + (1 << 64) - BASE})
    assert not inspection.accepted
    (finding,) = [finding for finding in inspection.findings if finding.rule.slug == "unbuildable"]
    assert "VIRT_BASE 0x40000000, and the kernel at 0xffffffff80100000-0xffffffff80103000" in finding.message
    assert finding.offset == next(note.offset for note in inspection.notes.used if note.type == 3)
    with pytest.raises(LayoutError, match="contradict each other"):
        plan(path, memory_mib=4096)
    assert "segment padding too large" in xenguest.build(path, 64).refusal
    assert write(VALUES).accepted
    assert not xenguest.build(path, 64).refusal


@pytest.mark.parametrize("broken", [xen_kernel(FEATURES="!auto_translated_physmap"), xen_kernel()])
def test_notes_never_says_yes_where_plan_refuses(broken: ElfWriter, tmp_path: Path) -> None:
    if broken.segments[1].data == xen_kernel().segments[1].data:
        broken.load(bytes(64), paddr=0x100800)  # within the first segment
    path = tmp_path / "kernel"
    path.write_bytes(broken.build())
    inspection = inspected(broken)
    assert not inspection.accepted
    assert "DBN039" in {finding.rule.id for finding in inspection.errors}
    with pytest.raises(BuildError) as caught:
        plan(path)
    assert any(caught.value.reason in verdict.reason for verdict in inspection.verdicts)
