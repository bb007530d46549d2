"""The kept kernels: found again, bounded, the user's own, and never the reason of a failure."""

from __future__ import annotations

import lzma
import os
import struct
import time
from pathlib import Path

import pytest

from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.kernel.unpacked import UnpackedKernels, cache_folder
from tests.domainbuilder.bzimage import bzimage

MIB = 1 << 20


def packed(number: int, size: int = MIB) -> tuple[memoryview, bytes]:
    image = bytes([number]) * size
    return memoryview(lzma.compress(image) + struct.pack("<I", size)), image


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    kept = UnpackedKernels(tmp_path / "a" / "b")
    stream, image = packed(1)
    assert kept.find(stream, len(image)) is None
    kept.keep(stream, image)
    found = kept.find(stream, len(image))
    assert found is not None
    assert found[:] == image
    assert kept.find(packed(2)[0], len(image)) is None
    assert kept.find(stream, len(image) + 1) is None
    assert (tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


def test_what_is_small_is_not_kept(tmp_path: Path) -> None:
    kept = UnpackedKernels(tmp_path)
    kept.keep(*packed(1, MIB - 1))
    assert names(tmp_path) == []


@pytest.mark.parametrize("bounds", [{"most_kernels": 3}, {"most_bytes": 3 * MIB}])
def test_what_was_not_used_for_longest_goes(tmp_path: Path, bounds: dict[str, int]) -> None:
    kept = UnpackedKernels(tmp_path, **bounds)
    streams = [packed(number) for number in range(4)]
    for number, (stream, image) in enumerate(streams[:3]):
        kept.keep(stream, image)
        for path in tmp_path.iterdir():
            if path.stat().st_mtime > time.time() - 1000:
                os.utime(path, (number, number + 1))
    assert kept.find(streams[0][0], MIB) is not None  # used now
    kept.keep(*streams[3])
    assert [kept.find(stream, MIB) is not None for stream, _ in streams] == [True, False, True, True]


def test_what_others_could_have_written_is_not_used(tmp_path: Path) -> None:
    kept = UnpackedKernels(tmp_path)
    stream, image = packed(1)
    kept.keep(stream, image)
    (path,) = tmp_path.iterdir()
    path.chmod(0o620)
    assert kept.find(stream, len(image)) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = UnpackedKernels(tmp_path / "file" / "kernels")
    stream, image = packed(1)
    kept.keep(stream, image)
    assert kept.find(stream, len(image)) is None


def test_a_kernel_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = b"\x7fELF" + os.urandom(64) + bytes(2 * MIB)
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(bzimage(lzma.compress(image) + struct.pack("<I", len(image))))
    kept = UnpackedKernels(tmp_path / "kernels")
    first = load_kernel(kernel, kept=kept)
    monkeypatch.setattr(lzma, "LZMADecompressor", None)  # nothing can be unpacked any more
    again = load_kernel(kernel, kept=kept)
    assert first.image[:] == again.image[:] == image
    assert (again.compression, again.payload_offset) == (first.compression, first.payload_offset)


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "domainbuilder" / "kernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/domainbuilder/kernels")
