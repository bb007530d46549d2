"""A script's text and where each offset of it comes from, through the C preprocessor's line markers."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .ast import SyntaxProblem
from .errors import LayoutInputError
from .lexer import LINE_MARKER

MAX_SCRIPT = 32 << 20

_WORD = re.compile(r"[\w.$]+")


class Location(NamedTuple):
    """Where a finding points: file, line and column (both from 1), the line's text and the caret's width.

    `expanded` is the preprocessed line when the text shown is the one before preprocessing.
    """

    file: str
    line: int
    column: int
    text: str
    width: int
    expanded: str = ""


class _Marker(NamedTuple):
    offset: int  # first character after the marker's line
    line: int
    file: str


class FilePlace(NamedTuple):
    """A span of a file as it was written: lines and columns from 1, the end behind the last character."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


class Source:
    """The text that is parsed, and the files that it was made from.

    `originals` are the lines of files that are not read from the disk, such as an editor's buffers.
    """

    problems: tuple[SyntaxProblem, ...] = ()

    def __init__(self, path: str, text: str, originals: Mapping[str, list[str]] | None = None) -> None:
        self.path = path
        self.text = text
        self._starts: list[int] | None = None
        self._markers: list[_Marker] | None = None
        self._files: dict[str, list[str]] = dict(originals or {})
        self._by_line: dict[tuple[str, int], int] | None = None

    def files(self) -> tuple[str, ...]:
        """The files whose text this is: the script alone, the preprocessor's includes are not among them."""
        return (self.path,)

    def _lines(self) -> list[int]:
        if self._starts is None:
            self._starts = [0] + [match.end() for match in re.finditer("\n", self.text)]
        return self._starts

    def _line_markers(self) -> list[_Marker]:
        if self._markers is None:
            markers = []
            file = self.path
            for match in LINE_MARKER.finditer(self.text):
                if match[2] is not None:
                    file = re.sub(r"\\(.)", r"\1", match[2])
                markers.append(_Marker(match.end() + 1, int(match[1]), file))
            self._markers = markers
        return self._markers

    def line_text(self, index: int) -> str:
        """Return line `index` (from 0) of the text that is parsed."""
        starts = self._lines()
        end = starts[index + 1] - 1 if index + 1 < len(starts) else len(self.text)
        return self.text[starts[index] : end].rstrip("\r\n")

    def _written(self, index: int) -> tuple[str, int]:
        """Return file and line that line `index` (from 0) of the parsed text was made from."""
        markers = self._line_markers()
        if not markers:
            return self.path, index + 1
        starts = self._lines()
        position = bisect_right(markers, starts[index], key=lambda marker: marker.offset) - 1
        if position < 0:
            return self.path, index + 1
        marker = markers[position]
        return marker.file, marker.line + index - (bisect_right(starts, marker.offset) - 1)

    def _index(self, offset: int) -> int:
        return max(0, bisect_right(self._lines(), min(offset, len(self.text))) - 1)

    def locate(self, start: int, end: int) -> Location:
        """Return where the characters from `start` to `end` were written."""
        start = min(start, len(self.text))
        index = self._index(start)
        column = start - self._lines()[index]
        text = self.line_text(index)
        width = max(1, min(end - start, len(text) - column))
        file, line = self._written(index)
        if not self._line_markers():
            return Location(file, line, column + 1, text, width)
        return self._original(file, line, text, column, width)

    def verbatim(self, start: int, end: int) -> FilePlace | None:
        """Return the place of the characters in the file they are from; None when a macro made them."""
        first, last = self._index(start), self._index(end)
        file, line = self._written(first)
        for index in (first, last):
            lines = self.original_lines(file)
            where = self._written(index)
            if where != (file, line + index - first) or not 0 < where[1] <= len(lines):
                return None
            if lines[where[1] - 1] != self.line_text(index):
                return None
        starts = self._lines()
        return FilePlace(file, line, start - starts[first] + 1, line + last - first, end - starts[last] + 1)

    def offset(self, file: str, line: int, column: int) -> int | None:
        """Return where in the parsed text the character of a file stands; None when it is not there."""
        starts = self._lines()
        if not self._line_markers():
            index = line - 1 if file == self.path and 0 < line <= len(starts) else None
        else:
            if self._by_line is None:
                self._by_line = {}
                for number in range(len(starts)):
                    self._by_line.setdefault(self._written(number), number)
            index = self._by_line.get((file, line))
        if index is None or column - 1 > len(self.line_text(index)):
            return None
        lines = self.original_lines(file)
        same = 0 < line <= len(lines) and lines[line - 1] == self.line_text(index)
        return starts[index] + column - 1 if same else None

    def original_lines(self, file: str) -> list[str]:
        """Return the lines of a file as written, before preprocessing; none when it cannot be read."""
        lines = self._files.get(file)
        if lines is None:
            on_disk = file != self.path or bool(self._line_markers())
            lines = _read_lines(file) if on_disk else self.text.split("\n")
            self._files[file] = lines
        return lines

    def _original(self, file: str, line: int, text: str, column: int, width: int) -> Location:
        """Return the place in the file before preprocessing, the caret where the same token stands there."""
        lines = self.original_lines(file)
        if not 0 < line <= len(lines):
            return Location(file, line, column + 1, text, width)
        original = lines[line - 1]
        if original == text:
            return Location(file, line, column + 1, text, width)
        token = text[column : column + width]
        word = _WORD.match(token)
        for size in (len(token), word.end() if word else 0):
            found = original.find(token[:size]) if size else -1
            if found >= 0:
                return Location(file, line, found + 1, original, size, text.strip())
        indent = len(original) - len(original.lstrip())
        return Location(file, line, indent + 1, original, max(1, len(original.strip())), text.strip())


