"""The console backend, what xenconsoled is in domain 0: xen/include/public/io/console.h.

The ring page is the guest's memory: its four indices may hold anything. A ring that claims to hold more than
its size is left alone, as xenconsoled leaves it (buffer_append() in tools/console/daemon/io.c).
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

    from hvcore.domain import Domain

_U32 = struct.Struct("<I")
_WORD = 0xFFFFFFFF


class ConsoleBackend(Device):
    """Both directions of one console ring. `output` gets what the guest prints, as it prints it."""

    WIRING = frozenset((*Device.WIRING, "output"))

    def __init__(self, ring: memoryview, guest: Domain, output: Callable[[bytes], None]) -> None:
        super().__init__(guest)
        self.ring = ring
        self.output = output
        self._input = bytearray()
        self._shown = 0  # bytes at the head of the ring that `output` has had already

    def handle_event(self) -> None:
        """The guest notified: it printed, or it made room for input."""
        moved = self._take_output()
        moved = self._push_input() or moved
        if moved:
            self.notify()

    def drain(self) -> None:
        """Show what the guest left in the ring without notifying, as a crashing one does; it stays there."""
        self._show(self._waiting_output())

    def input(self, data: bytes) -> None:
        """Type `data`; what does not fit in the ring waits for room."""
        self.serve()
        self._input += data
        if self._push_input():
            self.notify()

    @property
    def pending_input(self) -> int:
        """Bytes typed that the ring had no room for yet."""
        return len(self._input)

    def _take_output(self) -> bool:
        data = self._waiting_output()
        if not data:
            return False
        _U32.pack_into(self.ring, XENCONS_OUT_CONS, _U32.unpack_from(self.ring, XENCONS_OUT_PROD)[0])
        self._show(data)
        self._shown = 0
        return True

    def _show(self, data: bytes) -> None:
        new, self._shown = data[self._shown :], len(data)
        if new:
            self.output(new)

    def _waiting_output(self) -> bytes:
        """What is in the ring; nothing if it claims to hold more than it can."""
        ring = self.ring
        cons = _U32.unpack_from(ring, XENCONS_OUT_CONS)[0]
        prod = _U32.unpack_from(ring, XENCONS_OUT_PROD)[0]
        size = prod - cons & _WORD
        if size > XENCONS_OUT_SIZE:
            return b""
        start = cons & (XENCONS_OUT_SIZE - 1)
        first = min(size, XENCONS_OUT_SIZE - start)
        return bytes(ring[XENCONS_OUT + start : XENCONS_OUT + start + first]) + bytes(
            ring[XENCONS_OUT : XENCONS_OUT + size - first]
        )

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
