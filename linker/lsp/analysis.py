"""A script as an editor has it: read with the open files, judged, and what stands at a place of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import NamedTuple

from linker import ast, kinds
from linker.discover import settings_for
from linker.elffile import Elf
from linker.errors import LayoutInputError
from linker.findings import ERROR
from linker.lint import Report, run
from linker.locate import Diagnostic, Inputs
from linker.mapfile import LinkMap
from linker.outline import Outline
from linker.session import Request, load_script, narrowed
from linker.source import FilePlace, Source
from linker.special import SYNTAX

SUFFIXES = (".ld", ".lds", ".ld.S", ".lds.S", ".ldscript", ".x", ".lds.in", ".inc")
_MOST_FILES = 2000
_WORD = re.compile(r"/DISCARD/|[\w.$~]+", re.ASCII)


class Word(NamedTuple):
    """A word of a file: what it says and where it starts and ends in its line, counted from 0."""

    text: str
    start: int
    end: int


class Analysis:
    """One script, its includes, and what the linter says of them. Raises nothing."""

    def __init__(
        self, path: str, request: Request, texts: Mapping[str, str],
        link_map: LinkMap | None = None, elf: Elf | None = None,
    ) -> None:  # fmt: skip
        self.path = path
        self.map = link_map
        self.elf = elf
        self.source: Source
        try:
            self.source = load_script(path, request.how, texts)
            settings = settings_for(os.path.dirname(path) or ".", request.config)  # noqa: PTH120
            self.settings = narrowed(settings, request.select, request.ignore)
            self.report = run(Inputs(self.source, link_map, elf), self.settings)
        except LayoutInputError as error:
            self.source = Source(path, texts.get(path, ""))
            line = error.line or 1
            diagnostic = Diagnostic(SYNTAX, ERROR, str(error), path, line, 1, width=1)
            self.report = Report((diagnostic,), 0, False, (path,))

    @cached_property
    def outline(self) -> Outline:
        """What could be read of the script."""
        return Outline(kinds.read(self.source.text).script)

    def diagnostics(self) -> dict[str, list[Diagnostic]]:
        """Return the findings of the script and of each file that it includes."""
        out: dict[str, list[Diagnostic]] = {file: [] for file in self.report.files or (self.path,)}
        for diagnostic in self.report.diagnostics:
            file = diagnostic.file if diagnostic.line else self.path
            out.setdefault(file, []).append(diagnostic)
        return out

    # What stands at a place

    def offset(self, file: str, line: int, column: int) -> int | None:
        """Return the offset in the parsed text of a place, counted from 1; None where a macro stands."""
        return self.source.offset(file, line, column)

    def lines(self, file: str) -> list[str]:
        """Return the lines of a file as the editor has them."""
        return self.source.original_lines(file)

    def word(self, file: str, line: int, column: int) -> Word | None:
        """Return the word at a place, line and column from 1."""
        lines = self.lines(file)
        if not 0 < line <= len(lines):
            return None
        # At the border of two words it is the second.
        around = [one for one in _WORD.finditer(lines[line - 1]) if one.start() <= column - 1 <= one.end()]
        return Word(around[-1][0], *around[-1].span()) if around else None

    def comment_at(self, offset: int | None) -> bool:
        """Tell whether the place is in a comment."""
        return offset is not None and any(
            comment.span.start <= offset < comment.span.end for comment in self.outline.script.comments
        )

    def pattern_at(self, offset: int | None) -> tuple[ast.OutputSection, ast.Pattern] | None:
        """Return the input section pattern at a place, with its output section."""
        if offset is None:
            return None
        for section, spec in self.outline.inputs():
            for pattern in spec.sections or ():
                if pattern.span.start <= offset <= pattern.span.end:
                    return section, pattern
        return None

    def place(self, span: ast.Span) -> FilePlace:
        """Return where a span was written, at least its line."""
        exact = self.source.verbatim(span.start, span.end)
        if exact is not None:
            return exact
        where = self.source.locate(span.start, span.end)
        return FilePlace(where.file, where.line, where.column, where.line, where.column + where.width)

    def definitions(self, name: str) -> Iterator[ast.Span]:
        """Yield where a symbol is assigned, or a section, a region or a program header is described."""
        for assign in self.outline.assignments:
            if assign.target == name != ".":
                yield assign.target_span
        for placed in self.outline.sections:
            if placed.section.name == name:
                yield placed.section.name_span
        for command in self.outline.script.commands:
            for said, span in _declared(command):
                if said == name:
                    yield span


def _declared(command: ast.TopLevel) -> Iterator[tuple[str, ast.Span]]:
    """Yield the regions, aliases and program headers that a command declares, and where their names stand."""
    if isinstance(command, ast.Memory):
        named = [(one.name, one.span.start) for one in command.regions if isinstance(one, ast.Region)]
    elif isinstance(command, ast.Phdrs):
        named = [(one.name, one.span.start) for one in command.headers]
    else:
        named = []
        if isinstance(command, ast.Command) and command.name == "REGION_ALIAS":
            yield command.arguments[0], command.span
    for name, start in named:
        yield name, ast.Span(start, start + len(name))


def includers(path: str, root: str, texts: Mapping[str, str], request: Request) -> Iterator[str]:
    """Yield the scripts below `root`, and the open ones, that include the file."""
    name = os.path.basename(path)  # noqa: PTH119
    wanted = os.path.realpath(path)
    for candidate in dict.fromkeys((*texts, *_scripts(root))):
        if os.path.realpath(candidate) == wanted:
            continue
        try:
            text = texts.get(candidate)
            if text is None:
                with open(candidate, encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
                    text = stream.read(1 << 20)
            if "INCLUDE" not in text or name not in text:
                continue
            source = load_script(candidate, request.how, texts)
        except (OSError, LayoutInputError):
            continue
        if wanted in {os.path.realpath(file) for file in source.files()}:
            yield candidate


def _scripts(root: str) -> Iterator[str]:
    """Yield the scripts below a directory, as many as may be looked at while someone waits."""
    seen = 0
    for directory, below, files in os.walk(root):
        below[:] = sorted(one for one in below if not one.startswith("."))
        for file in sorted(files):
            seen += 1
            if seen > _MOST_FILES:
                return
            if file.endswith(SUFFIXES):
                yield os.path.join(directory, file)  # noqa: PTH118
