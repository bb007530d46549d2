"""Disks that are read only: an image file or block device, a part of one, and a file object with a budget.

The libraries that read file systems get a `MeteredFile`. However a hostile image leads them in circles, they
read `Budget` bytes at most and then stop.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from domainbuilder.errors import BuildError, Where
from domainbuilder.inputs import LIMITS

_LEAST_READ = 4096  # what a read costs at least, so that many small ones come to an end as well


class DiskError(BuildError):
    """The disk image cannot be read, or nothing on it can be booted."""


class Disk(Protocol):
    """Bytes at offsets. `name` is for messages."""

    @property
    def name(self) -> str:
        """The user's name of it."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes. Raises DiskError where the disk ends before."""


def _size(name: str, fd: int) -> int:
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise DiskError("not a disk image", where=Where(name), expected="a file or a block device")
    return os.lseek(fd, 0, os.SEEK_END)


class RawDisk:
    """A raw image, or a block device. Raises OSError, and DiskError for what is neither."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.size = _size(name, self._fd)
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes. Raises DiskError where the disk ends before."""
        data = os.pread(self._fd, length, offset) if 0 <= offset <= self.size and length >= 0 else b""
        if len(data) != length:
            raise DiskError(
                "the disk ends too early", where=Where(self.name, offset), found=len(data), expected=length
            )
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


@contextmanager
def open_disk(name: str) -> Iterator[RawDisk]:
    """The disk called `name`, closed at the end. Raises as RawDisk."""
    disk = RawDisk(name)
    try:
        yield disk
    finally:
        disk.close()


class PartOfDisk:
    """`size` bytes of a disk from `start` on, as a disk of its own; no more of it than there is."""

    def __init__(self, disk: Disk, start: int, size: int) -> None:
        self._disk = disk
        self.start = start
        self.name = disk.name
        self.size = max(0, min(size, disk.size - start))

    def read(self, offset: int, length: int) -> bytes:
        """Exactly those bytes. Raises DiskError where the part ends before."""
        if not 0 <= offset <= offset + length <= self.size:
            raise DiskError(
                "outside the partition",
                where=Where(self.name, self.start + max(offset, 0)),
                found=f"{length} bytes from {offset:#x}",
                expected=f"{self.size:#x} bytes in all",
            )
        return self._disk.read(self.start + offset, length)


class Budget:
    """How much may still be read of a disk on behalf of one question."""

    def __init__(self, name: str, size: int = LIMITS["disk"].size) -> None:
        self._name = name
        self._most = size
        self._left = size

    def spend(self, length: int) -> None:
        """Take the cost of one read. Raises DiskError when nothing is left."""
        self._left -= max(length, _LEAST_READ)
        if self._left < 0:
            raise DiskError(
                "the file system leads in circles",
                where=Where(self._name),
                found=f"more than {self._most:#x} bytes read",
            )


class MeteredFile(io.RawIOBase):
    """A disk as a binary file for libraries. At its end it is short, as files are."""

    def __init__(self, disk: Disk, budget: Budget) -> None:
        super().__init__()
        self._disk = disk
        self._budget = budget
        self._at = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """As files do."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._disk.size}[whence]
        if start + offset < 0:
            raise ValueError("a seek before the start")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """As files do; raises DiskError when the budget is spent."""
        length = max(0, min(len(buffer), self._disk.size - self._at))
        self._budget.spend(length)
        if length:
            buffer[:length] = self._disk.read(self._at, length)
        self._at += length
        return length

    def read(self, size: int = -1, /) -> bytes:
        """As files do. No memory is taken for what lies behind the end."""
        left = max(0, self._disk.size - self._at)
        data = bytearray(left if size < 0 else min(size, left))
        return bytes(data[: self.readinto(data)])
