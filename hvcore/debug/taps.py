"""`listen()`: typed events of what a domain does, told to whoever asks.

    with listen(machine, seen.append, kinds=(HypercallEvent, ExceptionEvent)):
        machine.run()

Who listens is told after the fact, may look, and changes nothing, so the run is the one that it would have
been. With nobody listening there is nothing in the way: the taps are put where the calls go, and taken out
again. An event may be told at once, with all exits of the domain going to Python instead of the compiled
core's lanes, whose results are the same; or, `batched`, a little later, of what the lanes wrote down.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from hvcore.common import schedule
from hvcore.common.event import EvtchnTable
from hvcore.cpu.processor import RAX, RIP
from hvcore.debug.event_log import Row, RowsTaker, event_of, log_of
from hvcore.debug.events import (
    KINDS,
    ConsoleEvent,
    DeviceEvent,
    EmulatedEvent,
    Event,
    ExceptionEvent,
    HypercallEvent,
    IretEvent,
    Listener,
    PageTableStoreEvent,
    PendingEvent,
    RunstateEvent,
    ScheduleEvent,
    SubcallEvent,
    TrapEvent,
    UnfinishedEvent,
    UpcallEvent,
)
from hvcore.given import Given
from hvcore.public.xen import NR_HYPERCALLS, Hypercall
from hvcore.trace import Trace
from hvcore.x86 import M32, M64, TRAP_HAVE_EC, TRAP_page_fault

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu


@contextmanager
def listen(
    machine: Machine,
    listener: Listener,
    kinds: Collection[type[Event]] = KINDS,
    *,
    vcpus: Collection[int] | None = None,
    batched: bool = False,
    rows: RowsTaker | None = None,
) -> Iterator[None]:
    """Tell `listener` of events of these kinds, of these vCPUs (None: of all), while the block runs.

    In the order in which they end. `batched`: some are told later than they happen, at the latest where the
    block ends; what the listener then sees of the machine is not what it was. `rows`: given what lanes wrote,
    many at once, where the listener would be told of each. Several may listen to one domain; they end in the
    reverse order. A listener that raises ends the run.
    """
    wanted = frozenset(kinds)

    def tell(event: Event) -> None:
        if type(event) in wanted and (vcpus is None or event.vcpu_id in vcpus):
            listener(event)

    with ExitStack() as stack:
        tapped = tell
        if batched and machine.lanes.possible:
            log = log_of(machine)
            stack.enter_context(log.open(_taker(machine, tell, vcpus, rows), kinds))
            drain = log.drain

            def tapped(event: Event) -> None:
                drain()
                tell(event)
        else:
            stack.enter_context(machine.without_lanes())
        for taps, told in _TAPS.items():
            if wanted.intersection(told):
                stack.enter_context(taps(machine, tapped))
        machine.listeners += 1
        try:
            yield
        finally:
            machine.listeners -= 1


def _taker(
    machine: Machine, tell: Listener, vcpus: Collection[int] | None, rows: RowsTaker | None
) -> RowsTaker:
    """What the log gives its rows to."""
    domain_id = machine.domain.domain_id

    def tell_each(given: list[Row]) -> None:
        for row in given:
            tell(event_of(domain_id, row))

    if rows is None:
        return tell_each
    if vcpus is None:
        return rows
    return lambda given: rows([row for row in given if row[1] in vcpus])


Tap = Callable[["Machine", Listener], AbstractContextManager[None]]


@contextmanager
def _replaced(owner: Any, name: str, by: Callable[..., Any]) -> Iterator[None]:
    """`owner.name` is `by` for a while; an attribute of the instance, in front of the class's."""
    had = name in getattr(owner, "__dict__", (name,))
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _now(machine: Machine) -> tuple[int, int, int, int]:
    d = machine.domain
    return d.domain_id, d.current_id, d.clock.now(), machine.engine.q[RIP]


