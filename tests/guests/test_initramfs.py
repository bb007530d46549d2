"""The initramfs that the boots use: the same bytes every time, and readable by another program."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests.initramfs import cpio, initramfs, program


def test_it_is_the_same_every_time() -> None:
    first, second = (initramfs("poweroff.sh", b"busybox", {"b": b"2", "a": b"1"}) for _ in range(2))
    assert first == second
    assert initramfs("poweroff.sh", b"busybox", {"a": b"1", "b": b"2"}) == first
    assert initramfs("poweroff.sh", b"busybox", {"a": b"1", "b": b"3"}) != first


def test_every_part_begins_at_a_multiple_of_four() -> None:
    for size in range(9):
        archive = cpio([program("x" * size, bytes(size))])
        assert len(archive) % 4 == 0
        assert archive.index(b"070701", 6) % 4 == 0


@pytest.mark.guest
def test_busybox_reads_it(guest_kernel: Callable[[str], Path], tmp_path: Path) -> None:
    busybox = guest_kernel("busybox-amd64")
    archive = initramfs("userland.sh", busybox.read_bytes(), {"more": b"#!/bin/sh\n"})
    done = subprocess.run(
        [busybox, "cpio", "-i", "-d", "bin/busybox", "bin/more", "bin/awk", "init", "tmp"],
        input=archive, cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == b""
    assert (tmp_path / "bin/more").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/awk").readlink() == Path("busybox")
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (busybox, tmp_path / "bin/busybox")]
    assert digests[0] == digests[1]
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
    listing = subprocess.run([busybox, "cpio", "-t", "-v"], input=archive, capture_output=True, check=True)
    assert b"crw-------" in listing.stdout
    assert b" 1970-01-01 00:00:00 dev/console\n" in listing.stdout
