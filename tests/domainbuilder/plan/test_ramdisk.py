"""Ramdisks: opened, measured as Xen measures them, unzipped into guest memory."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from domainbuilder.build.guest_memory import GuestMemory, allocate_ram, xen_frames
from domainbuilder.errors import BuildError, LayoutError
from domainbuilder.plan.ramdisk import XC_DOM_DECOMPRESS_MAX, check_gzip, open_ramdisk

CONTENT = random.Random(1).randbytes(3_000_000) + bytes(500_000)
ZIPPED = gzip.compress(CONTENT, 1)


def memory(pages: int = 1200) -> GuestMemory:
    return GuestMemory(allocate_ram(pages), xen_frames(pages, 0x77), 0x77)


def loaded(blob: bytes) -> tuple[bytes, bool]:
    """The module's segment, to the end of its last page, and whether it was unzipped."""
    ramdisk, guest = open_ramdisk(blob), memory()
    size = -(-ramdisk.segment_size // 4096) * 4096
    unzipped = ramdisk.load(guest, 3)
    assert not any(guest.read(0, 3 * 4096))
    rest = 3 * 4096 + size
    assert not any(guest.read(0, len(guest.ram) - rest, rest))
    return guest.read(3, size), unzipped


def padded(content: bytes, size: int) -> bytes:
    return content.ljust(-(-size // 4096) * 4096, b"\0")


def test_gzip_is_unzipped_and_counts_sixteen_bytes_more() -> None:
    """xc_dom_check_gzip adds 16 to the size that gzip states, and mod_len shows it."""
    assert open_ramdisk(ZIPPED).segment_size == len(CONTENT) + 16
    assert loaded(ZIPPED) == (padded(CONTENT, len(CONTENT) + 16), True)


def test_anything_else_is_handed_over_as_it_is() -> None:
    assert open_ramdisk(CONTENT).segment_size == len(CONTENT)
    assert loaded(CONTENT) == (padded(CONTENT, len(CONTENT)), False)
    assert loaded(b"\x1f\x8b123") == (padded(b"\x1f\x8b123", 5), False)


@pytest.mark.parametrize(
    "damaged",
    [
        ZIPPED[:2_000_000] + ZIPPED[-4:],
        ZIPPED[:1_000_000] + bytes(100) + ZIPPED[1_000_100:],
        ZIPPED[:-4] + (100_000).to_bytes(4, "little"),  # says less than there is
        ZIPPED[:-8] + bytes(4) + ZIPPED[-4:],  # wrong checksum
        b"\x1f\x8b" + bytes(40),
    ],
    ids=["cut", "holed", "understated", "checksum", "nonsense"],
)
def test_a_damaged_one_is_handed_over_raw(damaged: bytes) -> None:
    """xc_dom_build_module: "Fall back to handing over the raw blob", in the space measured before."""
    size = open_ramdisk(damaged).segment_size
    assert loaded(damaged) == (padded(damaged, size), False)


def test_only_the_first_gzip_member_counts() -> None:
    """zlib's inflate stops at the end of a member; the size stated last is that of the last one."""
    first, second = gzip.compress(b"a" * 5000), gzip.compress(b"b" * 9000)
    assert open_ramdisk(first + second).segment_size == 9016
    assert loaded(first + second) == (padded(b"a" * 5000, 9016), True)


@pytest.mark.parametrize("stated", [XC_DOM_DECOMPRESS_MAX - 8, XC_DOM_DECOMPRESS_MAX + 1, 0xFFFFFFFF])
def test_a_size_beyond_xens_limit_is_not_believed(stated: int) -> None:
    bomb = gzip.compress(bytes(10_000))[:-4] + stated.to_bytes(4, "little")
    assert open_ramdisk(bomb).segment_size == len(bomb)
    assert loaded(bomb) == (padded(bomb, len(bomb)), False)


def test_check_gzip_as_in_xen() -> None:
    assert check_gzip(b"\x1f\x8b" + (5).to_bytes(4, "little")) == 21
    assert check_gzip(b"\x1f\x8b\0\0\0") == 0
    assert check_gzip(b"PK\0\0\5\0\0\0") == 0


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(ZIPPED)
    ramdisk = open_ramdisk(path)
    assert (ramdisk.name, ramdisk.segment_size) == (str(path), len(CONTENT) + 16)
    guest = memory()
    assert ramdisk.load(guest, 0)
    assert guest.read(0, len(CONTENT)) == CONTENT


def test_what_is_no_ramdisk(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(XC_DOM_DECOMPRESS_MAX + 1)
    for name, reason in {
        "missing": "failed to open file: No such file or directory",
        "empty": "zero length file",
        "pipe": "zero length file",
        "": "not a regular file",
        "nul\0": "failed to open file: .*embedded null",
    }.items():
        with pytest.raises(BuildError, match=reason):
            open_ramdisk(tmp_path / name)
    with pytest.raises(LayoutError, match="module 0 image too large"):
        open_ramdisk(tmp_path / "huge")
    with pytest.raises(BuildError, match="zero length file"):
        open_ramdisk(b"")
