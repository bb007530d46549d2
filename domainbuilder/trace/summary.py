"""What a trace comes to: the calls most made, where the time went, and latencies as histograms."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from domainbuilder.trace.record import CLASS_OF, RUNSTATES, Head, Record, Tail
from domainbuilder.trace.text import result
from domainbuilder.visible import visible

_BARS = 40
_MOST_NAMES = 10_000  # that a file can have counted apart
_TOP = 20


@dataclass
class Histogram:
    """Latencies by powers of two: bucket n has those of less than 2^n ns, and of no bucket before."""

    buckets: Counter[int] = field(default_factory=Counter)
    count: int = 0
    total: int = 0
    most: int = 0

    def add(self, ns: int) -> None:
        """One more."""
        self.buckets[ns.bit_length()] += 1
        self.count += 1
        self.total += ns
        self.most = max(self.most, ns)


@dataclass
class Summary:
    """The counts of a trace. `calls` are by name and command, `latencies` by what they are of."""

    head: Head
    tail: Tail = field(default_factory=Tail)
    records: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    call_ns: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, int]] = field(default_factory=Counter)
    traps: Counter[str] = field(default_factory=Counter)
    emulated: Counter[str] = field(default_factory=Counter)
    ports: Counter[str] = field(default_factory=Counter)
    devices: Counter[str] = field(default_factory=Counter)
    states: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    latencies: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    console_bytes: int = 0
    first_ns: int | None = None
    last_ns: int = 0

    @property
    def failed(self) -> Counter[str]:
        """Calls that failed, with how: "mmu_update = -EINVAL"."""
        return Counter({f"{name} = {result(value)}": count for (name, value), count in self.errors.items()})


def summarise(head: Head, records: Iterable[Record]) -> Summary:
    """All that is counted, in one pass and bounded memory."""
    counting = Counting(head)
    for record in records:
        counting.add(record)
    return counting.done()


class Counting:
    """A summary that is being made, record by record."""

    def __init__(self, head: Head) -> None:
        self._summary = Summary(head)
        self._waiting = _Waiting()

    def add(self, r: Record) -> None:
        """Count one more."""
        s = self._summary
        s.records[r.kind] += 1
        s.first_ns = r.ns if s.first_ns is None else min(s.first_ns, r.ns)
        s.last_ns = max(s.last_ns, r.ns, r.end_ns)
        count = _COUNTS.get(r.kind)
        if count is not None:
            count(s, self._waiting, r)

    def done(self, tail: Tail | None = None) -> Summary:
        """The summary, with how the run ended."""
        s = self._summary
        if tail is not None:
            s.tail = tail
            s.last_ns = max(s.last_ns, tail.end_ns)
        for vcpu, (now, since) in self._waiting.states.items():
            s.states[vcpu][RUNSTATES[now]] += s.last_ns - since
        return s


class _Waiting:
    """What has begun: events that no upcall has told of yet, run states and since when."""

    def __init__(self) -> None:
        self.raised: dict[tuple[int, int], int] = {}
        self.states: dict[int, tuple[int, int]] = {}


def _pending(s: Summary, waiting: _Waiting, r: Record) -> None:
    _count(s.ports, f"port {r.number} ({r.detail})" if r.detail else f"port {r.number}")
    if len(waiting.raised) < _MOST_NAMES:
        waiting.raised.setdefault((r.args[0], r.number), r.ns)


def _upcall(s: Summary, waiting: _Waiting, r: Record) -> None:
    for key in [key for key in waiting.raised if key[0] == r.vcpu]:
        s.latencies["event raised to upcall"].add(r.ns - waiting.raised.pop(key))


def _print(s: Summary, _waiting: _Waiting, r: Record) -> None:
    s.console_bytes += len(r.text.encode("utf-8", "surrogateescape"))


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < _MOST_NAMES else "others"] += 1


def _count_call(s: Summary, _waiting: _Waiting, r: Record) -> None:
    name = f"{r.name} {r.detail}" if r.detail else r.name or r.kind
    _count(s.calls, name)
    if r.kind == "hypercall" and r.end_ns:
        took = r.end_ns - r.ns
        s.call_ns[name if name in s.calls else "others"] += took
        s.latencies["hypercall entered to returned"].add(took)
    if r.result is not None and -4096 < r.result < 0 and len(s.errors) < _MOST_NAMES:
        s.errors[name, r.result] += 1


def _change(s: Summary, waiting: _Waiting, r: Record) -> None:
    state = waiting.states
    if r.vcpu in state or len(state) < _MOST_NAMES:
        old, since = state.get(r.vcpu, (r.args[0], r.ns))
        s.states[r.vcpu][RUNSTATES[old]] += r.ns - since
        if old == RUNSTATES.index("blocked"):
            s.latencies["blocked"].add(r.ns - since)
        state[r.vcpu] = r.args[1], r.ns


_COUNTS: dict[str, Callable[[Summary, _Waiting, Record], None]] = {
    "hypercall": _count_call,
    "subcall": _count_call,
    "unfinished": _count_call,
    "iret": _count_call,
    "trap": lambda s, _, r: _count(s.traps, r.name),
    "emulated": lambda s, _, r: _count(s.emulated, r.name),
    "device": lambda s, _, r: _count(s.devices, r.name),
    "pending": _pending,
    "upcall": _upcall,
    "runstate": _change,
    "print": _print,
}


def render(s: Summary) -> str:
    """The summary as text."""
    return "\n".join(_lines(s)) + "\n"


def _lines(s: Summary) -> Iterator[str]:
    head, tail = s.head, s.tail
    if head.kernel:
        yield visible(f"{head.kernel}, {head.bits}-bit, {head.vcpus} vCPU{'s' * (head.vcpus > 1)}")
    yield f"{(tail.end_ns or s.last_ns) / 1e9:.6f} s of the guest's time" + (
        f": {visible(tail.reason)}" if tail.reason else ""
    )
    by_class = Counter[str]()
    for kind, count in s.records.items():
        by_class[CLASS_OF[kind]] += count
    yield from _table("records", by_class)
    yield from _table("hypercalls", s.calls, s.call_ns)
    yield from _table("that failed", s.failed)
    yield from _table("traps and faults", s.traps)
    yield from _table("emulated instructions", s.emulated)
    yield from _table("event channels raised", s.ports)
    yield from _table("backends notified", s.devices)
    if s.console_bytes:
        yield f"{'console output, bytes':<44}{s.console_bytes:>12,}"
    for vcpu, states in sorted(s.states.items()):
        yield f"time of vcpu{vcpu}"
        total = sum(states.values()) or 1
        for name, ns in (+states).most_common():
            yield f"  {name:<42}{ns / 1e9:>12.6f} s  {100 * ns / total:5.1f} %"
    for name, histogram in s.latencies.items():
        yield from _histogram(name, histogram)


def ranked(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """The most frequent first, those that are equal by name."""
    return sorted(counts.items(), key=lambda row: (-row[1], row[0]))


def _table(title: str, counts: Counter[str], ns: Counter[str] | None = None) -> Iterator[str]:
    if not counts:
        return
    yield f"{title:<44}{sum(counts.values()):>12,}"
    rows = ranked(counts)
    for name, count in rows[:_TOP]:
        took = f"  {ns[name] / 1e6:>12.3f} ms" if ns and ns.get(name) else ""
        yield f"  {visible(name)[:42]:<42}{count:>12,}{took}"
    if len(rows) > _TOP:
        yield f"  {f'{len(rows) - _TOP} others':<42}{sum(count for _, count in rows[_TOP:]):>12,}"


def _histogram(name: str, h: Histogram) -> Iterator[str]:
    yield f"{name}: {h.count:,} times, {h.total / h.count:,.0f} ns on average, {h.most:,} ns at most"
    highest = max(h.buckets.values())
    for bucket in range(min(h.buckets), max(h.buckets) + 1):
        count = h.buckets[bucket]
        if not count:
            continue
        bar = "#" * -(-count * _BARS // highest)
        yield f"  {f'< {duration(1 << bucket)}':>12} {count:>10,} {bar}".rstrip()


def duration(ns: int) -> str:
    """A time in the unit that fits."""
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns >= size:
            return f"{ns / size:.4g} {unit}"
    return f"{ns} ns"
