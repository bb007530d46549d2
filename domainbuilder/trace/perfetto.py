"""A trace as Perfetto's protobuf, which opens in ui.perfetto.dev: a track a vCPU, counters, flows.

Hypercalls are slices, from the exit to Xen to the return, with arguments and result; what has no duration is
an instant. An arrow leads from each event channel that is raised to the upcall that tells of it.
Source: protos/perfetto/trace/trace_packet.proto, interned_data.proto and track_event/*.proto of Perfetto.
"""

from __future__ import annotations

from collections.abc import Callable

from domainbuilder.trace.protobuf import LOW_14, fixed64, message, number, text, varint
from domainbuilder.trace.record import CLASS_OF, CLASSES, FORMAT, FRAME_TYPES, RUNSTATES, Head, Record, Tail

EXIT_NS = 100  # what an exit to Xen takes of a guest's time, before the call itself begins

# Numbers of fields: of Trace, TracePacket, InternedData and what has a name there, TrackDescriptor,
# ProcessDescriptor, CounterDescriptor, TrackEvent, DebugAnnotation.
PACKET = 1
TIMESTAMP, SEQUENCE, TRACK_EVENT, INTERNED, FLAGS, TRACK_DESCRIPTOR = 8, 10, 11, 12, 13, 60
INTERNED_CATEGORY, INTERNED_NAME, INTERNED_ANNOTATION = 1, 2, 3
IID, INTERNED_TEXT = 1, 2
UUID, TRACK_NAME, PROCESS, PARENT, COUNTER = 1, 2, 3, 5, 8
PID, PROCESS_NAME = 1, 6
UNIT_NAME = 6
CATEGORY_IID, ANNOTATION, TYPE, NAME_IID, EVENT_TRACK, COUNTER_VALUE, FLOW, FLOW_END = (
    3,
    4,
    9,
    10,
    11,
    30,
    47,
    48,
)
EVENT_NAME = 23
ANNOTATION_IID, UINT, INT, STRING, POINTER = 1, 3, 4, 6, 7
SLICE_BEGIN, SLICE_END, INSTANT, COUNTER_EVENT = 1, 2, 3, 4
CLEARED, NEEDS = 1, 2  # SEQ_INCREMENTAL_STATE_CLEARED, SEQ_NEEDS_INCREMENTAL_STATE

PROCESS_TRACK, FRAME_TRACKS, CONSOLE_TRACK, VCPU_TRACKS, STATE_TRACKS = 1, 0x100, 0x200, 0x1000, 0x100000
_MOST_KEPT = 1 << 16  # encoded arguments that are kept, because they come again and again
_MOST_HEADS = 1 << 14
_CATEGORIES = {name: i for i, name in enumerate(CLASSES, 1)}
# The names of annotations, by number: arguments by place, and fields of a record.
NOTES = (
    *(f"arg{i}" for i in range(8)),
    "kind",
    "rip",
    "number",
    "result",
    "name",
    "detail",
    "text",
    "symbol",
    "vcpu",
    "about",
)
_NOTE = {name: number(ANNOTATION_IID, i) for i, name in enumerate(NOTES, 1)}
_POINTERS = ("hypercall", "subcall", "unfinished", "trap", "exception", "store")  # their args are addresses


