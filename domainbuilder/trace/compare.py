"""Two recorded runs: where they part first in what they ask of Xen, and which lines one prints more.

Two kernels have other addresses and other times, so hypercalls are compared by name, command and result, and
lines of the console without the time that Linux puts in front of them; `exact` compares all of it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import islice
from typing import NamedTuple

from domainbuilder.trace.formats import opened_trace
from domainbuilder.trace.record import Record
from domainbuilder.trace.summary import Summary, summarise
from domainbuilder.trace.text import call, result
from domainbuilder.visible import visible

CONTEXT = 3  # of what both have, before they part
FOLLOWING = 5  # of what each does then
SHOWN = 20  # lines that one has more
MOST_LINES = 2000  # that are compared where the runs differ: it may take their square
_MOST_LINE = 4096
_TOP = 20
_CALLS = ("hypercall", "subcall", "unfinished")
_PRINTK_TIME = re.compile(r"^\[ *\d+\.\d{6}\] ")


class Step(NamedTuple):
    """A hypercall or a line: when, how it is shown, and what is compared of it."""

    ns: int
    shown: str
    key: Hashable


class Parting(NamedTuple):
    """Where two sequences part: how many steps are alike, the last of them, and how each goes on."""

    alike: int
    before: tuple[Step, ...]
    first: tuple[Step, ...]
    second: tuple[Step, ...]


class Lines(NamedTuple):
    """Two texts by lines: how many both have, in one order, and the last of these before the first of `more`.

    more: the lines that one has more, each with "A" or "B" and how many that both have come before it.
    beyond: how many of each text were not compared.
    """

    alike: int
    before: tuple[Step, ...]
    more: tuple[tuple[str, Step, int], ...]
    beyond: tuple[int, int] = (0, 0)


class Comparison(NamedTuple):
    """`hypercalls` and `console` are None where nothing differs; `counts` are (name, first's, second's)."""

    names: tuple[str, str]
    ends: tuple[str, str]
    hypercalls: Parting | None
    console: Lines | None
    counts: tuple[tuple[str, int, int], ...]

    @property
    def is_same(self) -> bool:
        """Whether the runs part nowhere."""
        return self.hypercalls is None and self.console is None


def compare(first: str, second: str, *, exact: bool = False) -> Comparison:
    """Compare the traces in two files. Raises BuildError, OSError."""
    with opened_trace(first) as a, opened_trace(second) as b:
        hypercalls = parting(_hypercalls(a, exact=exact), _hypercalls(b, exact=exact))
    with opened_trace(first) as a, opened_trace(second) as b:
        console = line_difference(_lines(a, exact=exact), _lines(b, exact=exact))
    sums = _summary(first), _summary(second)
    counts = [(name, sums[0].calls[name], sums[1].calls[name]) for name in sums[0].calls | sums[1].calls]
    differing = sorted(
        (row for row in counts if row[1] != row[2]), key=lambda row: (-abs(row[1] - row[2]), row)
    )
    ends = (sums[0].tail.reason, sums[1].tail.reason)
    return Comparison((first, second), ends, hypercalls, console, tuple(differing))


def _summary(path: str) -> Summary:
    with opened_trace(path) as reader:
        summary = summarise(reader.head, reader)
        summary.tail = reader.tail
    return summary


def parting(first: Iterable[Step], second: Iterable[Step]) -> Parting | None:
    """Where they part; None where they do not."""
    a, b = iter(first), iter(second)
    alike, before, one, other = _common_part(a, b)
    if one is None and other is None:
        return None
    return Parting(alike, before, _upto(FOLLOWING, one, a), _upto(FOLLOWING, other, b))


def line_difference(first: Iterable[Step], second: Iterable[Step]) -> Lines | None:
    """Which lines one of them has more; None where neither does."""
    a, b = iter(first), iter(second)
    alike, before, one, other = _common_part(a, b)
    if one is None and other is None:
        return None
    rest = _upto(MOST_LINES, one, a), _upto(MOST_LINES, other, b)
    beyond = sum(1 for _ in a), sum(1 for _ in b)
    matched, more = _more(*rest)
    return Lines(alike + matched, before, tuple(more), beyond)


def _common_part(
    a: Iterator[Step], b: Iterator[Step]
) -> tuple[int, tuple[Step, ...], Step | None, Step | None]:
    """How many steps are alike, the last of them, and the next of each: None at its end."""
    before: deque[Step] = deque(maxlen=CONTEXT)
    alike = 0
    while True:
        one, other = next(a, None), next(b, None)
        if one is None or other is None or one.key != other.key:
            return alike, tuple(before), one, other
        before.append(one)
        alike += 1


def _upto(most: int, step: Step | None, rest: Iterator[Step]) -> tuple[Step, ...]:
    return () if step is None else (step, *islice(rest, most - 1))


def _more(first: Sequence[Step], second: Sequence[Step]) -> tuple[int, list[tuple[str, Step, int]]]:
    """How many lines both have, and those that one has more."""
    matcher = SequenceMatcher(None, [step.key for step in first], [step.key for step in second])
    alike, since = 0, 0
    more: list[tuple[str, Step, int]] = []
    for what, i, i_end, j, j_end in matcher.get_opcodes():
        if what == "equal":
            alike, since = alike + i_end - i, i_end - i
            continue
        for step in first[i:i_end]:
            more.append(("A", step, since))
            since = 0
        for step in second[j:j_end]:
            more.append(("B", step, since))
            since = 0
    return alike, more


def _hypercalls(records: Iterable[Record], *, exact: bool) -> Iterator[Step]:
    for r in records:
        if r.kind in _CALLS:
            shown = f"vcpu{r.vcpu} {call(r)} = {result(r.result)}"
            key: Hashable = r.vcpu, r.kind, r.name, r.detail, r.result
            yield Step(r.ns, shown, (key, r.ns, r.args, r.rip) if exact else key)


def _lines(records: Iterable[Record], *, exact: bool) -> Iterator[Step]:
    """The lines that were printed, cut where one has no end."""
    rest, ns = "", 0

    def step(line: str) -> Step:
        text = line.rstrip("\r")
        return Step(ns, visible(text), text if exact else _PRINTK_TIME.sub("", text))

    for r in records:
        if r.kind != "print":
            continue
        ns = r.ns
        *lines, rest = (rest + r.text).split("\n")
        yield from map(step, lines)
        while len(rest) > _MOST_LINE:
            yield step(rest[:_MOST_LINE])
            rest = rest[_MOST_LINE:]
    if rest:
        yield step(rest)


def render(found: Comparison) -> str:
    """The comparison as text."""
    return "\n".join(_text(found)) + "\n"


def _text(found: Comparison) -> Iterator[str]:
    names = tuple(map(visible, found.names))
    yield f"A: {names[0]}: {visible(found.ends[0]) or 'no end is told'}"
    yield f"B: {names[1]}: {visible(found.ends[1]) or 'no end is told'}"
    yield from _parting(found.hypercalls)
    yield from _line_text(found.console)
    if found.counts:
        yield f"{'how often':<44}{'A':>12}{'B':>12}"
    for name, one, other in found.counts[:_TOP]:
        yield f"  {visible(name)[:42]:<42}{one:>12,}{other:>12,}"
    if len(found.counts) > _TOP:
        yield f"  and {len(found.counts) - _TOP} others"


def _parting(part: Parting | None) -> Iterator[str]:
    if part is None:
        yield "hypercalls: no difference"
        return
    yield f"hypercalls: they part after {part.alike:,}"
    yield from _steps("  ", part.before)
    yield from _steps("A ", part.first)
    yield from _steps("B ", part.second)


def _line_text(lines: Lines | None) -> Iterator[str]:
    if lines is None:
        yield "console lines: no difference"
        return
    count = [sum(1 for who, _, _ in lines.more if who == name) for name in ("A", "B")]
    yield f"console lines: both have {lines.alike:,}, A has {count[0]:,} more, B has {count[1]:,} more"
    yield from _steps("  ", lines.before)
    for who, step, since in lines.more[:SHOWN]:
        if since:
            yield f"   ({since:,} that both have)"
        yield from _steps(f"{who} ", (step,))
    if len(lines.more) > SHOWN:
        yield f"   and {len(lines.more) - SHOWN:,} more that one of them has"
    if any(lines.beyond):
        yield f"   not compared: the last {lines.beyond[0]:,} of A and {lines.beyond[1]:,} of B"


def _steps(mark: str, steps: tuple[Step, ...]) -> Iterator[str]:
    for step in steps:
        yield f"{mark} {step.ns // 10**9:6d}.{step.ns % 10**9:09d} {step.shown}"
    if mark.strip() and not steps:
        yield f"{mark}  (it ends here)"
