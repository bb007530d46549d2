"""From what a rule says to where a person looks: files, lines, and the edits in them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from . import ast
from .findings import Edit, Finding
from .source import FilePlace

if TYPE_CHECKING:
    from .elffile import Elf
    from .mapfile import LinkMap
    from .outline import Outline
    from .source import Source


class FileEdit(NamedTuple):
    """An edit in a file as it was written."""

    place: FilePlace
    text: str
    title: str


class Diagnostic(NamedTuple):
    """A finding as it is reported. `line` and `column` count from 1, 0 means there is none.

    `text` is the source line and `width` how many of its characters the caret marks; `expanded` is the
    preprocessed line when the one shown is not what was parsed; `address` is in bytes. `origin` is the map
    with its line, or the ELF file, of a finding that is shown in the script. `fix` repairs it.
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
    origin: str = ""
    fix: tuple[FileEdit, ...] = ()


class Inputs(NamedTuple):
    """What one run looks at."""

    source: Source | None = None
    map: LinkMap | None = None
    elf: Elf | None = None


class Locator:
    """Places findings. What a map or an ELF shows is placed in the script when the script names it."""

    def __init__(self, inputs: Inputs, outline: Outline | None) -> None:
        self._inputs = inputs
        self._outline = outline

    def diagnostic(self, finding: Finding) -> Diagnostic:
        """Return the finding as it is reported."""
        place, source = finding.place, self._inputs.source
        head = (finding.rule, finding.severity, finding.message)
        if source is not None and place.artifact == "script":
            return self._in_script(finding, place.span or ast.NOWHERE, source, "")
        origin, line = self._origin(finding)
        span = self._names.get(place.name)
        if source is not None and span is not None:
            return self._in_script(finding, span, source, f"{origin}:{line}" if line else origin)
        return Diagnostic(*head, origin, line, 1 if line else 0, name=place.name, address=place.address)

    def _in_script(self, finding: Finding, span: ast.Span, source: Source, origin: str) -> Diagnostic:
        where = source.locate(span.start, span.end)
        return Diagnostic(
            finding.rule, finding.severity, finding.message, where.file, where.line, where.column, where.text,
            where.width, where.expanded, finding.place.name, finding.place.address, origin,
            file_edits(source, finding.fix),
        )  # fmt: skip

    def _origin(self, finding: Finding) -> tuple[str, int]:
        if finding.place.artifact == "map" and self._inputs.map is not None:
            return self._inputs.map.path, finding.place.line
        return (self._inputs.elf.path if self._inputs.elf is not None else ""), 0

    @cached_property
    def _names(self) -> dict[str, ast.Span]:
        """Where the script speaks of an output section, a pattern, a symbol or a region."""
        out: dict[str, ast.Span] = {}
        if self._outline is None:
            return out
        for placed in self._outline.sections:
            out.setdefault(placed.section.name, placed.section.name_span)
        for _, spec in self._outline.inputs():
            for pattern in spec.sections or ():
                out.setdefault(pattern.name, pattern.span)
        for assign in self._outline.assignments:
            if assign.target != ".":
                out.setdefault(assign.target, assign.target_span)
        for command in self._outline.script.commands:
            if isinstance(command, ast.Memory):
                for region in command.regions:
                    if isinstance(region, ast.Region):
                        out.setdefault(region.name, region.span)
        return out


def file_edits(source: Source, fix: tuple[Edit, ...]) -> tuple[FileEdit, ...]:
    """Return the edits in the files that were written; none when a macro made one of their places."""
    out = []
    for edit in fix:
        place = source.verbatim(edit.span.start, edit.span.end)
        if place is None:
            return ()
        out.append(FileEdit(place, edit.text, edit.title))
    return tuple(out)
