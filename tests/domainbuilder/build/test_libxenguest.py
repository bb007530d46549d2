"""The same kernel, built by Debian's libxenguest and by us: every byte of memory, vCPU and shared_info.

Whatever version of a package `make guests` has fetched, the other side is computed anew.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.build.domain_image import build, plan
from domainbuilder.errors import BuildError
from tests.domainbuilder.build.test_domain_image import KERNELS as SYMBOLS
from tests.domainbuilder.build.test_image import KINDS
from tests.domainbuilder.elfwriter import xen_kernel
from tests.domainbuilder.libxenguest import FIRST_MFN, SHARED_INFO_MFN
from tests.domainbuilder.xenguest import Xenguest

KERNELS = (
    "gnumach-bullseye-i386.gz", "gnumach-bookworm-i386.gz", "gnumach-trixie-i386.gz",
    "gnumach-bookworm-amd64.gz", "grub-i386-xen.bin", "grub-x86_64-xen.bin", "vmlinuz-bookworm-amd64",
    "vmlinuz-trixie-amd64",
)  # fmt: skip
OPTIONS = {
    "bare": (128, "", None),
    "ramdisk": (100, "console=hvc0 quiet", bytes(range(256)) * 3000),
    "gzip": (128, "x" * 1024, gzip.compress(b"0707" + bytes(range(251)) * 999)),
}


def different_pages(ours: memoryview, theirs: bytes) -> list[int]:
    assert len(ours) == len(theirs)
    if ours == theirs:
        return []
    return [at >> 12 for at in range(0, len(ours), 4096) if ours[at : at + 4096] != theirs[at : at + 4096]]


def assert_the_same(
    xenguest: Xenguest, kernel: Path, folder: Path, options: tuple[int, str, bytes | None]
) -> None:
    memory_mib, cmdline, content = options
    ramdisk = None
    if content is not None:
        ramdisk = folder / "ramdisk"
        ramdisk.write_bytes(content)
    theirs = xenguest.build(kernel, memory_mib, cmdline, ramdisk)
    assert not theirs.refusal
    ours = build(
        kernel, memory_mib=memory_mib, cmdline=cmdline, ramdisk=ramdisk, frames="linear", first_mfn=FIRST_MFN,
        shared_info_mfn=SHARED_INFO_MFN,
    )  # fmt: skip
    assert different_pages(ours.ram, theirs.ram) == []
    width = 8 if ours.plan.guest.paging.levels == 4 else 4
    context = ours.context.pack(width)
    assert context == theirs.context[: len(context)]
    assert ours.shared_info == theirs.shared_info
    parms, facts = ours.plan.parms, theirs.facts
    assert ours.plan.guest.name == facts["guest_type"]
    for name in ("guest_os", "virt_base", "virt_entry", "virt_hypercall", "virt_kstart", "virt_kend"):
        assert getattr(parms, name) == facts[name], name
    assert facts["pinned"] == [ours.plan.guest.paging.levels - 1, ours.p2m[ours.plan.pgtables_pfn]]


@pytest.mark.guest
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", KERNELS)
def test_real_kernels(
    name: str, options: str, guest_kernel: Callable[[str], Path], xenguest: Xenguest, tmp_path: Path
) -> None:
    assert_the_same(xenguest, guest_kernel(name), tmp_path, OPTIONS[options])


MADE = {
    **{kind: xen_kernel(**options).build() for kind, options in KINDS.items() if kind != "two-level"},
    **{f"symbols-{width}": raw for width, raw in SYMBOLS.items()},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", MADE)
def test_kernels_of_every_kind(kind: str, options: str, xenguest: Xenguest, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(MADE[kind])
    assert_the_same(xenguest, kernel, tmp_path, OPTIONS[options])


def test_two_levels_are_refused(xenguest: Xenguest, tmp_path: Path) -> None:
    """We build them all the same, by the rules of Xen 3, and say so."""
    kernel = tmp_path / "kernel"
    kernel.write_bytes(xen_kernel(PAE_MODE="no").build())
    assert "guest type xen-3.0-x86_32 not supported" in xenguest.build(kernel, 16).refusal
    slugs = {finding.rule.slug for finding in plan(kernel, memory_mib=16).findings}
    assert "guest-type-unsupported" in slugs


@pytest.mark.guest
def test_what_is_refused(guest_kernel: Callable[[str], Path], xenguest: Xenguest) -> None:
    kernel = guest_kernel("grub-i386-xen_pvh.bin")
    assert "xc_dom_find_loader: no loader found" in xenguest.build(kernel, 128).refusal
    with pytest.raises(BuildError, match="xc_dom_find_loader: no loader found"):
        plan(kernel)
