"""What the compiled core's lanes write down for a listener, as events (struct hv_events).

A lane that finds no room leaves its exit to Python, whose tap reads what there is and makes room.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
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
    from collections.abc import Callable

    from hvcore.machine import Machine

CAPACITY = 4096  # events: 512 KB
_EVENT = struct.Struct("<14Q16x")
_NO_ERROR_CODE = (1 << 64) - 1
_NAMES = {0xFA: "cli", 0xFB: "sti"}  # by opcode
_HEAD = 4  # words: count, kept, capacity, kinds
# By number of enum hv_event_kind.
_HYPERCALL, _SUBCALL, _IRET, _TRAP, _EXCEPTION, _UPCALL, _PAGE_TABLE_STORE, _EMULATED = range(8)
_KINDS: dict[type[Event], int] = {
    HypercallEvent: _HYPERCALL,
    SubcallEvent: _SUBCALL,
    IretEvent: _IRET,
    TrapEvent: _TRAP,
    ExceptionEvent: _EXCEPTION,
    UpcallEvent: _UPCALL,
    PageTableStoreEvent: _PAGE_TABLE_STORE,
    EmulatedEvent: _EMULATED,
}


class EventLog:
    """The log of one domain, for all who listen to it. `drain()` tells what lanes have written, in order."""

    def __init__(self, machine: Machine) -> None:
        self._domain_id = machine.domain.domain_id
        self._domain_words = machine.domain.words
        self._words = shared_words(_HEAD + CAPACITY * _EVENT.size // 8)
        self._words[2] = CAPACITY
        self._listeners: list[
            tuple[Callable[[Event], None], int]
        ] = []  # each with the kinds it wants, as bits

    @contextmanager
    def open(self, tell: Callable[[Event], None], kinds: Collection[type[Event]]) -> Iterator[None]:
        """Have lanes write to this log, and `tell` told of it, while the block runs."""
        listener = tell, sum(1 << number for kind, number in _KINDS.items() if kind in kinds)
        self.drain()
        self._set([*self._listeners, listener])
        try:
            yield
        finally:
            try:
                self.drain()
            finally:
                self._set([other for other in self._listeners if other is not listener])

    def _set(self, listeners: list[tuple[Callable[[Event], None], int]]) -> None:
        self._listeners = listeners
        self._words[3] = 0
        for _, kinds in listeners:
            self._words[3] |= kinds
        self._domain_words.events = address_of(self._words) if listeners else 0

    def drain(self) -> None:
        """Tell what has happened since the last time."""
        words = self._words
        if count := words[0]:
            rows = bytes(words[_HEAD : _HEAD + count * _EVENT.size // 8])
            words[0] = words[1] = 0
            for row in _EVENT.iter_unpack(rows):
                event = _event(self._domain_id, row)
                for tell, _ in self._listeners:
                    tell(event)


_LOGS: WeakKeyDictionary[Machine, EventLog] = WeakKeyDictionary()


def log_of(machine: Machine) -> EventLog:
    """The domain's log, made when the first asks for it."""
    log = _LOGS.get(machine)
    if log is None:
        log = _LOGS[machine] = EventLog(machine)
    return log


def _event(domain_id: int, row: tuple[int, ...]) -> Event:
    kind, vcpu_id, ns, rip, end_ns, number, result, count = row[:8]
    where = domain_id, vcpu_id, ns, rip
    if kind == _HYPERCALL:
        return HypercallEvent(*where, number, row[8 : 8 + count], _signed(result), end_ns)
    if kind == _SUBCALL:
        return SubcallEvent(*where, number, row[8 : 8 + count], _signed(result))
    if kind == _IRET:
        return IretEvent(*where)
    if kind == _UPCALL:
        return UpcallEvent(*where)
    if kind == _EMULATED:
        return EmulatedEvent(*where, _NAMES[number])
    if kind == _PAGE_TABLE_STORE:
        return PageTableStoreEvent(*where, row[8])
    cr2 = row[8] if number == TRAP_page_fault else 0
    code = None if result == _NO_ERROR_CODE else result
    return (TrapEvent if kind == _TRAP else ExceptionEvent)(*where, number, code, cr2)


def _signed(result: int) -> int:
    return result - (1 << 64) if result >> 63 else result
