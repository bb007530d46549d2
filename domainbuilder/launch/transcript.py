"""What a guest printed, kept within bounds, and searching it as it comes.

A search never goes back over what it has seen, apart from a bounded piece that a match may have begun in: the
current line where the pattern cannot match a line's end, else the last WINDOW characters.
"""

from __future__ import annotations

import codecs
import re

from domainbuilder.inputs import LIMITS

TRANSCRIPT_LIMIT = LIMITS["transcript"].size
WINDOW = 4096
_SLACK = 1 << 20

# What a regular expression needs in order to match a line's end: one of these, or a flag.
_MAY_CROSS_LINES = re.compile(r"\n|\[\^|\\[nrsDWSAZzxuUN0-9fv]|\(\?[a-zA-Z]*[sx]")


class Transcript:
    """The last `limit` bytes of output, its lines ending in \\n alone, as text files have it in Python.

    Offsets count from the first byte that was ever printed. A carriage return at the very end waits for what
    follows it.
    """

    __slots__ = ("_data", "_held", "dropped", "limit")

    def __init__(self, limit: int = TRANSCRIPT_LIMIT) -> None:
        self.limit = limit
        self.dropped = 0
        self._data = bytearray()
        self._held = b""

    def copy(self) -> Transcript:
        """The same text, which goes on by itself."""
        other = Transcript(self.limit)
        other.dropped, other._data, other._held = self.dropped, self._data.copy(), self._held
        return other

    def save(self) -> tuple[bytes, bytes, int]:
        """The text, what is held back of it, and how much was dropped before: for restore()."""
        return bytes(self._data), self._held, self.dropped

    def be(self, saved: tuple[bytes, bytes, int]) -> None:
        """Hold what save() gave; quick where this is what came of it."""
        text, self._held, dropped = saved
        if self.dropped == dropped and self._data.startswith(text):
            del self._data[len(text) :]
        else:
            self.dropped, self._data[:] = dropped, text

    @classmethod
    def restore(cls, text: bytes, held: bytes, dropped: int) -> Transcript:
        """The transcript that save() was called of."""
        transcript = cls()
        transcript._data, transcript._held, transcript.dropped = bytearray(text), held, dropped
        return transcript

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.dropped + len(self._data)

    def append(self, data: bytes) -> None:
        """Add output; the oldest goes when there is too much."""
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        self._data += data[: len(data) - len(self._held)].replace(b"\r\n", b"\n")
        if len(self._data) > self.limit + min(self.limit, _SLACK):
            excess = len(self._data) - self.limit
            del self._data[:excess]
            self.dropped += excess

    def since(self, offset: int) -> bytes:
        """The bytes from `offset` on, as far as they are still there."""
        return bytes(memoryview(self._data)[max(offset - self.dropped, 0) :])

    def text(self) -> str:
        """All of it as text, with a first line that tells of what was dropped."""
        note = f"[{self.dropped} bytes of earlier output dropped]\n" if self.dropped else ""
        return note + self._data.decode("utf-8", "replace")

    def tail(self, lines: int = 20, characters: int = 2000) -> str:
        """The last lines as text, for messages."""
        text = bytes(self._data[-4 * characters :]).decode("utf-8", "replace")[-characters:]
        return "\n".join(text.splitlines()[-lines:])


def compile_pattern(pattern: str | re.Pattern[str]) -> re.Pattern[str]:
    """A string becomes a regular expression in which ^ and $ match at every line."""
    return re.compile(pattern, re.MULTILINE) if isinstance(pattern, str) else pattern


_CHOICES = frozenset("*+?{|(")  # without them there is one way to match, and no longer than the pattern


class Search:
    """One search in a growing transcript, from `offset` on. Bytes that are no UTF-8 become surrogates."""

    def __init__(self, pattern: re.Pattern[str], transcript: Transcript, offset: int) -> None:
        self.pattern = pattern
        self.offset = offset
        self._transcript = transcript
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._read = max(offset, transcript.dropped)  # offset of the next byte to decode
        self._seen = 0  # characters of _text that were searched
        flags = pattern.flags & (re.DOTALL | re.VERBOSE)
        self._one_line = not flags and not _MAY_CROSS_LINES.search(pattern.pattern)
        self.may_backtrack = not _CHOICES.isdisjoint(pattern.pattern)
        self.match: re.Match[str] | None = None
        self._consumed: int | None = None  # where another process has searched

    def more(self) -> bool:
        """Search what came since the last call; True when there is a match, which then stays."""
        if self.match is not None:
            return True
        data = self._transcript.since(self._read)
        self._read = self._transcript.end
        self._text += self._decoder.decode(data)
        self.match = self.pattern.search(self._text, self._start())
        self._seen = len(self._text)
        if self._seen > 16 * WINDOW:
            keep = max(self._seen - self._start(), WINDOW) + 1  # one more, for ^ and lookbehind
            self._text, self._seen = self._text[-keep:], keep
        return self.match is not None

    def found(self, text: str, start: int, consumed: int) -> None:
        """What a search for the same elsewhere came to: the match is at `start` of what it looked through."""
        self.match = self.pattern.match(text, start)
        self._consumed = consumed

    def _start(self) -> int:
        """Where a match that was not there before may begin at the earliest."""
        earliest = max(self._seen - WINDOW, 0)
        return max(self._text.rfind("\n", 0, self._seen) + 1, earliest) if self._one_line else earliest

    @property
    def consumed(self) -> int:
        """The transcript's offset at the end of the match (of all that was read, where there is none)."""
        if self._consumed is not None:
            return self._consumed
        if self.match is None:
            return self._read
        pending = len(self._decoder.getstate()[0])
        rest = self.match.string[self.match.end() :]
        return self._read - pending - len(rest.encode("utf-8", "surrogateescape"))
