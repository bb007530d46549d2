"""What must own whole pages, in kernels that the real linker has linked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from domainbuilder.kernel.elf import parse_elf
from domainbuilder.kernel.parms import xc_dom_parse_elf_kernel
from domainbuilder.plan.domain_plan import plan
from domainbuilder.plan.findings import survey
from domainbuilder.plan.page_layout import PAGE_OWNERS, PageLayout, page_layout
from domainbuilder.symbols.read import kernel_symbols
from tests.domainbuilder.elfwriter import SHT_NOBITS, SHT_PROGBITS, xen_kernel
from tests.needs import find_tool

NOTES = """
    .section .note.Xen,"a",@note
    .macro xen type, value:vararg
    .long 4, 2f-1f, \\type
    .asciz "Xen"
1:  \\value
2:  .align 4
    .endm
    xen 6 .asciz "linux"
    xen 5 .asciz "xen-3.0"
    xen 8 .asciz "generic"
    xen 9 .asciz "yes"
    xen 3 .long 0xc0000000
"""
# As arch/i386 of Linux 2.6.22 had it: no alignment but what the linker script gives.
SOURCE = (
    """
    .section .text,"ax"
    .globl _start
_start: ret
    .section .data.idt,"aw"
    .globl idt_table
    .type idt_table,@object
    .size idt_table,2048
idt_table: .fill 2048,1,0
    .section .data.page_aligned,"aw"
    .globl swapper_pg_dir, empty_zero_page
swapper_pg_dir: .fill 4096,1,0
empty_zero_page: .fill 4096,1,0
    .section .data,"aw"
    .globl jiffies
    .type jiffies,@object
    .size jiffies,4
