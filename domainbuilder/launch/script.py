"""What `domainbuilder launch --expect REGEX --send TEXT ...` is to do, in the order of the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from domainbuilder.errors import BuildError
from domainbuilder.launch.transcript import compile_pattern

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


class Step(NamedTuple):
    """One `--expect` (`pattern`) or one `--send` (`data`)."""

    kind: Literal["expect", "send"]
    text: str
    option: str = "--expect"  # which names the pattern

    @property
    def pattern(self) -> re.Pattern[str]:
        """The regular expression. Raises BuildError."""
        try:
            return compile_pattern(self.text)
        except (re.error, RecursionError, OverflowError) as error:
            raise BuildError(f"{self.option} {self.text!r} is no regular expression: {error}") from error

    @property
    def data(self) -> bytes:
        """The bytes to type. Raises BuildError for an escape that is none."""
        return unescape(self.text)


def unescape(text: str) -> bytes:
    r"""`\n`, `\r`, `\t`, `\\` and `\xHH` (that byte) in `text`; the rest as UTF-8. Raises BuildError."""
    out, at = bytearray(), 0
    for match in _ESCAPE.finditer(text):
        out += text[at : match.start()].encode("utf-8", "surrogateescape")
        code = match[1]
        if len(code) == 3:
            out.append(int(code[1:], 16))
        elif code in _ESCAPES:
            out += _ESCAPES[code].encode()
        else:
            raise BuildError(
                f"--send {text!r} has an escape that is none", found=match[0], expected=r"\n \r \t \\ or \xHH"
            )
        at = match.end()
    return bytes(out + text[at:].encode("utf-8", "surrogateescape"))


def script(
    arguments: Sequence[str], expects: Sequence[str], sends: Sequence[str], valued: Iterable[str]
) -> tuple[Step, ...]:
    """The steps in their order. Parsing has sorted the options by name: `arguments`, the command line, is
    looked through again for them; `valued` are the options that take a value.

    Where that is another command line (a caller's own), every expectation is followed by its answer.
    """
    steps = _in_order(arguments, frozenset(valued))
    if [s.text for s in steps if s.kind == "expect"] == list(expects) and [
        s.text for s in steps if s.kind == "send"
    ] == list(sends):
        return tuple(steps)
    pairs: list[Step] = []
    for i in range(max(len(expects), len(sends))):
        pairs += [Step("expect", text) for text in expects[i : i + 1]]
        pairs += [Step("send", text) for text in sends[i : i + 1]]
    return tuple(pairs)


def _in_order(arguments: Sequence[str], valued: frozenset[str]) -> list[Step]:
    steps = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        name, equals, value = argument.partition("=")
        if name not in valued:
            continue
        if not equals:
            value = next(rest, "")
        if name == "--expect":
            steps.append(Step("expect", value))
        elif name == "--send":
            steps.append(Step("send", value))
    return steps
