"""Domains built in memory: contents, options, real kernels against libxenguest."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import xml.etree.ElementTree as ET
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbuilder.build.domain_image import DomainImage, build, plan
from domainbuilder.errors import BuildError, ElfError, LayoutError
from domainbuilder.kernel.kernel_file import load_kernel, load_kernel_bytes
from domainbuilder.plan.findings import survey
from domainbuilder.plan.start_info import StartInfo
from domainbuilder.plan.svg import svg
from domainbuilder.plan.text import render
from domainbuilder.reports.plan_report import plan_report
from tests.domainbuilder.elfwriter import RX, ElfWriter, xen_kernel
from tests.domainbuilder.libxenguest import FIRST_MFN, GUESTS, SHARED_INFO_MFN, read_reference
from tests.domainbuilder.pagewalk import walk_page_tables

KERNEL = bytes(range(256)) * 16  # what xen_kernel loads at 0x100000


def written(tmp_path: Path, writer: ElfWriter) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(writer.build())
    return path


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return written(tmp_path, xen_kernel())


def read_virtual(image: DomainImage, address: int, size: int) -> bytes:
    """Guest memory by virtual address, through the guest's own page tables."""
    levels = image.plan.guest.paging.levels
    cr3 = image.context.cr3
    root = cr3 >> 12 if levels == 4 else cr3 >> 12 | (cr3 & 0xFFF) << 20
    pages = dict(walk_page_tables(image.ram, image.first_mfn, root, levels).leaves)
    out = bytearray()
    while len(out) < size:
        at = address + len(out)
        mfn = pages[at & ~0xFFF] >> 12 & (1 << 40) - 1
        start = (mfn - image.first_mfn << 12) + (at & 0xFFF)
        out += image.ram[start : start + min(size - len(out), 4096 - (at & 0xFFF))]
    return bytes(out)


@pytest.mark.parametrize("frames", ["xen", "linear"])
def test_the_guest_finds_everything_where_it_is_told(kernel: Path, frames: str) -> None:
    content = b"0707" + bytes(range(200)) * 500
    image = build(kernel, memory_mib=16, ramdisk=gzip.compress(content), cmdline="a=b", frames=frames)  # type: ignore[arg-type]
    assert read_virtual(image, image.context.ip, 4096) == KERNEL
    assert read_virtual(image, 0xC0101000, 0x2000) == bytes(0x2000)
    info = StartInfo.unpack(read_virtual(image, image.context.si, 1112), 4)
    assert info == image.start_info
    assert (info.nr_pages, info.cmd_line) == (4096, b"a=b")
    assert read_virtual(image, info.mod_start, info.mod_len) == content + bytes(16)
    p2m = array("I", read_virtual(image, info.mfn_list, 4 * info.nr_pages))
    assert p2m.tolist() == image.p2m.tolist()
    assert info.store_mfn == p2m[image.plan.xenstore_pfn]
    assert info.console_mfn == p2m[image.plan.console_pfn]
    assert not any(read_virtual(image, image.context.sp - 4096, 4096))
    assert image.context.cr3 >> 12 == image.p2m[image.plan.pgtables_pfn]


def test_a_64_bit_guest_finds_its_p2m_list_apart(tmp_path: Path) -> None:
    writer = xen_kernel(
        elf_class=64, VIRT_BASE=0xFFFFFFFF80000000, ENTRY=0xFFFFFFFF80100000, PADDR_OFFSET=0,
        INIT_P2M=0x8000000000, MOD_START_PFN=1,
    )  # fmt: skip
    image = build(written(tmp_path, writer), memory_mib=16, ramdisk=b"abc" * 3000)
    info = StartInfo.unpack(read_virtual(image, image.context.si, 1168), 8)
    assert info.mfn_list == 0x8000000000
    assert read_virtual(image, info.mfn_list, 8 * 4096) == image.p2m.tobytes()
    assert (info.flags, info.mod_len) == (8, 3 * 4096)
    assert image.memory.read(info.mod_start, 9000) == b"abc" * 3000
    assert info.first_p2m_pfn == image.plan.layout["phys2mach"].pfn
    assert info.nr_p2m_frames == image.plan.layout["phys2mach"].pages


