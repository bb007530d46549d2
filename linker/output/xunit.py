"""JUnit XML as a document of test cases, whatever they are about; CI servers read it alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

_COUNTED = (("failure", "failures"), ("error", "errors"), ("skipped", "skipped"))


class Case(NamedTuple):
    """A test case. `outcome` is "failure", "error", "skipped", or "" where it passed."""

    classname: str
    name: str
    outcome: str = ""
    message: str = ""
    kind: str = ""
    body: str = ""
    output: str = ""
    seconds: float | None = None


def clean(text: str) -> str:
    """Replace the characters that XML 1.0 cannot say."""
    return "".join(
        c if c in "\t\n\r" or " " <= c < "\ud800" or "\ue000" <= c < "\ufffe" or c > "\uffff" else "\ufffd"
        for c in text
    )


def _attributes(**values: str) -> str:
    return "".join(f" {name}={quoteattr(clean(value))}" for name, value in values.items())


def _time(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"time": f"{seconds:.6f}"}


def _case(case: Case) -> str:
    inner = ""
    if case.outcome:
        told = {"message": case.message} | ({"type": case.kind} if case.kind else {})
        inner += f"<{case.outcome}{_attributes(**told)}>{escape(clean(case.body))}</{case.outcome}>"
    if case.output:
        inner += f"<system-out>{escape(clean(case.output))}</system-out>"
    start = f"    <testcase{_attributes(classname=case.classname, name=case.name, **_time(case.seconds))}"
    return f"{start}>{inner}</testcase>" if inner else f"{start}/>"


def document(suite: str, cases: Sequence[Case]) -> str:
    """The XML of one suite, a line a case."""
    counts = {plural: str(sum(case.outcome == one for case in cases)) for one, plural in _COUNTED}
    seconds = [case.seconds for case in cases if case.seconds is not None]
    head = _attributes(tests=str(len(cases)), **counts, **_time(sum(seconds) if seconds else None))
    lines = (
        '<?xml version="1.0" encoding="UTF-8"?>',
        f"<testsuites{head}>",
        f"  <testsuite{_attributes(name=suite)}{head}>",
        *map(_case, cases),
        "  </testsuite>",
        "</testsuites>",
        "",
    )
    return "\n".join(lines)
