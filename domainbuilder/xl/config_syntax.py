"""The syntax of xl.cfg(5): settings by name, of words and lists, each with its place.

Sources: tools/libs/util/libxlu_cfg_l.l, libxlu_cfg_y.y and libxlu_cfg.c of Xen 4.17. What the real one takes
is taken, escapes included: `\\x41` is refused and `\\101` is nothing, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from domainbuilder.errors import BuildError
from domainbuilder.inputs import LIMITS

_DEEPEST = 32
_TOKEN = re.compile(
    r"""(?P<ident>[a-z][._0-9a-z]*) | (?P<number>[0-9][0-9a-fx]*)
    | (?P<string>'(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*")
    | (?P<newline>\n|\#.*\n) | (?P<mark>\+=|[=,;\[\]])""",
    re.VERBOSE,
)
_BLANK = re.compile(r"[ \t]*")
_WRONG = re.compile(r"[^ \t\n]+")
_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_ESCAPES |= {char: char for char in "\"'\\"}
_DIGITS = re.compile(r"[ \t-\r]*[+-]?\d+")


class ConfigError(BuildError):
    """A configuration that xl would not take, or that asks for what cannot be had here."""


class Source(NamedTuple):
    """A text and its name, for messages."""

    name: str
    text: str

    def fail(self, at: int, reason: str, *, found: object = None, expected: object = None) -> ConfigError:
        """An error at the offset `at`: the name, the line, the column."""
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        return ConfigError(f"{self.name}:{line}:{column}: {reason}", found=found, expected=expected)


class Value(NamedTuple):
    """A word, or a list of values; `at` is its place in the source."""

    source: Source
    at: int
    word: str | None
    items: tuple[Value, ...] = ()

    def fail(self, reason: str, *, found: object = None, expected: object = None) -> ConfigError:
        """An error about this value."""
        return self.source.fail(self.at, reason, found=found, expected=expected)


class Setting(NamedTuple):
    """What a name was set to last. `added` says that `+=` did it."""

    name: str
    value: Value
    added: bool
    source: Source
    at: int

    def fail(self, reason: str, *, found: object = None, expected: object = None) -> ConfigError:
        """An error about this setting."""
        return self.source.fail(self.at, f"{self.name}: {reason}", found=found, expected=expected)

    @property
    def place(self) -> str:
        """NAME:LINE."""
        return f"{self.source.name}:{self.source.text.count(chr(10), 0, self.at) + 1}"


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def _tokens(source: Source) -> Iterator[_Token]:
    text, at = source.text, 0
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            break
        match = _TOKEN.match(text, at)
        if match is None:
            if at == len(text) - 1:
                break  # xl's lexer meets the end of the file before it can complain
            wrong = _WRONG.match(text, at)
            found = wrong[0] if wrong else text[at]
            if found.startswith("#"):
                raise source.fail(at, "the comment at the end of the file has no newline behind it")
            if found[0] in "'\"":
                raise source.fail(at, "the string has no end on its line", found=found[:40])
            raise source.fail(at, "a character that no configuration has", found=repr(found[:40]))
        kind = str(match.lastgroup)
        yield _Token(match[0] if kind == "mark" else kind, match[0], at)
        at = match.end()
    yield _Token("end", "", at)


def _dequote(source: Source, token: _Token) -> str:
    """xlu__cfgl_dequote."""
    inside = token.text[1:-1]
    out, at = [], 0
    while at < len(inside):
        char = inside[at]
        at += 1
        if char != "\\":
            out.append(char)
            continue
        escape = inside[at]
        at += 1
        if escape in _ESCAPES:
            out.append(_ESCAPES[escape])
        elif escape in "01234567":
            digits = _DIGITS.match(inside[at : at + 3])
            if digits is None or digits.end() < 2:
                raise source.fail(token.at + at, "invalid digit after a backslash in a string")
            at += digits.end()
        else:
            raise source.fail(token.at + at, "invalid character after a backslash", found=repr(escape))
    return "".join(out)


_NAMES = {"ident": "a name", "number": "a number", "string": "a string", "newline": "the end of the line"}


def _told(token: _Token) -> str:
    if token.kind == "end":
        return "the end of the file"
    return _NAMES["newline"] if token.kind == "newline" else repr(token.text[:40])


class _Parser:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.tokens = _tokens(source)
        self.ahead = next(self.tokens)

    def take(self) -> _Token:
        token = self.ahead
        if token.kind != "end":
            self.ahead = next(self.tokens)
        return token

    def fail(self, expected: str) -> ConfigError:
        token = self.ahead
        if token.kind == "ident" and token.text in ("true", "false", "yes", "no", "none"):
            expected += "; yes and no are 1 and 0"
        return self.source.fail(token.at, "config parsing error", found=_told(token), expected=expected)

    def lines(self) -> None:
        while self.ahead.kind == "newline":
            self.take()

    def value(self, depth: int = 0) -> Value:
        token = self.ahead
        if token.kind == "string":
            return Value(self.source, self.take().at, _dequote(self.source, token))
        if token.kind == "number":
            return Value(self.source, self.take().at, token.text)
        if token.kind != "[":
            raise self.fail("a string in quotes, a number, or a list in brackets")
        if depth == _DEEPEST:
            raise self.source.fail(token.at, "lists are nested too deeply")
        self.take()
        self.lines()
        items = []
        while self.ahead.kind != "]":
            items.append(self.value(depth + 1))
            self.lines()
            if self.ahead.kind == ",":
                self.take()
                self.lines()
            elif self.ahead.kind != "]":
                raise self.fail("a comma, or the end of the list that began before")
        self.take()
        return Value(self.source, token.at, None, tuple(items))

    def settings(self) -> Iterator[Setting]:
        while self.ahead.kind != "end":
            if self.ahead.kind in ("newline", ";"):
                self.take()
                continue
            name = self.ahead
            if name.kind != "ident":
                raise self.fail("a name in small letters")
            self.take()
            if self.ahead.kind not in ("=", "+="):
                raise self.fail("= or +=")
            added = self.take().kind == "+="
            value = self.value()
            if self.ahead.kind not in ("newline", ";", "end"):
                raise self.fail("the end of the line")
            yield Setting(name.text, value, added, self.source, name.at)


def parse(sources: Iterable[Source], before: Mapping[str, Setting]) -> dict[str, Setting]:
    """The settings of several texts, one behind the other: the last of a name counts, `+=` goes on from it.

    `before` are settings that were read otherwise. Raises ConfigError with the line and the column.
    """
    found = dict(before)
    for source in sources:
        if len(source.text) > LIMITS["configuration"].size:
            raise ConfigError(f"{source.name}: the configuration is too large", found=len(source.text))
        if (at := source.text.find("\0")) >= 0:
            raise source.fail(at, "a NUL, which no text has")
        for setting in _Parser(source).settings():
            earlier = found.get(setting.name)
            found[setting.name] = _concatenated(earlier, setting) if setting.added and earlier else setting
    return found


def _concatenated(before: Setting, more: Setting) -> Setting:
    """xlu__cfg_concat_vals."""
    left, right = before.value, more.value
    if (left.word is None) is not (right.word is None):
        raise more.fail('can\'t add [list] to "string" or vice versa')
    word = None if left.word is None or right.word is None else left.word + right.word
    return more._replace(value=right._replace(word=word, items=left.items + right.items))
