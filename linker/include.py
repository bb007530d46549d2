"""Follows INCLUDE as ld does: the text of the named file takes the place of the command.

ld looks in the directory it runs in and then in those of -L (binutils 2.40, ld/ldfile.c,
ldfile_find_command_file); the directory of the script is tried last, for those who lint from another place
than they link from.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from .ast import Span, SyntaxProblem
from .errors import LayoutInputError
from .source import MAX_SCRIPT, FilePlace, Location, Source, read_script

# ld gives up behind the tenth (MAX_INCLUDE_DEPTH in ld/ldlex.l).
MAX_DEPTH = 10
MAX_FILES = 4096

_INCLUDE = re.compile(
    r'/\*.*?(?:\*/|\Z)|\#[^\n]*|"[^"]*"'
    r'|(?<![\w/.\\$~+:\[\],=?*^!-])INCLUDE\s+(?P<file>"[^"\n]+"|[\w/.\\$~+:\[\],=-]+)',
    re.DOTALL | re.ASCII,
)

Reader = Callable[[str], Source]


class _Piece(NamedTuple):
    start: int  # in the whole text
    source: Source
    offset: int  # in the source's text


class Included(Source):
    """A script with the files it includes in their places."""

    def __init__(
        self, main: Source, text: str, pieces: Sequence[_Piece], problems: Sequence[SyntaxProblem]
    ) -> None:
        super().__init__(main.path, text)
        self.problems = tuple(problems)
        self._pieces = pieces
        self._begins = [piece.start for piece in pieces]
        self._sources = {piece.source.path: piece.source for piece in pieces}

    def files(self) -> tuple[str, ...]:
        """The script and the files it includes."""
        return tuple(self._sources)

    def _piece(self, start: int, end: int) -> tuple[Source, int, int]:
        index = bisect_right(self._begins, min(start, len(self.text) - 1)) - 1
        piece = self._pieces[max(index, 0)]
        last = self._begins[index + 1] if index + 1 < len(self._begins) else len(self.text)
        shift = piece.offset - piece.start
        return piece.source, start + shift, max(min(end, last), start) + shift

    def locate(self, start: int, end: int) -> Location:
        """Return where the characters were written."""
        source, start, end = self._piece(start, end)
        return source.locate(start, end)

    def verbatim(self, start: int, end: int) -> FilePlace | None:
        """Return the place in one file, None when the span is in several."""
        source, first, last = self._piece(start, end)
        return source.verbatim(first, last) if last - first == end - start else None

    def offset(self, file: str, line: int, column: int) -> int | None:
        """Return the first place in the whole text that was written there."""
        for index, piece in enumerate(self._pieces):
            place = piece.source.offset(file, line, column)
            if place is None:
                continue
            start = place - piece.offset + piece.start
            end = self._begins[index + 1] if index + 1 < len(self._begins) else len(self.text) + 1
            if piece.start <= start < end:
                return start
        return None

    def original_lines(self, file: str) -> list[str]:
        """Return the lines of a file as written."""
        source = self._sources.get(file)
        return source.original_lines(file) if source is not None else super().original_lines(file)


class _Follower:
    def __init__(self, main: Source, directories: Sequence[str], read: Reader) -> None:
        self.parts: list[str] = []
        self.pieces: list[_Piece] = []
        self.problems: list[SyntaxProblem] = []
        self.files = 0
        self._length = 0
        self._read = read
        self._known: dict[str, Source] = {}
        self._directories = ("", *directories, os.path.dirname(main.path))  # noqa: PTH120

    def add(self, source: Source, start: int, end: int) -> None:
        """Add a part of a source's text."""
        if start < end:
            self.pieces.append(_Piece(self._length, source, start))
            self.parts.append(source.text[start:end])
            self._length += end - start
            if self._length > MAX_SCRIPT:
                raise LayoutInputError(
                    "the script and what it includes are too large", file=source.path,
                    expected=f"at most {MAX_SCRIPT} bytes",
                )  # fmt: skip

    def follow(self, source: Source, depth: int) -> None:
        """Add a source with everything that it includes."""
        position = 0
        for match in _INCLUDE.finditer(source.text):
            name = match["file"]
            if name is None:
                continue
            found = self._open(name.strip('"'))
            if found is None or depth == MAX_DEPTH or self.files >= MAX_FILES:
                if found is not None:
                    span = Span(
                        self._length + match.start() - position, self._length + match.end() - position
                    )
                    limit = f"{MAX_DEPTH} deep" if depth == MAX_DEPTH else f"{MAX_FILES} files"
                    self.problems.append(SyntaxProblem(f"INCLUDE goes no further than {limit}", span))
                    if len(self.problems) > 20:
                        return
                continue
            self.files += 1
            self.add(source, position, match.start())
            self.follow(found, depth + 1)
            self._newline(found)
            position = match.end()
        self.add(source, position, len(source.text))

    def _newline(self, source: Source) -> None:
        """End the last token of an included file, as the end of a file does."""
        self.pieces.append(_Piece(self._length, source, len(source.text)))
        self.parts.append("\n")
        self._length += 1

    def _open(self, name: str) -> Source | None:
        for directory in self._directories:
            path = os.path.join(directory, name)  # noqa: PTH118
            if path in self._known:
                return self._known[path]
            if os.path.isfile(path):  # noqa: PTH113
                return self._known.setdefault(path, self._read(path))
        return None


def follow(main: Source, directories: Sequence[str] = (), read: Reader = read_script) -> Source:
    """Return the script with what it includes; the same source when it includes nothing that can be found.

    `directories` are those of -L. `read` gives the text of a file. Raises LayoutInputError.
    """
    if "INCLUDE" not in main.text:
        return main
    follower = _Follower(main, directories, read)
    follower.follow(main, 0)
    if not follower.files and not follower.problems:
        return main
    return Included(main, "".join(follower.parts), follower.pieces, follower.problems)


def missing(source: Source) -> Iterator[tuple[str, Span]]:
    """Yield name and place of each INCLUDE whose file was not found."""
    if "INCLUDE" in source.text:
        for match in _INCLUDE.finditer(source.text):
            if match["file"] is not None:
                yield match["file"].strip('"'), Span(*match.span())
