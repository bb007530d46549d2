"""The formats of traces: which one a file gets, and which one it has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from domainbuilder.errors import BuildError, Where

if TYPE_CHECKING:
    from domainbuilder.trace.record import Head, Record, Tail

FORMATS = ("perfetto", "text", "json", "xentrace")
_BY_EXTENSION = {
    ".pftrace": "perfetto", ".perfetto-trace": "perfetto", ".perfetto": "perfetto",
    ".txt": "text", ".log": "text", ".strace": "text",
    ".json": "json", ".jsonl": "json", ".ndjson": "json",
    ".xentrace": "xentrace", ".trace": "xentrace", ".bin": "xentrace",
}  # fmt: skip


class Encoder(Protocol):
    """Makes the bytes of a trace, piece by piece."""

    def begin(self, head: Head) -> bytes:
        """What comes before all records."""

    def encode(self, record: Record) -> bytes:
        """A record."""

    def end(self, tail: Tail) -> bytes:
        """What comes behind them."""


class Reader(Protocol):
    """The records of a file; `tail` is there once all are read."""

    head: Head
    tail: Tail

    def __iter__(self) -> Iterator[Record]: ...


def format_of(path: str | os.PathLike[str], asked: str | None = None) -> str:
    """The format that is asked for, or that the file's name says. Raises BuildError where nothing does."""
    name = os.fspath(path)
    found = asked or _BY_EXTENSION.get(Path(name).suffix.lower())
    if found is None:
        raise BuildError(
            "the name of the trace does not say its format, and no --trace-format does",
            where=Where(name),
            expected=", ".join(_BY_EXTENSION),
        )
    return found


def encoder(name: str) -> Encoder:
    """A new encoder of a format."""
    if name == "perfetto":
        from domainbuilder.trace.perfetto import PerfettoEncoder

        return PerfettoEncoder()
    if name == "json":
        from domainbuilder.trace.json_lines import JsonEncoder

        return JsonEncoder()
    if name == "xentrace":
        from domainbuilder.trace.xentrace import XentraceEncoder

        return XentraceEncoder()
    from domainbuilder.trace.text import TextEncoder

    return TextEncoder()


@contextmanager
def opened_trace(path: str) -> Iterator[Reader]:
    """The trace in a file, or `-` for standard input, while the block runs. Raises BuildError, OSError."""
    if path == "-":
        yield read_trace("stdin", sys.stdin.buffer)
        return
    with Path(path).open("rb") as file:
        yield read_trace(path, file)


def read_trace(name: str, file: BinaryIO) -> Reader:
    """The records of a file in any format but text, told by how it begins. Raises BuildError."""
    from domainbuilder.trace import json_lines, perfetto_reader, xentrace

    peeked = file.peek(16) if hasattr(file, "peek") else b""
    if peeked.startswith(json_lines.MAGIC[:16]):
        return json_lines.JsonReader(name, file)
    if peeked.startswith(perfetto_reader.MAGIC):
        return perfetto_reader.PerfettoReader(name, file)
    if peeked.startswith(xentrace.MAGIC):
        return xentrace.XentraceReader(name, file)
    if peeked.startswith(b"# "):
        raise BuildError(
            "a trace as text is not read back; write JSON lines or Perfetto's", where=Where(name)
        )
    raise BuildError(
        "not a trace",
        where=Where(name, 0),
        found=peeked[:8].hex(" "),
        expected="JSON lines, Perfetto's, or xentrace's",
    )
