"""Conditions of breakpoints: a small language of its own over registers, memory and events.

    rax == 0x10 && u32(rsp + 8) != 0
    vector == 14 && cr2 < 4096
    hits % 100 == 0

Values are 64 bits without a sign. Operators are those of C, with its precedence: `|| && | ^ & == != < <= > >=
<< >> + - * / %`, and `! ~ -` before a value. `u8(a) u16(a) u32(a) u64(a)` read memory at a virtual address.
Nothing else is called, nothing is assigned, and no text is ever run as Python. A condition is at most 1,024
characters and 256 operations, so evaluating it takes a bounded time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_MOST_CHARACTERS = 1024
_MOST_OPERATIONS = 256
_MOST_DEPTH = 32
_M64 = (1 << 64) - 1
_TOKEN = re.compile(
    r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+)|([A-Za-z_][A-Za-z0-9_]*)|(\|\||&&|<<|>>|[=!<>]=|.))", re.S
)
_SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}
_LEVELS: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"||": lambda a, b: int(bool(a or b))},
    {"&&": lambda a, b: int(bool(a and b))},
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b)},
    {
        "<": lambda a, b: int(a < b),
        "<=": lambda a, b: int(a <= b),
        ">": lambda a, b: int(a > b),
        ">=": lambda a, b: int(a >= b),
    },
    {"<<": lambda a, b: a << b & _M64 if b < 64 else 0, ">>": lambda a, b: a >> b if b < 64 else 0},
    {"+": lambda a, b: a + b & _M64, "-": lambda a, b: a - b & _M64},
    {"*": lambda a, b: a * b & _M64, "/": lambda a, b: _divide(a, b)[0], "%": lambda a, b: _divide(a, b)[1]},
)
_PREFIXES: dict[str, Callable[[int], int]] = {
    "!": lambda a: int(not a),
    "~": lambda a: ~a & _M64,
    "-": lambda a: -a & _M64,
}


class ConditionError(ValueError):
    """A condition that cannot be read, or that has no value here."""


class Environment(Protocol):
    """What a condition is about."""

    def name(self, name: str) -> int | None:
        """The value of a register or of a field of the event; None for an unknown name."""

    def read(self, address: int, size: int) -> bytes:
        """Memory at a virtual address, as much of it as is mapped."""


def _divide(a: int, b: int) -> tuple[int, int]:
    if b == 0:
        raise ConditionError("division by zero")
    return divmod(a, b)


@dataclass(frozen=True, slots=True)
class _Number:
    value: int

    def evaluate(self, _env: Environment) -> int:
        return self.value


@dataclass(frozen=True, slots=True)
class _Name:
    name: str

    def evaluate(self, env: Environment) -> int:
        value = env.name(self.name)
        if value is None:
            raise ConditionError(f"{self.name} has no value here")
        return value & _M64


@dataclass(frozen=True, slots=True)
class _Memory:
    size: int
    address: Node

    def evaluate(self, env: Environment) -> int:
        address = self.address.evaluate(env)
        data = env.read(address, self.size)
        if len(data) != self.size:
            raise ConditionError(f"no memory is mapped at {address:#x}")
        return int.from_bytes(data, "little")


@dataclass(frozen=True, slots=True)
class _Prefix:
    function: Callable[[int], int]
    operand: Node

    def evaluate(self, env: Environment) -> int:
        return self.function(self.operand.evaluate(env))


@dataclass(frozen=True, slots=True)
class _Binary:
    operator: str
    function: Callable[[int, int], int]
    left: Node
    right: Node

    def evaluate(self, env: Environment) -> int:
        left = self.left.evaluate(env)
        if (self.operator == "&&" and not left) or (self.operator == "||" and left):
            return int(bool(left))
        return self.function(left, self.right.evaluate(env))


Node = _Number | _Name | _Memory | _Prefix | _Binary


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as it was written, and what it is made of."""

    text: str
    root: Node

    def evaluate(self, env: Environment) -> int:
        """Its value. Raises ConditionError where a part of it has none."""
        return self.root.evaluate(env)


class _Reader:
    """Recursive descent over the tokens of a text."""

    def __init__(self, text: str) -> None:
        if len(text) > _MOST_CHARACTERS:
            raise ConditionError(f"a condition has at most {_MOST_CHARACTERS} characters")
        self._tokens = [match for match in _TOKEN.finditer(text.rstrip()) if match[0].strip()]
        self._at = 0
        self._operations = 0
        self._depth = 0

    def whole(self) -> Node:
        node = self._level(0)
        if self._at != len(self._tokens):
            raise self._unexpected("the end, or an operator")
        return node

    def _peek(self) -> str:
        return self._tokens[self._at][0].strip() if self._at < len(self._tokens) else ""

    def _unexpected(self, wanted: str) -> ConditionError:
        if self._at == len(self._tokens):
            return ConditionError(f"the condition ends where {wanted} is expected")
        match = self._tokens[self._at]
        return ConditionError(
            f"{self._peek()!r} at column {match.end() - len(self._peek()) + 1}: expected {wanted}"
        )

    def _count(self) -> None:
        self._operations += 1
        if self._operations > _MOST_OPERATIONS:
            raise ConditionError(f"a condition has at most {_MOST_OPERATIONS} operations")

    def _level(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._prefix()
        node = self._level(level + 1)
        while self._peek() in _LEVELS[level]:
            operator = self._peek()
            self._at += 1
            self._count()
            node = _Binary(operator, _LEVELS[level][operator], node, self._level(level + 1))
        return node

    def _prefix(self) -> Node:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ConditionError(f"a condition nests at most {_MOST_DEPTH} deep")
        try:
            if self._peek() in _PREFIXES:
                function = _PREFIXES[self._peek()]
                self._at += 1
                self._count()
                return _Prefix(function, self._prefix())
            return self._value()
        finally:
            self._depth -= 1

    def _value(self) -> Node:
        if self._peek() == "(":
            return self._in_brackets()
        match = self._tokens[self._at] if self._at < len(self._tokens) else None
        if match is None or match[3]:
            raise self._unexpected("a value")
        self._count()
        self._at += 1
        if match[1]:
            number = int(match[1], 0) if match[1][:2] in ("0x", "0X") else int(match[1])
            if number > _M64:
                raise ConditionError(f"{match[1]} has more than 64 bits")
            return _Number(number)
        if self._peek() == "(":
            if match[2] not in _SIZES:
                raise ConditionError(f"{match[2]}() is none of {', '.join(_SIZES)}")
            return _Memory(_SIZES[match[2]], self._in_brackets())
        return _Name(match[2])

    def _in_brackets(self) -> Node:
        self._at += 1
        node = self._level(0)
        if self._peek() != ")":
            raise self._unexpected("')'")
        self._at += 1
        return node


def parse_condition(text: str) -> Condition:
    """Read a condition. Raises ConditionError with the column where it cannot be."""
    return Condition(text, _Reader(text).whole())