jiffies: .long 0
"""
    + NOTES
)
# The shape of arch/i386/kernel/vmlinux.lds.S around the hunk of Linux commit 5ead97c84fa7.
SCRIPT = """
ENTRY(_start)
PHDRS { text PT_LOAD FLAGS(5); data PT_LOAD FLAGS(7); note PT_NOTE FLAGS(4); }
SECTIONS {
  . = 0xc0000000 + 0x100000;
  .text : AT(ADDR(.text) - 0xc0000000) { *(.text) } :text
  .note.Xen : AT(ADDR(.note.Xen) - 0xc0000000) { *(.note.Xen) } :text :note
  . = ALIGN(4096);
  .data : AT(ADDR(.data) - 0xc0000000) { %(data)s } :data
  . = ALIGN(4096);
  .data.page_aligned : AT(ADDR(.data.page_aligned) - 0xc0000000) {
    %(page_aligned)s
    *(.data.idt)
  } :data
}
"""


def linked(tmp_path: Path, *, source: str = SOURCE, data: str = "*(.data)", page_aligned: str = "") -> Path:
    (tmp_path / "kernel.S").write_text(source)
    (tmp_path / "kernel.lds").write_text(SCRIPT % {"data": data, "page_aligned": page_aligned})
    script, kernel = tmp_path / "kernel.lds", tmp_path / "kernel"
    commands: tuple[list[str | Path], ...] = (
        [find_tool("gcc"), "-m32", "-c", "kernel.S", "-o", "kernel.o"],
        [find_tool("ld"), "-m", "elf_i386", "-T", script, "kernel.o", "-o", kernel],
    )
    for command in commands:
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return kernel


def looked_at(path: Path) -> PageLayout:
    elf = parse_elf(path.read_bytes(), path.name)
    return page_layout(elf, xc_dom_parse_elf_kernel(elf), kernel_symbols(elf))


def ids(layout: PageLayout) -> list[str]:
    return [f"{finding.rule.slug} {finding.message.split()[0]}" for finding in layout.findings]


def test_the_founding_defect_is_found(tmp_path: Path) -> None:
    """Without the line that commit 5ead97c84fa7 added, ld puts the page tables behind the IDT, silently."""
    layout = looked_at(linked(tmp_path))
    where = {owner.name: owner.address % 4096 for owner in layout.owners}
    assert where == {"idt_table": 0, "swapper_pg_dir": 0x800, "empty_zero_page": 0x800}
    assert ids(layout) == [
        "page-symbol-shared idt_table",
        "page-symbol-misaligned swapper_pg_dir",
        "page-symbol-shared swapper_pg_dir",
        "page-symbol-misaligned empty_zero_page",
        "page-symbol-shared empty_zero_page",
    ]
    shared = {owner.name: owner.neighbours for owner in layout.owners}
    assert shared["swapper_pg_dir"] == ("idt_table", "empty_zero_page")
    assert survey(plan(tmp_path / "kernel")).failed


def test_the_line_of_the_commit_mends_it(tmp_path: Path) -> None:
    layout = looked_at(linked(tmp_path, page_aligned="*(.data.page_aligned)"))
    assert all(owner.aligned and not owner.neighbours for owner in layout.owners)
    assert layout.findings == ()
    assert [section.name for section in layout.sections] == [".data.page_aligned"]
    assert not survey(plan(tmp_path / "kernel")).failed


def test_page_aligned_data_behind_other_data_is_found(tmp_path: Path) -> None:
    """layout-rules: `*(.data)` before `*(.data.page_aligned)` in one output section."""
    layout = looked_at(linked(tmp_path, data="*(.data) *(.data.page_aligned)"))
    owner = next(owner for owner in layout.owners if owner.name == "swapper_pg_dir")
    assert (owner.section, owner.address % 4096, owner.neighbours) == (
        ".data",
        4,
        ("jiffies", "empty_zero_page"),
    )


def test_the_offset_of_a_finding_is_where_the_symbol_is_in_the_file(tmp_path: Path) -> None:
    kernel = linked(
        tmp_path, source=SOURCE.replace("swapper_pg_dir: .fill 4096,1,0", "swapper_pg_dir: .fill 4096,1,0x5a")
    )
    content = kernel.read_bytes()
    found = [f for f in looked_at(kernel).findings if "swapper_pg_dir (page" in f.message]
    assert {finding.offset for finding in found} == {content.index(b"\x5a" * 4096)}


@pytest.mark.parametrize(
    ("address", "slugs"),
    [
        (0xC0101000, []),
        (0xC0101800, ["hypercall-page-misaligned"]),
        (0xC0100000, ["hypercall-page-shared"]),
    ],
)
def test_the_page_that_hypercall_page_names(tmp_path: Path, address: int, slugs: list[str]) -> None:
    writer = xen_kernel(HYPERCALL_PAGE=address)
    writer.section(".text", SHT_PROGBITS, b"", addr=0xC0100000, flags=6, inside=(0, 0), size=0x1000)
    writer.section(".bss", SHT_NOBITS, b"", addr=0xC0101000, flags=3, size=0x2000)
    writer.symbols([("start_kernel", 0xC0100010, 0x20, 2)])
    path = tmp_path / "kernel"
    path.write_bytes(writer.build())
    assert [finding.rule.slug for finding in looked_at(path).findings] == slugs


def test_a_label_is_no_neighbour_and_an_alias_is_none_either(tmp_path: Path) -> None:
    writer = xen_kernel()
    writer.section(".bss", SHT_NOBITS, b"", addr=0xC0101000, flags=3, size=0x2000)
    writer.symbols(
        [
            ("swapper_pg_dir", 0xC0101000, 4096, 1),
            ("init_mm_pgd", 0xC0101000, 4096, 1),
            ("whole_bss", 0xC0101000, 0x2000, 1),
            ("pgd_middle", 0xC0101800, 8, 1),
            ("__bss_label", 0xC0101400, 0, 0),
            ("idt_table", 0xC0102000, 2048, 1),
        ]
    )
    path = tmp_path / "kernel"
    path.write_bytes(writer.build())
    layout = looked_at(path)
    assert {owner.name: owner.neighbours for owner in layout.owners} == {
        "swapper_pg_dir": (),
        "idt_table": (),
    }
    assert layout.findings == ()


@pytest.mark.parametrize("size", [4, 8])
def test_a_pointer_that_has_the_name_of_its_page_owns_none(tmp_path: Path, size: int) -> None:
    writer = xen_kernel()
    writer.section(".bss", SHT_NOBITS, b"", addr=0xC0101000, flags=3, size=0x1000)
    writer.symbols([("shared_info", 0xC0101004, size, 1), ("jiffies", 0xC0101010, 4, 1)])
    path = tmp_path / "kernel"
    path.write_bytes(writer.build())
    layout = looked_at(path)
    assert (layout.owners, layout.findings) == ((), ())


def test_sections_named_for_pages(tmp_path: Path) -> None:
    writer = xen_kernel()
    writer.section(".bss", SHT_NOBITS, b"", addr=0xC0101000, flags=3, size=0x820)
    writer.section(".bss..page_aligned", SHT_NOBITS, b"", addr=0xC0101820, flags=3, size=0x1000)
    writer.section(".data..page_aligned", SHT_NOBITS, b"", addr=0, flags=0, size=0x123)  # not loaded
    writer.symbols([("jiffies", 0xC0101000, 4, 1)])
    path = tmp_path / "kernel"
    path.write_bytes(writer.build())
    layout = looked_at(path)
    assert [section.name for section in layout.sections] == [".bss..page_aligned"]
    slugs = [finding.rule.slug for finding in layout.findings]
    assert slugs == ["page-aligned-section-misaligned", "page-aligned-section-shared"]
    assert "with .bss" in layout.findings[1].message


def test_without_symbols_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(xen_kernel().build())
    assert [finding.rule.slug for finding in looked_at(path).findings] == ["page-layout-unchecked"]


def test_every_kind_of_owner_has_a_reason() -> None:
    from domainbuilder.plan import page_layout as module

    assert set(PAGE_OWNERS.values()) == set(module._WHY)
