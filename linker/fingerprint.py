"""Identities of findings that survive edits elsewhere in the file, and the baseline made of them."""

from __future__ import annotations

import json
import posixpath
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

from .errors import LayoutInputError
from .lint import Diagnostic, Report
from .source import read_bytes

VERSION = 1
MAX_BASELINE = 64 << 20


def fingerprints(diagnostics: Iterable[Diagnostic]) -> list[str]:
    """Return one for each diagnostic: of the rule, the file's name, the words of the line, the name.

    Line numbers and addresses are left out. Equal ones are told apart by counting them in order.
    """
    seen: Counter[str] = Counter()
    out = []
    for diagnostic in diagnostics:
        words = " ".join((diagnostic.expanded or diagnostic.text).split())
        if diagnostic.expanded:
            # A macro's expansion may be thousands of characters, changed by any configuration.
            words = " ".join(diagnostic.text.split())
        key = "\0".join(
            (
                diagnostic.rule,
                posixpath.basename(diagnostic.file.replace("\\", "/")),
                words,
                diagnostic.name or ("" if words else diagnostic.message),
            )
        )
        seen[key] += 1
        out.append(sha256(f"{key}\0{seen[key]}".encode("utf-8", errors="replace")).hexdigest()[:32])
    return out


def baseline(reports: Iterable[Report]) -> tuple[str, int]:
    """Return the text of a baseline file that lists every finding of the reports, and how many they are."""
    found = {
        fingerprint: f"{diagnostic.rule}: {diagnostic.message}"
        for report in reports
        for diagnostic, fingerprint in zip(report.diagnostics, fingerprints(report.diagnostics), strict=True)
    }
    text = json.dumps({"version": VERSION, "findings": dict(sorted(found.items()))}, indent=1) + "\n"
    return text, len(found)


def read_baseline(path: str) -> frozenset[str]:
    """Return the fingerprints of a baseline file; raises LayoutInputError."""
    try:
        table = json.loads(read_bytes(path, MAX_BASELINE))
    except (ValueError, RecursionError) as error:
        raise LayoutInputError("this is no baseline file", file=path, expected="JSON") from error
    if not isinstance(table, dict) or table.get("version") != VERSION:
        raise LayoutInputError(
            "this is no baseline file of this version", file=path, expected=f"version {VERSION}"
        )
    findings = table.get("findings")
    if not isinstance(findings, dict):
        raise LayoutInputError("the baseline has no table of findings", file=path)
    return frozenset(findings)


def apply_baseline(report: Report, known: frozenset[str]) -> Report:
    """Return the report without what the baseline knows; those count as suppressed."""
    pairs = zip(report.diagnostics, fingerprints(report.diagnostics), strict=True)
    kept = tuple(diagnostic for diagnostic, fingerprint in pairs if fingerprint not in known)
    return report._replace(
        diagnostics=kept, suppressed=report.suppressed + len(report.diagnostics) - len(kept)
    )
