"""Runs the rules over a script, a map and a linked ELF, and turns what they say into diagnostics."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from . import ast, rules
from .findings import ERROR, OFF, WARNING, Context, Finding, Hit, Rule, script_place
from .locate import Diagnostic, Inputs, Locator
from .settings import DEFAULTS, Settings
from .special import FRAGMENT, INCLUDE, SPECIAL, SYNTAX, UNUSED, VERSION_SCRIPT
from .suppressions import Suppressions

if TYPE_CHECKING:
    from .kinds import Text
    from .outline import Outline
    from .source import Source

__all__ = ["Diagnostic", "Inputs", "Report", "check", "run"]


class Report(NamedTuple):
    """The outcome: diagnostics in order, how many were suppressed, and whether every input could be used.

    `files` are the script and what it includes, `part` what a text is that is no whole script. `errors` are
    the inputs that could not be read at all, a line each. `ran` are the rules that ran.
    """

    diagnostics: tuple[Diagnostic, ...]
    suppressed: int
    usable: bool
    files: tuple[str, ...] = ()
    part: str = ""
    errors: tuple[str, ...] = ()
    ran: frozenset[str] = frozenset()

    @property
    def failed(self) -> bool:
        """Tell whether there is a warning or an error."""
        return any(diagnostic.severity in {WARNING, ERROR} for diagnostic in self.diagnostics)


def check(context: Context, chosen: Iterable[Rule]) -> list[Finding]:
    """Run rules, each with the severity that the settings give it."""
    findings: list[Finding] = []
    for rule in chosen:
        severity = context.settings.severities.get(rule.id, rule.severity)
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
            if not gc.get_freeze_count():
                # All that was made goes to the oldest generation: the first collection of the youngest would
                # walk through the tree once more, a quarter of a run.
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def run(
    inputs: Inputs, settings: Settings = DEFAULTS, progress: Callable[[str], None] | None = None
) -> Report:
    """Lint the inputs. `progress` is told what is being done."""
    with _no_collections():
        return _Run(inputs, settings, progress or (lambda _: None)).report()


class _Run:
    """One run over one script."""

    def __init__(self, inputs: Inputs, settings: Settings, progress: Callable[[str], None]) -> None:
        self._inputs = inputs
        self._settings = settings
        self._progress = progress
        self._outline: Outline | None = None
        self._ran: frozenset[str] = frozenset()
        self._part = ""

    def report(self) -> Report:
        findings = self._script() if self._inputs.source is not None else []
        usable = not any(finding.rule == SYNTAX for finding in findings)
        # A script that cannot be read in full would make the rules report what is only not understood.
        if usable:
            findings += self._rules()
        return self._diagnose(findings, usable=usable)

    def _script(self) -> list[Finding]:
        """Parse the script; return what is to be said of the text itself."""
        from . import kinds
        from .outline import Outline

        source = self._inputs.source
        assert source is not None
        self._progress(f"reading {source.path}")
        text = kinds.read(source.text)
        problems = (*source.problems, *text.script.problems)
        if problems:
            return [
                Finding(SYNTAX, ERROR, problem.message, script_place(problem.span)) for problem in problems
            ]
        self._outline = Outline(text.script)
        self._part = "" if text.kind == kinds.WHOLE else text.kind
        return list(self._about(source, text))

    def _about(self, source: Source, text: Text) -> Iterator[Finding]:
        from . import include, kinds

        first = text.script.commands[0].span if text.script.commands else None
        if text.kind == kinds.VERSION_SCRIPT:
            message = "this is a version script: it lays out nothing"
            yield from self._special(VERSION_SCRIPT, message, first)
        elif text.kind != kinds.WHOLE:
            message = f"this is a part of {text.kind}, judged alone: lint the script that INCLUDEs it"
            yield from self._special(FRAGMENT, message, first)
        for name, span in include.missing(source):
            yield from self._special(INCLUDE, f"'{name}' was not found: what it holds is not judged", span)

    def _special(self, name: str, message: str, span: ast.Span | None) -> Iterator[Finding]:
        severity = self._settings.severities.get(name, SPECIAL[name].severity)
        if severity != OFF:
            start = span.start if span is not None else 0
            end = span.end if span is not None and name == INCLUDE else start + 1
            yield Finding(name, severity, message, script_place(ast.Span(start, end)))

    def _rules(self) -> list[Finding]:
        from . import kinds

        inputs, severities = self._inputs, self._settings.severities
        present = (("S", self._outline), ("M", inputs.map), ("E", inputs.elf))
        given = [letter for letter, one in present if one is not None]
        chosen = [
            rule
            for rule in rules.load(given)
            if severities.get(rule.id, rule.severity) != OFF
            and (not self._part or set(given) != {"S"} or rule.id in kinds.FRAGMENT_RULES)
        ]
        self._ran = frozenset(rule.id for rule in chosen)
        self._progress("judging the layout")
        return check(Context(self._settings, self._outline, inputs.map, inputs.elf), chosen)

    def _diagnose(self, findings: list[Finding], *, usable: bool) -> Report:
        source = self._inputs.source
        suppressions = Suppressions()
        for file in source.files() if source is not None else ():
            assert source is not None
            suppressions.add(file, source.original_lines(file))
        locator = Locator(self._inputs, self._outline)
        diagnostics: list[Diagnostic] = []
        suppressed = 0
        for finding in findings:
            diagnostic = locator.diagnostic(finding)
            if source is not None and (finding.place.artifact == "script" or diagnostic.origin):
                suppressions.add(diagnostic.file, source.original_lines(diagnostic.file))
            hidden = finding.rule != SYNTAX and suppressions.suppressed(
                diagnostic.file, diagnostic.line, diagnostic.rule
            )
            suppressed += hidden
            if not hidden:
                diagnostics.append(diagnostic)
        if usable and suppressions:
            diagnostics.extend(self._idle(suppressions))
        files = source.files() if source is not None else ()
        ordered = tuple(sorted(diagnostics, key=sort_key))
        return Report(ordered, suppressed, usable, files, self._part, ran=self._ran)

    def _idle(self, suppressions: Suppressions) -> Iterator[Diagnostic]:
        source = self._inputs.source
        severity = self._settings.severities.get(UNUSED, SPECIAL[UNUSED].severity)
        if severity == OFF or source is None:
            return
        known: Collection[str] = [*(rule.id for rule in rules.load()), *SPECIAL]
        for file, comment, message in suppressions.idle(self._ran, known):
            lines = source.original_lines(file)
            text = lines[comment.written - 1] if comment.written <= len(lines) else ""
            column = len(text) - len(text.lstrip()) + 1
            yield Diagnostic(
                UNUSED, severity, message, file, comment.written, column, text, len(text.strip())
            )


def sort_key(diagnostic: Diagnostic) -> tuple[str, int, int, int, str, str]:
    """Return what diagnostics are ordered by."""
    return (
        diagnostic.file, diagnostic.line, diagnostic.column, diagnostic.address or 0, diagnostic.rule,
        diagnostic.message,
    )  # fmt: skip
