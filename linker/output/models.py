"""The JSON report, as models: their schema is what programs may rely on."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from linker.fingerprint import fingerprints
from linker.lint import Diagnostic, Report


class EditModel(BaseModel):
    """A span of a file, lines and columns from 1 with the end behind it, and the text that replaces it."""

    model_config = ConfigDict(extra="forbid")

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    text: str
    title: str


class FindingModel(BaseModel):
    """One finding. `line` and `column` count from 1 and are null when it is in no text.

    `origin` is the map with its line, or the ELF file, of a finding that is placed in the script; `edits`
    together repair it.
    """

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
    origin: str | None
    edits: list[EditModel]


class ReportModel(BaseModel):
    """The report of one run over any number of scripts."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    usable: bool
    failed: bool
    suppressed: int
    errors: list[str]
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
        origin=diagnostic.origin or None,
        edits=[
            EditModel(**edit.place._asdict(), text=edit.text, title=edit.title) for edit in diagnostic.fix
        ],
    )


def render(report: Report) -> str:
    """Return the report as JSON."""
    identities = fingerprints(report.diagnostics)
    model = ReportModel(
        usable=report.usable,
        failed=report.failed,
        suppressed=report.suppressed,
        errors=list(report.errors),
        findings=[_finding(d, f) for d, f in zip(report.diagnostics, identities, strict=True)],
    )
    return model.model_dump_json(indent=2) + "\n"