def _read_lines(file: str) -> list[str]:
    """Return the lines of a regular file; none of anything else, a line marker can name what it likes."""
    try:
        if not os.path.isfile(file):  # noqa: PTH113
            return []
        return decode_script(file, read_bytes(file, MAX_SCRIPT)).text.split("\n")
    except (LayoutInputError, ValueError):
        return []


def read_bytes(path: str, limit: int) -> bytes:
    """Return the contents of a file of at most `limit` bytes; raises LayoutInputError."""
    try:
        with Path(path).open("rb") as stream:
            return read_stream(stream, path, limit)
    except ValueError as error:
        raise LayoutInputError(f"cannot be read: {error}", file=path) from error
    except OSError as error:
        raise LayoutInputError(f"cannot be read: {error.strerror}", file=path) from error


def read_stream(stream: BinaryIO, name: str, limit: int = MAX_SCRIPT) -> bytes:
    """Return what is left in a stream, at most `limit` bytes; raises LayoutInputError."""
    try:
        data = stream.read(limit + 1)
    except OSError as error:
        raise LayoutInputError(f"cannot be read: {error.strerror}", file=name) from error
    if len(data) > limit:
        raise LayoutInputError("the file is too large", file=name, expected=f"at most {limit} bytes")
    return data


def decode_script(path: str, data: bytes) -> Source:
    """Return the source; raises LayoutInputError when the bytes are no text."""
    if b"\0" in data[:4096]:
        raise LayoutInputError(
            "this is no linker script", file=path, offset=data.index(b"\0"), found="a zero byte",
            expected="text",
        )  # fmt: skip
    return Source(path, data.decode("utf-8", errors="replace").replace("\r\n", "\n"))


def read_script(path: str) -> Source:
    """Read a script that needs no preprocessing."""
    return decode_script(path, read_bytes(path, MAX_SCRIPT))


def read_text(file: str) -> str:
    """Return a file's text with its line ends as they are; raises LayoutInputError."""
    try:
        return read_bytes(file, MAX_SCRIPT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LayoutInputError(
            "this is no UTF-8 text: it is not changed", file=file, offset=error.start
        ) from error
