"""Counts, the last hypercalls and refusals of a run: always on, read by --stats and by crash reports.

What the compiled core counts as well lies in words whose address stays.
"""

from __future__ import annotations

import ctypes
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from hvcore.refusal import Reason, Refusal

_MOST_UNKNOWN = 64
_OTHERS = (1 << 64) - 1
_NR_HYPERCALLS, _NR_VECTORS = 64, 256
_RECENT = 16
_M64 = (1 << 64) - 1
_CALL = struct.Struct("<9Q")  # number, how many arguments, six of them, result
_UNUSED = tuple((0,) * (6 - count) for count in range(7))  # arguments, by how many there are


def _words(count: int) -> memoryview:
    return memoryview((ctypes.c_uint64 * count)()).cast("B").cast("Q")


_MOST_PENDING = 32  # refusals of one hypercall; a chain from an L4 down to a page has ten

Call = tuple[int, tuple[int, ...], int]  # number, arguments, result


class FailedEntry(NamedTuple):
    """An entry of a multicall that failed: its address in the guest, the call, and why."""

    address: int
    number: int
    arguments: tuple[int, ...]
    result: int
    refusals: tuple[Refusal, ...]


class RefusedCall(NamedTuple):
    """A hypercall with refusals; `serial` counts all hypercalls from 1."""

    serial: int
    refusals: tuple[Refusal, ...]
    entries: tuple[FailedEntry, ...]


class RefusedFault(NamedTuple):
    """An act that Xen would have emulated, a store to a page table first of all, and that faulted instead."""

    vector: int
    rip: int
    address: int
    refusals: tuple[Refusal, ...]


@dataclass(slots=True)
class Trace:
    """What happened. Counters are indexed by hypercall or vector number; `recent` is how many hypercalls
    there were, and a ring of the last.

    `pending` are the refusals and failed entries of the act under way; close_call() and close_fault() say
    whose they were. `refused` counts those that no other refusal led to, with the last of each kind.
    """

    WIRING: ClassVar[frozenset[str]] = frozenset(())
    hypercalls: memoryview = field(default_factory=lambda: _words(_NR_HYPERCALLS))
    unknown_hypercalls: dict[int, int] = field(default_factory=dict)
    exceptions: memoryview = field(default_factory=lambda: _words(_NR_VECTORS))
    emulated: dict[str, int] = field(default_factory=dict)
    cli_sti: memoryview = field(default_factory=lambda: _words(2))  # of those, by the compiled core
    recent: memoryview = field(default_factory=lambda: _words(1 + _RECENT * _CALL.size // 8))
    pending: list[Refusal | FailedEntry] = field(default_factory=list)
    refused_calls: deque[RefusedCall] = field(default_factory=lambda: deque(maxlen=16))
    refused_faults: deque[RefusedFault] = field(default_factory=lambda: deque(maxlen=8))
    refused: dict[Reason, tuple[int, Refusal]] = field(default_factory=dict)

    def note(self, number: int, args: tuple[int, ...], result: int) -> None:
        """Keep one hypercall, of at most six arguments."""
        calls = self.recent[0]
        count = len(args)
        at = 8 + calls % _RECENT * _CALL.size
        _CALL.pack_into(self.recent, at, number, count, *args, *_UNUSED[count], result & _M64)
        self.recent[0] = calls + 1

    def _call(self, call: int) -> tuple[int, Call]:
        number, count, *rest = _CALL.unpack_from(self.recent, 8 + call % _RECENT * _CALL.size)
        result = rest[6]
        return call + 1, (number, tuple(rest[:count]), result - (1 << 64) if result >> 63 else result)

    def counts(self) -> bytes:
        """The counts of all hypercalls, then those of all exceptions, as 64-bit words."""
        return bytes(self.hypercalls) + bytes(self.exceptions)

    def last_hypercall(self) -> tuple[int, Call]:
        """The last call, with its serial number; there has to be one."""
        return self._call(self.recent[0] - 1)

    def last_hypercalls(self) -> Iterator[tuple[int, Call]]:
        """The last calls, the oldest first, each with its serial number."""
        calls = self.recent[0]
        return map(self._call, range(max(calls - _RECENT, 0), calls))

    def unknown_hypercall(self, number: int) -> None:
        """Count one call of a number that does not exist; of too many such numbers only the first are told
        apart, the rest count as the largest number there is.
        """
        counts = self.unknown_hypercalls
        if number not in counts and len(counts) >= _MOST_UNKNOWN:
            number = _OTHERS
        counts[number] = counts.get(number, 0) + 1

    def emulate(self, name: str) -> None:
        """Count one emulated privileged instruction."""
        self.emulated[name] = self.emulated.get(name, 0) + 1

    def refuse(self, reason: Reason, values: tuple[int | str, ...]) -> None:
        """Note why what is under way is refused."""
        if len(self.pending) < _MOST_PENDING:
            self.pending.append(Refusal(reason, values))

    def failed_entry(self, address: int, number: int, arguments: tuple[int, ...], result: int) -> None:
        """An entry of a multicall has failed: what was refused since the last one is why."""
        refusals = self._take_refusals()
        if len(self.pending) < _MOST_PENDING:
            self.pending.append(FailedEntry(address, number, arguments, result, refusals))

    def close_call(self) -> None:
        """The hypercall that was noted last has ended, and all that is pending was its."""
        refusals = self._take_refusals()
        entries = tuple(entry for entry in self.pending if isinstance(entry, FailedEntry))
        self.pending.clear()
        self.refused_calls.append(RefusedCall(self.recent[0], refusals, entries))

    def close_fault(self, vector: int, rip: int, address: int) -> None:
        """The guest is to see a fault instead of what is pending."""
        refusals = self._take_refusals()
        self.pending.clear()
        self.refused_faults.append(RefusedFault(vector, rip, address, refusals))

    def _take_refusals(self) -> tuple[Refusal, ...]:
        """The refusals at the end of `pending`, counted."""
        pending = self.pending
        taken: list[Refusal] = []
        while pending and isinstance(last := pending[-1], Refusal):
            taken.append(last)
            pending.pop()
        taken.reverse()
        for refusal in taken:
            if not refusal.reason.consequence:
                count, _ = self.refused.get(refusal.reason, (0, refusal))
                self.refused[refusal.reason] = count + 1, refusal
        return tuple(taken)