def test_options_of_the_machine(kernel: Path) -> None:
    image = build(
        kernel, memory_mib=8, first_mfn=0x200, shared_info_mfn=0x100, store_evtchn=5, console_evtchn=6
    )
    assert min(image.p2m) == 0x200
    assert image.start_info.shared_info == 0x100000
    assert (image.start_info.store_evtchn, image.start_info.console_evtchn) == (5, 6)
    assert len(image.shared_info) == 4096


def test_it_builds_into_memory_that_is_given(kernel: Path) -> None:
    planned = plan(kernel, memory_mib=8)
    ram = memoryview(bytearray(8 << 20))
    image = build(planned, ram=ram)
    assert image.ram is ram
    assert bytes(ram) == bytes(build(planned).ram)
    for wrong in (memoryview(bytearray(4096)), memoryview(bytes(8 << 20)), ram.cast("I")):
        with pytest.raises(ValueError, match="ram must be 0x800000 writable bytes"):
            build(planned, ram=wrong)


def test_pages_that_hold_nothing_are_not_written(kernel: Path) -> None:
    """Memory that was never touched costs nothing: RSS follows what the domain uses."""

    image = build(kernel, memory_mib=32)
    used = image.plan.layout.pfn_alloc_end
    filled = {pfn for pfn in range(image.plan.nr_pages) if any(image.memory.read(pfn, 4096))}
    assert max(filled) < used
    assert len(filled) < 20 + image.plan.nr_pages * 4 // 4096


@pytest.mark.parametrize(
    ("paddr", "size"), [(0x100000, 0x3000), (0x100200, 1), (0x102FFF, 0x10), (0x0FF000, 0x1001)]
)
def test_overlapping_segments_are_refused(tmp_path: Path, paddr: int, size: int) -> None:
    writer = xen_kernel()
    writer.load(b"z", paddr=paddr, memsz=size, flags=RX)
    with pytest.raises(ElfError, match=r"LOAD segments [02] and [02] overlap in physical memory"):
        plan(written(tmp_path, writer), memory_mib=8)


@pytest.mark.parametrize(("paddr", "size"), [(0x103000, 0x1000), (0x0FF000, 0x1000), (0x100800, 0)])
def test_segments_that_only_touch_are_not(tmp_path: Path, paddr: int, size: int) -> None:
    writer = xen_kernel(ENTRY=0xC0100000)
    writer.load(b"", paddr=paddr, memsz=size, flags=RX)
    assert read_virtual(build(written(tmp_path, writer), memory_mib=8), 0xC0100000, 4096) == KERNEL


def test_bsd_symbols_are_loaded_behind_the_kernel(tmp_path: Path) -> None:
    """elf_load_bsdsyms: a size, an ELF header, section headers, symbols, strings; pyelftools reads it."""
    writer = xen_kernel(elf_class=64, BSD_SYMTAB="yes", VIRT_BASE=0, ENTRY=0x100000, PADDR_OFFSET=0)
    writer.symbols([("start", 0x100000, 16, 2), ("swapper_pg_dir", 0x102000, 4096, 1)], shndx=0xFFF1)
    image = build(written(tmp_path, writer), memory_mib=8)
    start = 0x103000 - 0x100000
    kernel = image.plan.layout["kernel"]
    blob = image.memory.read(kernel.pfn, kernel.pages << 12)[start:]
    (size,) = struct.unpack_from("<I", blob)
    assert kernel.size == start + -(-(4 + size) // 8) * 8
    found = ELFFile(io.BytesIO(blob[4 : 4 + size]))
    assert found.num_sections() == 3
    table = found.get_section(1)
    assert isinstance(table, SymbolTableSection)
    assert [(symbol.name, symbol["st_value"]) for symbol in table.iter_symbols()][1:] == [
        ("start", 0x100000),
        ("swapper_pg_dir", 0x102000),
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory_mib": 0}, "failed to allocate 0x0 pages"),
        ({"memory_mib": -1}, "failed to allocate -0x100 pages"),
        ({"memory_mib": 1}, "xc_dom_chk_alloc_pages: segment kernel too large"),
        ({"memory_mib": 1 << 50}, "failed to allocate 0x400000000000000 pages"),
        ({"shared_info_mfn": 0x10000}, "one of the domain's own"),
        ({"first_mfn": 1 << 33}, "so high a machine frame"),
        ({"guest_type": "xen-3.0-x86_64"}, "is no xen-3.0-x86_64 guest"),
    ],
)
def test_what_cannot_be_built(kernel: Path, options: dict[str, int], reason: str) -> None:
    with pytest.raises(LayoutError, match=reason):
        build(kernel, **options)  # type: ignore[arg-type]


