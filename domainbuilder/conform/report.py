"""What `domainbuilder conform` prints: a table, JSON (docs/conform.schema.json), or JUnit XML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from domainbuilder.conform.run import ConformanceGuest, Result, Verdict, exit_code
from domainbuilder.reports import Model
from linker.output.xunit import Case, document

_COLORS = {
    Verdict.SUCCESS: "\x1b[32m",
    Verdict.SKIP: "\x1b[33m",
    Verdict.ERROR: "\x1b[31m",
    Verdict.FAILURE: "\x1b[31m",
    Verdict.TIMEOUT: "\x1b[31m",
    Verdict.CRASH: "\x1b[31m",
}
_PLAIN = "\x1b[0m"
_JUNIT_TAGS = {
    Verdict.FAILURE: "failure",
    Verdict.ERROR: "error",
    Verdict.TIMEOUT: "error",
    Verdict.CRASH: "error",
    Verdict.SKIP: "skipped",
}


class ResultReport(Model):
    """One guest. `guest_ns` is the guest's own time; `wall_seconds` alone differs from run to run."""

    name: str
    covers: str
    result: Literal["SUCCESS", "SKIP", "ERROR", "FAILURE", "TIMEOUT", "CRASH"]
    messages: list[str]
    known_gap: str
    hypercalls: int
    guest_ns: int
    wall_seconds: float


class ConformReport(Model):
    """The document. `counts` has the results that occurred."""

    schema_version: Literal[1] = 1
    exit_code: int
    counts: dict[str, int]
    tests: list[ResultReport]


def as_json(results: Sequence[Result]) -> str:
    """The JSON document, with a newline at its end."""
    tests = [
        ResultReport(
            name=r.name,
            covers=r.covers,
            result=r.verdict.value,
            messages=list(r.messages),
            known_gap=r.known_gap,
            hypercalls=r.hypercalls,
            guest_ns=r.guest_ns,
            wall_seconds=round(r.wall_seconds, 6),
        )
        for r in results
    ]
    counts = {verdict.value: n for verdict, n in _counts(results).items()}
    return (
        ConformReport(exit_code=exit_code(results), counts=counts, tests=tests).model_dump_json(indent=2)
        + "\n"
    )


def _counts(results: Sequence[Result]) -> dict[Verdict, int]:
    counted = Counter(result.verdict for result in results)
    return {verdict: counted[verdict] for verdict in Verdict if counted[verdict]}


# --- the table --------------------------------------------------------------------------------------------


class Table:
    """The table, row by row as results come."""

    def __init__(self, tests: Sequence[ConformanceGuest], *, color: bool) -> None:
        self.width = max((len(test.name) for test in tests), default=0)
        self.color = color

    def head(self) -> str:
        """The titles of the columns."""
        return f"{'name':{self.width}}  {'result':8}{'hypercalls':>11}{'seconds':>9}  what it covers\n"

    def row(self, result: Result) -> str:
        """One guest's line, and what it had to say below it."""
        word = f"{result.verdict.value:8}"
        if self.color:
            word = f"{_COLORS[result.verdict]}{word}{_PLAIN}"
        figures = f"{result.hypercalls:>11,}{result.wall_seconds:>9.3f}"
        line = f"{result.name:{self.width}}  {word}{figures}  {result.covers}"
        notes = [*result.messages, *([f"known: {result.known_gap}"] if result.known_gap else [])]
        return "".join(f"{text}\n" for text in (line.rstrip(), *(f"    {note}" for note in notes)))

    def foot(self, results: Sequence[Result]) -> str:
        """The counts."""
        counts = ", ".join(f"{n} {verdict.value}" for verdict, n in _counts(results).items())
        known = sum(bool(result.known_gap) for result in results)
        hypercalls = sum(result.hypercalls for result in results)
        seconds = sum(result.wall_seconds for result in results)
        expected = f" ({known} known)" if known else ""
        checks = sum(result.checks for result in results)
        refusals = sum(result.refusals for result in results)
        guests = "1 guest" if len(results) == 1 else f"{len(results)} guests"
        return (
            f"{guests}: {counts}{expected}; {hypercalls:,} hypercalls in {seconds:.2f} s\n"
            f"{checks:,} checks: {checks - refusals:,} of what works, {refusals:,} of what is refused\n"
        )


def listing(tests: Sequence[ConformanceGuest]) -> str:
    """`--list`: names and what they cover."""
    width = max(len(test.name) for test in tests)
    return "".join(f"{test.name:{width}}  {test.covers}".rstrip() + "\n" for test in tests)


# --- JUnit ------------------------------------------------------------------------------------------------


def _case(result: Result) -> Case:
    case = Case(
        "domainbuilder.conform", result.name, output=f"{result.covers}\n{result.hypercalls} hypercalls",
        body="\n".join(result.messages), seconds=result.wall_seconds,
    )  # fmt: skip
    if result.known_gap:
        return case._replace(outcome="skipped", message=result.known_gap)
    if result.verdict not in _JUNIT_TAGS:
        return case
    message, kind = next(iter(result.messages), result.verdict.value), result.verdict.value
    return case._replace(outcome=_JUNIT_TAGS[result.verdict], message=message, kind=kind)


def as_junit(results: Sequence[Result]) -> str:
    """JUnit XML: a test case a guest. A known gap is a skipped one."""
    return document("domainbuilder conform", [_case(result) for result in results])
