"""The backend's end of a ring in frames of the guest's: xen/include/public/io/ring.h.

The guest may write anything anywhere in it at any time. What is read from it is read once, and indices that
cannot be end the ring.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from hvcore.public.ring import RING_ENTRIES, RING_REQ_EVENT, RING_REQ_PROD, RING_RSP_EVENT, RING_RSP_PROD
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.machine_memory import MachineMemory

_WORD = 0xFFFFFFFF
_WORDS_PER_PAGE = PAGE_SIZE // 4


class BackRing:
    """A ring of entries of `entry_size` bytes in `frames`; `req_cons` and `rsp_prod` are the backend's."""

    __slots__ = ("_memory", "entries", "entry_size", "frames", "req_cons", "rsp_prod")

    WIRING = frozenset(("_memory",))

    def __init__(self, memory: MachineMemory, frames: list[int], entry_size: int) -> None:
        self._memory = memory
        self.frames = frames
        self.entry_size = entry_size
        self.entries = 1 << ((len(frames) * PAGE_SIZE - RING_ENTRIES) // entry_size).bit_length() - 1
        self.req_cons = self.rsp_prod = self._word(RING_RSP_PROD)  # BACK_RING_ATTACH()

    def _word(self, at: int) -> int:
        memory = self._memory
        return memory.d[(self.frames[0] - memory.base_mfn) * _WORDS_PER_PAGE + at // 4]

    def _set_word(self, at: int, value: int) -> None:
        memory = self._memory
        memory.d[(self.frames[0] - memory.base_mfn) * _WORDS_PER_PAGE + at // 4] = value & _WORD

    def unconsumed(self) -> int | None:
        """How many requests wait; None where the guest claims more than there can be."""
        memory = self._memory
        produced = memory.d[(self.frames[0] - memory.base_mfn) * _WORDS_PER_PAGE + RING_REQ_PROD // 4]
        if produced - self.rsp_prod & _WORD > self.entries:  # RING_REQUEST_PROD_OVERFLOW()
            return None
        return produced - self.req_cons & _WORD

    def is_full(self) -> bool:
        """RING_REQUEST_CONS_OVERFLOW(): as many requests as the ring holds have no response yet."""
        return self.req_cons - self.rsp_prod & _WORD >= self.entries

    def next_request(self) -> bytes:
        """A copy of the next request, which is consumed."""
        size, memory, cons = self.entry_size, self._memory, self.req_cons
        page, offset = divmod(RING_ENTRIES + (cons & self.entries - 1) * size, PAGE_SIZE)
        if offset + size > PAGE_SIZE:
            request = self.peek(1)
        else:
            start = (self.frames[page] - memory.base_mfn) * PAGE_SIZE + offset
            request = bytes(memory.view[start : start + size])
        self.req_cons = cons + 1 & _WORD
        return request

    def peek(self, count: int) -> bytes:
        """A copy of the next `count` entries, at most all of the ring, which stay the next."""
        at = RING_ENTRIES + (self.req_cons & self.entries - 1) * self.entry_size
        end, left = RING_ENTRIES + self.entries * self.entry_size, count * self.entry_size
        pieces = []
        while left:
            page, offset = divmod(at, PAGE_SIZE)
            pieces.append(self._memory.frame(self.frames[page])[offset : offset + min(left, end - at)])
            left -= len(pieces[-1])
            at += len(pieces[-1])
            if at == end:
                at = RING_ENTRIES
        return b"".join(pieces)

    def consume(self, count: int) -> None:
        """So many requests were read by peek()."""
        self.req_cons = self.req_cons + count & _WORD

    def final_check(self) -> None:
        """RING_FINAL_CHECK_FOR_REQUESTS(): ask to be notified of the next request.

        None has come since `unconsumed()` said so, for no guest runs beside this.
        """
        self._set_word(RING_REQ_EVENT, self.req_cons + 1)

    def wait_for_more(self) -> None:
        """Ask to be notified of the first request that is not there yet."""
        self._set_word(RING_REQ_EVENT, self._word(RING_REQ_PROD) + 1)

    def push(self, response: bytes) -> None:
        """Put a response where the next one goes; it counts when `publish()` says so."""
        page, offset = divmod(RING_ENTRIES + (self.rsp_prod & self.entries - 1) * self.entry_size, PAGE_SIZE)
        first = min(len(response), PAGE_SIZE - offset)
        self._memory.frame(self.frames[page])[offset : offset + first] = response[:first]
        if first < len(response):
            self._memory.frame(self.frames[page + 1])[: len(response) - first] = response[first:]
        self.rsp_prod = self.rsp_prod + 1 & _WORD

    def respond(self, layout: struct.Struct, responses: Iterable[tuple[Any, ...]]) -> None:
        """push() of many that are laid out the same."""
        prod, mask, size, pack_into = self.rsp_prod, self.entries - 1, self.entry_size, layout.pack_into
        if len(self.frames) > 1:
            for values in responses:
                self.push(layout.pack(*values))
            return
        memory = self._memory
        view, start = memory.view, (self.frames[0] - memory.base_mfn << PAGE_SHIFT) + RING_ENTRIES
        for values in responses:
            pack_into(view, start + (prod & mask) * size, *values)
            prod += 1
        self.rsp_prod = prod & _WORD

    def publish(self) -> bool:
        """RING_PUSH_RESPONSES_AND_CHECK_NOTIFY(): whether the guest wants to be told."""
        return self.is_awaited(self.push_responses())

    def push_responses(self) -> int:
        """The responses so far count; how many of them are new."""
        old = self._word(RING_RSP_PROD)
        self._set_word(RING_RSP_PROD, self.rsp_prod)
        return self.rsp_prod - old & _WORD

    def is_awaited(self, count: int) -> bool:
        """Whether the guest wants to be told of one of the last `count` responses, if it has not seen it."""
        return (self.rsp_prod - self._word(RING_RSP_EVENT) & _WORD) < count
