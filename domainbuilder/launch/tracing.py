"""A running domain's events, as records of a trace, into a file: `launch --trace`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbuilder.launch.call_chain import CallChain, left_stub
from domainbuilder.launch.hypercall_names import command_name, hypercall_name, result_name, virq_name
from domainbuilder.launch.terminal import write_all
from domainbuilder.output import atomic_output
from domainbuilder.trace.filter import Filter, parse_filter
from domainbuilder.trace.formats import encoder, format_of
from domainbuilder.trace.record import RUNSTATES, Head, Record, Tail
from hvcore.common.event import ECS_INTERDOMAIN, ECS_IPI, ECS_PIRQ, ECS_VIRQ
from hvcore.cpu.processor import RSP
from hvcore.debug import events as e
from hvcore.debug.periodic import Periodic
from hvcore.debug.taps import listen
from hvcore.debug.view import GuestView
from hvcore.machine import BOOT_TIME_NS
from hvcore.page_info import PGT_NAMES, PGT_none, PGT_writable_page
from hvcore.public.xen import NR_HYPERCALLS
from hvcore.x86 import vector_name

if TYPE_CHECKING:
    from domainbuilder.launch.names import Names
    from domainbuilder.launch.run_stats import Statistics
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.trace.formats import Encoder
    from hvcore.machine import Machine
    from hvcore.trace import FailedEntry

FRAMES_NS = 10_000_000  # how often the frames are counted by type
_CHUNK = 1 << 16
_KINDS: dict[str, type[e.Event]] = {
    "hypercall": e.HypercallEvent,
    "subcall": e.SubcallEvent,
    "iret": e.IretEvent,
    "unfinished": e.UnfinishedEvent,
    "trap": e.TrapEvent,
    "exception": e.ExceptionEvent,
    "emulated": e.EmulatedEvent,
    "store": e.PageTableStoreEvent,
    "pending": e.PendingEvent,
    "upcall": e.UpcallEvent,
    "turn": e.ScheduleEvent,
    "runstate": e.RunstateEvent,
    "print": e.ConsoleEvent,
    "typed": e.ConsoleEvent,
    "device": e.DeviceEvent,
}
_COMMON = bytes((PGT_none, PGT_writable_page))
RecordSink = Callable[[Record], None]


class _Abandoned(Exception):
    """The file could not be written, which whoever wrote has been told."""


class TraceFile:
    """The file of a trace: whole, or not there, however the run ends. A pipe is written to as it comes."""

    def __init__(self, path: str | os.PathLike[str], encoder: Encoder, head: Head) -> None:
        self._stack = ExitStack()
        self._encoder = encoder
        self._name = os.fspath(path)
        self._failed = False
        with self._stack:
            self._fd = self._stack.enter_context(_opened(path))
            self._buffer = bytearray(encoder.begin(head))
            self._stack = self._stack.pop_all()

    def write(self, record: Record) -> None:
        """One more record. Raises OSError, which names the file."""
        self._buffer += self._encoder.encode(record)
        if len(self._buffer) >= _CHUNK:
            self._flush()

    def close(self, tail: Tail) -> None:
        """Write what is left, and give the file its name; where it could not be written, drop it."""
        with suppress(_Abandoned), self._stack:
            if self._failed:
                raise _Abandoned
            self._buffer += self._encoder.end(tail)
            self._flush()

    def _flush(self) -> None:
        try:
            write_all(self._fd, bytes(self._buffer))
        except OSError as error:
            self._failed = True
            raise OSError(error.errno, error.strerror, self._name) from error
        self._buffer.clear()


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    try:
        is_stream = not stat.S_ISREG(mode := Path(path).stat().st_mode) and not stat.S_ISDIR(mode)
    except FileNotFoundError:
        is_stream = False
    if not is_stream:
        with atomic_output(path) as fd:
            yield fd
        return
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def traced(
    dom: RunningDomain,
    path: str | os.PathLike[str],
    *,
    trace_format: str | None = None,
    wanted: str = "",
    reason: Callable[[], str] = lambda: "",
) -> Iterator[None]:
    """Write a trace of what the domain does while the block runs; the file is whole however that ends.

    trace_format: perfetto, text, json or xentrace; None: as the file's name says. wanted: a filter as
    `--trace-filter` has it. reason: asked at the end why the run ended. Raises BuildError, OSError.
    """
    chosen, filtered = format_of(path, trace_format), parse_filter(wanted)
    if chosen == "xentrace" and filtered.classes is not None:  # which has vCPUs by their run states alone
        filtered = replace(filtered, classes=filtered.classes | {"scheduling"})
    file = TraceFile(path, encoder(chosen), head_of(dom, wanted))
    try:
        with recording(dom, file.write, filtered, _names_for(dom, chosen, filtered)):
            yield
    finally:
        file.close(tail_of(dom, reason()))


def _names_for(dom: RunningDomain, chosen: str, wanted: Filter) -> Names | None:
    """Names, where they are wanted and shown: to look them up in a packed kernel takes as long as a boot."""
    by_name = wanted.symbols or wanted.within
    return dom.names() if by_name or (dom.has_symbols and chosen != "xentrace") else None


def head_of(dom: RunningDomain, filtered: str = "") -> Head:
    """What is run."""
    plan, domain = dom.plan, dom.machine.domain
    kernel, cmdline = (plan.kernel, plan.start_info.cmd_line) if plan is not None else ("", b"")
    return Head(
        kernel,
        cmdline.decode("utf-8", "backslashreplace"),
        domain.domain_id,
        len(domain.vcpus),
        32 if domain.abi.is_32bit else 64,
        filtered,
    )


def counts_of(stats: Statistics) -> dict[str, int]:
    """What `--stats` counts, by "group/name"."""
    groups: dict[str, Mapping[Any, int]] = {
        "hypercalls": stats.hypercalls,
        "unknown_hypercalls": stats.unknown_hypercalls,
        "traps": stats.traps,
        "emulated": stats.emulated,
    }
    counts = {f"{group}/{name}": count for group, rows in groups.items() for name, count in rows.items()}
    for name in ("page_table_stores", "events_delivered", "tlb_flushes", "code_bytes", "console_bytes"):
        counts[name] = getattr(stats, name)
    return counts


def tail_of(dom: RunningDomain, reason: str) -> Tail:
    """How it stands now."""
    stats = dom.stats()
    return Tail(stats.guest_ns, reason, counts_of(stats))


@contextmanager
def recording(
    dom: RunningDomain,
    sink: RecordSink,
    wanted: Filter,
    names: Names | None = None,
    *,
    is_live: bool = False,
) -> Iterator[None]:
    """Give `sink` the records of what the domain does while the block runs, those that are wanted.

    `names` gives symbols. `is_live`: each record comes when it happens, so that `sink` can look around.
    Where functions are filtered by, who makes a hypercall, or the whole call chain, is looked up at each,
    which only works in that way, too: slower, with the same records.
    """
    machine = dom.machine
    kinds = wanted.kinds
    told = {_KINDS[kind] for kind in kinds if kind in _KINDS}
    by_name = bool(wanted.symbols or wanted.within)
    records = _Records(machine, names, callers=by_name)
    first, last = wanted.from_ns, wanted.to_ns
    takes_all = not (first or by_name or wanted.classes) and last is None

    def take(record: Record) -> None:
        if record.kind not in kinds or record.ns < first or (last is not None and record.ns >= last):
            return
        if wanted.takes_symbol(record.symbol) and (not wanted.within or records.is_within(wanted)):
            sink(record)

    def tell(event: e.Event) -> None:
        take(records.of(event))

    def tell_all(event: e.Event) -> None:
        sink(records.of(event))

    with ExitStack() as stack:
        if "frames" in kinds and not by_name:
            counter = Periodic(machine, "trace", FRAMES_NS, lambda: take(records.frames()))
            stack.enter_context(dom.watching(counter))
        stack.enter_context(
            listen(
                machine,
                tell_all if takes_all else tell,
                told,
                vcpus=wanted.vcpus,
                batched=not (by_name or is_live),
            )
        )
        yield


class _Records:
    """Events as records."""

    def __init__(self, machine: Machine, names: Names | None, *, callers: bool) -> None:
        self._machine = machine
        self._names = names
        self._chain = CallChain(machine, names) if names is not None else None
        self._callers = callers
        self._symbols: dict[int, str] = {}
        self._calls: dict[int, str] = {}
        self._ports: dict[int, str] = {}
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
            if len(self._symbols) > 1 << 16:
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
