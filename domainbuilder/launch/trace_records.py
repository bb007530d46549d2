"""A running domain's events as records of a trace: what is told, and what the compiled core's lanes wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from domainbuilder.hypercall_names import command_name, hypercall_name, result_name, virq_name
from domainbuilder.launch.call_chain import CallChain, left_stub
from domainbuilder.trace.filter import Filter
from domainbuilder.trace.record import RUNSTATES, Record
from hvcore.common.event import ECS_INTERDOMAIN, ECS_IPI, ECS_PIRQ, ECS_VIRQ
from hvcore.cpu.processor import RSP
from hvcore.debug import events as e
from hvcore.debug.event_log import EVENT_KINDS, Row, arguments_of, event_of, result_of
from hvcore.debug.view import GuestView
from hvcore.machine import BOOT_TIME_NS
from hvcore.page_info import PGT_NAMES, PGT_none, PGT_writable_page
from hvcore.public.xen import NR_HYPERCALLS
from hvcore.x86 import vector_name

if TYPE_CHECKING:
    from domainbuilder.launch.names import Names
    from hvcore.machine import Machine
    from hvcore.trace import FailedEntry

_MOST_KEPT = 1 << 16
_HYPERCALL_ROW = EVENT_KINDS.index(e.HypercallEvent)
_COMMON = bytes((PGT_none, PGT_writable_page))


class Records:
    """Events as records."""

    def __init__(self, machine: Machine, names: Names | None, *, callers: bool) -> None:
        self._machine = machine
        self._names = names
        self._chain = CallChain(machine, names) if names is not None else None
        self._callers = callers
        self._symbols: dict[int, str] = {}
        self._calls: dict[int, str] = {}
        self._answered: dict[Row, tuple[str, int, tuple[int, ...], int, str]] = {}
        self._make: dict[type[e.Event], Callable[[Any], Record]] = {
            e.HypercallEvent: self._hypercall,
            e.SubcallEvent: partial(self._call, "subcall"),
            e.UnfinishedEvent: partial(self._call, "unfinished"),
            e.IretEvent: partial(self._plain, "iret"),
            e.TrapEvent: partial(self._fault, "trap"),
            e.ExceptionEvent: partial(self._fault, "exception"),
            e.EmulatedEvent: self._emulated,
            e.PageTableStoreEvent: self._store,
            e.PendingEvent: self._pending,
            e.UpcallEvent: partial(self._plain, "upcall"),
            e.ScheduleEvent: partial(self._plain, "turn"),
            e.RunstateEvent: self._runstate,
            e.ConsoleEvent: self._console,
            e.DeviceEvent: self._device,
        }

    def of(self, event: e.Event) -> Record:
        """The record of an event."""
        return self._make[type(event)](event)

    def of_row(self, row: Row) -> Record:
        """The record of what a lane wrote, while nobody asks for callers."""
        if row[0] != _HYPERCALL_ROW:
            return self.of(event_of(self._machine.domain.domain_id, row))
        known = self._answered.get(row[5 : 8 + row[7]])  # guests make the same calls again and again
        name, number, args, result, command = known or self._answer(row)
        return Record(
            "hypercall", row[2] - BOOT_TIME_NS, row[1], row[3], name, number, args, result,
            row[4] - BOOT_TIME_NS, command,
        )  # fmt: skip

    def frames(self) -> Record:
        """How many frames the domain has of each type, now."""
        d = self._machine.domain
        return Record(
            "frames", d.clock.now() - BOOT_TIME_NS, d.current_id, args=frames_by_type(self._machine)
        )

    # -- kinds of events

    def _hypercall(self, event: e.HypercallEvent) -> Record:
        why = "\n".join(map(str, event.refusals)) if event.refusals else ""
        if event.entries:
            why = "\n".join([*filter(None, (why,)), *map(_failed, event.entries)])
        return Record(
            "hypercall", *self._where(event), self._call_name(event.number), event.number,
            event.args, event.result, event.end_ns - BOOT_TIME_NS, command_name(event.number, event.args),
            why, self._caller(event.rip),
        )  # fmt: skip

    def _answer(self, row: Row) -> tuple[str, int, tuple[int, ...], int, str]:
        number, args = row[5], arguments_of(row)
        found = self._call_name(number), number, args, result_of(row), command_name(number, args)
        if len(self._answered) >= _MOST_KEPT:
            self._answered.clear()
        self._answered[row[5 : 8 + row[7]]] = found
        return found

    def _call(self, kind: str, event: e.SubcallEvent | e.UnfinishedEvent) -> Record:
        result = event.result if isinstance(event, e.SubcallEvent) else None
        return Record(
            kind, *self._where(event), self._call_name(event.number), event.number,
            event.args, result, 0, command_name(event.number, event.args), "", self._caller(event.rip),
        )  # fmt: skip

    def _plain(self, kind: str, event: e.Event) -> Record:
        return Record(kind, *self._where(event), symbol=self._symbol(event.rip))

    def _fault(self, kind: str, event: e.TrapEvent | e.ExceptionEvent) -> Record:
        args: tuple[int, ...] = ()
        if event.error_code is not None:
            args = (event.error_code, event.cr2) if event.cr2 else (event.error_code,)
        return Record(
            kind, *self._where(event), vector_name(event.vector), event.vector, args,
            symbol=self._symbol(event.rip),
        )  # fmt: skip

    def _emulated(self, event: e.EmulatedEvent) -> Record:
        return self._plain("emulated", event)._replace(name=event.name)

    def _store(self, event: e.PageTableStoreEvent) -> Record:
        return self._plain("store", event)._replace(args=(event.cr2,))

    def _pending(self, event: e.PendingEvent) -> Record:
        record = self._plain("pending", event)
        return record._replace(number=event.port, args=(event.target,), detail=self._binding(event.port))

    def _runstate(self, event: e.RunstateEvent) -> Record:
        assert max(event.old, event.new) < len(RUNSTATES)
        return self._plain("runstate", event)._replace(args=(event.old, event.new))

    def _console(self, event: e.ConsoleEvent) -> Record:
        text = event.data.decode("utf-8", "surrogateescape")
        return self._plain("typed" if event.typed else "print", event)._replace(text=text)

    def _device(self, event: e.DeviceEvent) -> Record:
        return self._plain("device", event)._replace(name=event.device)

    def is_within(self, wanted: Filter) -> bool:
        """Whether a function that is wanted is in the call chain at the moment."""
        if self._chain is None:
            return False
        return wanted.takes_chain(map(self._symbol, self._chain.addresses()))

    # -- what they share

    def _where(self, event: e.Event) -> tuple[int, int, int]:
        return event.ns - BOOT_TIME_NS, event.vcpu_id, event.rip

    def _call_name(self, number: int) -> str:
        name = self._calls.get(number)
        if name is None:
            known = number < NR_HYPERCALLS
            name = hypercall_name(number) if known else "unknown hypercall"
            if known:
                self._calls[number] = name
        return name

    def _symbol(self, address: int) -> str:
        if self._names is None:
            return ""
        found = self._symbols.get(address)
        if found is None:
            if len(self._symbols) > _MOST_KEPT:
                self._symbols.clear()
            found = self._symbols[address] = self._names(address)
        return found

    def _caller(self, rip: int) -> str:
        """Who made a hypercall: where its stub returns to, if the call came from the hypercall page."""
        names = self._names
        if names is None or not self._callers:
            return ""
        if rip not in names.stubs:
            return self._symbol(rip)
        machine = self._machine
        read = GuestView(machine).read
        return self._symbol(left_stub(machine.domain.abi.word, read, machine.engine.q[RSP])[0])

    def _binding(self, port: int) -> str:
        """What the port is bound to, as it is now."""
        t = self._machine.domain.evtchn
        state = t.state[port] if port < t.valid_evtchns else 0
        if state == ECS_VIRQ:
            return virq_name(t.virq[port])
        if state == ECS_INTERDOMAIN:
            return f"domain {t.remote_dom[port]}"
        return {ECS_IPI: "IPI", ECS_PIRQ: "PIRQ"}.get(state, "unbound")


def _failed(entry: FailedEntry) -> str:
    why = "; ".join(map(str, entry.refusals))
    return f"entry at {entry.address:#x}: {hypercall_name(entry.number)} = {result_name(entry.result)}: {why}"


def frames_by_type(machine: Machine) -> tuple[int, ...]:
    """How many of the domain's frames are of each PGT_* type; a type counts while something holds it."""
    d, frames = machine.domain, machine.domain.frames
    types = bytes(frames.ptype)
    if len(machine.host.machines) > 1:
        types = bytes(t for t, owner in zip(types, frames.owner, strict=True) if owner == d.domain_id)
    rare = types.translate(None, _COMMON)  # bytes.count() takes long where there is much to count
    counts = [rare.count(kind) for kind in range(len(PGT_NAMES))]
    counts[PGT_writable_page] = len(types) - len(types.translate(None, _COMMON[1:]))
    counts[0] = max(frames.tot_pages.get(d.domain_id, 0) - sum(counts[1:]), 0)
    return tuple(counts)
