"""GRUB's script language: a text becomes a list of statements, and words are expanded.

Source: the GRUB manual 2.06, "Writing full configuration files directly" (quoting, variables, compound
commands). Loops are read and not run: no configuration for disks needs them to say what it boots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from domainbuilder.bootloader.disk import DiskError

_MOST_STATEMENTS = 20_000
_MOST_DEPTH = 32
_LONGEST_WORD = 1 << 16
# A word's piece: what stands between quotes, an escape, a variable, or plain characters.
_PIECE = re.compile(
    r"""'(?P<single>[^']*)'
    | "(?P<double>(?:[^"\\]|\\.)*)"
    | \\(?P<escaped>.)
    | \$\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?*@\#])\}
    | \$(?P<name>[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[?*@\#])
    | (?P<plain>[^\s'"\\$;{}]+ | \$ | [{}](?=[^\s;]))""",
    re.VERBOSE | re.DOTALL,
)
_IN_DOUBLE = re.compile(
    r"""\\(?P<escaped>["$\\]) | \\\n | \$\{(?P<braced>\w+)\} | \$(?P<name>\w+) | (?P<plain>[^\\$]+|.)""",
    re.VERBOSE | re.DOTALL,
)
_BLANK = re.compile(r"(?:[ \t\r]|\\\n)+")
_COMMENT = re.compile(r"#[^\n]*")


class Piece(NamedTuple):
    """A part of a word: text, or a variable's name."""

    text: str
    variable: bool
    quoted: bool


Word = tuple[Piece, ...]


class Command(NamedTuple):
    """A command with its words; `block` is what stands in braces behind it, for menu entries."""

    words: tuple[Word, ...]
    block: tuple[Statement, ...] | None


class If(NamedTuple):
    """Conditions with what is run for each; without a condition: else."""

    branches: tuple[tuple[tuple[Statement, ...] | None, tuple[Statement, ...]], ...]


class Function(NamedTuple):
    """A function that is defined here."""

    name: str
    body: tuple[Statement, ...]


class Loop(NamedTuple):
    """A loop, which is not run."""

    kind: str


Statement = Command | If | Function | Loop

_SEPARATOR = ";"
_CLOSING = ("then", "elif", "else", "fi", "do", "done")


def _double_quoted(text: str) -> Iterator[Piece]:
    yield Piece("", variable=False, quoted=True)
    for match in _IN_DOUBLE.finditer(text):
        if name := match["braced"] or match["name"]:
            yield Piece(name, variable=True, quoted=True)
        elif plain := match["escaped"] or match["plain"]:
            yield Piece(plain, variable=False, quoted=True)


class _Reader:
    """The tokens of a text: words, ";" for the end of a command, "{" and "}"."""

    def __init__(self, text: str, name: str) -> None:
        self.text = text
        self.name = name
        self.at = 0

    def fail(self, reason: str) -> DiskError:
        line = self.text.count("\n", 0, self.at) + 1
        return DiskError(f"{self.name}, line {line}: {reason}")

    def token(self) -> Word | str | None:
        """The next one, or None at the end."""
        text = self.text
        while match := _BLANK.match(text, self.at) or _COMMENT.match(text, self.at):
            self.at = match.end()
        if self.at >= len(text):
            return None
        first = text[self.at]
        if first in "\n;&|":
            self.at += 1
            return _SEPARATOR
        if first in "{}" and (self.at + 1 == len(text) or text[self.at + 1] in " \t\r\n;"):
            self.at += 1
            return first
        return self._word()

    def _word(self) -> Word:
        pieces: list[Piece] = []
        start = self.at
        while match := _PIECE.match(self.text, self.at):
            self.at = match.end()
            if (single := match["single"]) is not None:
                pieces.append(Piece(single, variable=False, quoted=True))
            elif (double := match["double"]) is not None:
                pieces += _double_quoted(double)
            elif (escaped := match["escaped"]) is not None:
                pieces.append(Piece("" if escaped == "\n" else escaped, variable=False, quoted=True))
            elif variable := match["braced"] or match["name"]:
                pieces.append(Piece(variable, variable=True, quoted=False))
            else:
                pieces.append(Piece(match["plain"], variable=False, quoted=False))
        if self.at == start:
            raise self.fail(f"a {self.text[start]} without its end")
        if self.at - start > _LONGEST_WORD:
            raise self.fail("a word is too long")
        return tuple(pieces)


def _keyword(word: Word | str) -> str:
    """The text of a word that is not quoted, else nothing."""
    if isinstance(word, str):
        return word
    return word[0].text if len(word) == 1 and not (word[0].quoted or word[0].variable) else ""


class _Parser:
    def __init__(self, text: str, name: str) -> None:
        self.reader = _Reader(text, name)
        self.left = _MOST_STATEMENTS
        self.depth = 0
        self.ahead: Word | str | None = self.reader.token()

    def take(self) -> Word | str:
        token = self.ahead
        if token is None:
            raise self.reader.fail("the end of the file comes too early")
        self.ahead = self.reader.token()
        return token

    def expect(self, keyword: str) -> None:
        if self.ahead is None or _keyword(self.ahead) != keyword:
            found = "the end of the file" if self.ahead is None else repr(_keyword(self.ahead) or "a word")
            raise self.reader.fail(f"{keyword!r} is missing; found {found}")
        self.take()

    def statements(self, *ends: str) -> tuple[Statement, ...]:
        """Up to one of these keywords, which is left; without any, up to the end of the text."""
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise self.reader.fail("too deeply nested")
        found: list[Statement] = []
        while True:
            while self.ahead == _SEPARATOR:
                self.take()
            if self.ahead is None and not ends:
                break
            if self.ahead is not None and ends and _keyword(self.ahead) in ends:
                break
            found.append(self.statement())
        self.depth -= 1
        return tuple(found)

    def statement(self) -> Statement:
        self.left -= 1
        if self.left < 0:
            raise self.reader.fail("too many statements")
        first = self.take()
        compound: dict[str, Callable[[], Statement]] = {
            "if": self.condition,
            "function": self.function,
            "for": lambda: self.loop("for"),
            "while": lambda: self.loop("while"),
            "until": lambda: self.loop("until"),
        }
        if (read := compound.get(_keyword(first))) is not None:
            return read()
        if isinstance(first, str) or _keyword(first) in _CLOSING:
            raise self.reader.fail(f"{_keyword(first)!r} without a command")
        words = [first]
        block = None
        while self.ahead not in (None, _SEPARATOR, "}"):
            token = self.take()
            if token == "{":
                block = self.statements("}")
                self.expect("}")
                break
            if not isinstance(token, str):
                words.append(token)
        return Command(tuple(words), block)

    def condition(self) -> If:
        branches: list[tuple[tuple[Statement, ...] | None, tuple[Statement, ...]]] = []
        while True:
            condition = self.statements("then")
            self.expect("then")
            branches.append((condition, self.statements("elif", "else", "fi")))
            end = _keyword(self.take())
            if end == "else":
                branches.append((None, self.statements("fi")))
                self.expect("fi")
            if end != "elif":
                return If(tuple(branches))

    def function(self) -> Function:
        name = _keyword(self.take())
        self.expect("{")
        body = self.statements("}")
        self.expect("}")
        return Function(name, body)

    def loop(self, kind: str) -> Loop:
        self.statements("do")
        self.expect("do")
        self.statements("done")
        self.expect("done")
        return Loop(kind)


def parse(text: str, name: str) -> tuple[Statement, ...]:
    """The statements of a configuration. Raises DiskError with the line for what GRUB would not take."""
    return _Parser(text, name).statements()


def expand(words: tuple[Word, ...], variables: Mapping[str, str]) -> list[str]:
    """Words with their variables put in; what is not quoted falls into several at blanks, or vanishes."""
    expanded: list[str] = []
    for word in words:
        done: list[str] = []
        current: str | None = None
        for piece in word:
            value = variables.get(piece.text, "") if piece.variable else piece.text
            if piece.quoted or not piece.variable:
                current = (current or "") + value
                continue
            parts = value.split()
            if not parts:
                continue
            if current is not None and value[0].isspace():
                done.append(current)
                current = None
            done += [(current or "") + parts[0], *parts[1:]]
            current = None if value[-1].isspace() else done.pop()
        expanded += done
        if current is not None:
            expanded.append(current)
        if sum(map(len, expanded)) > _LONGEST_WORD:
            raise DiskError("a command of the boot configuration is too long")
    return expanded


def environment_block(text: str) -> dict[str, str]:
    """The variables of a grubenv file."""
    pairs = (line.partition("=") for line in text.splitlines() if not line.startswith("#"))
    return {name: re.sub(r"\\(.)", r"\1", value) for name, sign, value in pairs if sign}


def without_device(path: str) -> str:
    """`($root)/boot/x` and `(hd0,gpt2)/boot/x` are /boot/x on the partition at hand."""
    return re.sub(r"^\([^)]*\)", "", path)