class PerfettoEncoder:
    """The packets of a trace. All that it keeps is bounded."""

    def __init__(self) -> None:
        self._interned = b""  # what the next packet brings along
        self._names: dict[str, int] = {}
        self._tracks: set[int] = set()
        self._arguments: dict[tuple[int, int], bytes] = {}
        self._heads: dict[tuple[object, ...], bytes] = {}
        self._bodies: dict[tuple[object, ...], bytes] = {}  # of the packets that begin calls
        self._ends: dict[int, bytes] = {}  # by track, of which there are as many as vCPUs
        self._flow = 0
        self._high, self._high_bytes = 0, b"\0"  # the time without its low 14 bits
        self._raised: dict[tuple[int, int], int] = {}  # (vCPU, port) -> the flow of its last event

    def begin(self, head: Head) -> bytes:
        """The domain as a process, its vCPUs as tracks, and all names of categories and annotations."""
        process = number(PID, head.domain_id) + text(PROCESS_NAME, f"domain {head.domain_id}: {head.kernel}")
        known = b"".join(_interned(INTERNED_CATEGORY, i, name) for name, i in _CATEGORIES.items())
        known += b"".join(_interned(INTERNED_ANNOTATION, i, name) for i, name in enumerate(NOTES, 1))
        track = number(UUID, PROCESS_TRACK) + message(PROCESS, process)
        first = number(SEQUENCE, 1) + number(FLAGS, CLEARED) + message(INTERNED, known)
        out = message(PACKET, first + message(TRACK_DESCRIPTOR, track))
        out += b"".join(self._vcpu(v) for v in range(head.vcpus))
        about = "\n".join((FORMAT, *map(str, head)))
        return out + self._about(0, "begin", about)

    def encode(self, record: Record) -> bytes:
        """The packets of a record."""
        return _ENCODE.get(record.kind, PerfettoEncoder.point)(self, record)

    def end(self, tail: Tail) -> bytes:
        """An instant at the end, with the counts."""
        counts = (f"{name}={count}" for name, count in tail.counts.items())
        about = "\n".join((str(tail.end_ns), tail.reason, *counts))
        return self._about(tail.end_ns, "end", about)

    # -- kinds of records

    def call(self, r: Record) -> bytes:
        """A slice; the entries of a multicall lie within it."""
        ns, end_ns = r.ns, r.end_ns
        begins = ns if r.kind == "subcall" or ns < EXIT_NS else ns - EXIT_NS
        track = VCPU_TRACKS + r.vcpu
        new = b"" if track in self._tracks else self._vcpu(r.vcpu)
        body = self._body(r, self._call_event)
        return new + self._packet(begins, body) + self._timed(max(end_ns, ns), self._slice_end(track))

    def _body(self, r: Record, event: Callable[[Record], bytes]) -> bytes:
        """The body of the packet with a record's event. Guests do the same again and again."""
        key = r.kind, r[2:8], r[9:]  # all but the times
        body = self._bodies.get(key)
        if body is None:
            body = _event(event(r))
            if len(self._bodies) >= _MOST_KEPT:
                self._bodies.clear()
            if not r.text:
                self._bodies[key] = body
        return body

    def _call_event(self, r: Record) -> bytes:
        argument, track = self._argument, VCPU_TRACKS + r.vcpu
        notes = [argument(i, value) for i, value in enumerate(r.args)]
        notes += self._result(r.result), argument(_RIP, r.rip), _strings(r, "text", "symbol")
        return self._call_head(r, track) + b"".join(notes)

    def _call_head(self, r: Record, track: int) -> bytes:
        """What the slices of a hypercall on a track have in common."""
        key = r.kind, r.vcpu, r.number, r.detail
        found = self._heads.get(key)
        if found is not None:
            return found
        head = self._head(SLICE_BEGIN, track, r.name, "hypercalls") + _note("number", number(UINT, r.number))
        head += _string("kind", r.kind) + _strings(r, "detail")
        if len(self._heads) < _MOST_HEADS:
            self._heads[key] = head
        return head

    def point(self, r: Record) -> bytes:
        """An instant."""
        return self._vcpu(r.vcpu) + self._packet(r.ns, self._body(r, self._point_event))

    def _point_event(self, r: Record, name: str = "", extra: bytes = b"") -> bytes:
        notes = [_string("kind", r.kind), self._argument(_RIP, r.rip)]
        if r.number:
            notes.append(_note("number", number(UINT, r.number)))
        for i, value in enumerate(r.args):
            is_address = r.kind in _POINTERS
            notes.append(self._argument(i, value) if is_address else _note(f"arg{i}", number(UINT, value)))
        notes += extra, _strings(r, "name", "detail", "symbol")
        name = name or (f"{r.kind} {r.name}" if r.name else r.kind)
        return self._head(INSTANT, VCPU_TRACKS + r.vcpu, name, CLASS_OF[r.kind]) + b"".join(notes)

    def _flowing(self, r: Record, name: str, flows: bytes) -> bytes:
        """An instant at which arrows begin or end."""
        return self._vcpu(r.vcpu) + self._packet(r.ns, _event(self._point_event(r, name, flows)))

    def pending(self, r: Record) -> bytes:
        """An instant from which an arrow leads on."""
        self._flow += 1
        self._raised[r.args[0], r.number] = self._flow
        return self._flowing(r, "event", fixed64(FLOW, self._flow))

    def upcall(self, r: Record) -> bytes:
        """An instant to which arrows lead."""
        due = [key for key in self._raised if key[0] == r.vcpu]
        return self._flowing(r, "", b"".join(fixed64(FLOW_END, self._raised.pop(key)) for key in due))

    def runstate(self, r: Record) -> bytes:
        """A slice that lasts up to the next, on a track of its own."""
        track = STATE_TRACKS + r.vcpu
        out = b""
        if track in self._tracks:
            out += self._timed(r.ns, self._slice_end(track))
        out += self._track(track, f"vCPU {r.vcpu}: run state")
        notes = b"".join(_note(f"arg{i}", number(UINT, value)) for i, value in enumerate(r.args))
        notes += _string("kind", r.kind) + _note("vcpu", number(UINT, r.vcpu)) + self._argument(_RIP, r.rip)
        return out + self._packet(
            r.ns, _event(self._head(SLICE_BEGIN, track, RUNSTATES[r.args[1]], "scheduling") + notes)
        )

    def frames(self, r: Record) -> bytes:
        """A counter for each type."""
        out = b""
        for i, count in enumerate(r.args):
            track = FRAME_TRACKS + i
            unit = message(COUNTER, text(UNIT_NAME, "frames"))
            out += self._track(track, f"frames: {FRAME_TYPES[i]}", unit)
            head = self._head(COUNTER_EVENT, track, "", "pagetables")
            out += self._packet(r.ns, _event(head + number(COUNTER_VALUE, count)))
        return out

    def console(self, r: Record) -> bytes:
        """An instant on the console's track."""
        head = self._head(INSTANT, CONSOLE_TRACK, r.kind, "console")
        notes = _string("kind", r.kind) + _note("vcpu", number(UINT, r.vcpu)) + self._argument(_RIP, r.rip)
        return self._track(CONSOLE_TRACK, "console") + self._packet(
            r.ns, _event(head + notes + _strings(r, "text"))
        )

    def _about(self, ns: int, name: str, about: str) -> bytes:
        return self._packet(
            ns, _event(self._head(INSTANT, PROCESS_TRACK, name, "") + _string("about", about))
        )

    # -- packets

    def _head(self, kind: int, track: int, name: str, category: str) -> bytes:
        """How events of a kind and a name on a track begin."""
        key = kind, track, name
        found = self._heads.get(key)
        if found is not None:
            return found
        head = number(TYPE, kind) + number(EVENT_TRACK, track)
        if name:
            head += number(NAME_IID, self._name(name))
        if category:
            head += number(CATEGORY_IID, _CATEGORIES[category])
        if len(self._heads) < _MOST_HEADS:
            self._heads[key] = head
        return head

    def _packet(self, ns: int, body: bytes) -> bytes:
        """A packet of that time, with the names that are new in it."""
        if self._interned:
            body += message(INTERNED, self._interned)
            self._interned = b""
        return self._timed(ns, body)

    def _timed(self, ns: int, body: bytes) -> bytes:
        high = ns >> 14  # which is the same for some 16 us
        if high != self._high:
            self._high, self._high_bytes = high, varint(high)
        when = LOW_14[ns & 0x3FFF] + self._high_bytes if high else varint(ns)
        return _PACKET + varint(1 + len(when) + len(body)) + _TIMESTAMP + when + body

    def _slice_end(self, track: int) -> bytes:
        """The body of a packet that ends a slice."""
        found = self._ends.get(track)
        if found is None:
            found = self._ends[track] = _event(self._head(SLICE_END, track, "", ""))
        return found

    def _track(self, uuid: int, name: str, more: bytes = b"") -> bytes:
        if uuid in self._tracks:
            return b""
        self._tracks.add(uuid)
        track = number(UUID, uuid) + number(PARENT, PROCESS_TRACK) + text(TRACK_NAME, name) + more
        return message(PACKET, number(SEQUENCE, 1) + message(TRACK_DESCRIPTOR, track))

    def _vcpu(self, vcpu: int) -> bytes:
        track = VCPU_TRACKS + vcpu
        return b"" if track in self._tracks else self._track(track, f"vCPU {vcpu}")

    def _name(self, name: str) -> int:
        """The number of an event's name. There are as many as hypercalls, vectors, instructions, devices."""
        iid = self._names.get(name)
        if iid is None:
            iid = self._names[name] = len(self._names) + 1
            self._interned += _interned(INTERNED_NAME, iid, name)
        return iid

    def _argument(self, note: int, value: int) -> bytes:
        """The annotation of an address; none for an RIP of 0."""
        key = note, value
        encoded = self._arguments.get(key)
        if encoded is None:
            if len(self._arguments) >= _MOST_KEPT:
                self._arguments.clear()
            is_none = note == _RIP and not value
            encoded = b"" if is_none else _note(NOTES[note], number(POINTER, value))
            self._arguments[key] = encoded
        return encoded

    def _result(self, result: int | None) -> bytes:
        if result is None:
            return b""
        return _NO_ERROR if result == 0 else _note("result", number(INT, result))


