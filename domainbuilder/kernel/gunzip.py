"""A gzip member, unzipped piece by piece, and no further than somebody wants it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap


class Gunzip:
    """The first member of `data`, at most `most` bytes of it, as an iterator of pieces.

    Iterating raises zlib.error where the member is damaged. `is_whole` then says whether its end was met,
    `trailing` how many bytes of `data` stand behind it.
    """

    def __init__(self, data: bytes | mmap.mmap | memoryview, most: int, piece: int) -> None:
        self._data, self._most, self._piece = data, most, piece
        self._stream = zlib.decompressobj(wbits=31)
        self._fed = 0

    @property
    def is_whole(self) -> bool:
        """Whether the member's end was met, and its checksum right."""
        return self._stream.eof

    @property
    def trailing(self) -> int:
        """How many bytes stand behind the member."""
        return len(self._stream.unused_data) + len(self._data) - self._fed

    def __iter__(self) -> Iterator[bytes]:
        left = self._most
        while self._fed < len(self._data) and left and not self.is_whole:
            packed: bytes | memoryview = self._data[self._fed : self._fed + self._piece]
            self._fed += len(packed)
            while packed and left and not self.is_whole:
                unzipped = self._stream.decompress(packed, min(self._piece, left))
                left -= len(unzipped)
                yield unzipped
                packed = self._stream.unconsumed_tail
