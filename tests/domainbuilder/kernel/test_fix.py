"""`notes fix`: what it repairs, what it leaves alone, and that it never makes a kernel worse."""

from __future__ import annotations

import gzip
import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbuilder.errors import BuildError, ElfError, KernelFormatError, NotesError
from domainbuilder.kernel.fix import FixResult, fix
from domainbuilder.kernel.inspection import inspect
from domainbuilder.kernel.lief_edit import PT_GNU_STACK
from tests.domainbuilder.bzimage import PAYLOADS, bzimage
from tests.domainbuilder.elfwriter import (
    SHT_NOTE,
    ElfWriter,
    Segment,
    legacy_kernel,
    note,
    xen_kernel,
    xen_notes,
)
from tests.needs import find_tool

LEGACY = "GUEST_OS=test,XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000,PAE=yes[extended-cr3]"


def gnumach(*, elf_class: int = 32, spare: bool = True) -> ElfWriter:
    """As GNU Mach is: `__xen_guest`, notes whose owner is "name", no PT_NOTE, an idle PT_GNU_STACK."""
    size = elf_class // 8
    notes = (
        note(6, "test", owner=b"name"),
        note(5, "xen-3.0", owner=b"name"),
        note(8, "generic", owner=b"name"),
        note(3, 0xC0000000, owner=b"name", size=size),
        note(4, 0xC0000000, owner=b"name", size=size),
        note(1, 0xC0000000, owner=b"name", size=size),
        note(9, "yes[extended-cr3]", owner=b"name"),
        note(10, b"\0pae_pgdir_above_4gb\0", owner=b"name"),
    )
    writer = legacy_kernel(LEGACY, elf_class=elf_class, machine=3 if elf_class == 32 else 62)
    if spare:
        writer.segments.append(Segment(PT_GNU_STACK, b"", flags=7))
    return writer.section(".note.Xen", SHT_NOTE, b"".join(notes))


def repair(tmp_path: Path, data: bytes) -> FixResult:
    (tmp_path / "kernel").write_bytes(data)
    return fix(tmp_path / "kernel", tmp_path / "fixed")


def slugs(result: FixResult) -> set[str]:
    return {finding.rule.slug for finding in result.inspection.findings}


def notes_of(path: Path) -> list[tuple[str, int]]:
    """The notes of all PT_NOTEs, as pyelftools reads them."""
    elf = ELFFile(io.BytesIO(path.read_bytes()))
    segments = [segment for segment in elf.iter_segments() if isinstance(segment, NoteSegment)]
    return [
        (found["n_name"], len(found["n_descdata"])) for segment in segments for found in segment.iter_notes()
    ]


@pytest.mark.parametrize("elf_class", [32, 64])
@pytest.mark.parametrize("spare", [True, False])
def test_gnumach_becomes_a_kernel_with_notes(tmp_path: Path, elf_class: int, spare: bool) -> None:
    result = repair(tmp_path, gnumach(elf_class=elf_class, spare=spare).build())
    before, after = inspect(tmp_path / "kernel"), inspect(tmp_path / "fixed")
    assert after.notes.source == "PT_NOTE"
    assert {name for name, _ in notes_of(tmp_path / "fixed")} == {"Xen"}
    assert before.pv is not None
    assert after.pv is not None
    assert (after.pv.guest_type, after.pv.virt_kend) == (before.pv.guest_type, before.pv.virt_kend)
    assert {finding.rule.slug for finding in after.findings} <= {
        "legacy-ignored",
        "class-machine",
        "incongruent",
    }
    told = "\n".join(result.changes)
    assert 'owner "name" becomes "Xen"' in told
    assert 'PAE_MODE "yes[extended-cr3]" becomes "yes"' in told
    assert 'the NUL before "pae_pgdir_above_4gb" is dropped' in told
    assert ("a PT_GNU_STACK, becomes the PT_NOTE" if spare else "the program headers move to the end") in told
    assert any(line.startswith("f_supported was 0x0 and is 0x10 now") for line in result.left)


def test_what_gets_loaded_is_the_same(tmp_path: Path) -> None:
    repair(tmp_path, gnumach().build())
    before, after = inspect(tmp_path / "kernel").elf, inspect(tmp_path / "fixed").elf
    assert before.load_segments == after.load_segments
    for one, two in zip(before.load_segments, after.load_segments, strict=True):
        assert before.segment_bytes(one) == after.segment_bytes(two)


def test_sections_get_a_pt_note(tmp_path: Path) -> None:
    writer = xen_kernel()
    notes = writer.segments.pop().data
    result = repair(tmp_path, writer.section(".notes", SHT_NOTE, notes).build())
    assert slugs(result) == {"incongruent"}  # which is the writer's LOAD segment
    assert len(notes_of(tmp_path / "fixed")) == len(xen_notes())


def test_a_string_cut_short(tmp_path: Path) -> None:
    writer = xen_kernel(PAE_MODE=None)
    writer.segments[1].data += (
        (4).to_bytes(4, "little") + (12).to_bytes(4, "little") + b"\x09\0\0\0Xen\0yes\0"
    )
    result = repair(tmp_path, writer.build())
    assert any("size 12 becomes 4" in change for change in result.changes)
    assert slugs(result) == {"incongruent"}  # which is the writer's LOAD segment


