"""Partition tables: GPT, and MBR with its logical partitions.

Sources: UEFI 2.10, chapter 5 (GPT; the header's CRC decides between the two copies); the MBR's layout as in
tools/pygrub of Xen and block/partitions/msdos.c of Linux.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from domainbuilder.bootloader.disk import Disk, DiskError, PartOfDisk

_SECTOR = 512
_MBR_ENTRY = struct.Struct("<B3xB3xII")  # status, type, first sector, sectors
_MBR_TABLE = 446
_ACTIVE = 0x80
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MOST_LOGICAL = 64
_GPT_HEADER = struct.Struct("<8sIIII4Q16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_MOST_ENTRIES = 1024
_LARGEST_ENTRY = 4096


class Partition(NamedTuple):
    """A partition by its number as Linux has it, in bytes. `active` is the boot flag."""

    number: int
    start: int
    size: int
    active: bool
    kind: str  # an MBR type byte, or a GPT type GUID

    def on(self, disk: Disk) -> PartOfDisk:
        """The partition as a disk."""
        return PartOfDisk(disk, self.start, self.size)


def partitions(disk: Disk) -> list[Partition]:
    """Those of a disk, by number; empty where it has no table. Raises DiskError for a damaged GPT."""
    if disk.size < 2 * _SECTOR:
        return []
    mbr = disk.read(0, _SECTOR)
    if mbr[510:] != b"\x55\xaa":
        return []
    entries = [_MBR_ENTRY.unpack_from(mbr, _MBR_TABLE + 16 * n) for n in range(4)]
    if any(kind == _PROTECTIVE for _status, kind, _first, _count in entries):
        return list(_gpt(disk))
    if any(status & ~_ACTIVE for status, *_ in entries):
        return []  # a boot sector of a file system, which has the same mark
    return sorted(_mbr(disk, entries))


def _mbr(disk: Disk, entries: list[tuple[int, int, int, int]]) -> Iterator[Partition]:
    for number, (status, kind, first, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            yield from _logical(disk, first)
        elif kind and count:
            yield Partition(number, first * _SECTOR, count * _SECTOR, status == _ACTIVE, f"{kind:#04x}")


def _logical(disk: Disk, base: int) -> Iterator[Partition]:
    """The chain of extended boot records that begins at the sector `base`."""
    at = base
    for number in range(5, 5 + _MOST_LOGICAL):
        record = disk.read(at * _SECTOR, _SECTOR)
        if record[510:] != b"\x55\xaa":
            return
        status, kind, first, count = _MBR_ENTRY.unpack_from(record, _MBR_TABLE)
        if kind and count:
            start = (at + first) * _SECTOR
            yield Partition(number, start, count * _SECTOR, status == _ACTIVE, f"{kind:#04x}")
        _status, kind, first, _count = _MBR_ENTRY.unpack_from(record, _MBR_TABLE + 16)
        if kind not in _EXTENDED:
            return
        at = base + first


def _gpt(disk: Disk) -> Iterator[Partition]:
    for sector in (_SECTOR, 4096):
        for at in (sector, disk.size - sector):
            if (table := _gpt_table(disk, at, sector)) is not None:
                yield from table
                return
    raise DiskError(f"{disk.name}: the GPT is damaged: neither copy of its header has the right checksum")


def _gpt_table(disk: Disk, at: int, sector: int) -> list[Partition] | None:
    """What the GPT header at `at` describes, or None if it is none."""
    if not 0 <= at <= disk.size - sector:
        return None
    raw = disk.read(at, sector)
    magic, _revision, length, crc, _, _lba, _other, _first, _last, _guid, where, count, size, table_crc = (
        _GPT_HEADER.unpack_from(raw)
    )
    if magic != b"EFI PART" or not _GPT_HEADER.size <= length <= sector:
        return None
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:length]) != crc:
        return None
    if count > _MOST_ENTRIES or not _GPT_ENTRY.size <= size <= _LARGEST_ENTRY:
        return None
    if where * sector + count * size > disk.size:
        return None
    table = disk.read(where * sector, count * size)
    if zlib.crc32(table) != table_crc:
        return None
    found = []
    for n in range(count):
        kind, _unique, first, last, flags, _name = _GPT_ENTRY.unpack_from(table, n * size)
        if any(kind) and last >= first:
            legacy_boot = bool(flags >> 2 & 1)
            guid = str(uuid.UUID(bytes_le=kind))
            found.append(Partition(n + 1, first * sector, (last - first + 1) * sector, legacy_boot, guid))
    return found
