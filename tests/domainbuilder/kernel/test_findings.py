"""Every finding, provoked; and none where nothing is wrong."""

from __future__ import annotations

import gzip
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.kernel.findings import RULES, Severity
from domainbuilder.kernel.inspection import Inspection, inspect, inspect_kernel
from domainbuilder.kernel.kernel_file import load_kernel_bytes
from tests.domainbuilder.elfwriter import RWX, SHT_NOTE, ElfWriter, legacy_kernel, note, xen_kernel, xen_notes

LEGACY = "XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000,PAE=yes"


def look(kernel: ElfWriter | bytes) -> Inspection:
    return inspect_kernel(
        load_kernel_bytes(kernel if isinstance(kernel, bytes) else kernel.build(), "kernel")
    )


def in_section(notes: bytes) -> ElfWriter:
    writer = xen_kernel()
    writer.segments.pop()
    return writer.section(".notes", SHT_NOTE, notes)


def patched(kernel: ElfWriter, at: int, value: bytes) -> bytes:
    image = bytearray(kernel.build())
    image[at : at + len(value)] = value
    return bytes(image)


def renamed(owner: bytes) -> ElfWriter:
    notes = (note(5, "xen-3.0", owner=owner), note(8, "generic", owner=owner))
    return legacy_kernel(LEGACY).section(".note.Xen", SHT_NOTE, b"".join(notes))


def last_note(raw: bytes, **more: int) -> ElfWriter:
    """A good kernel whose last note is `raw`, at the end of its segment."""
    writer = xen_kernel()
    writer.segments[1].data += raw
    for name, value in more.items():
        setattr(writer.segments[1], name, value)
    return writer


def without_load() -> ElfWriter:
    writer = xen_kernel()
    writer.segments.pop(0)
    return writer


def changed_load(**more: int) -> ElfWriter:
    writer = xen_kernel()
    for name, value in more.items():
        setattr(writer.segments[0], name, value)
    return writer


def aligned_to_eight() -> ElfWriter:
    writer = xen_kernel(GUEST_OS="four")  # 5 bytes, padded to 8 by chance
    writer.segments[1].data = b"".join(xen_notes(VIRT_BASE=0xC0000000))
    writer.segments[1].align = 8
    return writer


E, W, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO

CASES: list[tuple[str, Severity, Callable[[], ElfWriter | bytes]]] = [
    ("no-notes", E, lambda: ElfWriter().load(bytes(64), paddr=0x100000)),
    ("refused", E, lambda: xen_kernel(LOADER="grub")),
    ("refused", E, lambda: xen_kernel(machine=40)),
    ("outside-pt-note", W, lambda: in_section(b"".join(xen_notes()))),
    ("owner", W, lambda: renamed(b"name")),
    ("owner", W, lambda: renamed(b"XEN")),
    ("owner", E, lambda: in_section(note(5, "xen-3.0", owner=b"name"))),
    ("cut-short", W, lambda: last_note(struct.pack("<III", 4, 12, 7) + b"Xen\0abc\0")),
    ("cut-short", E, lambda: last_note(struct.pack("<III", 4, 8, 12) + b"Xen\0\0\0\0\0")),
    ("alignment", W, aligned_to_eight),
    ("unterminated", W, lambda: last_note(note(7, b"1.0!") + note(6, "x"))),
    ("unterminated", INFO, lambda: xen_kernel(GUEST_VERSION=b"1.0")),
    ("number-size", E, lambda: xen_kernel(HV_START_LOW=b"\1\2\3")),
    ("number-size", E, lambda: xen_kernel(SUPPORTED_FEATURES=b"\1")),
    ("unknown-type", INFO, lambda: last_note(note(0x22, b"what"))),
    ("duplicate", W, lambda: last_note(note(6, "again"))),
    ("unknown-feature", INFO, lambda: xen_kernel(FEATURES="hvm_pirqs")),
    ("unknown-required-feature", E, lambda: xen_kernel(FEATURES="!hvm_pirqs")),
    ("string-truncated", W, lambda: xen_kernel(GUEST_OS="sixteen bytes ok")),
    ("legacy", INFO, lambda: legacy_kernel(LEGACY)),
    ("legacy-key", W, lambda: legacy_kernel(LEGACY + ",GUEST_VERSION=1.3")),
    ("legacy-number", W, lambda: legacy_kernel(LEGACY + ",HYPERCALL_PAGE=zzz")),
    ("legacy-required-feature", W, lambda: legacy_kernel(LEGACY + ",FEATURES=!foo,LOADER=x")),
    ("legacy-ignored", INFO, lambda: xen_kernel().section("__xen_guest", 1, b"LOADER=generic\0")),
    ("class-machine", W, lambda: xen_kernel(elf_class=64, machine=3)),
    ("byte-order", W, lambda: b"\x7fELF\x01\x02\x01" + bytes(57)),
    ("rwx-segment", INFO, lambda: changed_load(flags=RWX)),
    ("segments-overlap", E, lambda: xen_kernel().load(b"x", paddr=0x102FFF, memsz=16)),
    ("filesz-over-memsz", E, lambda: changed_load(memsz=0x800)),
    ("no-load-segment", E, without_load),
    ("load-without-permission", W, lambda: xen_kernel().load(b"x", paddr=0x200000, flags=0)),
    ("note-offset-zero", W, lambda: xen_kernel().note_segment(note(6, "x"), offset=0)),
    ("bsd-symtab-missing", W, lambda: xen_kernel(BSD_SYMTAB="yes")),
    ("hypercall-page", E, lambda: xen_kernel(HYPERCALL_PAGE=0xC0101004)),
    ("hypercall-page", E, lambda: xen_kernel(HYPERCALL_PAGE=0xC0200000)),
    ("two-level", W, lambda: xen_kernel(PAE_MODE=None)),
    ("pae-mode", W, lambda: xen_kernel(PAE_MODE="yes[extended-cr3]")),
    ("broken", W, lambda: patched(xen_kernel(), 46, struct.pack("<HH", 0, 0xFFFF))),
    ("trailing-data", W, lambda: gzip.compress(xen_kernel().build()) + struct.pack("<II", 0, 1 << 20)),
    ("entry-not-loaded", E, lambda: xen_kernel(ENTRY=0xC0180000).load(b"x", paddr=0x200000)),
    ("incongruent", W, lambda: changed_load(align=0x10000)),
    ("note-padding", W, lambda: last_note(note(6, "x", align=8) + note(0, "it is padded to 8"))),
    ("note-covers", W, lambda: last_note(note(6, b"x" + note(0, "within")))),
    ("note-garbage", W, lambda: last_note(bytes(16) + note(0, "behind"))),
    ("note-unread", W, lambda: xen_kernel().section(".more", SHT_NOTE, note(0, "in a section"))),
    ("unbuildable", E, lambda: xen_kernel(FEATURES="!auto_translated_physmap")),
]


