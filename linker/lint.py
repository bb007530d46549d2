"""Runs the rules over a script, a map and a linked ELF, and turns what they say into diagnostics."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from . import ast, rules
from .findings import ERROR, OFF, WARNING, Context, Finding, Hit, Rule
from .settings import DEFAULTS, Settings
from .suppressions import UNUSED, Suppressions

if TYPE_CHECKING:
    from .elffile import Elf
    from .mapfile import LinkMap
    from .source import Source

SYNTAX = "syntax"


class Diagnostic(NamedTuple):
    """A finding as it is reported. `line` and `column` count from 1, 0 means there is none.

    `text` is the source line and `width` how many of its characters the caret marks; `expanded` is the
    preprocessed line when the one shown is not what was parsed; `address` is in bytes.
    """

    rule: str
    severity: str
    message: str
    file: str
    line: int = 0
    column: int = 0
    text: str = ""
    width: int = 0
    expanded: str = ""
    name: str = ""
    address: int | None = None


class Inputs(NamedTuple):
    """What one run looks at."""

    source: Source | None = None
    map: LinkMap | None = None
    elf: Elf | None = None


class Report(NamedTuple):
    """The outcome: diagnostics in order, how many were suppressed, and whether the script could be read."""

    diagnostics: tuple[Diagnostic, ...]
    suppressed: int
    usable: bool

    @property
    def failed(self) -> bool:
        """Tell whether there is a warning or an error."""
        return any(diagnostic.severity in {WARNING, ERROR} for diagnostic in self.diagnostics)


def check(context: Context, given: Iterable[str]) -> list[Finding]:
    """Run every rule that `given` allows and the settings do not switch off."""
    findings: list[Finding] = []
    severities = context.settings.severities
    for rule in rules.load(given):
        severity = severities.get(rule.id, rule.severity)
        if severity != OFF:
            findings.extend(_findings(rule, severity, rule.check(context)))
    return findings


def _findings(rule: Rule, severity: str, hits: Iterable[Hit]) -> Iterable[Finding]:
    seen: set[Hit] = set()
    for hit in hits:
        if hit not in seen:
            seen.add(hit)
            yield Finding(rule.id, severity, hit.message, hit.place, hit.fix)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector off: a tree has no cycles, and looking for them is half of a run."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run(inputs: Inputs, settings: Settings = DEFAULTS) -> Report:
    """Lint the inputs."""
    with _no_collections():
        return _run(inputs, settings)


def _run(inputs: Inputs, settings: Settings) -> Report:
    outline = None
    syntax: list[Finding] = []
    if inputs.source is not None:
        from .findings import script_place
        from .outline import Outline
        from .parser import parse

        script = parse(inputs.source.text)
        syntax = [
            Finding(SYNTAX, ERROR, problem.message, script_place(problem.span)) for problem in script.problems
        ]
        outline = Outline(script)
    given = [
        letter
        for letter, present in (("S", outline), ("M", inputs.map), ("E", inputs.elf))
        if present is not None
    ]
    context = Context(settings, outline, inputs.map, inputs.elf)
    # A script that cannot be read in full would make the rules report what is only not understood.
    findings = syntax if syntax else check(context, given)
    return _report(inputs, findings, settings, usable=not syntax)


def _report(inputs: Inputs, findings: list[Finding], settings: Settings, *, usable: bool) -> Report:
    suppressions = Suppressions()
    diagnostics: list[Diagnostic] = []
    suppressed = 0
    if inputs.source is not None:
        suppressions.add(inputs.source.path, inputs.source.original_lines(inputs.source.path))
    for finding in findings:
        diagnostic = _locate(inputs, finding)
        if finding.place.artifact == "script" and inputs.source is not None:
            suppressions.add(diagnostic.file, inputs.source.original_lines(diagnostic.file))
        if finding.rule != SYNTAX and suppressions.suppressed(
            diagnostic.file, diagnostic.line, diagnostic.rule
        ):
            suppressed += 1
        else:
            diagnostics.append(diagnostic)
    severity = settings.severities.get(UNUSED, WARNING)
    if usable and severity != OFF:
        for file, comment in suppressions.unused():
            message = f"'{', '.join(comment.rules)}' suppresses nothing any more"
            lines = inputs.source.original_lines(file) if inputs.source is not None else []
            text = lines[comment.written - 1] if comment.written <= len(lines) else ""
            column = len(text) - len(text.lstrip()) + 1
            diagnostics.append(
                Diagnostic(UNUSED, severity, message, file, comment.written, column, text, len(text.strip()))
            )
    return Report(tuple(sorted(diagnostics, key=_sort_key)), suppressed, usable)


def _sort_key(diagnostic: Diagnostic) -> tuple[str, int, int, int, str, str]:
    return (
        diagnostic.file, diagnostic.line, diagnostic.column, diagnostic.address or 0, diagnostic.rule,
        diagnostic.message,
    )  # fmt: skip


def _locate(inputs: Inputs, finding: Finding) -> Diagnostic:
    place = finding.place
    head = (finding.rule, finding.severity, finding.message)
    if place.artifact == "script" and inputs.source is not None:
        span = place.span or ast.NOWHERE
        where = inputs.source.locate(span.start, span.end)
        return Diagnostic(
            *head, where.file, where.line, where.column, where.text, where.width, where.expanded, place.name
        )
    if place.artifact == "map" and inputs.map is not None:
        return Diagnostic(
            *head, inputs.map.path, place.line, 1 if place.line else 0, name=place.name, address=place.address
        )
    path = inputs.elf.path if inputs.elf is not None else ""
    return Diagnostic(*head, path, name=place.name, address=place.address)