def test_a_bimodal_kernel_can_be_built_either_way(tmp_path: Path) -> None:
    kernel = written(tmp_path, xen_kernel(PAE_MODE="bimodal"))
    assert plan(kernel).guest_type == "xen-3.0-x86_32p"
    image = build(kernel, memory_mib=8, guest_type="xen-3.0-x86_32")
    assert image.plan.guest.paging.levels == 2
    assert read_virtual(image, 0xC0100000, 4096) == KERNEL


def test_an_auto_translated_guest_is_refused(tmp_path: Path) -> None:
    writer = xen_kernel(FEATURES="!auto_translated_physmap")
    with pytest.raises(LayoutError, match="PV Autotranslate guests no longer supported"):
        plan(written(tmp_path, writer))


def test_a_hypercall_page_outside_of_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="HYPERCALL_INIT failed"):
        plan(written(tmp_path, xen_kernel(HYPERCALL_PAGE=0xC8000000)), memory_mib=64)
    with pytest.raises(LayoutError, match="HYPERCALL_INIT failed"):
        plan(written(tmp_path, xen_kernel(HYPERCALL_PAGE=0x1000)), memory_mib=64)


def test_a_plan_is_a_value(kernel: Path) -> None:
    assert plan(kernel, memory_mib=8) == plan(kernel, memory_mib=8)
    assert plan(kernel, memory_mib=8) != plan(kernel, memory_mib=9)
    with pytest.raises(AttributeError):
        plan(kernel).nr_pages = 1  # type: ignore[misc]


def test_a_missing_kernel(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="No such file"):
        build(tmp_path / "nothing")


KERNELS = {
    "32": xen_kernel(HYPERCALL_PAGE=0xC0101000, BSD_SYMTAB="yes")
    .symbols([("start", 0xC0100000, 8, 2)])
    .build(),
    "64": xen_kernel(
        elf_class=64, VIRT_BASE=0xFFFFFFFF80000000, ENTRY=0xFFFFFFFF80100000, PADDR_OFFSET=0,
        INIT_P2M=0x8000000000, MOD_START_PFN=1, HYPERCALL_PAGE=0xFFFFFFFF80101000, BSD_SYMTAB="yes",
    ).symbols([("swapper_pg_dir", 0xFFFFFFFF80101000, 8, 1)]).build(),
}  # fmt: skip


