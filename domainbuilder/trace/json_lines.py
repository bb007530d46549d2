"""A trace as JSON, a line a record: what was run, the records, how it ended. Addresses are "0x..."."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from domainbuilder.errors import BuildError, Where
from domainbuilder.trace.record import CLASS_OF, FORMAT, Head, Record, Tail, check_arguments

MAGIC = b'{"format": "domainbuilder trace'
MOST_LINE = 1 << 20
_MOST_KNOWN = 1 << 15
_HEX = ("hypercall", "subcall", "unfinished", "trap", "exception", "store")  # their args are addresses
_dumps = json.JSONEncoder(ensure_ascii=True, check_circular=False).encode


class JsonEncoder:
    """The lines of a trace."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], tuple[str, str]] = {}  # what records have but their times

    def begin(self, head: Head) -> bytes:
        """The first line."""
        return _line({"format": FORMAT, **head._asdict()})

    def encode(self, record: Record) -> bytes:
        """A record's line: the fields that it has. Guests do the same again and again."""
        key = record.kind, record[2:8], record[9:]
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[key] = _around_end(record)
        ends = f', "end_ns": {record.end_ns}' if record.end_ns else ""
        return f'{{"ns": {record.ns}{found[0]}{ends}{found[1]}}}\n'.encode()

    def end(self, tail: Tail) -> bytes:
        """The last line."""
        return _line({**tail._asdict(), "counts": dict(tail.counts)})


def _around_end(record: Record) -> tuple[str, str]:
    """What is between `ns` and `end_ns`, and what is behind."""
    kind, _, vcpu, rip, name, number, args, result, _, detail, text, symbol = record
    row: dict[str, object] = {"vcpu": vcpu, "kind": kind}
    if rip:
        row["rip"] = hex(rip)
    if name:
        row["name"] = name
    if number:
        row["number"] = number
    if args:
        row["args"] = [hex(arg) for arg in args] if kind in _HEX else args
    if result is not None:
        row["result"] = result
    more = {"detail": detail, "text": text, "symbol": symbol}
    behind = _dumps({field: value for field, value in more.items() if value})[1:-1]
    return f", {_dumps(row)[1:-1]}", f", {behind}" if behind else ""


def _line(row: dict[str, object]) -> bytes:
    return _dumps(row).encode() + b"\n"


class JsonReader:
    """The lines again. `tail` is there once all have been read. Raises BuildError for what cannot be."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._file = name, file
        self._offset = 0
        self.tail = Tail()
        head = self._next()
        if head.pop("format", None) != FORMAT:
            raise BuildError("not a trace that this version reads", where=Where(name), expected=FORMAT)
        try:
            self.head = Head(**_checked(head, Head()))
        except ValueError as error:
            raise self._cannot_be(error, 0) from None

    def __iter__(self) -> Iterator[Record]:
        while True:
            at = self._offset
            row = self._next()
            try:
                if "kind" not in row:
                    self.tail = _tail(row)
                    break
                record = _record(row)
            except ValueError as error:
                raise self._cannot_be(error, at) from None
            yield record
        if self._file.read(1):
            raise BuildError("there is more behind the trace's end", where=Where(self._name, self._offset))

    def _cannot_be(self, error: ValueError, at: int) -> BuildError:
        return BuildError(f"a line of the trace cannot be: {error}", where=Where(self._name, at))

    def _next(self) -> dict[str, Any]:
        at = self._offset
        line = self._file.readline(MOST_LINE)
        self._offset += len(line)
        if not line.endswith(b"\n"):
            what = "the trace has no end" if len(line) < MOST_LINE else "a line of more than 1 MiB"
            raise BuildError(what, where=Where(self._name, at))
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise BuildError("not a line of a trace", where=Where(self._name, at), found=line[:80])
        return row


def _checked(row: dict[str, Any], like: NamedTuple) -> dict[str, Any]:
    """The row, if its fields are those of `like` and of the same types. Raises ValueError."""
    types = {name: type(value) for name, value in like._asdict().items()}
    for name, value in row.items():
        if name not in types:
            raise ValueError(f"no field is called {name!r:.40}")
        if type(value) is not types[name]:
            raise ValueError(f"{name} is {value!r:.40}")
    return row


def _number(value: object) -> int:
    """A number, or "0x...", of 64 bits. Raises ValueError."""
    number = int(value, 16) if isinstance(value, str) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 64:
        raise ValueError(f"{value!r:.40} is no number of 64 bits")
    return number


def _record(row: dict[str, Any]) -> Record:
    row["args"] = tuple(map(_number, row.get("args", ())))
    row["rip"] = _number(row.get("rip", 0))
    result = row.pop("result", None)
    if result is not None and type(result) is not int:
        raise ValueError(f"result is {result!r:.40}")
    if row.get("kind") not in CLASS_OF or "ns" not in row or "vcpu" not in row:
        raise ValueError(f"no kind of record is {row.get('kind')!r:.40}, or it has no time or vCPU")
    record = Record(**_checked(row, Record("", 0, 0)), result=result)
    check_arguments(record)
    return record


def _tail(row: dict[str, Any]) -> Tail:
    counts = row.pop("counts", None)
    if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
        raise ValueError("the last line has counts, which are numbers")
    return Tail(**_checked(row, Tail()), counts=counts)
