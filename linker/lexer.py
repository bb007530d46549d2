"""Tokens of a GNU ld script.

ld's own scanner (binutils 2.40, ld/ldlex.l) changes state with the place in the grammar, because `-`, `*`,
`:` or `=` belong to a name in one place and are operators in another. The parser therefore asks for the
next token *in a mode*, and nothing is read ahead further than the one token it asked for.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .ast import Comment, Span

# Modes.
SCRIPT = 0  # commands, names of output sections
WILD = 1  # inside the braces of an output section: file and section patterns
EXPRESSION = 2
INPUTLIST = 3  # inside INPUT(...) and GROUP(...)
VERSION = 4  # inside VERSION { ... }

# Kinds of tokens.
NAME = "name"
STRING = "string"
NUMBER = "number"
PUNCT = "punct"
BAD = "bad"
END = "end"


class Token(NamedTuple):
    """A token; for a string `text` is what is between the quotes."""

    kind: str
    text: str
    start: int
    end: int


# What a C preprocessor writes; a comment such as `# 64 KiB for the loader` is none.
LINE_MARKER = re.compile(
    r'^#(?:line)?[ \t]+([0-9]{1,9})(?:[ \t]+"((?:[^"\\\n]|\\.)*)"[ \t0-9]*)?[ \t]*$', re.MULTILINE
)

# A named tuple's own __new__ is a Python function; a token is made for every word of the text.
_new = tuple.__new__
_NONE = Token(END, "", 0, 0)

ASSIGN_OPS = frozenset({"=", "+=", "-=", "*=", "/=", "<<=", ">>=", "&=", "|=", "^="})

_OPERATORS = r"<<=|>>=|\|\||&&|==|!=|>=|<=|<<|>>|\+=|-=|\*=|/=|&=|\|=|\^=|[\]\[><,&|~!?*+\-/%=}{)(:;^]"
_STRING = r'"(?P<string>[^"]*)"'
_NUMBER = r"(?P<number>(?:\$[0-9A-Fa-f]+|[0-9][0-9A-Za-z]*))"
_TABLE = {
    SCRIPT: rf"{_STRING}|(?P<name>[A-Za-z_/.\\$~][\w/.\\$~\-+:\[\],=]*)|{_NUMBER}|(?P<punct>{_OPERATORS})",
    WILD: rf"{_STRING}|(?P<name>[\w/.\\$~\-+:\[\],=?*^!]+)|(?P<punct>{_OPERATORS})",
    EXPRESSION: (
        rf"{_STRING}|(?P<name>/DISCARD/|(?!\$[0-9A-Fa-f]+(?![\w/.\\$~]))[A-Za-z_.\\$][\w/.\\$~]*)"
        rf"|{_NUMBER}|(?P<punct>{_OPERATORS})"
    ),
    INPUTLIST: rf"{_STRING}|(?P<name>[\w/.\\$~\-+:\[\]=*?]+)|(?P<punct>[(),;])",
    VERSION: rf"{_STRING}|(?P<name>(?:[^\s{{}};:\"#,]|::)+)|(?P<punct>[{{}};:,])",
}
# Blanks, and a token that begins no comment: what is left to _skip() is comments and bad characters.
_PATTERNS = {mode: re.compile(rf"\s*+(?!/\*|\#)(?:{pattern})", re.ASCII) for mode, pattern in _TABLE.items()}
_SPACE = re.compile(r"\s*", re.ASCII)

# These runs of characters are punctuation although they could be names.
_PUNCT = {
    SCRIPT: frozenset({"/="}),
    WILD: frozenset({"=", "+=", "-=", "*=", "/=", "^=", ",", ":", "[", "]"}),
    EXPRESSION: frozenset[str](),
    INPUTLIST: frozenset[str](),
    VERSION: frozenset[str](),
}

_BASES = {"h": 16, "x": 16, "o": 8, "b": 2, "d": 10}


def number_value(text: str) -> int | None:
    """Return the value of ld's integer syntax (0x10, $10, 10K, 10h, 017, 1M), or None."""
    scale = {"k": 1 << 10, "m": 1 << 20}.get(text[-1].lower(), 1)
    digits = text[:-1] if scale > 1 else text
    try:
        if digits.startswith("$"):
            return int(digits[1:], 16) * scale
        if digits[:2].lower() == "0x":
            return int(digits[2:], 16) * scale
        if digits.isdigit():
            return int(digits, 8 if len(digits) > 1 and digits[0] == "0" else 10) * scale
        base = _BASES.get(text[-1].lower())
        return int(text[:-1], base) if base else None
    except ValueError:
        return None


class Lexer:
    """A place in the text of a script: `position` is where the next token is looked for, `last_end` where the
    last one that was stepped past ends.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.comments: list[Comment] = []
        self.unterminated: Span | None = None
        self.last_end = 0
        self._seen_comments = 0
        self._mode = -1
        self._token = _NONE

    def peek(self, mode: int = SCRIPT) -> Token:
        """Return the next token in `mode` without stepping past it."""
        if mode != self._mode:
            self._token = self._scan(mode)
            self._mode = mode
        return self._token

    def next(self, mode: int = SCRIPT) -> Token:
        """Return the next token in `mode` and step past it."""
        token = self._token if mode == self._mode else self._scan(mode)
        self.position = self.last_end = token[3]
        self._mode = -1
        return token

    def seek(self, position: int) -> None:
        """Go on at `position`."""
        self.position = position
        self._mode = -1

    def step(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """Step past the last group of the pattern when the pattern matches here.

        Such patterns read in one go what is read token by token otherwise; they must agree with that.
        """
        match = pattern.match(self.text, self.position)
        if match is not None:
            self.position = self.last_end = match.end(match.lastindex or 0)
            self._mode = -1
        return match

    def looks_at(self, pattern: re.Pattern[str], position: int) -> bool:
        """Tell whether the pattern matches at a position."""
        return pattern.match(self.text, position) is not None

    def _skip(self) -> int:
        text, position = self.text, self.position
        while True:
            match = _SPACE.match(text, position)
            position = match.end() if match else position
            if text.startswith("/*", position):
                end = text.find("*/", position + 2)
                if end < 0:
                    self.unterminated = Span(position, len(text))
                    end = len(text)
                self._comment(text[position + 2 : end], Span(position, min(end + 2, len(text))))
                position = min(end + 2, len(text))
            elif text.startswith("#", position):
                end = text.find("\n", position)
                end = len(text) if end < 0 else end
                if not LINE_MARKER.match(text, position):
                    self._comment(text[position + 1 : end], Span(position, end))
                position = end
            else:
                return position

    def _comment(self, text: str, span: Span) -> None:
        # The same comment is skipped again after a seek back: keep it once.
        if span.start >= self._seen_comments:
            self.comments.append(Comment(text.strip(), span))
            self._seen_comments = span.end

    def _scan(self, mode: int) -> Token:
        match = _PATTERNS[mode].match(self.text, self.position)
        if match is None:
            # What is skipped stays skipped: a later token in another mode starts behind it as well.
            position = self.position = self._skip()
            match = _PATTERNS[mode].match(self.text, position)
            if match is None:
                if position >= len(self.text):
                    return Token(END, "end of file", position, position)
                return Token(BAD, self.text[position], position, position + 1)
        kind = match.lastgroup or PUNCT
        start, end = match.span(kind)
        text = match[kind]
        if kind == STRING:
            start, end = start - 1, end + 1
        elif text in _PUNCT[mode]:
            kind = PUNCT
        return _new(Token, (kind, text, start, end))
