"""A running domain's events, as records of a trace, into a file: `launch --trace`."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbuilder.launch.terminal import write_all
from domainbuilder.launch.trace_records import Records
from domainbuilder.output import atomic_output
from domainbuilder.trace.filter import Filter, parse_filter
from domainbuilder.trace.formats import encoder, format_of
from domainbuilder.trace.record import Head, Record, Tail
from hvcore.debug import events as e
from hvcore.debug.event_log import log_of
from hvcore.debug.periodic import Periodic
from hvcore.debug.taps import listen

if TYPE_CHECKING:
    from domainbuilder.launch.names import Names
    from domainbuilder.launch.run_stats import Statistics
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.trace.formats import Encoder
    from hvcore.debug.event_log import Row

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
            write_all(self._fd, bytes(self._buffer), self._name)
        except OSError:
            self._failed = True
            raise
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
    records = Records(machine, names, callers=by_name)
    first, last = wanted.from_ns, wanted.to_ns
    takes_all = not (first or by_name or wanted.classes) and last is None

    def take(record: Record) -> None:
        if record.kind not in kinds or record.ns < first or (last is not None and record.ns >= last):
            return
        if wanted.takes_symbol(record.symbol) and (not wanted.within or records.is_within(wanted)):
            sink(record)

    put = sink if takes_all else take

    def tell(event: e.Event) -> None:
        put(records.of(event))

    def tell_rows(rows: list[Row]) -> None:
        for record in map(records.of_row, rows):
            put(record)

    def count_frames() -> None:
        log_of(machine).drain()  # what was before comes before
        take(records.frames())

    with ExitStack() as stack:
        if "frames" in kinds and not by_name:
            counter = Periodic(machine, "trace", FRAMES_NS, count_frames)
            stack.enter_context(dom.watching(counter))
        stack.enter_context(
            listen(
                machine,
                tell,
                told,
                vcpus=wanted.vcpus,
                batched=not (by_name or is_live),
                rows=tell_rows,
            )
        )
        yield