_SEQUENCED = number(SEQUENCE, 1) + number(FLAGS, NEEDS)
_PACKET, _TIMESTAMP = varint(PACKET << 3 | 2), varint(TIMESTAMP << 3)
_RIP = NOTES.index("rip")


def _event(event: bytes) -> bytes:
    """The body of a packet with an event, which its time comes before."""
    return _SEQUENCED + message(TRACK_EVENT, event)


def _interned(kind: int, iid: int, name: str) -> bytes:
    return message(kind, number(IID, iid) + text(INTERNED_TEXT, name))


def _note(name: str, value: bytes) -> bytes:
    return message(ANNOTATION, _NOTE[name] + value)


def _string(name: str, value: str) -> bytes:
    return _note(name, text(STRING, value))


def _strings(r: Record, *names: str) -> bytes:
    return b"".join(_string(name, value) for name in names if (value := getattr(r, name)))


_NO_ERROR = _note("result", number(INT, 0))
_ENCODE: dict[str, Callable[[PerfettoEncoder, Record], bytes]] = {
    "hypercall": PerfettoEncoder.call,
    "subcall": PerfettoEncoder.call,
    "unfinished": PerfettoEncoder.call,
    "pending": PerfettoEncoder.pending,
    "upcall": PerfettoEncoder.upcall,
    "runstate": PerfettoEncoder.runstate,
    "frames": PerfettoEncoder.frames,
    "print": PerfettoEncoder.console,
    "typed": PerfettoEncoder.console,
}
