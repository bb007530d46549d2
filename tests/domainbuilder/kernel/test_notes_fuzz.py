"""Mutated headers and notes by the thousand: a verdict or a BuildError, in bounded time, nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from domainbuilder.errors import BuildError
from domainbuilder.kernel.inspection import inspect_kernel
from domainbuilder.kernel.kernel_file import load_kernel_bytes
from domainbuilder.kernel.notes_text import render
from domainbuilder.reports.notes_report import notes_report
from domainbuilder.symbols.read import kernel_symbols
from tests.domainbuilder.elfwriter import SHT_NOTE, legacy_kernel, note, xen_kernel, xen_notes

FULL: dict[str, Any] = {
    "FEATURES": "!writable_page_tables|pae_pgdir_above_4gb|hvm_pirqs",
    "BSD_SYMTAB": "yes",
    "HYPERCALL_PAGE": 0xC0101000,
    "L1_MFN_VALID": bytes(16),
    "SUPPORTED_FEATURES": b"\x11\0\0\0",
    "PHYS32_ENTRY": 0x100000,
    "INFO": "KEY=value",
}
LEGACY = (
    "GUEST_OS=GNU Mach,GUEST_VERSION=1.3,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,ELF_PADDR_OFFSET=0xC0000000,"
    "HYPERCALL_PAGE=0x2,PAE=yes[extended-cr3],LOADER=generic,FEATURES=pae_pgdir_above_4gb,BSD_SYMTAB"
)


def in_sections(elf_class: int) -> bytes:
    writer = xen_kernel(elf_class=elf_class)
    writer.segments.pop()
    writer.section(".note", SHT_NOTE, b"".join(xen_notes(elf_class // 8)))
    return writer.section(
        ".note.b", SHT_NOTE, note(3, b"id", owner=b"GNU") + note(5, "xen-3.0", owner=b"name")
    ).build()


SEEDS = [
    image
    for elf_class in (32, 64)
    for image in (
        xen_kernel(elf_class=elf_class, **FULL).symbols([("a", 1, 2, 2)]).build(),
        in_sections(elf_class),
        legacy_kernel(LEGACY, elf_class=elf_class).symbols([("x", 0xC0000000, 0, 2)]).build(),
    )
]
WORDS = [
    0,
    1,
    3,
    4,
    7,
    0xFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFC,
    0xFFFFFFFF,
    (1 << 63),
    (1 << 64) - 1,
]


def hot(image: bytes) -> list[int]:
    """Where headers, notes and keys are: what is worth breaking."""
    places = {*range(0x200), *range(max(len(image) - 0x400, 0), len(image))}
    at = -1
    while (at := image.find(b"Xen\0", at + 1)) >= 0:
        places |= set(range(max(at - 12, 0), at + 32))
    return sorted(place for place in places if place < len(image))


HOT = [hot(image) for image in SEEDS]
EDITS = st.lists(
    st.tuples(
        st.integers(0, 1 << 16),
        st.one_of(
            st.integers(0, 255).map(lambda value: bytes([value])),
            st.sampled_from(WORDS).map(lambda value: (value & 0xFFFFFFFF).to_bytes(4, "little")),
            st.sampled_from(WORDS).map(lambda value: value.to_bytes(8, "little")),
            st.sampled_from([b",", b"=", b"|", b"!", b"\x1b", b"XEN\0"]),
        ),
    ),
    min_size=1,
    max_size=8,
)


def report(image: bytes) -> None:
    """Everything `domainbuilder notes` does with a kernel."""
    refusal = None
    try:
        inspection = inspect_kernel(load_kernel_bytes(image, "kernel", limit=1 << 22))
    except BuildError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith("kernel")
        return
    table = kernel_symbols(inspection.elf)
    for symbol in table:
        assert symbol.kind == "absolute" or table.at(symbol.value) is not None
    text = render(inspection)
    assert text.isprintable() or set(filter(lambda char: not char.isprintable(), text)) == {"\n"}
    assert notes_report([("kernel", inspection)]).model_dump_json()
    assert len(inspection.findings) < 5000


@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, len(SEEDS) - 1), EDITS, st.booleans())
@example(0, [(46, b"\xff\xff")], False)
def test_mutations(seed: int, edits: list[tuple[int, bytes]], aligned: bool) -> None:
    image, places = bytearray(SEEDS[seed]), HOT[seed]
    for where, data in edits:
        at = places[where % len(places)]
        at &= ~3 if aligned else ~0
        image[at : at + len(data)] = data[: len(image) - at]
    report(bytes(image))


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=600), st.sampled_from([b"", b"\x7fELF\1\1\1", b"\x7fELF\2\1\1", b"\x1f\x8b\x08"]))
def test_garbage(data: bytes, magic: bytes) -> None:
    report(magic + data)


def test_truncated_anywhere() -> None:
    for image in SEEDS:
        for end in range(0, len(image), 7):
            report(image[:end])


def test_the_most_notes_a_file_can_have() -> None:
    """65,536 PT_NOTEs over the same bytes, each a note of its own: libelf stops at 65,536 in all."""
    writer = xen_kernel()
    writer.segments[1].data = b"".join(note(kind % 25, b"", owner=b"name") for kind in range(3000))
    image = bytearray(writer.build())
    image[42:44] = (0).to_bytes(2, "little")  # e_phentsize: every header is the first
    image[44:46] = (0xFFFF).to_bytes(2, "little")
    image[52:84] = image[84:116]  # which is the PT_NOTE
    report(bytes(image))
