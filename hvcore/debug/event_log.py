"""What the compiled core's lanes write down for a listener, as rows (struct hv_events).

A lane that finds no room leaves its exit to Python, whose tap reads what there is and makes room.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from hvcore.cpu.words import address_of, shared_words
from hvcore.debug.events import (
    EmulatedEvent,
    Event,
    ExceptionEvent,
    HypercallEvent,
    IretEvent,
    PageTableStoreEvent,
    SubcallEvent,
    TrapEvent,
    UpcallEvent,
)
from hvcore.x86 import TRAP_page_fault

if TYPE_CHECKING:
    from hvcore.machine import Machine

CAPACITY = 4096  # events: 512 KB
_EVENT = struct.Struct("<14Q16x")
_NO_ERROR_CODE = (1 << 64) - 1
EMULATED_NAMES = {0xFA: "cli", 0xFB: "sti"}  # by opcode
_HEAD = 4  # words: count, kept, capacity, kinds
# In the order of enum hv_event_kind.
EVENT_KINDS: tuple[type[Event], ...] = (
    HypercallEvent,
    SubcallEvent,
    IretEvent,
    TrapEvent,
    ExceptionEvent,
    UpcallEvent,
    PageTableStoreEvent,
    EmulatedEvent,
)
Row = tuple[int, ...]
"""Of a lane: kind (EVENT_KINDS), vCPU, ns, rip, end_ns, number, result, how many arguments, six of these."""
RowsTaker = Callable[[list[Row]], None]


class EventLog:
    """The log of one domain, for all who listen to it. `drain()` gives what lanes have written, in order."""

    def __init__(self, machine: Machine) -> None:
        self._domain_words = machine.domain.words
        self._words = shared_words(_HEAD + CAPACITY * _EVENT.size // 8)
        self._words[2] = CAPACITY
        self._listeners: list[tuple[RowsTaker, int]] = []  # each with the kinds it wants, as bits

    @contextmanager
    def open(self, take: RowsTaker, kinds: Collection[type[Event]]) -> Iterator[None]:
        """Have lanes write to this log, and `take` given what is of these kinds, while the block runs."""
        listener = take, sum(1 << number for number, kind in enumerate(EVENT_KINDS) if kind in kinds)
        self.drain()
        self._set([*self._listeners, listener])
        try:
            yield
        finally:
            try:
                self.drain()
            finally:
                self._set([other for other in self._listeners if other is not listener])

    def _set(self, listeners: list[tuple[RowsTaker, int]]) -> None:
        self._listeners = listeners
        self._words[3] = 0
        for _, kinds in listeners:
            self._words[3] |= kinds
        self._domain_words.events = address_of(self._words) if listeners else 0

    def drain(self) -> None:
        """Give what has happened since the last time."""
        words = self._words
        if count := words[0]:
            data = bytes(words[_HEAD : _HEAD + count * _EVENT.size // 8])
            words[0] = words[1] = 0
            rows = list(_EVENT.iter_unpack(data))
            for take, kinds in self._listeners:
                take(rows if kinds == words[3] else [row for row in rows if kinds >> row[0] & 1])


_LOGS: WeakKeyDictionary[Machine, EventLog] = WeakKeyDictionary()


def log_of(machine: Machine) -> EventLog:
    """The domain's log, made when the first asks for it."""
    log = _LOGS.get(machine)
    if log is None:
        log = _LOGS[machine] = EventLog(machine)
    return log


def event_of(domain_id: int, row: Row) -> Event:
    """The event that a row tells of."""
    number, vcpu_id, ns, rip, end_ns = row[:5]
    where = domain_id, vcpu_id, ns, rip
    kind = EVENT_KINDS[number]
    if kind is HypercallEvent:
        return HypercallEvent(*where, row[5], arguments_of(row), result_of(row), end_ns)
    if kind is SubcallEvent:
        return SubcallEvent(*where, row[5], arguments_of(row), result_of(row))
    if kind is TrapEvent or kind is ExceptionEvent:
        return kind(*where, *fault_of(row))
    if kind is EmulatedEvent:
        return EmulatedEvent(*where, EMULATED_NAMES[row[5]])
    if kind is PageTableStoreEvent:
        return PageTableStoreEvent(*where, row[8])
    return kind(*where)


def arguments_of(row: Row) -> tuple[int, ...]:
    """Of a hypercall: its arguments."""
    return row[8 : 8 + row[7]]


def result_of(row: Row) -> int:
    """Of a hypercall: what it returned."""
    result = row[6]
    return result - (1 << 64) if result >> 63 else result


def fault_of(row: Row) -> tuple[int, int | None, int]:
    """Of a trap or an exception: vector, error code, CR2."""
    return row[5], None if row[6] == _NO_ERROR_CODE else row[6], row[8] if row[5] == TRAP_page_fault else 0
