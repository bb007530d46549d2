"""File transfer to GDB: the kernels' files and no others, to be read.

Source: "Host I/O Packets" in GDB's manual; its errno values are in "Errno Values" there.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Container

from hvcore.debug.gdb.packets import PACKET_SIZE, escape

_ENOENT, _EBADF, _EINVAL, _EIO = 2, 9, 22, 5
_FD = 3
_MOST = PACKET_SIZE // 4
_STAT = struct.Struct(
    ">IIIIIIIQQQIII"
)  # dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime
_PREAD = re.compile(rb"pread:([0-9a-f]{1,8}),([0-9a-f]{1,16}),([0-9a-f]{1,16})\Z")


class HostFiles:
    """A file that is open while GDB reads it."""

    def __init__(self) -> None:
        self._file: int | None = None

    def handle(self, request: bytes, allowed: Container[str | None]) -> bytes:
        """The answer to what is behind `vFile:`, of files that are `allowed`."""
        name, _, rest = request.partition(b":")
        if name == b"setfs":
            return b"F0"
        if name == b"open":
            return self._open(rest, allowed)
        if name == b"close":
            self.close()
            return b"F0"
        if name == b"fstat":
            return self._fstat()
        match = _PREAD.match(request)
        if match is not None:
            return self._pread(int(match[2], 16), int(match[3], 16))
        return b"" if name != b"pread" else _error(_EINVAL)

    def close(self) -> None:
        """Close what is open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, rest: bytes, allowed: Container[str | None]) -> bytes:
        try:
            wanted = bytes.fromhex(rest.partition(b",")[0].decode("ascii")).decode()
        except ValueError:
            return _error(_EINVAL)
        if wanted not in allowed:
            return _error(_ENOENT)
        self.close()
        try:
            self._file = os.open(wanted, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return _error(error.errno or _EIO)
        return b"F%x" % _FD

    def _pread(self, count: int, offset: int) -> bytes:
        if self._file is None:
            return _error(_EBADF)
        if offset >= 1 << 63:
            return _error(_EINVAL)
        try:
            data = os.pread(self._file, min(count, _MOST), offset)
        except OSError as error:
            return _error(error.errno or _EIO)
        return b"F%x;" % len(data) + escape(data)

    def _fstat(self) -> bytes:
        if self._file is None:
            return _error(_EBADF)
        found = os.fstat(self._file)
        data = _STAT.pack(
            0,
            0,
            found.st_mode & 0xFFFFFFFF,
            1,
            0,
            0,
            0,
            found.st_size,
            4096,
            -(-found.st_size // 512),
            0,
            0,
            0,
        )
        return b"F%x;" % len(data) + escape(data)


def _error(number: int) -> bytes:
    return b"F-1,%x" % number
