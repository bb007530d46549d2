"""JUnit XML, as CI servers read it: a test case for each rule that ran, failed once for each finding."""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape, quoteattr

from linker.findings import ERROR, WARNING
from linker.lint import Diagnostic, Report
from linker.special import SPECIAL


def _clean(text: str) -> str:
    """Replace the characters that XML 1.0 forbids."""
    return "".join(
        char if char in "\t\n\r" or (ord(char) >= 32 and not 0xD800 <= ord(char) < 0xE000) else "\ufffd"
        for char in text
        if ord(char) not in {0xFFFE, 0xFFFF}
    )


def _place(diagnostic: Diagnostic) -> str:
    if diagnostic.line:
        return f"{diagnostic.file}:{diagnostic.line}:{diagnostic.column}"
    return f"{diagnostic.file}({diagnostic.name})" if diagnostic.name else diagnostic.file


def render(report: Report, ran: Iterable[str]) -> str:
    """Return the report; `ran` are the ids of the rules that ran."""
    by_rule: dict[str, list[Diagnostic]] = {name: [] for name in (*SPECIAL, *ran)}
    for diagnostic in report.diagnostics:
        by_rule.setdefault(diagnostic.rule, []).append(diagnostic)
    cases: list[str] = []
    failures = 0
    for rule, diagnostics in by_rule.items():
        if not diagnostics:
            cases.append(f'    <testcase classname="layout" name={quoteattr(rule)}/>')
        for diagnostic in diagnostics:
            name = quoteattr(_clean(f"{rule} {_place(diagnostic)}"))
            failed = diagnostic.severity in {WARNING, ERROR}
            failures += failed
            message = _clean(f"{diagnostic.severity}: {diagnostic.message}")
            body = escape(_clean(f"{_place(diagnostic)}: {message}\n{diagnostic.text}".rstrip()))
            inner = (
                f"<failure message={quoteattr(message)} type={quoteattr(rule)}>{body}</failure>"
                if failed
                else f"<system-out>{body}</system-out>"
            )
            cases.append(f'    <testcase classname="layout" name={name}>{inner}</testcase>')
    head = f'tests="{len(cases)}" failures="{failures}" errors="0" skipped="0"'
    return "\n".join(
        (
            '<?xml version="1.0" encoding="UTF-8"?>',
            f"<testsuites {head}>",
            f'  <testsuite name="domainbuilder lint" {head}>',
            *cases,
            "  </testsuite>",
            "</testsuites>",
            "",
        )
    )
