"""The verdict per kind of guest, in Xen's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.kernel.inspection import inspect, inspect_kernel
from domainbuilder.kernel.kernel_file import load_kernel_bytes
from domainbuilder.kernel.verdict import GuestKind, Verdict
from tests.domainbuilder.elfwriter import ElfWriter, note, xen_kernel


def judge(writer: ElfWriter) -> dict[GuestKind, Verdict]:
    verdicts = inspect_kernel(load_kernel_bytes(writer.build(), "kernel")).verdicts
    assert [verdict.kind for verdict in verdicts] == list(GuestKind)
    return {verdict.kind: verdict for verdict in verdicts}


def accepted(writer: ElfWriter) -> set[str]:
    return {kind.value for kind, verdict in judge(writer).items() if verdict.accepted}


@pytest.mark.parametrize(
    ("writer", "kinds"),
    [
        (xen_kernel(), {"pv32-pae"}),
        (xen_kernel(PAE_MODE="no"), {"pv32-two-level"}),
        (xen_kernel(PAE_MODE="bimodal"), {"pv32-pae", "pv32-two-level"}),
        (xen_kernel(elf_class=64), {"pv64"}),
        (xen_kernel(elf_class=64, PHYS32_ENTRY=0x100000), {"pv64", "pvh"}),
        (ElfWriter().load(bytes(16), paddr=0x100000).note_segment(note(18, 0x100000)), {"pvh"}),
        (ElfWriter().load(bytes(16), paddr=0x100000), set()),
        (xen_kernel(machine=40), set()),
    ],
)
def test_kinds(writer: ElfWriter, kinds: set[str]) -> None:
    assert accepted(writer) == kinds


def test_two_level_is_taken_here_and_refused_by_xen() -> None:
    verdict = judge(xen_kernel(PAE_MODE="no"))[GuestKind.PV32_TWO_LEVEL]
    assert (verdict.accepted, verdict.xen) == (True, False)
    assert (
        "xc_dom_compat_check: guest type xen-3.0-x86_32 not supported by xen kernel, sorry" in verdict.reason
    )


def test_reasons() -> None:
    found = judge(xen_kernel(LOADER="grub"))
    assert 'no loader found: Invalid kernel: LOADER is "grub"' in found[GuestKind.PV32_PAE].reason
    assert found[GuestKind.PV64].reason == "it is for i386"
    assert found[GuestKind.PVH].reason == "it has no PHYS32_ENTRY note"
    assert judge(xen_kernel())[GuestKind.PV32_TWO_LEVEL].reason == "it asks for xen-3.0-x86_32p"


def test_a_xen_without_pv32_is_remarked_upon() -> None:
    assert "CONFIG_PV32" in judge(xen_kernel())[GuestKind.PV32_PAE].remark


@pytest.mark.guest
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("grub-i386-xen.bin", {"pv32-pae"}),
        ("grub-x86_64-xen.bin", {"pv64"}),
        ("grub-i386-xen_pvh.bin", {"pvh"}),
        ("gnumach-bullseye-i386.gz", {"pv32-pae"}),
        ("gnumach-bookworm-i386.gz", {"pv32-pae"}),
        ("gnumach-trixie-i386.gz", {"pv32-pae"}),
        ("gnumach-bookworm-amd64.gz", {"pv64"}),
        ("vmlinuz-bookworm-amd64", {"pv64", "pvh"}),
    ],
)
def test_real_kernels(name: str, kinds: set[str], guest_kernel: Callable[[str], Path]) -> None:
    assert {verdict.kind.value for verdict in inspect(guest_kernel(name)).accepted} == kinds
