"""Disks in QEMU's qcow2 format: read and written, on files of any cluster size, over backing files.

The layout is that of QEMU's docs/interop/qcow2. Versions 2 and 3, clusters packed by zlib and zstd, zero
clusters, internal snapshots (which are left as they are), refcounts of any width. What another program has to
know of is refused by name: encryption, external data files, extended L2 entries, an image marked corrupt.

A file is whole at every moment: refcounts grow before a cluster is used, its data is there before a table
names it, and what is not used any more is given back last. Who is killed leaves clusters behind that nobody
uses, and nothing else.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from hvcore.backends.block_image import BlockImage, Buffers, RawImage, SectorSizes, fill, zero
from hvcore.backends.qcow2_header import DIRTY, Qcow2Error, backing_of, read_header
from hvcore.public.blkif import SECTOR_SIZE

_AT_REFCOUNT_TABLE, _AT_AUTOCLEAR = 48, 88
_COPIED, _COMPRESSED, _ZERO = 1 << 63, 1 << 62, 1
_OFFSET = (1 << 56) - (1 << 9)
_MOST_BACKING = 16  # files in a chain
_CACHED_TABLES = 64


class Qcow2Image:
    """A qcow2 file as a disk. Raises OSError, and Qcow2Error for what no such file has."""

    sector_sizes = SectorSizes()

    def __init__(self, path: str, *, writable: bool, depth: int = 0) -> None:
        self._path = path
        self._file = RawImage(path, writable=writable)
        self._base: BlockImage | None = None
        try:
            self._open(writable=writable, depth=depth)
        except BaseException:
            self.close()
            raise

    def _open(self, *, writable: bool, depth: int) -> None:
        path = self._path
        raw = self._file.read_bytes(0, 1 << 16)
        h = self._header = read_header(path, raw)
        if writable and h.incompatible & DIRTY:
            raise Qcow2Error(path, "the image was not closed: `qemu-img check -r all` mends it")
        self.size = h.size // SECTOR_SIZE * SECTOR_SIZE
        self._bits, self._cluster = h.cluster_bits, 1 << h.cluster_bits
        self._per_table = self._cluster // 8
        self._tables: OrderedDict[int, array[int]] = OrderedDict()  # L2 tables by their offset
        self._l1 = self._table(h.l1_offset, h.l1_size)
        self._refcounts = self._table(h.refcount_offset, h.refcount_clusters * self._per_table)
        self._refcounts_at = h.refcount_offset
        self._free: list[int] = []  # clusters that were given back
        self._end = -(-self._file.length // self._cluster) * self._cluster
        backing = backing_of(path, raw[: self._cluster], h)
        if backing is not None:
            if depth == _MOST_BACKING:
                raise Qcow2Error(path, f"more than {_MOST_BACKING} backing files behind each other")
            name, kind = backing
            self._base = (
                Qcow2Image(name, writable=False, depth=depth + 1)
                if kind == "qcow2"
                else RawImage(name, writable=False)
            )
        if writable and h.autoclear:
            self._put(_AT_AUTOCLEAR, bytes(8))

    def close(self) -> None:
        """See BlockImage."""
        self._file.close()
        if self._base is not None:
            self._base.close()

    def flush(self) -> None:
        """See BlockImage."""
        self._file.flush()

    # -- tables

    def _table(self, offset: int, entries: int) -> array[int]:
        """A table of 64-bit words; what lies behind the end of the file is not there."""
        raw = self._file.read_bytes(offset, 8 * entries)
        if len(raw) != 8 * entries:
            raise Qcow2Error(self._path, f"a table at {offset:#x} reaches behind the end of the file")
        table = array("Q", raw)
        if sys.byteorder == "little":
            table.byteswap()
        return table

    def _put(self, offset: int, data: bytes) -> None:
        self._file.write_bytes(offset, data)

    def _put_words(self, offset: int, words: array[int]) -> None:
        copy = words[:]
        if sys.byteorder == "little":
            copy.byteswap()
        self._put(offset, copy.tobytes())

    def _l2(self, index: int) -> array[int] | None:
        """The L2 table of an L1 entry; None where there is none."""
        offset = self._l1[index] & _OFFSET
        if not offset:
            return None
        table = self._tables.get(offset)
        if table is None:
            self._check_offset(offset)
            table = self._keep(offset, self._table(offset, self._per_table))
        return table

    def _keep(self, offset: int, table: array[int]) -> array[int]:
        self._tables[offset] = table
        if len(self._tables) > _CACHED_TABLES:
            self._tables.popitem(last=False)
        return table

    def _check_offset(self, offset: int) -> None:
        if offset % self._cluster or offset >= self._end:
            raise Qcow2Error(self._path, f"a cluster at {offset:#x}, where there is none")

    def _entry(self, cluster: int) -> int:
        """The L2 entry of a cluster of the guest's, 0 where it has none."""
        table = self._l2(cluster // self._per_table)
        return 0 if table is None else table[cluster % self._per_table]

    # -- reading

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage."""
        pieces, end = Buffers(buffers), offset + sum(map(len, buffers))
        while offset < end:
            entry, size = self._run(offset, end)
            self._read_piece(entry, offset, pieces.take(size))
            offset += size

    def _run(self, offset: int, end: int) -> tuple[int, int]:
        """The entry at `offset` and how many bytes go on as it does: its neighbours lie side by side."""
        cluster = offset >> self._bits
        entry = self._entry(cluster)
        stop = cluster + 1
        side_by_side = not entry & (_COMPRESSED | _ZERO) and entry & _OFFSET
        while side_by_side and stop << self._bits < end:
            following = self._entry(stop)
            wanted = (entry & _OFFSET) + (stop - cluster << self._bits)
            if following & (_COMPRESSED | _ZERO) or following & _OFFSET != wanted:
                break
            stop += 1
        return entry, min(stop << self._bits, end) - offset

    def _read_piece(self, entry: int, offset: int, buffers: list[memoryview]) -> None:
        within = offset & self._cluster - 1
        if entry & _COMPRESSED:
            fill(buffers, self._unpacked(entry), within)
        elif entry & _ZERO and self._header.version == 3:
            zero(buffers)
        elif entry & _OFFSET:
            self._check_offset(entry & _OFFSET)
            self._file.read_or_zeros((entry & _OFFSET) + within, buffers)
        else:
            self._read_base(offset, buffers)

    def _read_base(self, offset: int, buffers: list[memoryview]) -> None:
        """What the backing file has there, and zeros behind its end."""
        base, pieces = self._base, Buffers(buffers)
        size = sum(map(len, buffers))
        there = min(max((base.size if base is not None else 0) - offset, 0), size)
        if base is not None and there:
            base.read(offset, pieces.take(there))
        zero(pieces.take(size - there))

    def _packed_at(self, entry: int) -> tuple[int, int]:
        """Where a packed cluster begins in the file, and the end of its last sector."""
        shift = 62 - (self._bits - 8)
        start = entry & (1 << shift) - 1
        sectors = (entry >> shift & (1 << 62 - shift) - 1) + 1
        return start, (start & ~(SECTOR_SIZE - 1)) + sectors * SECTOR_SIZE

    def _unpacked(self, entry: int) -> bytes:
        """The contents of a packed cluster."""
        start, end = self._packed_at(entry)
        packed = self._file.read_bytes(start, end - start)
        data = (_unzstd if self._header.compression else _inflate)(packed, self._cluster)
        if len(data) != self._cluster:
            raise Qcow2Error(self._path, f"the packed cluster at {start:#x} cannot be unpacked")
        return data

    # -- writing

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """See BlockImage."""
        pieces, end = Buffers(buffers), offset + sum(map(len, buffers))
        while offset < end:
            entry, size = self._run(offset, end)
            if not self._is_ours(entry):
                size = min(size, self._cluster - (offset & self._cluster - 1))
                self._write_new(entry, offset, b"".join(pieces.take(size)))
            else:
                size = self._ours(offset, size)
                self._file.write((entry & _OFFSET) + (offset & self._cluster - 1), pieces.take(size))
            offset += size

    def _is_ours(self, entry: int) -> bool:
        """Whether a cluster may be written in place: it is there, and no snapshot has it."""
        is_plain = not entry & _COMPRESSED and not (entry & _ZERO and self._header.version == 3)
        return bool(is_plain and entry & _COPIED and entry & _OFFSET)

    def _ours(self, offset: int, size: int) -> int:
        """How many of the bytes lie in clusters that may be written in place, the first of which may."""
        cluster = (offset >> self._bits) + 1
        while cluster << self._bits < offset + size and self._is_ours(self._entry(cluster)):
            cluster += 1
        self._check_offset(self._entry(offset >> self._bits) & _OFFSET)
        return min(size, (cluster << self._bits) - offset)

    def _write_new(self, entry: int, offset: int, data: bytes) -> None:
        """Data of one cluster into a new one, with what else is in it."""
        within, cluster = offset & self._cluster - 1, offset >> self._bits
        if len(data) < self._cluster:
            before = bytearray(self._cluster)
            start = cluster << self._bits
            self._read_piece(entry, start, [memoryview(before)])
            data = bytes(before[:within]) + data + bytes(before[within + len(data) :])
        place = self._allocate()
        self._put(place, data)
        self._set_entry(cluster, place | _COPIED)

    def _set_entry(self, cluster: int, entry: int) -> None:
        """Name a cluster in its L2 table, and give back what was named before."""
        index, slot = divmod(cluster, self._per_table)
        table = self._own_l2(index)
        before = table[slot]
        table[slot] = entry
        self._put((self._l1[index] & _OFFSET) + 8 * slot, entry.to_bytes(8, "big"))
        for used in self._clusters_of(before):
            self._give_back(used)

    def _clusters_of(self, entry: int) -> Iterator[int]:
        """The clusters of the file that an L2 entry uses."""
        if entry & _COMPRESSED:
            start, end = self._packed_at(entry)
            yield from range(start & -self._cluster, end, self._cluster)
        elif entry & _OFFSET:
            yield entry & _OFFSET

    def _own_l2(self, index: int) -> array[int]:
        """The L2 table of an L1 entry, made or copied where it is not this image's alone."""
        l1, table = self._l1[index], self._l2(index)
        if table is not None and l1 & _COPIED:
            return table
        own = array("Q", bytes(self._cluster)) if table is None else table[:]
        place = self._allocate()
        self._put_words(place, own)
        self._l1[index] = place | _COPIED
        self._put(self._header.l1_offset + 8 * index, self._l1[index].to_bytes(8, "big"))
        if table is not None:
            self._give_back(l1 & _OFFSET)
        return self._keep(place, own)

    def discard(self, offset: int, length: int) -> None:
        """See BlockImage: whole clusters are zeros that take no room."""
        end = offset + length
        while offset < end:
            size = min(self._cluster - (offset & self._cluster - 1), end - offset)
            if size == self._cluster and self._header.version == 3:
                if self._entry(offset >> self._bits) != _ZERO:
                    self._set_entry(offset >> self._bits, _ZERO)
            else:
                self.write(offset, [memoryview(bytes(size))])
            offset += size

    # -- refcounts

    def _allocate(self) -> int:
        """A cluster for a new use, its refcount 1."""
        if self._free:
            place = self._free.pop()
        else:
            place, self._end = self._end, self._end + self._cluster
        self._set_refcount(place, 1)
        return place

    def _give_back(self, place: int) -> None:
        """One use less of a cluster."""
        count = self._refcount(place)
        if count:
            self._set_refcount(place, count - 1)
        if count == 1:
            self._tables.pop(place, None)
            self._free.append(place)

    def _block_of(self, place: int) -> tuple[int, int]:
        """Which refcount block counts a cluster, and where in it."""
        per_block = self._cluster * 8 >> self._header.refcount_order
        return divmod(place >> self._bits, per_block)

    def _refcount(self, place: int) -> int:
        block, slot = self._block_of(place)
        if block >= len(self._refcounts) or not self._refcounts[block]:
            return 0
        at, shift, size = self._place_of_count(self._refcounts[block], slot)
        word = int.from_bytes(self._file.read_bytes(at, size), "big")
        return word >> shift & (1 << (1 << self._header.refcount_order)) - 1

    def _place_of_count(self, block: int, slot: int) -> tuple[int, int, int]:
        """Where a count is: offset in the file, bits to shift by, bytes."""
        self._check_offset(block & ~511)
        bits = 1 << self._header.refcount_order
        at = (block & ~511) + slot * bits // 8
        return (at, 0, bits // 8) if bits >= 8 else (at, slot * bits % 8, 1)

    def _set_refcount(self, place: int, count: int) -> None:
        block, slot = self._block_of(place)
        if block >= len(self._refcounts):
            self._grow_refcounts(block)
        if not self._refcounts[block]:
            self._new_refcount_block(block)
        at, shift, size = self._place_of_count(self._refcounts[block], slot)
        mask = (1 << (1 << self._header.refcount_order)) - 1
        word = int.from_bytes(self._file.read_bytes(at, size), "big")
        word = word & ~(mask << shift) | count << shift
        self._put(at, word.to_bytes(size, "big"))

    def _new_refcount_block(self, block: int) -> None:
        place, self._end = self._end, self._end + self._cluster
        self._put(place, bytes(self._cluster))
        self._refcounts[block] = place
        self._put(self._refcounts_at + 8 * block, place.to_bytes(8, "big"))
        self._set_refcount(place, 1)

    def _grow_refcounts(self, block: int) -> None:
        """A refcount table of twice the size, behind everything else."""
        clusters = max(2 * len(self._refcounts), block + 1) // self._per_table + 1
        old, entries = self._refcounts_at, len(self._refcounts)
        place, self._end = self._end, self._end + clusters * self._cluster
        self._refcounts.frombytes(bytes(8 * (clusters * self._per_table - entries)))
        self._refcounts_at = place
        for at in range(place, place + clusters * self._cluster, self._cluster):
            self._set_refcount(at, 1)
        self._put_words(place, self._refcounts)
        self._put(_AT_REFCOUNT_TABLE, struct.pack(">QI", place, clusters))
        for at in range(old, old + entries * 8, self._cluster):
            self._give_back(at)


def _inflate(packed: bytes, size: int) -> bytes:
    try:
        return zlib.decompressobj(wbits=-12).decompress(packed, size)
    except zlib.error:
        return b""


def _unzstd(packed: bytes, size: int) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    try:
        return zstd.ZstdDecompressor().decompress(packed, size)
    except zstd.ZstdError:
        return b""
