"""Built domains on disk: Xen's dump-core format, which readelf reads, and we only when it is sound."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import struct
import subprocess
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbuilder.build.domain_image import DomainImage, build
from domainbuilder.build.image import is_image, load_image, save_image
from domainbuilder.errors import ImageError
from domainbuilder.plan.vcpu_context import VcpuContext
from tests.domainbuilder.elfwriter import xen_kernel
from tests.needs import find_tool

WIDE = {"elf_class": 64, "VIRT_BASE": 0xFFFFFFFF80000000, "ENTRY": 0xFFFFFFFF80100000, "PADDR_OFFSET": 0}
KINDS: dict[str, dict[str, Any]] = {
    "pae": {"HYPERCALL_PAGE": 0xC0101000},
    "two-level": {"PAE_MODE": "no"},
    "64-bit": WIDE,
    "linux-like": {**WIDE, "INIT_P2M": 0x8000000000, "MOD_START_PFN": 1},
}


def built(tmp_path: Path, kind: str = "pae", memory_mib: int = 5, **options: object) -> DomainImage:
    path = tmp_path / f"kernel-{kind}"
    path.write_bytes(xen_kernel(**KINDS[kind]).build())
    return build(
        path,
        memory_mib=memory_mib,
        ramdisk=gzip.compress(bytes(range(256)) * 100),
        cmdline="root=/dev/xvda1 \xe9",
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frames", ["xen", "linear"])
def test_what_is_saved_comes_back(tmp_path: Path, kind: str, frames: str) -> None:
    image = built(tmp_path, kind, frames=frames, first_mfn=0x321, shared_info_mfn=7, store_evtchn=8)
    path = tmp_path / "domain"
    save_image(image, path)
    again = load_image(path)
    assert again.plan == replace(image.plan, kernel=Path(image.plan.kernel).name)
    assert bytes(again.ram) == bytes(image.ram)
    for field in ("p2m", "first_mfn", "shared_info_mfn", "context", "start_info", "shared_info"):
        assert getattr(again, field) == getattr(image, field), field


def test_it_loads_into_memory_that_is_given(tmp_path: Path) -> None:
    image, path = built(tmp_path), tmp_path / "domain"
    save_image(image, path)
    ram = memoryview(bytearray(5 << 20))
    assert load_image(path, ram).ram is ram
    assert bytes(ram) == bytes(image.ram)
    with pytest.raises(ImageError, match="memory of the wrong size"):
        load_image(path, ram[4096:])


def test_readelf_reads_it_without_complaint(tmp_path: Path) -> None:
    readelf, path = find_tool("readelf"), tmp_path / "domain"
    for kind in KINDS:
        save_image(built(tmp_path, kind), path)
        for options in ("-aW", "-nW", "-SW"):
            done = subprocess.run([readelf, options, path], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), kind
            assert "Warning" not in done.stdout
        assert ".xen_pages" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_as_xens_document_says(tmp_path: Path, kind: str) -> None:
    """docs/misc/dump-core-format.txt, read with pyelftools and struct alone."""
    image, path = built(tmp_path, kind), tmp_path / "domain"
    save_image(image, path)
    nr_pages = image.plan.nr_pages
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        assert (elf.elfclass, elf["e_type"], elf.num_segments()) == (64, "ET_CORE", 0)
        assert elf["e_machine"] == ("EM_X86_64" if image.plan.guest.width == 8 else "EM_386")
        data = {section.name: section.data() for section in elf.iter_sections()}
        pages, p2m = (named(elf, name) for name in (".xen_pages", ".xen_p2m"))
        assert pages["sh_offset"] % 4096 == 0
        entries = [pages["sh_entsize"], p2m["sh_entsize"]]
    assert entries == [4096, 16]
    pairs = list(struct.iter_unpack("<QQ", data[".xen_p2m"]))
    assert pairs == list(enumerate(image.p2m))
    for pfn in range(nr_pages):
        assert data[".xen_pages"][pfn << 12 : pfn + 1 << 12] == image.memory.read(pfn, 4096)
    assert data[".xen_shared_info"] == image.shared_info
    assert VcpuContext.unpack(data[".xen_prstatus"], image.plan.guest.width) == image.context
    notes = data[".note.Xen"]
    assert struct.unpack_from("<III4s", notes) == (4, 0, 0x2000000, b"Xen\0")
    header = struct.unpack_from("<III4s4Q", notes, 16)
    assert header == (4, 32, 0x2000001, b"Xen\0", 0xF00FEBED, 1, nr_pages, 4096)
    version = struct.unpack_from("<III4sQQ", notes, 64)
    assert version == (4, 1280, 0x2000002, b"Xen\0", 4, 17)
    assert struct.unpack_from("<III4sQ", notes, 64 + 16 + 1280) == (4, 8, 0x2000003, b"Xen\0", 1)
    assert len(notes) == 64 + 16 + 1280 + 16 + 8


def test_zero_pages_take_no_room(tmp_path: Path) -> None:
    path = tmp_path / "domain"
    written = save_image(built(tmp_path, memory_mib=64), path)
    assert path.stat().st_size > 64 << 20
    assert written < 1 << 20
    assert path.stat().st_blocks * 512 < 2 << 20
    copy = tmp_path / "copy"
    copy.write_bytes(path.read_bytes())  # the holes filled with zeros: the same domain
    assert bytes(load_image(copy).ram) == bytes(load_image(path).ram)


def test_is_image(tmp_path: Path) -> None:
    image, path = built(tmp_path), tmp_path / "domain"
    save_image(image, path)
    assert is_image(path)
    for other in (image.plan.kernel, tmp_path, tmp_path / "missing", __file__):
        assert not is_image(other)


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, place = built(tmp_path), tmp_path / "out"
    place.mkdir()
    (place / "domain").write_text("before")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ImageError, match="No space left"):
            save_image(image, place / "domain")
    assert [path.name for path in place.iterdir()] == ["domain"]
    assert (place / "domain").read_text() == "before"
    save_image(image, place / "domain")
    assert [path.name for path in place.iterdir()] == ["domain"]
    assert is_image(place / "domain")


def test_it_replaces_files_and_follows_links_but_never_replaces_a_device(tmp_path: Path) -> None:
    image = built(tmp_path)
    (tmp_path / "target").write_text("")
    (tmp_path / "link").symlink_to("target")
    save_image(image, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert is_image(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing/domain"):
        with pytest.raises(ImageError, match="cannot be written"):
            save_image(image, tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()


# hostile files


@pytest.fixture(scope="module")
def sound_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("image")
    save_image(built(place, "pae"), place / "domain")
    return place / "domain"


@pytest.fixture
def sound(sound_file: Path) -> bytes:
    return sound_file.read_bytes()


def named(elf: ELFFile, name: str) -> Section:
    section = elf.get_section_by_name(name)
    assert section is not None
    return section


def section_at(image: bytes, name: str) -> tuple[int, int]:
    """Offset and size of a section."""
    section = named(ELFFile(io.BytesIO(image)), name)
    return section["sh_offset"], section["sh_size"]


def refused(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "hostile"
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert "hostile" in str(caught.value)
    return str(caught.value)


def with_note(image: bytes, change: Callable[[dict[str, object]], object]) -> bytes:
    """The image with another JSON text in its build note, padded with blanks to the size it had."""
    offset, size = section_at(image, ".note.domainbuilder")
    raw = json.loads(image[offset + 28 : offset + size].rstrip(b"\0"))
    length = struct.unpack_from("<I", image, offset + 4)[0]
    text = json.dumps(change(raw) or raw, separators=(",", ":")).encode()
    assert len(text) <= length
    return image[: offset + 28] + text.ljust(length) + image[offset + 28 + length :]


def test_a_core_that_is_no_domain(tmp_path: Path, sound: bytes) -> None:
    other = sound.replace(b".note.domainbuilder", b".note.somebodyelses")
    assert "only freshly built domains can be run" in refused(tmp_path, other)
    assert "not an ELF binary" in refused(tmp_path, b"garbage")
    assert "cannot be read" in refused(tmp_path, b"")
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image(tmp_path / "missing")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image(tmp_path)


@pytest.mark.parametrize("end", [0, 1, 10, 63, 64, 100, 500, 4000, 0x3000, 0x10000, -0x14000, -100, -1])
def test_a_file_that_is_cut_short(tmp_path: Path, sound: bytes, end: int) -> None:
    refused(tmp_path, sound[:end])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda note: note.update(nr_pages=1 << 60), "nr_pages is unusable"),
        (lambda note: note.update(nr_pages=True), "nr_pages is unusable"),
        (lambda note: note.update(nr_pages=1281), "the notes disagree on nr_pages"),
        (lambda note: note.update(first_mfn=-1), "first_mfn is unusable"),
        (lambda note: note.update(first_mfn=0), ".xen_p2m is not a list of this domain's frames"),
        (lambda note: note.update(shared_info_mfn=0), "start_info page is not that of this domain"),
        (lambda note: note.update(guest_type="hvm"), "the kernel is no hvm guest"),
        (lambda note: note.update(module_size="7"), "module_size is unusable"),
        (lambda note: note.update(module_size=None), "start_info page is not that of this domain"),
        (lambda note: note.update(version=2), "of another version"),
        (lambda note: note.update(parms=None), "guest_type is unusable"),
        (lambda note: note["parms"].update(virt_base=0), "segment padding too large"),
        (lambda note: note["parms"].update(virt_entry=5), "the registers are not those"),
        (lambda note: note["parms"].update(virt_kend=1 << 63), "too large"),
        (lambda note: note["parms"].update(pae=9), "pae is unusable"),
        (lambda note: note["parms"].update(guest_os="x" * 33), "guest_os is unusable"),
        (lambda note: note["parms"].update(virt_hypercall=1), "HYPERCALL_INIT failed"),
        (lambda note: [1, 2], "version is unusable"),
        (lambda note: "text", "version is unusable"),
    ],
)
def test_a_build_note_that_lies(
    tmp_path: Path, sound: bytes, change: Callable[[dict[str, object]], object], reason: str
) -> None:
    assert reason in refused(tmp_path, with_note(sound, change))


@pytest.mark.parametrize(
    ("section", "offset", "value", "reason"),
    [
        (".note.Xen", 0, b"\xff\xff\xff\xff", "cut short"),
        (".note.Xen", 32, b"\xff" * 8, "not a PV domain of one vcpu"),
        (".note.Xen", 40, b"\x02", "not a PV domain of one vcpu"),
        (".note.Xen", -4, b"\x01", "a dump-core format this does not know"),
        (".note.domainbuilder", 28, b"{{{{", "is no JSON"),
        (".xen_prstatus", 552, b"\0\0", "the registers are not those"),
        (".xen_prstatus", 5000, b"\1", "the registers are not those"),
        (".xen_p2m", 0, b"\1", ".xen_p2m is not a list"),
        (".xen_p2m", 8, b"\xff" * 8, ".xen_p2m is not a list"),
        (".xen_p2m", 16 + 8, b"\0" * 8, ".xen_p2m is not a list"),
    ],
)
def test_a_section_that_lies(
    tmp_path: Path, sound: bytes, section: str, offset: int, value: bytes, reason: str
) -> None:
    start, size = section_at(sound, section)
    at = start + (offset if offset >= 0 else size + offset)
    assert reason in refused(tmp_path, sound[:at] + value + sound[at + len(value) :])


def test_a_build_note_nested_without_end(tmp_path: Path, sound: bytes) -> None:
    offset, size = section_at(sound, ".note.domainbuilder")
    deep = b"[" * (size - 28)
    assert "is no JSON" in refused(tmp_path, sound[: offset + 28] + deep + sound[offset + size :])


def test_a_sparse_file_that_claims_a_lot_is_refused_at_once(tmp_path: Path, sound: bytes) -> None:
    """64 GB of pages and a p2m list of 256 MB, all of it holes: nothing of it is read into memory."""
    nr_pages = 1 << 24
    claims = bytearray(with_note(sound, lambda note: note.update(nr_pages=nr_pages)))
    note, _ = section_at(sound, ".note.Xen")
    struct.pack_into("<Q", claims, note + 48, nr_pages)
    pages, _ = section_at(sound, ".xen_pages")
    for index, place, size in ((6, pages, nr_pages << 12), (7, pages + (nr_pages << 12), nr_pages << 4)):
        struct.pack_into("<QQ", claims, 64 + 64 * index + 24, place, size)
    path = tmp_path / "hostile"
    path.write_bytes(claims[:pages])
    os.truncate(path, pages + (nr_pages << 12) + (nr_pages << 4))
    tracemalloc.start()
    with pytest.raises(ImageError, match="is not a list of this domain's frames"):
        load_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 << 20


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_mutation_of_the_headers_ends_in_anything_but_an_image_error(
    tmp_path: Path, sound_file: Path, data: st.DataObject
) -> None:
    """Bytes changed anywhere in front of the pages."""
    sound = sound_file.read_bytes()
    end = section_at(sound, ".xen_pages")[0]
    mutated = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, end - 8))
        mutated[at : at + 8] = data.draw(
            st.one_of(
                st.binary(min_size=8, max_size=8),
                st.sampled_from([b"\xff" * 8, bytes(8), struct.pack("<Q", 1 << 62), struct.pack("<Q", 4096)]),
            )
        )
    path = tmp_path / "mutated"
    path.write_bytes(mutated)
    try:
        image = load_image(path)
    except ImageError:
        return
    assert sorted(image.p2m) == list(range(image.first_mfn, image.first_mfn + image.plan.nr_pages))
    assert len(image.ram) == image.plan.nr_pages << 12


def test_mutations_of_the_pages_only_change_pages(tmp_path: Path, sound: bytes) -> None:
    start, size = section_at(sound, ".xen_pages")
    rng, path = random.Random(3), tmp_path / "mutated"
    path.write_bytes(sound)
    start_info_pfn = load_image(path).plan.start_info_pfn
    for _ in range(20):
        at = start + rng.randrange(size)
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :])
        pfn, offset = divmod(at - start, 4096)
        if pfn == start_info_pfn and offset < 1112:  # part of what has to agree with the plan
            refused(tmp_path, path.read_bytes())
            continue
        image = load_image(path)
        assert image.memory.read(pfn, 1, offset) == bytes([sound[at] ^ 0x55])
