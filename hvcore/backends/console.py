"""The console backend, what xenconsoled is in domain 0: xen/include/public/io/console.h.

The ring page is the guest's memory: its four indices may hold anything. A ring that claims to hold more than
its size is left alone, as xenconsoled leaves it.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.backends.device import Device
from hvcore.public.xen import (
    XENCONS_IN,
    XENCONS_IN_CONS,
    XENCONS_IN_PROD,
    XENCONS_IN_SIZE,
    XENCONS_OUT,
    XENCONS_OUT_CONS,
    XENCONS_OUT_PROD,
    XENCONS_OUT_SIZE,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_U32 = struct.Struct("<I")
_WORD = 0xFFFFFFFF


class ConsoleBackend(Device):
    """Both directions of one console ring. `output` gets what the guest prints, as it prints it."""

    __slots__ = ("_input", "_output")

    def __init__(self, ring: memoryview, output: Callable[[bytes], None]) -> None:
        super().__init__(ring)
        self._output = output
        self._input = bytearray()

    def handle_event(self) -> None:
        """The guest notified: it printed, or it made room for input."""
        moved = self._take_output()
        moved = self._push_input() or moved
        if moved:
            self.notify()

    def drain(self) -> None:
        """Take what the guest left in the ring without notifying, as a crashing one does."""
        self._take_output()

    def input(self, data: bytes) -> None:
        """Type `data`; what does not fit in the ring waits for room."""
        self._input += data
        if self._push_input():
            self.notify()

    @property
    def pending_input(self) -> int:
        """Bytes typed that the ring had no room for yet."""
        return len(self._input)

    def _take_output(self) -> bool:
        ring = self.ring
        cons = _U32.unpack_from(ring, XENCONS_OUT_CONS)[0]
        prod = _U32.unpack_from(ring, XENCONS_OUT_PROD)[0]
        size = prod - cons & _WORD
        if size == 0 or size > XENCONS_OUT_SIZE:
            return False
        start = cons & (XENCONS_OUT_SIZE - 1)
        first = min(size, XENCONS_OUT_SIZE - start)
        data = bytes(ring[XENCONS_OUT + start : XENCONS_OUT + start + first])
        if first < size:
            data += bytes(ring[XENCONS_OUT : XENCONS_OUT + size - first])
        _U32.pack_into(ring, XENCONS_OUT_CONS, prod)
        self._output(data)
        return True

    def _push_input(self) -> bool:
        waiting = self._input
        if not waiting:
            return False
        ring = self.ring
        cons = _U32.unpack_from(ring, XENCONS_IN_CONS)[0]
        prod = _U32.unpack_from(ring, XENCONS_IN_PROD)[0]
        used = prod - cons & _WORD
        if used >= XENCONS_IN_SIZE:
            return False
        size = min(len(waiting), XENCONS_IN_SIZE - used)
        start = prod & (XENCONS_IN_SIZE - 1)
        first = min(size, XENCONS_IN_SIZE - start)
        ring[XENCONS_IN + start : XENCONS_IN + start + first] = waiting[:first]
        if first < size:
            ring[XENCONS_IN : XENCONS_IN + size - first] = waiting[first:size]
        del waiting[:size]
        _U32.pack_into(ring, XENCONS_IN_PROD, prod + size & _WORD)
        return True
