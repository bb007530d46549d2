"""What is on a disk: files as they are, and a copy-on-write layer over one in memory.

A file is an input of the run and may be anything; one that is cut short later gives I/O errors to the guest.
Xen leaves this to Linux's loop device; the interface is what hvcore/backends/block.py wants.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple, Protocol

from hvcore.public.blkif import SECTOR_SIZE

BLOCK = 4096  # what a layer keeps at a time
_ZEROS = bytes(BLOCK)
_FALLOC_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_BLKSSZGET, _BLKPBSZGET = 0x1268, 0x127B  # linux/fs.h
_U32 = struct.Struct("I")


class SectorSizes(NamedTuple):
    """What a disk is read and written in, at least and at best: its logical and physical blocks, in bytes."""

    logical: int = SECTOR_SIZE
    physical: int = SECTOR_SIZE


_OF_FILES = SectorSizes()  # of a loop device, too


class BlockImage(Protocol):
    """A disk of `size` bytes. Offsets and lengths are whole sectors within it. All raise OSError."""

    size: int
    sector_sizes: SectorSizes

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers with what is at `offset`."""

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write the buffers' bytes from `offset` on."""

    def discard(self, offset: int, length: int) -> None:
        """What is there is not needed any more: it reads as zeros from now on, or as it was."""

    def flush(self) -> None:
        """All that was written is on the disk when this returns."""

    def close(self) -> None:
        """No more of it."""


