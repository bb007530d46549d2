"""Opening kernel files: every packing, every way of cutting it short, and bombs."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.errors import BuildError, KernelFormatError
from domainbuilder.kernel.kernel_file import load_kernel, load_kernel_bytes
from tests.domainbuilder.bzimage import PAYLOADS, bzimage
from tests.domainbuilder.elfwriter import xen_kernel

ELF = xen_kernel().build()
LIMIT = 1 << 20


def fails(data: bytes, match: str) -> KernelFormatError:
    with pytest.raises(KernelFormatError, match=match) as caught:
        load_kernel_bytes(data, "kernel", limit=LIMIT)
    return caught.value


def test_raw_elf_is_mapped_not_read(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(ELF + bytes(64 << 20))
    tracemalloc.start()
    kernel = load_kernel(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (kernel.container, kernel.compression, kernel.payload_offset) == ("elf", "", 0)
    assert kernel.image[: len(ELF)] == ELF
    assert peak < 1 << 20


@pytest.mark.parametrize("compression", PAYLOADS)
def test_bzimage(compression: str) -> None:
    kernel = load_kernel_bytes(bzimage(PAYLOADS[compression](ELF)), "kernel")
    assert (kernel.container, kernel.compression) == ("bzimage", compression)
    assert kernel.payload_offset == 4 * 512 + 0x40
    assert kernel.image[:] == ELF
    assert kernel.packing == f"bzImage ({compression})"


@pytest.mark.parametrize("compression", PAYLOADS)
def test_large_payloads_come_in_pieces(compression: str) -> None:
    image = ELF + bytes(range(256)) * (9 << 12)
    assert load_kernel_bytes(bzimage(PAYLOADS[compression](image)), "kernel").image[:] == image


def test_gzip_and_gzipped_bzimage() -> None:
    kernel = load_kernel_bytes(gzip.compress(ELF), "kernel")
    assert (kernel.container, kernel.compression, kernel.image[:]) == ("gzip", "gzip", ELF)
    twice = load_kernel_bytes(gzip.compress(bzimage(PAYLOADS["zstd"](ELF))), "kernel")
    assert (twice.container, twice.compression, twice.gzipped, twice.image[:]) == (
        "bzimage",
        "zstd",
        True,
        ELF,
    )
    assert twice.packing == "gzip of bzImage (zstd)"


@pytest.mark.parametrize("compression", PAYLOADS)
def test_bombs_are_refused(compression: str) -> None:
    bomb = bzimage(PAYLOADS[compression](ELF + bytes(2 * LIMIT)))
    tracemalloc.start()
    fails(bomb, "kernel image too large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * LIMIT


@pytest.mark.parametrize("compression", [name for name in PAYLOADS if name != "gzip"])
def test_bombs_that_lie_about_their_size_are_refused(compression: str) -> None:
    payload = PAYLOADS[compression](ELF + bytes(2 * LIMIT))
    fails(bzimage(payload[:-4] + struct.pack("<I", 4096)), "decompress kernel")


def test_a_gzip_bomb_is_refused() -> None:
    fails(gzip.compress(ELF + bytes(2 * LIMIT)), "kernel image too large")


@pytest.mark.parametrize("compression", PAYLOADS)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_truncated_payloads(compression: str, kept: float) -> None:
    image = ELF + os.urandom(1 << 16)
    payload = PAYLOADS[compression](image)
    data = bzimage(payload)
    assert (
        fails(data[: len(data) - int(len(payload) * (1 - kept))], "payload length overflow").where is not None
    )
    fails(bzimage(payload[: int(len(payload) * kept)]), "decompress|too large|cut short|inflate")


def test_a_truncated_gzip() -> None:
    whole = gzip.compress(ELF)
    for end in range(18, len(whole) - 1, 97):
        fails(whole[:end], "inflate failed|cut short")


def test_a_corrupted_gzip() -> None:
    data = bytearray(gzip.compress(ELF))
    data[-8] ^= 1
    fails(bytes(data), "inflate failed.*incorrect data check")


def test_a_gzip_that_states_too_little_is_refused_as_xen_does() -> None:
    data = gzip.compress(ELF)
    fails(data[:-4] + struct.pack("<I", 100), "inflate failed")


def test_trailing_bytes_are_counted() -> None:
    size = struct.pack("<I", len(ELF))
    assert load_kernel_bytes(gzip.compress(ELF) + b"junk" + size, "kernel").trailing == 8


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "zero length file"),
        (b"\x7fEL", "no ELF, gzip or bzImage.*found 7f 45 4c; expected 7f 45 4c 46"),
        (b"#!/bin/sh\n", "no loader found: Invalid kernel; found 23 21 2f 62"),
        (bzimage(b"", version=0x207), r"boot protocol too old \(0207\)"),
        (bzimage(b"")[:0x500], "payload offset overflow"),
        (bzimage(b"\x89LZO" + bytes(60)), "LZO payloads are not supported"),
        (bzimage(ELF), "unknown compression format; found 7f 45 4c 46"),
        (bzimage(PAYLOADS["xz"](b"no ELF at all")), "the payload is no ELF image"),
        (bzimage(b"\xfd7zXZ\0"), "insufficient input data"),
        (bzimage(b"\xfd7zXZ\0" + bytes(60)), "wrong size|XZ decompress"),
        (bzimage(struct.pack("<II", 0x184C2102, 99) + bytes(8)), "LZ4.*"),
    ],
)
def test_unusable(data: bytes, match: str) -> None:
    assert "kernel" in str(fails(data, match))


def test_a_wrong_size_is_told() -> None:
    payload = PAYLOADS["xz"](ELF)
    error = fails(bzimage(payload[:-4] + struct.pack("<I", len(ELF) + 1)), "wrong size")
    assert (error.found, error.expected) == (len(ELF), len(ELF) + 1)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, match in (
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (tmp_path / "none", "No such file or directory"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(KernelFormatError, match=match) as caught:
            load_kernel(path)
        assert str(caught.value).startswith(str(path))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(KernelFormatError, match="zero length file"):
        load_kernel(tmp_path / "empty")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(PAYLOADS)), st.data())
def test_mutations_end_in_an_image_or_a_build_error(compression: str, data: st.DataObject) -> None:
    image = bytearray(bzimage(PAYLOADS[compression](ELF)))
    for _ in range(data.draw(st.integers(1, 6))):
        header = st.sampled_from([0x1F1, 0x202, 0x206, 0x207, *range(0x248, 0x250)])
        at = data.draw(header | st.integers(4 * 512 + 0x40, len(image) - 1))
        image[at] = data.draw(st.integers(0, 255))
    try:
        kernel = load_kernel_bytes(bytes(image), "kernel", limit=LIMIT)
    except BuildError:
        return
    assert len(kernel.image) <= LIMIT
