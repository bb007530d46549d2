"""The JSON report, as models: their schema is what programs may rely on."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from linker.fingerprint import fingerprints
from linker.lint import Diagnostic, Report


class FindingModel(BaseModel):
    """One finding. `line` and `column` count from 1 and are null when it is in no text."""

    model_config = ConfigDict(extra="forbid")

    rule: str
    severity: Literal["note", "warning", "error"]
    message: str
    file: str
    line: int | None
    column: int | None
    source: str | None
    expanded: str | None
    name: str | None
    address: int | None
    fingerprint: str


class ReportModel(BaseModel):
    """The report of one run over any number of scripts."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    usable: bool
    failed: bool
    suppressed: int
    findings: list[FindingModel]


def _finding(diagnostic: Diagnostic, fingerprint: str) -> FindingModel:
    return FindingModel(
        rule=diagnostic.rule,
        severity=diagnostic.severity,  # type: ignore[arg-type]
        message=diagnostic.message,
        file=diagnostic.file,
        line=diagnostic.line or None,
        column=diagnostic.column or None,
        source=diagnostic.text or None,
        expanded=diagnostic.expanded or None,
        name=diagnostic.name or None,
        address=diagnostic.address,
        fingerprint=fingerprint,
    )


def render(report: Report) -> str:
    """Return the report as JSON."""
    identities = fingerprints(report.diagnostics)
    model = ReportModel(
        usable=report.usable,
        failed=report.failed,
        suppressed=report.suppressed,
        findings=[_finding(d, f) for d, f in zip(report.diagnostics, identities, strict=True)],
    )
    return model.model_dump_json(indent=2) + "\n"
