"""What `domainbuilder matrix` prints: a table, JSON as pydantic models, JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from domainbuilder.errors import ExitCode
from domainbuilder.fleet.values import Result
from domainbuilder.reports import Model
from linker.output.xunit import Case, document


class RunReport(Model):
    """One run. `wall_seconds` and `attempts` alone differ from time to time."""

    name: str
    group: str
    passed: bool
    outcome: str
    detail: str
    console: str
    guest_ns: int
    code_bytes: int
    hypercalls: int
    console_bytes: int
    wall_seconds: float
    attempts: int


class MatrixReport(Model):
    """The document: the runs in the order of the matrix."""

    schema_version: Literal[1] = 1
    exit_code: int
    passed: int
    failed: int
    runs: list[RunReport]


def exit_code(results: Sequence[Result]) -> ExitCode:
    """FINE where every run passed."""
    return ExitCode.FINE if all(result.passed for result in results) else ExitCode.CHECK_FAILED


def as_json(results: Sequence[Result]) -> str:
    """The JSON document, with a newline at its end."""
    runs = [
        RunReport(**{name: getattr(result, name) for name in RunReport.model_fields}) for result in results
    ]
    passed = sum(result.passed for result in results)
    report = MatrixReport(
        exit_code=exit_code(results), passed=passed, failed=len(results) - passed, runs=runs
    )
    return report.model_dump_json(indent=2) + "\n"


def as_junit(results: Sequence[Result]) -> str:
    """JUnit XML, a test case a run: what could not be run is an error."""
    return document("domainbuilder matrix", [_case(result) for result in results])


def _case(result: Result) -> Case:
    figures = f"{result.guest_ns} ns, {result.code_bytes} bytes of code, {result.hypercalls} hypercalls"
    case = Case(
        result.group.replace("/", "."),
        result.name,
        output=figures,
        body=result.console,
        seconds=result.wall_seconds,
    )
    if result.passed:
        return case
    outcome = "error" if result.outcome == "error" else "failure"
    return case._replace(outcome=outcome, message=result.detail, kind=result.outcome)


def as_text(results: Sequence[Result]) -> str:
    """A line for each kernel with a configuration and a script; then what did not pass; then the sum."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    width = max([27, *map(len, groups)])
    lines = [f"{'kernel/configuration/script':{width}}  passed      guest s  hypercalls   seconds"]
    for group, members in groups.items():
        passed = sum(result.passed for result in members)
        lines.append(
            f"{group:{width}}  {f'{passed}/{len(members)}':>6}"
            f"{sum(result.guest_ns for result in members) / 1e9:>13.3f}"
            f"{sum(result.hypercalls for result in members):>12,}"
            f"{sum(result.wall_seconds for result in members):>10.2f}"
        )
    failed = [result for result in results if not result.passed]
    for result in failed[:_MOST_FAILURES]:
        lines.append(f"{result.name}: {result.detail}")
        lines += [f"  | {line}" for line in result.console.splitlines()[-_TAIL:]]
    if len(failed) > _MOST_FAILURES:
        lines.append(f"... and {len(failed) - _MOST_FAILURES} more; --format json has them all")
    again = sum(result.attempts - 1 for result in results)
    lost = f"; {again} tried again, whose process was lost" if again else ""
    lines.append(f"{len(results)} runs: {len(results) - len(failed)} passed, {len(failed)} failed{lost}")
    return "".join(f"{line}\n" for line in lines)


_MOST_FAILURES, _TAIL = 10, 8
