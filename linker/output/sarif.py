"""SARIF 2.1.0 (OASIS, 2020), for code scanning services."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from linker import rules
from linker.findings import ERROR, Rule
from linker.fingerprint import fingerprints
from linker.lint import SYNTAX, Diagnostic, Report
from linker.suppressions import UNUSED

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_OTHER = {
    SYNTAX: "the script cannot be read",
    UNUSED: "a comment suppresses nothing any more",
}


def _descriptor(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.why}\n\nTo fix it: {rule.fix}"},
        "defaultConfiguration": {"level": rule.severity},
    }


def _descriptors() -> list[dict[str, Any]]:
    out = [_descriptor(rule) for rule in rules.load()]
    for name, text in _OTHER.items():
        level = ERROR if name == SYNTAX else "warning"
        out.append({"id": name, "shortDescription": {"text": text}, "defaultConfiguration": {"level": level}})
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
                "invocations": [{"executionSuccessful": report.usable}],
            }
        ],
    }
    return json.dumps(log, indent=2) + "\n"
