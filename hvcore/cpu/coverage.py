"""Which blocks of the guest's code run, as the pacing of the engine sees them (core/coverage.c, or Python).

A block is what the engine translates at once: straight code, up to a branch or the end of a page. It counts
when it is entered.
"""

from __future__ import annotations

import struct

from hvcore.cpu.words import shared_words

SLOTS = 1 << 19  # 8 MB, for 393,216 blocks
_HEAD = struct.Struct("<5Q")  # start, end, mask, used, dropped
_SLOT = struct.Struct("<2Q")


class Coverage:
    """The blocks that begin in [start, end) and have run: address and bytes."""

    def __init__(self, start: int, end: int, slots: int = SLOTS) -> None:
        self.start, self.end = start, end
        self.words = shared_words((_HEAD.size + slots * _SLOT.size) // 8)
        self.words[:3] = memoryview(_HEAD.pack(start, end, slots - 1, 0, 0)[:24]).cast("Q")
        self.seen: dict[int, int] = {}  # where Python counts

    @property
    def dropped(self) -> int:
        """How often a block was entered that there was no room for."""
        return self.words[4]

    def enter(self, address: int, size: int) -> None:
        """A block runs: for pacing in Python."""
        if self.start <= address < self.end and size > self.seen.get(address, 0):
            self.seen[address] = size

    def blocks(self) -> list[tuple[int, int]]:
        """(address, bytes), in order."""
        slots = _SLOT.iter_unpack(self.words.cast("B")[_HEAD.size :])
        return sorted([*(slot for slot in slots if slot[1]), *self.seen.items()])
