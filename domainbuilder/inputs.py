"""Opening input files: what may be one, how much of it is read, and what stands for standard input.

LIMITS says what the largest input of each kind is; tests/test_limits.py walks it, and the linter's own.
"""

from __future__ import annotations

import mmap
import os
import select
import stat
from typing import NamedTuple

STDIN_NAME = "-"
SOCKET_PREFIX = "unix:"
_CHUNK = 1 << 20


class Limit(NamedTuple):
    """At most how many bytes a reader takes, of what."""

    size: int
    what: str


LIMITS = {
    "kernel": Limit(512 << 20, "a kernel, unpacked"),
    "pipe": Limit(1 << 30, "a kernel or ramdisk that comes through a pipe"),
    "ramdisk": Limit(1 << 30, "a ramdisk: XC_DOM_DECOMPRESS_MAX of xenguest.h"),
    "symbols": Limit(128 << 20, "a System.map"),
    "image notes": Limit(1 << 16, "the notes of a built domain"),
    "disk": Limit(512 << 20, "what is read of a disk in search of a kernel"),
    "file on a disk": Limit(128 << 20, "a kernel or ramdisk on a disk: LIMIT_FSIZE of pygrub"),
    "boot configuration": Limit(1 << 20, "a configuration of a boot loader"),
    "core notes": Limit(64 << 20, "the notes of a dump of a domain"),
    "saved configuration": Limit(1 << 20, "the configuration in a file of xl's"),
    "saved memory": Limit(4 << 30, "the contents of a saved domain's memory"),
    "configuration": Limit(1 << 20, "a configuration of xl.cfg(5)"),
    "transcript": Limit(16 << 20, "a guest's output that is kept for --expect and reports"),
}


def names_socket(name: str | os.PathLike[str]) -> bool:
    """Whether this is a socket of this machine's, as "unix:PATH"."""
    return os.fspath(name).startswith(SOCKET_PREFIX)


def beginning(name: str | os.PathLike[str], size: int) -> bytes:
    """The first `size` bytes of a file, or what there is; none of what cannot be read twice, as a pipe."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    try:
        return os.pread(fd, size, 0)
    except OSError:
        return b""
    finally:
        os.close(fd)


def is_elf(name: str | os.PathLike[str]) -> bool:
    """Whether a file begins like an ELF file."""
    return beginning(name, 4) == b"\x7fELF"


def open_input(name: str | os.PathLike[str]) -> bytes | mmap.mmap:
    """The contents of the file called `name`: a regular file mapped, a pipe read to its end; empty if it is.

    "-" is standard input. A pipe that nobody has opened for writing is no input: nothing is waited for.
    Raises OSError, and ValueError with the reason for what is neither file nor pipe, or too large.
    """
    path = os.fspath(name)
    standard = path == STDIN_NAME
    fd = os.dup(0) if standard else os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return mmap.mmap(fd, 0, access=mmap.ACCESS_READ) if found.st_size else b""
        if not (stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)):
            raise ValueError("not a regular file, and no pipe")
        return _read_pipe(fd)
    finally:
        os.close(fd)


def _read_pipe(fd: int) -> bytes:
    data = bytearray()
    while True:
        try:
            piece = os.read(fd, _CHUNK)
        except BlockingIOError:
            select.select([fd], [], [])
            continue
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > LIMITS["pipe"].size:
            raise ValueError(f"more than {LIMITS['pipe'].size:#x} bytes came through the pipe")
