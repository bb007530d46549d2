"""A script's text and where each offset of it comes from, through the C preprocessor's line markers."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

from .errors import LayoutInputError

MAX_SCRIPT = 32 << 20

_MARKER = re.compile(r'^#(?:line)?[ \t]+([0-9]{1,9})(?:[ \t]+"((?:[^"\\\n]|\\.)*)")?[^\n]*$', re.MULTILINE)
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


class Source:
    """The text that is parsed, and the files that it was made from."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._starts: list[int] | None = None
        self._markers: list[_Marker] | None = None
        self._files: dict[str, list[str]] = {}

    def _lines(self) -> list[int]:
        if self._starts is None:
            self._starts = [0] + [match.end() for match in re.finditer("\n", self.text)]
        return self._starts

    def _line_markers(self) -> list[_Marker]:
        if self._markers is None:
            markers = []
            file = self.path
            for match in _MARKER.finditer(self.text):
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

    def locate(self, start: int, end: int) -> Location:
        """Return where the characters from `start` to `end` were written."""
        starts = self._lines()
        start = min(start, len(self.text))
        index = max(0, bisect_right(starts, start) - 1)
        column = start - starts[index]
        text = self.line_text(index)
        width = max(1, min(end - start, len(text) - column))
        markers = self._line_markers()
        position = bisect_right(markers, start, key=lambda marker: marker.offset) - 1
        if position < 0:
            return Location(self.path, index + 1, column + 1, text, width)
        marker = markers[position]
        first = bisect_right(starts, marker.offset) - 1
        line = marker.line + index - first
        return self._original(marker.file, line, text, column, width)

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
    try:
        if os.path.getsize(file) > MAX_SCRIPT:  # noqa: PTH202
            return []
        return Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return []


def read_bytes(path: str, limit: int) -> bytes:
    """Return the contents of a regular file of at most `limit` bytes; raises LayoutInputError."""
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(limit + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LayoutInputError(f"cannot be read: {reason}", file=path) from error
    if len(data) > limit:
        raise LayoutInputError("the file is too large", file=path, expected=f"at most {limit} bytes")
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