class RawImage:
    """A file, or a block device, whose bytes are the disk's.

    One domain writes to it, or any number read it (xl's block script sees to that): it is locked, flock(2),
    until it is closed.
    """

    def __init__(self, path: str, *, writable: bool) -> None:
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            _check_kind(self._fd, path)
            _lock(self._fd, path, writable=writable)
            self.length = os.lseek(self._fd, 0, os.SEEK_END)
            self.size = self.length // SECTOR_SIZE * SECTOR_SIZE
            self.sector_sizes = _sector_sizes(self._fd)
        except OSError:
            os.close(self._fd)
            raise

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage."""
        wanted = sum(map(len, buffers))
        if os.preadv(self._fd, buffers, offset) != wanted:
            raise OSError(errno.EIO, "the file has been cut short")

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage."""
        wanted, done = sum(map(len, buffers)), os.pwritev(self._fd, buffers, offset)
        while done < wanted:  # a signal came, or the disk is full: then the next write says so
            rest = b"".join(buffers)[done:]
            done += os.pwrite(self._fd, rest, offset + done)

    def read_or_zeros(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """The same, with zeros for what is behind the end of the file."""
        wanted, done = sum(map(len, buffers)), os.preadv(self._fd, buffers, offset)
        if done < wanted:
            pieces = Buffers(buffers)
            pieces.take(done)
            zero(pieces.take(wanted - done))

    def read_bytes(self, offset: int, size: int) -> bytes:
        """As many bytes of the file as are there, for formats that are read in pieces."""
        return os.pread(self._fd, size, offset) if offset < 1 << 62 else b""

    def write_bytes(self, offset: int, data: bytes) -> None:
        """Write bytes of the file, which grows where they are behind its end."""
        self.write(offset, [memoryview(data)])

    def discard(self, offset: int, length: int) -> None:
        """See BlockImage: a hole in the file."""
        if _libc().fallocate(self._fd, _FALLOC_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def flush(self) -> None:
        """See BlockImage."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """See BlockImage."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _check_kind(fd: int, path: str) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise OSError(errno.EINVAL, "neither a file nor a block device", path)


def _sector_sizes(fd: int) -> SectorSizes:
    """Those of a block device, as Linux has them for blkback."""
    if not stat.S_ISBLK(os.fstat(fd).st_mode):
        return _OF_FILES
    asked = [fcntl.ioctl(fd, request, bytes(_U32.size)) for request in (_BLKSSZGET, _BLKPBSZGET)]
    return SectorSizes(*(_U32.unpack(size)[0] for size in asked))


def _lock(fd: int, path: str, *, writable: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        reason = "another domain has it, and one of the two would write to it"
        raise OSError(errno.EBUSY, reason, path) from None
    except OSError:
        return  # of a file system that knows no locks


class Layer:
    """A disk whose writes stay in memory, and are gone with it. `base` is only read.

    `blocks` are what was written, by the number of its block of 4 KiB.
    """

    def __init__(self, base: BlockImage) -> None:
        self.base = base
        self.size = base.size
        self.sector_sizes = base.sector_sizes
        self.blocks: dict[int, bytes] = {}

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, is in memory) of the pieces of a range: one block, or any number that are not."""
        end = offset + length
        while offset < end:
            block = offset // BLOCK
            is_in = block in self.blocks
            stop = block + 1
            while not is_in and stop * BLOCK < end and stop not in self.blocks:
                stop += 1
            piece = min(stop * BLOCK, end) - offset
            yield offset, piece, is_in
            offset += piece

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage."""
        pieces = Buffers(buffers)
        for start, length, is_in in self._runs(offset, sum(map(len, buffers))):
            taken = pieces.take(length)
            if not is_in:
                self.base.read(start, taken)
                continue
            fill(taken, self.blocks[start // BLOCK], start % BLOCK)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage."""
        pieces, end = Buffers(buffers), offset + sum(map(len, buffers))
        while offset < end:
            block, at = divmod(offset, BLOCK)
            size = min(BLOCK - at, end - offset)
            data = b"".join(pieces.take(size))
            if size < BLOCK:
                before = self._block(block)
                data = before[:at] + data + before[at + size :]
            self.blocks[block] = data
            offset += size

    def _block(self, block: int) -> bytes:
        """A block as it is; the last one of a disk may be shorter, and zeros follow it."""
        found = self.blocks.get(block)
        if found is not None:
            return found
        data = bytearray(BLOCK)
        start = block * BLOCK
        self.base.read(start, [memoryview(data)[: min(BLOCK, self.size - start)]])
        return bytes(data)

    def discard(self, offset: int, length: int) -> None:
        """See BlockImage."""
        first, last = -(-offset // BLOCK), (offset + length) // BLOCK
        if first >= last:
            self._zero(offset, length)
            return
        self._zero(offset, first * BLOCK - offset)
        self._zero(last * BLOCK, offset + length - last * BLOCK)
        self.blocks.update(dict.fromkeys(range(first, last), _ZEROS))

    def _zero(self, offset: int, length: int) -> None:
        if length:
            self.write(offset, [memoryview(bytes(length))])

    def flush(self) -> None:
        """See BlockImage: nothing of it is ever on a disk."""

    def close(self) -> None:
        """See BlockImage."""
        self.base.close()


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class Buffers:
    """A list of buffers that is taken from its head, as many bytes at a time as are wanted."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._left = list(buffers)[::-1]

    def take(self, length: int) -> list[memoryview]:
        """The next `length` bytes, in pieces."""
        taken = []
        while length:
            buffer = self._left.pop()
            if len(buffer) > length:
                self._left.append(buffer[length:])
                buffer = buffer[:length]
            taken.append(buffer)
            length -= len(buffer)
        return taken


def fill(buffers: Sequence[memoryview], data: bytes | bytearray | memoryview, at: int) -> None:
    """Fill the buffers, one after the other, with `data` from `at` on."""
    for buffer in buffers:
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)


def zero(buffers: Sequence[memoryview]) -> None:
    """Fill the buffers with zeros."""
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))


class NoImage:
    """A drive with nothing in it."""

    size = 0
    sector_sizes = _OF_FILES

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage: there is no sector that could be read."""
        del offset, buffers
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    write = read

    def discard(self, offset: int, length: int) -> None:
        """See BlockImage."""
        del offset, length
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def flush(self) -> None:
        """See BlockImage."""

    def close(self) -> None:
        """See BlockImage."""