@pytest.mark.parametrize(("slug", "severity", "kernel"), CASES, ids=[slug for slug, *_ in CASES])
def test_finding(slug: str, severity: Severity, kernel: Callable[[], ElfWriter | bytes]) -> None:
    inspection = look(kernel())
    found = {finding.rule.slug: finding for finding in inspection.findings}
    assert slug in found, sorted(found)
    finding = found[slug]
    assert finding.severity is severity
    assert finding.rule is RULES[slug]
    assert finding.message
    if finding.offset is not None:
        assert 0 <= finding.offset < len(inspection.elf.view)


def test_every_rule_is_provoked() -> None:
    assert {slug for slug, *_ in CASES} == set(RULES)


def test_ids_are_unique_and_in_order() -> None:
    ids = [rule.id for rule in RULES.values()]
    assert ids == [f"DBN{number:03}" for number in range(1, len(ids) + 1)]


def test_the_documentation_has_every_rule() -> None:
    text = (Path(__file__).parents[3] / "docs" / "notes.md").read_text()
    documented = dict(re.findall(r"^\| (DBN\d+) \| `([\w-]+)` \|", text, re.MULTILINE))
    assert documented == {rule.id: rule.slug for rule in RULES.values()}


def test_a_good_kernel_has_no_findings() -> None:
    kernel = changed_load(align=16)
    assert look(kernel).findings == ()


def test_errors_come_first() -> None:
    severities = [
        finding.severity for finding in look(xen_kernel(LOADER="grub", GUEST_VERSION=b"1.0")).findings
    ]
    assert severities == sorted(severities, reverse=True)
    assert len(severities) >= 2


def test_one_rule_is_told_64_times_at_most() -> None:
    findings = look(last_note(b"".join(note(kind, b"") for kind in range(100, 300)))).findings
    assert sum(finding.rule.slug == "unknown-type" for finding in findings) == 64


REAL: dict[str, set[str]] = {
    "grub-i386-xen.bin": {"cut-short", "rwx-segment", "incongruent"},
    "grub-x86_64-xen.bin": {"rwx-segment", "incongruent"},
    "grub-i386-xen_pvh.bin": {"rwx-segment", "incongruent"},
    "gnumach-bookworm-i386.gz": {"owner", "legacy", "legacy-key"},
    "gnumach-bookworm-amd64.gz": {"owner", "legacy", "legacy-key"},
    "vmlinuz-bookworm-amd64": {"rwx-segment", "unterminated"},
}


@pytest.mark.guest
@pytest.mark.parametrize("name", REAL)
def test_real_kernels_have_oddities_and_no_errors(name: str, guest_kernel: Callable[[str], Path]) -> None:
    inspection = inspect(guest_kernel(name))
    assert {finding.rule.slug for finding in inspection.findings} == REAL[name]
    assert inspection.errors == ()
