"""Opening kernel files: every packing, every way of cutting it short, and bombs."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.errors import BuildError, KernelFormatError
from domainbuilder.kernel.kernel_file import load_kernel, load_kernel_bytes
from tests.domainbuilder.bzimage import PAYLOADS, bzimage, lzop
from tests.domainbuilder.elfwriter import xen_kernel
from tests.needs import missing

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
        (bzimage(b"\x89LZO" + bytes(60)), "LZO decompress kernel: invalid header"),
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
        (tmp_path / "pipe", "zero length file"),  # nobody writes to it, and nobody is waited for
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


def lzop_image(payload: bytes, size: int | None = None) -> bytes:
    return bzimage(payload + struct.pack("<I", len(ELF) if size is None else size))


@pytest.mark.parametrize("version", [0x0100, 0x0940, 0x1040])
@pytest.mark.parametrize("flags", [0x03000001, 0x03000801])
def test_every_header_of_lzop(version: int, flags: int) -> None:
    data = lzop_image(lzop(ELF, 4096, version=version, flags=flags))
    kernel = load_kernel_bytes(data, "kernel")
    assert (kernel.compression, bytes(kernel.image), kernel.trailing) == ("lzo", ELF, 0)


def test_what_lzop_itself_writes() -> None:
    """Incompressible blocks among the others: those it stores."""
    if not shutil.which("lzop"):
        missing("lzop is needed to make a payload as Linux's build does")
    image = ELF + random.Random(1).randbytes(300_000) + ELF
    packed = subprocess.run(["lzop", "-9"], input=image, capture_output=True, check=True).stdout
    assert bytes(load_kernel_bytes(lzop_image(packed, len(image)), "kernel").image) == image


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda raw: raw[:40], "Short input|Incomplete header"),
        (lambda raw: raw[:-4], "Short input"),
        (
            lambda raw: raw[:38] + b"\0\5\0\0" + raw[42:],
            "Block size too large; found 0x50000; expected at most",
        ),
        (lambda raw: raw[:42] + b"\0\0\0\0" + raw[46:], "Bad source length; found 0x0"),
        (lambda raw: raw[:42] + b"\0\0\xff\xff" + raw[46:], "Bad source length"),
        (lambda raw: raw[:50] + b"\xff" * (len(raw) - 54) + raw[-4:], "LZO decompress kernel"),
        (lambda raw: raw[:-4] + raw[38:], "wrong size"),
    ],
)
def test_broken_lzop_files(change: Callable[[bytes], bytes], match: str) -> None:
    fails(lzop_image(change(lzop(ELF))), match)


def test_a_built_domain_is_told_from_a_kernel(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    """By whatever opens kernels, in one line; `plan` shows it."""
    image = tmp_path / "domain"
    run("build", str(sample_guest("hello")), "-o", str(image))
    for command in (("notes",), ("lint", "--elf"), ("lint", "diff", str(image))):
        done = run(*command, str(image), code=2)
        assert (
            "a dump-core file of a domain, not a kernel: `domainbuilder launch` runs it, `plan` shows it"
            in done
        )
    assert "xen-3.0-x86_32p, PAE paging, 64 MB" in run("plan", str(image))
    assert "has its memory" in run("plan", str(image), "-m", "32", code=2)


@pytest.mark.parametrize("packing", ["gzip", "bzimage"])
def test_lint_opens_packed_kernels(packing: str, tmp_path: Path) -> None:
    kernel, packed = tmp_path / "kernel", tmp_path / "packed"
    image = xen_kernel(HYPERCALL_PAGE=0xC0100010).build()
    kernel.write_bytes(image)
    packed.write_bytes(gzip.compress(image) if packing == "gzip" else bzimage(PAYLOADS["xz"](image)))
    found = [run("lint", "--elf", str(path), code=1).replace(str(path), "FILE") for path in (kernel, packed)]
    assert "[xen-hypercall-page]" in found[0]
    assert found[0] == found[1]
    run("lint", "diff", str(kernel), str(packed))


def run(*arguments: str, code: int = 0) -> str:
    """What the command prints, on both streams."""
    command = [sys.executable, "-m", "domainbuilder", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr
