"""SARIF 2.1.0 (OASIS, 2020), for code scanning services."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from linker import rules
from linker.findings import OFF, Rule
from linker.fingerprint import fingerprints
from linker.lint import Diagnostic, Report
from linker.special import SPECIAL

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def _descriptor(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why}\n\nTo fix it: {rule.fix}"},
        "defaultConfiguration": {"enabled": False} if rule.severity == OFF else {"level": rule.severity},
    }


def _descriptors() -> list[dict[str, Any]]:
    out = [_descriptor(rule) for rule in rules.load()]
    for name, special in SPECIAL.items():
        out.append(
            {
                "id": name,
                "shortDescription": {"text": special.summary},
                "fullDescription": {"text": special.text},
                "defaultConfiguration": {"level": special.severity},
            }
        )
    return out


def _uri(file: str) -> str:
    path = file.replace("\\", "/")
    prefix = "file://" if path.startswith("/") else ""
    return prefix + quote(path.removeprefix("./"))


def _location(diagnostic: Diagnostic) -> dict[str, Any]:
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(diagnostic.file)}}
    if diagnostic.line:
        region: dict[str, Any] = {"startLine": diagnostic.line, "startColumn": max(1, diagnostic.column)}
        if diagnostic.width:
            region["endColumn"] = max(1, diagnostic.column) + diagnostic.width
        if diagnostic.text:
            region["snippet"] = {"text": diagnostic.text}
        physical["region"] = region
    if diagnostic.address is not None and diagnostic.address < 1 << 63:
        physical["address"] = {"absoluteAddress": diagnostic.address}
    location: dict[str, Any] = {"physicalLocation": physical}
    if diagnostic.name:
        location["logicalLocations"] = [{"name": diagnostic.name}]
    return location


def _fixes(diagnostic: Diagnostic) -> dict[str, Any]:
    if not diagnostic.fix:
        return {}
    by_file: dict[str, list[dict[str, Any]]] = {}
    for place, text, _ in diagnostic.fix:
        region = {
            "startLine": place.line, "startColumn": place.column,
            "endLine": place.end_line, "endColumn": place.end_column,
        }  # fmt: skip
        replacement = {"deletedRegion": region, "insertedContent": {"text": text}}
        by_file.setdefault(place.file, []).append(replacement)
    changes = [
        {"artifactLocation": {"uri": _uri(file)}, "replacements": replacements}
        for file, replacements in by_file.items()
    ]
    return {"fixes": [{"description": {"text": diagnostic.fix[0].title}, "artifactChanges": changes}]}


def _invocation(report: Report) -> dict[str, Any]:
    out: dict[str, Any] = {"executionSuccessful": report.usable}
    if report.errors:
        out["toolExecutionNotifications"] = [
            {"level": "error", "message": {"text": error}} for error in report.errors
        ]
    return out


def render(report: Report) -> str:
    """Return the report as a SARIF log with one run."""
    descriptors = _descriptors()
    index = {descriptor["id"]: number for number, descriptor in enumerate(descriptors)}
    results = [
        {
            "ruleId": diagnostic.rule,
            "ruleIndex": index[diagnostic.rule],
            "level": diagnostic.severity,
            "message": {"text": diagnostic.message},
            "locations": [_location(diagnostic)],
            "partialFingerprints": {"domainbuilderLayout/v1": fingerprint},
            **_fixes(diagnostic),
        }
        for diagnostic, fingerprint in zip(report.diagnostics, fingerprints(report.diagnostics), strict=True)
    ]
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": {"name": "domainbuilder lint", "rules": descriptors}},
                "columnKind": "unicodeCodePoints",
                "results": results,
                "invocations": [_invocation(report)],
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"