@given(data=st.data())
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_mutation_of_a_kernel_ends_in_anything_but_a_build_error(data: st.DataObject) -> None:
    """Headers, notes, sections, symbols changed; what is accepted is planned, surveyed, drawn and built."""
    good = KERNELS[data.draw(st.sampled_from(sorted(KERNELS)))]
    mutated = bytearray(good)
    spots = [*range(300), *range(4300, len(good))]  # all but what the segment holds
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.sampled_from(spots))
        size = data.draw(st.sampled_from([1, 2, 4, 8]))
        value = data.draw(
            st.one_of(
                st.binary(min_size=size, max_size=size),
                st.sampled_from([b"\xff" * size, bytes(size), bytes(size - 1) + b"\x80"]),
            )
        )
        mutated[at : at + size] = value
    try:
        planned = plan(load_kernel_bytes(bytes(mutated), "mutated"), memory_mib=8, ramdisk=b"abc")
        surveyed = survey(planned)
        plan_report(planned, surveyed).model_dump_json()
        ET.fromstring(svg(planned, surveyed))
        render(planned, surveyed).encode()
        image = build(planned)
    except BuildError:
        return
    assert image.context.ip == planned.parms.virt_entry


def pinned(name: str, path: Path) -> bool:
    """Whether the file is the very one that libxenguest's facts are of."""
    content = path.read_bytes()
    if path.name.endswith(".gz"):
        content = gzip.decompress(content)
    return bool(hashlib.sha256(content).hexdigest() == read_reference(name).facts["sha256"])


@pytest.mark.guest
@pytest.mark.parametrize("name", GUESTS)
def test_real_kernels_are_built_as_libxenguest_builds_them(
    name: str, guest_kernel: Callable[[str], Path]
) -> None:
    reference, path = read_reference(name), guest_kernel(GUESTS[name])
    image = build(path, memory_mib=reference.nr_pages >> 8, frames="linear", shared_info_mfn=SHARED_INFO_MFN)
    levels = image.plan.guest.paging.levels
    walk = walk_page_tables(image.ram, FIRST_MFN, image.p2m[image.plan.pgtables_pfn], levels)
    ranges = walk.ranges(lambda mfn: mfn - FIRST_MFN)
    if not pinned(name, path):  # a newer package: the shape
        assert [one["flags"] for one in ranges] == [one["flags"] for one in reference.facts["maps"]]
        return
    facts = reference.facts
    assert image.plan.hypercall_page_pfn == facts["alloc"]["hypercall_page_pfn"]
    assert ranges == facts["maps"]
    assert image.context.cr3 == facts["vcpu"]["cr3"]
    assert image.start_info.shared_info == facts["start_info"]["shared_info"]
    assert image.start_info.store_mfn - FIRST_MFN == facts["start_info"]["store_mfn"]
    assert image.start_info.console_mfn - FIRST_MFN == facts["start_info"]["cons_mfn"]
    for field in ("virt_base", "virt_entry", "virt_kstart", "virt_kend", "p2m_base", "unmapped_initrd"):
        assert getattr(image.plan.parms, field) == facts["parms"][field], field


@pytest.mark.guest
@pytest.mark.parametrize("name", ["grub-i386-xen.bin", "grub-x86_64-xen.bin", "gnumach-bookworm-i386.gz"])
def test_real_kernels_are_loaded_where_they_are_linked(
    name: str, guest_kernel: Callable[[str], Path]
) -> None:
    """pyelftools says what belongs where, and the guest's own page tables lead there."""
    path = guest_kernel(name)
    image = build(path, memory_mib=64)
    elf = ELFFile(io.BytesIO(bytes(load_kernel(path).image)))
    base = image.plan.layout["kernel"].vstart
    lowest = min(segment["p_paddr"] for segment in elf.iter_segments("PT_LOAD"))
    for segment in elf.iter_segments("PT_LOAD"):
        at = base + segment["p_paddr"] - lowest
        size = segment["p_memsz"]
        assert read_virtual(image, at, size) == segment.data().ljust(size, b"\0")


@pytest.mark.guest
def test_a_pvh_only_kernel_is_refused_as_libxenguest_refuses_it(guest_kernel: Callable[[str], Path]) -> None:
    assert "no loader found" in read_reference("grub-i386-xen_pvh.bin").facts["refused"]["message"]
    with pytest.raises(BuildError, match="xc_dom_find_loader: no loader found"):
        plan(guest_kernel("grub-i386-xen_pvh.bin"))
