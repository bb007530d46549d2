"""FAT12, FAT16 and FAT32, to be read: long names, no case.

Source: Microsoft's FAT32 File System Specification 1.03 (which kind it is, the chains, the long names).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from domainbuilder.bootloader.disk import Budget, Disk, DiskError
from domainbuilder.errors import Where

_BPB = struct.Struct("<HBHBHHBHHHIII")  # from BPB_BytsPerSec at 11 to BPB_FATSz32
_DIR = struct.Struct("<11sBBBHHHHHHHI")
_ENTRY = 32
_LONG_NAME = 0x0F
_VOLUME = 0x08
_DIRECTORY = 0x10
_SMALL_STEM, _SMALL_SUFFIX = 0x08, 0x10  # as Windows NT notes a short name in small letters
_LAST_OF_LONG = 0x40
_END, _DELETED = 0, 0xE5
_MOST_ENTRIES = 65536  # in a directory: the specification's 2 MiB
_SHARED = {12: 0xFF7, 16: 0xFFF7, 32: 0x0FFFFFF7}  # from this value on: bad cluster, end of the chain


class _Found(NamedTuple):
    name: str
    directory: bool
    cluster: int
    size: int


class Fat:
    """The file system on `disk`. Raises DiskError for what is no FAT."""

    def __init__(self, disk: Disk, budget: Budget) -> None:
        self._disk = disk
        self._budget = budget
        boot = self._read(0, 512)
        (self._sector, per_cluster, reserved, fats, roots, total16, _media, fat16, *_, total32, fat32) = (
            _BPB.unpack_from(boot, 11)
        )
        if boot[510:] != b"\x55\xaa" or self._sector not in (512, 1024, 2048, 4096):
            raise self._fail("no FAT file system", 11)
        if per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128) or not fats or not reserved:
            raise self._fail("no FAT file system", 13)
        size = fat16 or fat32
        self._table = reserved * self._sector
        self._root = self._table + fats * size * self._sector
        self._root_size = roots * _ENTRY
        self._data = self._root + -(-self._root_size // self._sector) * self._sector
        self._cluster = per_cluster * self._sector
        clusters = ((total16 or total32) * self._sector - self._data) // self._cluster
        self._bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
        self._clusters = min(clusters, size * self._sector * 8 // self._bits)
        self._root_cluster = struct.unpack_from("<I", boot, 44)[0] if self._bits == 32 else 0
        if not size or self._clusters <= 0:
            raise self._fail("no FAT file system", 22)

    def _fail(self, reason: str, at: int) -> DiskError:
        return DiskError(reason, where=Where(self._disk.name, getattr(self._disk, "start", 0) + at))

    def _read(self, offset: int, length: int) -> bytes:
        self._budget.spend(length)
        return self._disk.read(offset, length)

    def _chain(self, cluster: int) -> Iterator[int]:
        """The clusters from that one on, at most as many as there are."""
        for _ in range(self._clusters):
            if not 2 <= cluster < self._clusters + 2:
                raise self._fail(f"cluster {cluster} does not exist", self._table)
            yield cluster
            at = self._table + cluster * self._bits // 8
            value = int.from_bytes(self._read(at, 4 if self._bits == 32 else 2), "little")
            if self._bits == 12:
                value = value >> (cluster & 1) * 4 & 0xFFF
            cluster = value & 0x0FFFFFFF
            if cluster >= _SHARED[self._bits]:
                return
        raise self._fail("a chain of clusters without an end", self._table)

    def _contents(self, cluster: int) -> Iterator[bytes]:
        for one in self._chain(cluster):
            yield self._read(self._data + (one - 2) * self._cluster, self._cluster)

    def _entries(self, cluster: int) -> Iterator[bytes]:
        """The 32 bytes of each, up to the end mark."""
        fixed = not cluster and self._bits != 32
        pieces = (
            iter([self._read(self._root, self._root_size)])
            if fixed
            else self._contents(cluster or self._root_cluster)
        )
        seen = 0
        for piece in pieces:
            for at in range(0, len(piece), _ENTRY):
                seen += 1
                if piece[at] == _END or seen > _MOST_ENTRIES:
                    return
                yield piece[at : at + _ENTRY]

    def _directory(self, cluster: int) -> Iterator[_Found]:
        long = ""
        for raw in self._entries(cluster):
            name, attributes, small, _, _, _, _, high, _, _, low, size = _DIR.unpack(raw)
            if raw[0] == _DELETED:
                long = ""
            elif attributes & 0x3F == _LONG_NAME:
                piece = (raw[1:11] + raw[14:26] + raw[28:32]).decode("utf-16-le", "replace")
                long = piece.split("\0")[0].rstrip("\uffff") + ("" if raw[0] & _LAST_OF_LONG else long)
            else:
                if not attributes & _VOLUME:
                    stem, suffix = (part.decode("cp437").rstrip() for part in (name[:8], name[8:]))
                    stem = stem.lower() if small & _SMALL_STEM else stem
                    suffix = suffix.lower() if small & _SMALL_SUFFIX else suffix
                    short = f"{stem}.{suffix}" if suffix else stem
                    yield _Found(long or short, bool(attributes & _DIRECTORY), high << 16 | low, size)
                long = ""

    def _find(self, path: str) -> _Found:
        found = _Found("/", directory=True, cluster=0, size=0)
        for part in path.split("/"):
            if part in ("", "."):
                continue
            if not found.directory:
                raise NotADirectoryError(path)
            same = (one for one in self._directory(found.cluster) if one.name.lower() == part.lower())
            if (below := next(same, None)) is None:
                raise FileNotFoundError(path)
            found = below
        return found

    def read(self, path: str, limit: int) -> bytes:
        """The file at `path`. Raises OSError where there is none, DiskError above `limit`."""
        found = self._find(path)
        if found.directory:
            raise IsADirectoryError(path)
        if found.size > limit:
            raise DiskError(f"{self._disk.name}: {path} is too large", found=found.size, expected=limit)
        data = bytearray()
        for piece in self._contents(found.cluster) if found.size else ():
            data += piece
            if len(data) >= found.size:
                break
        if len(data) < found.size:
            raise DiskError(f"{self._disk.name}: {path} is cut short", found=len(data), expected=found.size)
        return bytes(data[: found.size])

    def listdir(self, path: str) -> list[str]:
        """The names in the directory at `path`. Raises OSError where there is none."""
        found = self._find(path)
        if not found.directory:
            raise NotADirectoryError(path)
        return [one.name for one in self._directory(found.cluster) if one.name not in (".", "..")]