def _hypercalls(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    trace, enter, table = machine.domain.trace, machine.traps.hypercall, machine.hypercalls
    q, clock = machine.engine.q, machine.clock
    mask = M32 if machine.domain.abi.is_32bit else M64

    def hypercall() -> None:
        before, where, number = trace.recent[0], _now(machine), q[RAX] & mask
        if number == Hypercall.iret:
            enter()
            return
        arity = table.arity[number] if number < NR_HYPERCALLS else 0
        args = tuple(q[register] & mask for register in table.registers[:arity])
        try:
            enter()
        finally:
            if trace.recent[0] == before:
                tell(UnfinishedEvent(*where, number, args))
        if trace.recent[0] == before:
            return
        serial, (number, args, result) = trace.last_hypercall()
        why: tuple[Any, ...] = ((), ())
        if trace.refused_calls and trace.refused_calls[-1].serial == serial:
            why = trace.refused_calls[-1].refusals, trace.refused_calls[-1].entries
        tell(HypercallEvent(*where, number, args, result, clock.now(), *why))

    return _replaced(machine.traps, "hypercall", hypercall)


def _irets(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    enter, q = machine.traps.hypercall, machine.engine.q
    mask = M32 if machine.domain.abi.is_32bit else M64

    def hypercall() -> None:
        if q[RAX] & mask == Hypercall.iret:
            tell(IretEvent(*_now(machine)))
        enter()

    return _replaced(machine.traps, "hypercall", hypercall)


def _subcalls(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    table = machine.hypercalls
    dispatch = table.dispatch

    def dispatched(v: Vcpu, number: int, args: tuple[int, ...]) -> int:
        if number == Hypercall.iret or not args:  # a single call that does not exist has none
            return dispatch(v, number, args)
        where = _now(machine)
        arity = table.arity[number] if number < NR_HYPERCALLS else 0
        result = dispatch(v, number, args)
        tell(SubcallEvent(*where, number, args[:arity], result))
        return result

    return _replaced(table, "dispatch", dispatched)


@contextmanager
def _traps(machine: Machine, tell: Listener) -> Iterator[None]:
    traps, engine = machine.traps, machine.engine

    def tap(handle: Callable[[int], None]) -> Callable[[int], None]:
        software = handle == traps.do_softint

        def handled(vector: int) -> None:
            code = engine.error_code if not software and TRAP_HAVE_EC >> vector & 1 else None
            cr2 = engine.cr2 if vector == TRAP_page_fault else 0
            tell(TrapEvent(*_now(machine), vector, code, cr2))
            handle(vector)

        return handled

    with (
        _replaced(traps, "do_softint", tap(traps.do_softint)),
        _replaced(traps, "do_exception", tap(traps.do_exception)),
    ):
        yield


def _emulated(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    trace, emulate = machine.domain.trace, Trace.emulate

    def emulated(self: Trace, name: str) -> None:
        if self is trace:
            tell(EmulatedEvent(*_now(machine), name))
        emulate(self, name)

    return _replaced(Trace, "emulate", emulated)


def _exceptions(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    bounce = machine.traps.bounce

    def bounced(vector: int, error_code: int | None) -> None:
        where, cr2 = _now(machine), machine.domain.current.ctrlreg[2]
        bounce(vector, error_code)
        tell(ExceptionEvent(*where, vector, error_code, cr2 if vector == TRAP_page_fault else 0))

    return _replaced(machine.traps, "bounce", bounced)


def _pending(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    table, set_pending = machine.domain.evtchn, EvtchnTable.set_pending

    def raised(self: EvtchnTable, vcpu_id: int, port: int) -> None:
        if self is table:
            tell(PendingEvent(*_now(machine), port, vcpu_id))
        set_pending(self, vcpu_id, port)

    return _replaced(EvtchnTable, "set_pending", raised)


def _upcalls(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    test, words = machine.traps.test_all_events, machine.domain.words

    def test_all_events() -> None:
        before, where = words.events_delivered, _now(machine)
        test()
        if words.events_delivered != before:
            tell(UpcallEvent(*where))

    return _replaced(machine.traps, "test_all_events", test_all_events)


def _page_table_stores(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    try_start = machine.ro_page_fault.try_start

    def started(cr2: int) -> bool:
        where, begun = _now(machine), try_start(cr2)
        if begun:
            tell(PageTableStoreEvent(*where, cr2))
        return begun

    return _replaced(machine.ro_page_fault, "try_start", started)


def _turns(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    switch_to = machine.switch_to

    def switched(v: Vcpu) -> None:
        before = machine.domain.current_id
        switch_to(v)
        if v.vcpu_id != before:
            tell(ScheduleEvent(*_now(machine)))

    return _replaced(machine, "switch_to", switched)


def _runstates(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    d, change = machine.domain, schedule.vcpu_runstate_change

    def changed(v: Vcpu, new: int) -> None:
        old = v.runstate
        change(v, new)
        if v.domain is d and old != new:
            domain_id, _, ns, rip = _now(machine)
            tell(RunstateEvent(domain_id, v.vcpu_id, ns, rip if v.vcpu_id == d.current_id else 0, old, new))

    return _replaced(schedule, "vcpu_runstate_change", changed)


@contextmanager
def _console(machine: Machine, tell: Listener) -> Iterator[None]:
    output, typed = machine.console.output, machine.typed

    def printed(data: bytes) -> None:
        tell(ConsoleEvent(*_now(machine), data, False))
        output(data)

    def given(when: int, given: Given) -> None:
        if isinstance(given, bytes):
            tell(ConsoleEvent(*_now(machine), given, True))
        typed(when, given)

    with _replaced(machine.console, "output", printed), _replaced(machine, "typed", given):
        yield


def _devices(machine: Machine, tell: Listener) -> AbstractContextManager[None]:
    domain_id, notify = machine.domain.domain_id, EvtchnTable.notify

    def notified(self: EvtchnTable, port: int) -> None:
        consumer = self.consumers.get(port)
        if consumer is not None and self.remote_dom[port] == domain_id:
            device = getattr(consumer, "__self__", consumer)
            tell(DeviceEvent(*_now(machine), type(device).__name__.removesuffix("Backend").lower()))
        notify(self, port)

    return _replaced(EvtchnTable, "notify", notified)


_TAPS: dict[Tap, tuple[type[Event], ...]] = {
    _subcalls: (SubcallEvent,),
    _hypercalls: (HypercallEvent, UnfinishedEvent),
    _irets: (IretEvent,),
    _traps: (TrapEvent,),
    _emulated: (EmulatedEvent,),
    _exceptions: (ExceptionEvent,),
    _pending: (PendingEvent,),
    _upcalls: (UpcallEvent,),
    _page_table_stores: (PageTableStoreEvent,),
    _turns: (ScheduleEvent,),
    _runstates: (RunstateEvent,),
    _console: (ConsoleEvent,),
    _devices: (DeviceEvent,),
}
