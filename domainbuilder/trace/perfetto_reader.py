"""Our own traces in Perfetto's format, read back: what perfetto.py writes, and no other program's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from domainbuilder.errors import BuildError, Where
from domainbuilder.trace import perfetto as p
from domainbuilder.trace.protobuf import BYTES, fields, varint
from domainbuilder.trace.record import CLASS_OF, FORMAT, FRAME_TYPES, Head, Record, Tail, check_arguments

MAGIC = varint(p.PACKET << 3 | BYTES)
_MOST_PACKET = 1 << 20
_MOST_NAMES = 1 << 16
_OURS = "expected a Perfetto trace that `launch --trace` wrote"


class PerfettoReader:
    """The records again. `tail` is there once all have been read. Raises BuildError for what cannot be."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._offset = 0
        self._event_names: dict[int, str] = {}
        self._open: dict[int, Record] = {}  # the slice of a track that has begun
        self._frames: dict[int, int] = {}
        self.tail = Tail()
        self._has_tail = False
        for record in self._records():  # up to the instant that says what was run
            raise self._error(f"a record of kind {record.kind} comes before the trace's beginning")
        if not hasattr(self, "head"):
            raise self._error(f"no beginning; {_OURS}")

    head: Head

    def __iter__(self) -> Iterator[Record]:
        yield from self._records()
        if not self._has_tail:
            raise self._error("the trace has no end")

    def _error(self, what: object) -> BuildError:
        return BuildError(f"not a trace that can be read: {what}", where=Where(self._name, self._offset))

    def _records(self) -> Iterator[Record]:
        """Records up to the head, or the end."""
        while packet := self._packet():
            had_head = hasattr(self, "head")
            try:
                record = self._of(packet)
                if record is not None:
                    check_arguments(record)
            except (ValueError, TypeError, LookupError) as error:
                raise self._error(error) from None
            if record is not None:
                yield record
            elif not had_head and hasattr(self, "head"):
                return

    def _packet(self) -> bytes:
        at = self._offset
        start = self._file.read(1)
        if not start:
            return b""
        size, shift = 0, 0
        while True:
            byte = self._file.read(1)
            if start != MAGIC or not byte or shift > 28:
                raise self._error(_OURS)
            size |= (byte[0] & 0x7F) << shift
            shift += 7
            if byte[0] < 0x80:
                break
        packet = self._file.read(size) if size <= _MOST_PACKET else b""
        if len(packet) != size or not size:
            raise self._error("a packet has no end")
        self._offset = at + 1 + shift // 7 + size
        return packet

    def _of(self, packet: bytes) -> Record | None:
        """The record that a packet is, or completes."""
        event, ns = None, 0
        for field, value in fields(packet):
            if field == p.TIMESTAMP:
                ns = _int(value)
            elif field == p.TRACK_EVENT:
                event = value
            elif field == p.INTERNED:
                self._learn(_bytes(value))
        return None if event is None else self._event(ns, _bytes(event))

    def _learn(self, interned: bytes) -> None:
        for field, value in fields(interned):
            if field == p.INTERNED_NAME and len(self._event_names) < _MOST_NAMES:
                entry = dict(fields(_bytes(value)))
                self._event_names[_int(entry[p.IID])] = _bytes(entry[p.INTERNED_TEXT]).decode()

    def _event(self, ns: int, body: bytes) -> Record | None:
        numbers, notes = dict[int, int](), dict[str, Any]()
        for field, value in fields(body):
            if field == p.ANNOTATION:
                notes.update([_annotation(_bytes(value))])
            elif isinstance(value, int):
                numbers[field] = value
        track, kind = numbers.get(p.EVENT_TRACK, 0), numbers.get(p.TYPE, 0)
        name = self._event_names[numbers[p.NAME_IID]] if p.NAME_IID in numbers else ""
        if track == p.PROCESS_TRACK:
            self._about(notes["about"].split("\n"), name)
            return None
        if kind == p.COUNTER_EVENT:
            return self._count(ns, track - p.FRAME_TRACKS, numbers.get(p.COUNTER_VALUE, 0))
        return self._end(ns, track) if kind == p.SLICE_END else self._begun(ns, track, kind, name, notes)

    def _end(self, ns: int, track: int) -> Record | None:
        """The hypercall that returns; run states are records where they begin."""
        begun = self._open.pop(track, None)
        if begun is None:
            return None
        if begun.kind == "subcall":
            return begun
        return begun._replace(ns=begun.ns + p.EXIT_NS, end_ns=ns if begun.kind == "hypercall" else 0)

    def _begun(self, ns: int, track: int, kind: int, name: str, notes: dict[str, Any]) -> Record | None:
        what = notes.get("kind", "")
        if what not in CLASS_OF:
            raise ValueError(f"no kind of record is {what!r:.40}")
        is_slice = kind == p.SLICE_BEGIN
        r = Record(
            what, ns, notes.get("vcpu", track - p.VCPU_TRACKS), notes.get("rip", 0),
            name if is_slice and what != "runstate" else notes.get("name", ""), notes.get("number", 0),
            tuple(notes[f"arg{i}"] for i in range(8) if f"arg{i}" in notes), notes.get("result"), 0,
            notes.get("detail", ""), notes.get("text", ""), notes.get("symbol", ""),
        )  # fmt: skip
        if is_slice and what != "runstate":
            self._open[track] = r
            return None
        return r

    def _count(self, ns: int, kind: int, count: int) -> Record | None:
        self._frames[kind] = count
        if kind != len(FRAME_TYPES) - 1:
            return None
        return Record("frames", ns, 0, args=tuple(self._frames.get(i, 0) for i in range(len(FRAME_TYPES))))

    def _about(self, lines: list[str], name: str) -> None:
        if name == "begin":
            form, kernel, cmdline, domain, vcpus, bits, filtered = (lines + [""] * 7)[:7]
            if form != FORMAT:
                raise ValueError(_OURS)
            self.head = Head(kernel, cmdline, int(domain), int(vcpus), int(bits), filtered)
        else:
            counts = dict(line.rpartition("=")[::2] for line in lines[2:])
            self.tail = Tail(int(lines[0]), lines[1], {key: int(value) for key, value in counts.items()})
            self._has_tail = True


def _annotation(body: bytes) -> tuple[str, int | str]:
    name = ""
    value: int | str | None = None
    for field, found in fields(body):
        if field == p.ANNOTATION_IID:
            name = p.NOTES[_int(found) - 1]
        elif field == p.INT:
            number = _int(found)
            value = number - (1 << 64) if number >> 63 else number
        elif field == p.STRING:
            value = _bytes(found).decode()
        elif field in (p.UINT, p.POINTER):
            value = _int(found)
    if value is None:
        raise ValueError("an annotation without a value")
    if isinstance(value, str) != (name in ("kind", "name", "detail", "text", "symbol", "about")):
        raise ValueError(f"the annotation {name} has another type")
    return name, value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes where a number is due")
    return value


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where bytes are due")
    return value
