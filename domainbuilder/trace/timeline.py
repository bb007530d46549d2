"""What is drawn of a run: how much of each class happened when, its frames over time, its console with times.

Memory is bounded however long the run is: time is cut into at most so many pieces, which grow with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from domainbuilder.trace.record import CLASS_OF, Record

PIECES = 600
_FIRST_NS = 1024
HEAD_LINES, TAIL_LINES = 1500, 1500
MOST_LINE = 500  # characters
_MOST_FIRSTS = 80


class Buckets:
    """Counts in pieces of time of one width, a power of two."""

    def __init__(self) -> None:
        self.width_ns = _FIRST_NS
        self.counts: list[Counter[str]] = []
        self.frames: list[tuple[int, ...] | None] = []  # the last counts of frames in the piece

    def at(self, ns: int) -> int:
        """The piece that a time is in."""
        while ns // self.width_ns >= PIECES:
            self._widen()
        at = ns // self.width_ns
        while len(self.counts) <= at:
            self.counts.append(Counter())
            self.frames.append(None)
        return at

    def _widen(self) -> None:
        self.width_ns *= 2
        pairs = range(0, len(self.counts), 2)
        self.counts = [sum(self.counts[i : i + 2], Counter()) for i in pairs]
        self.frames = [next((f for f in reversed(self.frames[i : i + 2]) if f), None) for i in pairs]


class ConsoleLines:
    """Lines as they were printed, with the time of their end: the first, the last, how many between."""

    def __init__(self) -> None:
        self.head: list[tuple[int, str]] = []
        self.tail: deque[tuple[int, str]] = deque(maxlen=TAIL_LINES)
        self.left_out = 0
        self._rest = ""

    def add(self, ns: int, text: str) -> None:
        """More was printed."""
        *lines, rest = (self._rest + text).split("\n")
        for line in lines:
            self._line(ns, line)
        self._rest = rest[:MOST_LINE]

    def close(self, ns: int) -> None:
        """What has no end of line is a line as well."""
        if self._rest:
            self._line(ns, self._rest)
            self._rest = ""

    def _line(self, ns: int, line: str) -> None:
        row = ns, line.rstrip("\r")[:MOST_LINE]
        if len(self.head) < HEAD_LINES:
            self.head.append(row)
            return
        self.left_out += len(self.tail) == TAIL_LINES
        self.tail.append(row)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        yield from self.head
        yield from self.tail


class Timeline:
    """All of it, record by record."""

    def __init__(self) -> None:
        self.buckets = Buckets()
        self.console = ConsoleLines()
        self.firsts: dict[str, Record] = {}  # hypercall and command -> the first of it

    def add(self, r: Record) -> None:
        """One more record."""
        at = self.buckets.at(r.ns)
        self.buckets.counts[at][CLASS_OF[r.kind]] += 1
        if r.kind == "frames":
            self.buckets.frames[at] = r.args
        elif r.kind == "print":
            self.console.add(r.ns, r.text)
        elif r.kind == "hypercall":
            name = r.detail or r.name
            if name not in self.firsts and len(self.firsts) < _MOST_FIRSTS:
                self.firsts[name] = r
