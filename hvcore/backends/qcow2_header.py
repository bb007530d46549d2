"""The header of a qcow2 file: read, and refused by name where another program has to know of it.

The layout is that of QEMU's docs/interop/qcow2, versions 2 and 3, with the name of the backing file.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_3 = struct.Struct(">QQQII")
_EXTENSION = struct.Struct(">II")
_EXT_END, _EXT_BACKING_FORMAT = 0, 0xE2792ACA
DIRTY, _CORRUPT, _EXTERNAL, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
_REFUSED = {
    _CORRUPT: "is marked as corrupt",
    _EXTERNAL: "has an external data file",
    _EXTENDED_L2: "has extended L2 entries",
}
_MOST_L1_BYTES = 32 << 20  # QCOW_MAX_L1_SIZE
_MOST_REFCOUNT_TABLE_BYTES = 8 << 20  # QCOW_MAX_REFTABLE_SIZE
_MOST_NAME = 1023


class Qcow2Error(OSError):
    """The file is no qcow2 image that can be used: which file, where, and what is wrong."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, path)


class Header(NamedTuple):
    """The fields that count; offsets and sizes are in bytes, but `l1_size` is in entries."""

    version: int
    backing_offset: int
    backing_size: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    refcount_order: int
    incompatible: int
    autoclear: int
    header_length: int
    compression: int


def read_header(path: str, raw: bytes) -> Header:
    """The header of the file `path`, which begins with `raw`. Raises Qcow2Error."""
    if len(raw) < _HEADER.size or raw[:4] != MAGIC:
        raise Qcow2Error(path, "not a qcow2 image")
    (_, version, backing_offset, backing_size, bits, size, crypt, l1_size, l1_offset, refcount_offset,
        refcount_clusters, _, _) = _HEADER.unpack_from(raw)  # fmt: skip
    if version not in (2, 3):
        raise Qcow2Error(path, f"qcow2 version {version}: 2 and 3 are known")
    incompatible, autoclear, order, length, compression = 0, 0, 4, _HEADER.size, 0
    if version == 3:
        if len(raw) < _HEADER.size + _HEADER_3.size:
            raise Qcow2Error(path, "the header is cut short")
        incompatible, _, autoclear, order, length = _HEADER_3.unpack_from(raw, _HEADER.size)
        compression = raw[104] if length > 104 and len(raw) > 104 else 0
    header = Header(
        version, backing_offset, backing_size, bits, size, l1_size, l1_offset, refcount_offset,
        refcount_clusters, order, incompatible, autoclear, length, compression,
    )  # fmt: skip
    _check_header(path, header, crypt)
    return header


def _check_header(path: str, h: Header, crypt: int) -> None:
    if crypt:
        raise Qcow2Error(path, "the image is encrypted")
    for bit, what in _REFUSED.items():
        if h.incompatible & bit:
            raise Qcow2Error(path, f"the image {what}")
    if h.incompatible & ~(DIRTY | _COMPRESSION):
        raise Qcow2Error(path, f"the image has features that are not known: {h.incompatible:#x}")
    if not 9 <= h.cluster_bits <= 21 or h.refcount_order > 6 or h.compression > 1:
        raise Qcow2Error(path, "the header has sizes that cannot be")
    cluster = 1 << h.cluster_bits
    covered = h.l1_size << (2 * h.cluster_bits - 3)
    if h.l1_size * 8 > _MOST_L1_BYTES or h.size > covered or h.size >> 62:
        raise Qcow2Error(path, f"a disk of {h.size:#x} bytes with {h.l1_size} entries in its L1 table")
    if not 0 < h.refcount_clusters * cluster <= _MOST_REFCOUNT_TABLE_BYTES:
        raise Qcow2Error(path, f"a refcount table of {h.refcount_clusters} clusters")
    for offset in (h.l1_offset if h.l1_size else 0, h.refcount_offset):
        if offset % cluster:
            raise Qcow2Error(path, f"a table at {offset:#x}, which is within a cluster")


def backing_of(path: str, raw: bytes, h: Header) -> tuple[str, str] | None:
    """The backing file's path and format, by the first cluster, `raw`. Raises Qcow2Error."""
    if not h.backing_offset:
        return None
    if not 0 < h.backing_size <= _MOST_NAME or h.backing_offset + h.backing_size > len(raw):
        raise Qcow2Error(path, "the name of the backing file is not within the first cluster")
    name = os.fsdecode(raw[h.backing_offset : h.backing_offset + h.backing_size])
    kind, at = "", h.header_length
    while at + _EXTENSION.size <= len(raw):
        number, length = _EXTENSION.unpack_from(raw, at)
        if number == _EXT_END:
            break
        if number == _EXT_BACKING_FORMAT:
            kind = raw[at + 8 : at + 8 + length].decode("latin-1")
        at += _EXTENSION.size + (length + 7 & ~7)
    if kind not in ("raw", "qcow2"):
        raise Qcow2Error(path, f"a backing file of format {kind or 'unknown'}: raw and qcow2 are read")
    if "\0" in name or ":" in name.split("/", 1)[0]:
        raise Qcow2Error(path, f"the backing file {name!r} is not a file's name")
    return os.path.join(os.path.dirname(path), name), kind  # noqa: PTH118, PTH120
