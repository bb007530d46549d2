"""Workflow commands that GitHub Actions turns into annotations of the lines concerned."""

from __future__ import annotations

from linker.findings import NOTE
from linker.lint import Report

from .text import summary

_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def render(report: Report) -> str:
    """Return one command a finding, and the summary."""
    lines = []
    for diagnostic in report.diagnostics:
        kind = "notice" if diagnostic.severity == NOTE else diagnostic.severity
        where = f"file={diagnostic.file.translate(_PROPERTY)}"
        if diagnostic.line:
            end = diagnostic.column + max(1, diagnostic.width) - 1
            where += f",line={diagnostic.line},col={diagnostic.column},endColumn={end}"
        title = f"title={diagnostic.rule.translate(_PROPERTY)}"
        lines.append(f"::{kind} {where},{title}::{diagnostic.message.translate(_DATA)}")
    lines += [f"::error::{error.translate(_DATA)}" for error in report.errors]
    lines.append(summary(report).translate(_DATA))
    return "\n".join(lines) + "\n"
