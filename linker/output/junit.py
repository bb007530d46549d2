"""JUnit XML, as CI servers read it: a test case for each rule that ran, failed once for each finding."""

from __future__ import annotations

from collections.abc import Iterable

from linker.findings import ERROR, WARNING
from linker.lint import Diagnostic, Report
from linker.output.xunit import Case, document
from linker.special import SPECIAL


def _place(diagnostic: Diagnostic) -> str:
    if diagnostic.line:
        return f"{diagnostic.file}:{diagnostic.line}:{diagnostic.column}"
    return f"{diagnostic.file}({diagnostic.name})" if diagnostic.name else diagnostic.file


def render(report: Report, ran: Iterable[str]) -> str:
    """Return the report; `ran` are the ids of the rules that ran."""
    by_rule: dict[str, list[Diagnostic]] = {name: [] for name in (*SPECIAL, *ran)}
    for diagnostic in report.diagnostics:
        by_rule.setdefault(diagnostic.rule, []).append(diagnostic)
    cases: list[Case] = []
    for rule, diagnostics in by_rule.items():
        if not diagnostics:
            cases.append(Case("layout", rule))
        for diagnostic in diagnostics:
            place = _place(diagnostic)
            message = f"{diagnostic.severity}: {diagnostic.message}"
            body = f"{place}: {message}\n{diagnostic.text}".rstrip()
            case = Case("layout", f"{rule} {place}")
            if diagnostic.severity in {WARNING, ERROR}:
                cases.append(case._replace(outcome="failure", message=message, kind=rule, body=body))
            else:
                cases.append(case._replace(output=body))
    return document("domainbuilder lint", cases)
