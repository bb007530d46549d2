"""For people: the place, the message, the source line and a caret."""

from __future__ import annotations

from collections.abc import Iterator

from linker.findings import ERROR, NOTE, WARNING
from linker.lint import Diagnostic, Report

_COLORS = {ERROR: "\033[1;31m", WARNING: "\033[1;35m", NOTE: "\033[1;36m"}
_BOLD = "\033[1m"
_GREEN = "\033[1;32m"
_RESET = "\033[0m"
_LONGEST = 160


def printable(text: str) -> str:
    """Return the text with control characters made visible, so that no input can drive a terminal."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def render(report: Report, *, color: bool = False) -> str:
    """Return the report as text."""
    lines = [line for diagnostic in report.diagnostics for line in _diagnostic(diagnostic, color=color)]
    lines.append(summary(report))
    return "\n".join(lines) + "\n"


def summary(report: Report) -> str:
    """Return the last line: how many findings of each severity."""
    counts = {
        severity: sum(diagnostic.severity == severity for diagnostic in report.diagnostics)
        for severity in (ERROR, WARNING, NOTE)
    }
    parts = [f"{count} {name}{'s' if count != 1 else ''}" for name, count in counts.items() if count]
    if report.suppressed:
        parts.append(f"{report.suppressed} suppressed")
    mended = sum(bool(diagnostic.fix) for diagnostic in report.diagnostics)
    if mended:
        parts.append(f"{mended} that --fix mends")
    return ", ".join(parts) if parts else "no findings"


def _diagnostic(diagnostic: Diagnostic, *, color: bool) -> Iterator[str]:
    place = printable(diagnostic.file)
    if diagnostic.line:
        place += f":{diagnostic.line}:{diagnostic.column}"
    elif diagnostic.name:
        place += f"({printable(diagnostic.name)})"
    severity = diagnostic.severity
    message = printable(diagnostic.message)
    if color:
        place = f"{_BOLD}{place}{_RESET}"
        severity = f"{_COLORS.get(severity, _BOLD)}{severity}{_RESET}"
    yield f"{place}: {severity}: {message} [{diagnostic.rule}]"
    if diagnostic.text:
        yield from _caret(diagnostic, color=color)
    if diagnostic.origin:
        at = f" at {diagnostic.address:#x}" if diagnostic.address is not None else ""
        yield f"  {' ' * len(str(diagnostic.line))} = seen in {printable(diagnostic.origin)}{at}"


def _caret(diagnostic: Diagnostic, *, color: bool) -> Iterator[str]:
    text = diagnostic.text.rstrip()
    first = diagnostic.column - 1
    shift = max(0, first - _LONGEST // 2) if len(text) > _LONGEST else 0
    shown = text[shift : shift + _LONGEST]
    width = max(1, min(diagnostic.width, len(shown) - (first - shift)))
    # Tabs stay tabs under the line, so that the caret stands right whatever their width.
    indent = "".join("\t" if char == "\t" else " " for char in shown[: first - shift])
    margin = " " * len(str(diagnostic.line))
    mark = "^" + "~" * (width - 1)
    if color:
        mark = f"{_GREEN}{mark}{_RESET}"
    yield f"  {diagnostic.line} | {_tabbed(shown)}"
    yield f"  {margin} | {indent}{mark}"


def _tabbed(text: str) -> str:
    return "\t".join(printable(part) for part in text.split("\t"))