def test_an_alignment_of_eight(tmp_path: Path) -> None:
    writer = xen_kernel()
    writer.segments[1].align = 8
    result = repair(tmp_path, writer.build())
    assert result.changes == ("PT_NOTE 1: alignment 8 becomes 4",)
    assert slugs(result) == {"incongruent"}  # which is the writer's LOAD segment


def test_nothing_to_repair_is_a_copy(tmp_path: Path) -> None:
    data = xen_kernel().build()
    assert repair(tmp_path, data).changes == ()
    assert (tmp_path / "fixed").read_bytes() == data


def test_gzipped_kernels_are_unzipped(tmp_path: Path) -> None:
    assert repair(tmp_path, gzip.compress(gnumach().build())).changes[0] == "unzipped"
    assert (tmp_path / "fixed").read_bytes()[:4] == b"\x7fELF"


def test_bzimages_and_strangers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelFormatError, match="packed again"):
        repair(tmp_path, bzimage(PAYLOADS["xz"](xen_kernel().build())))
    with pytest.raises(NotesError, match="nothing to repair"):
        repair(tmp_path, ElfWriter().load(b"x", paddr=0x1000).build())
    assert not (tmp_path / "fixed").exists()


def test_a_repair_that_makes_it_worse_is_not_written(tmp_path: Path) -> None:
    writer = legacy_kernel(LEGACY)
    bad = (
        note(5, "xen-3.0", owner=b"name")
        + note(8, "generic", owner=b"name")
        + note(10, "!foo", owner=b"name")
    )
    with pytest.raises(NotesError, match="would refuse it repaired"):
        repair(tmp_path, writer.section(".note", SHT_NOTE, bad).build())
    assert not (tmp_path / "fixed").exists()


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(gnumach().build())
    with pytest.raises(OSError, match="nowhere"):
        fix(tmp_path / "kernel", tmp_path / "nowhere" / "fixed")


def test_a_kernel_may_be_repaired_in_place(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(gnumach().build())
    fix(tmp_path / "kernel", tmp_path / "kernel")
    assert inspect(tmp_path / "kernel").notes.source == "PT_NOTE"
    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]


@pytest.mark.guest
@pytest.mark.parametrize(
    "name", [f"gnumach-{one}.gz" for one in ("bullseye-i386", "bookworm-amd64", "trixie-i386")]
)
def test_real_gnumach(name: str, tmp_path: Path, guest_kernel: Callable[[str], Path]) -> None:
    result = fix(guest_kernel(name), tmp_path / "fixed")
    assert {owner for owner, _ in notes_of(tmp_path / "fixed")} == {"Xen"}
    assert [line for line in result.left if "guest_ver" not in line] == []
    assert [finding.rule.slug for finding in result.inspection.findings] == ["legacy-ignored"]
    before = inspect(guest_kernel(name))
    assert [one.accepted for one in before.verdicts] == [one.accepted for one in result.inspection.verdicts]


def test_a_file_that_kills_lief(tmp_path: Path) -> None:
    """lief 1.0.0 aborts over an e_type of 0; should it learn better, the file is repaired."""
    image = bytearray(gnumach().build())
    image[16:18] = b"\0\0"
    try:
        assert repair(tmp_path, bytes(image)).changes
    except ElfError as error:
        assert error.reason == "lief cannot edit it"  # noqa: PT017
        assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize(
    ("script", "match"),
    [("kill -ABRT $$", "lief cannot edit it; found signal 6"), ("echo no >&2; exit 1", "found no")],
)
def test_a_child_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, match: str) -> None:
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\ncat >/dev/null\n{script}\n")
    child.chmod(0o755)
    monkeypatch.setattr("domainbuilder.kernel.lief_edit.sys.executable", str(child))
    with pytest.raises(ElfError, match=match):
        repair(tmp_path, gnumach().build())
    assert not (tmp_path / "fixed").exists()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutations_end_in_a_repair_or_a_build_error(tmp_path: Path, data: st.DataObject) -> None:
    image = bytearray(gnumach(elf_class=data.draw(st.sampled_from([32, 64]))).build())
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, 200) | st.integers(len(image) - 1000, len(image) - 1))
        image[at] = data.draw(st.sampled_from([0, 1, 4, 7, 255]) | st.integers(0, 255))
    try:
        result = repair(tmp_path, bytes(image))
    except BuildError:
        return
    before = inspect(tmp_path / "kernel")
    assert before.pv is None or result.inspection.pv is not None


def test_readelf_reads_the_result(tmp_path: Path) -> None:
    readelf = find_tool("readelf")
    repair(tmp_path, gnumach().build())
    run = subprocess.run([readelf, "-nW", tmp_path / "fixed"], capture_output=True, text=True, check=False)
    assert run.stdout.count("\n  Xen ") == 8
    assert run.stderr == ""
