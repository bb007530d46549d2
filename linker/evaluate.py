"""Values of expressions, where they can be known, and why not where they cannot.

ld's arithmetic is on 64-bit unsigned addresses; comparisons and divisions are unsigned, as in
binutils 2.40, ld/ldexp.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias

from . import ast

MASK = (1 << 64) - 1


class Known(NamedTuple):
    """A value. `number` is true when only numbers made it: inside a section, `. = number` is an offset."""

    value: int
    number: bool = False


class Unknown(NamedTuple):
    """No value, and the reason."""

    reason: str


Value: TypeAlias = Known | Unknown


class SectionFacts(NamedTuple):
    """What ADDR, LOADADDR, SIZEOF and ALIGNOF say of an output section, in bytes."""

    address: int
    load_address: int
    size: int
    alignment: int


class Scope(Protocol):
    """Where names get their values from."""

    def symbol(self, name: str) -> Value:
        """Return the value of a symbol, or of `.`."""

    def section(self, name: str) -> SectionFacts | Unknown:
        """Return what is known of an output section."""

    def region(self, name: str) -> tuple[Value, Value]:
        """Return origin and length of a memory region."""

    def constant(self, name: str) -> Value:
        """Return MAXPAGESIZE or COMMONPAGESIZE."""

    def defined(self, name: str) -> bool | None:
        """Tell whether a symbol is defined, None when that cannot be told."""


class Constants:
    """The scope of an expression that must be made of numbers alone."""

    def symbol(self, name: str) -> Value:
        """Return that no symbol is known."""
        return Unknown(f"the value of '{name}' is known only when linking")

    def section(self, name: str) -> SectionFacts | Unknown:
        """Return that no section is known."""
        return Unknown(f"section '{name}' is known only when linking")

    def region(self, name: str) -> tuple[Value, Value]:
        """Return that no region is known."""
        unknown = Unknown(f"memory region '{name}' is not known")
        return unknown, unknown

    def constant(self, name: str) -> Value:
        """Return that page sizes depend on the target."""
        return Unknown(f"{name} depends on the target")

    def defined(self, name: str) -> bool | None:
        """Return that it cannot be told."""
        del name
        return None


CONSTANTS = Constants()


def align_up(value: int, alignment: int) -> int:
    """Round up as ld does: any alignment, 0 and 1 leave the value alone."""
    return value if alignment <= 1 else (value + alignment - 1) // alignment * alignment


def evaluate(node: ast.Expr, scope: Scope) -> Value:
    """Return the value of an expression in `scope`."""
    match node:
        case ast.Number():
            return Known(node.value & MASK, number=True)
        case ast.Symbol():
            return scope.symbol(node.name)
        case ast.Text():
            return Unknown("a text has no value")
        case ast.Unary():
            operand = evaluate(node.operand, scope)
            return operand if isinstance(operand, Unknown) else _unary(node.op, operand)
        case ast.Conditional():
            test = evaluate(node.test, scope)
            if isinstance(test, Unknown):
                return test
            return evaluate(node.then if test.value else node.other, scope)
        case ast.Binary():
            return _binary(node, scope)
        case ast.Call():
            return _call(node, scope)


def constant(node: ast.Expr | None) -> int | None:
    """Return the value of an expression made of numbers alone, else None."""
    if node is None:
        return None
    value = evaluate(node, CONSTANTS)
    return value.value if isinstance(value, Known) else None


def _unary(op: str, operand: Known) -> Value:
    value = {"-": -operand.value, "~": ~operand.value, "!": int(not operand.value)}.get(op, operand.value)
    return Known(value & MASK, operand.number)


def _binary(node: ast.Binary, scope: Scope) -> Value:
    left = evaluate(node.left, scope)
    if isinstance(left, Known) and node.op in {"&&", "||"} and bool(left.value) == (node.op == "||"):
        return Known(int(bool(left.value)), number=True)
    right = evaluate(node.right, scope)
    if isinstance(left, Unknown):
        return left
    if isinstance(right, Unknown):
        return right
    a, b = left.value, right.value
    number = left.number and right.number
    if node.op in {"/", "%"} and b == 0:
        return Unknown("it divides by zero")
    if node.op in _COMPARISONS:
        return Known(int(_COMPARISONS[node.op](a, b)), number=True)
    # A difference of two addresses counts bytes.
    if node.op == "-" and not left.number and not right.number:
        number = True
    return Known(_ARITHMETIC[node.op](a, b) & MASK, number)


_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
    "&&": lambda a, b: bool(a) and bool(b),
    "||": lambda a, b: bool(a) or bool(b),
}
_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
    "<<": lambda a, b: a << b if b < 64 else 0,
    ">>": lambda a, b: a >> b if b < 64 else 0,
}


def _name(node: ast.Call) -> str:
    first = node.arguments[0]
    return first.name if isinstance(first, ast.Symbol) else ""


def _call(node: ast.Call, scope: Scope) -> Value:
    function = node.function
    if function in _SECTION_FIELDS:
        facts = scope.section(_name(node))
        if isinstance(facts, Unknown):
            return facts
        return Known(_SECTION_FIELDS[function](facts) & MASK, function in {"SIZEOF", "ALIGNOF"})
    if function in {"ORIGIN", "LENGTH"}:
        origin, length = scope.region(_name(node))
        return origin if function == "ORIGIN" else length
    if function == "CONSTANT":
        return scope.constant(_name(node))
    if function == "DEFINED":
        defined = scope.defined(_name(node))
        if defined is None:
            return Unknown(f"whether '{_name(node)}' is defined is known only when linking")
        return Known(int(defined), number=True)
    if function == "SEGMENT_START":
        # The default holds unless -Ttext-segment and the like are given.
        return evaluate(node.arguments[1], scope)
    if function == "ASSERT":
        return evaluate(node.arguments[0], scope)
    values = []
    for argument in node.arguments:
        value = evaluate(argument, scope)
        if isinstance(value, Unknown):
            return value
        values.append(value)
    if function in {"ALIGN", "BLOCK", "NEXT"} and len(values) == 1:
        dot = scope.symbol(".")
        if isinstance(dot, Unknown):
            return dot
        return Known(align_up(dot.value, values[0].value) & MASK)
    return _arithmetic_call(function, values, scope)


def _arithmetic_call(function: str, values: list[Known], scope: Scope) -> Value:
    first = values[0].value
    if function == "ALIGN":
        return Known(align_up(first, values[1].value) & MASK, values[0].number)
    if function in {"MAX", "MIN"}:
        chosen = max(values) if function == "MAX" else min(values)
        return Known(chosen.value, values[0].number and values[1].number)
    if function == "LOG2CEIL":
        return Known((first - 1).bit_length() if first > 1 else 0, number=True)
    if function == "DATA_SEGMENT_ALIGN":
        return Unknown("ld chooses where the data segment starts, by relro and page size")
    if function == "DATA_SEGMENT_RELRO_END":
        return Known((values[0].value + values[1].value) & MASK)
    return Known(first, False)


_SECTION_FIELDS: dict[str, Callable[[SectionFacts], int]] = {
    "ADDR": lambda facts: facts.address,
    "LOADADDR": lambda facts: facts.load_address,
    "SIZEOF": lambda facts: facts.size,
    "ALIGNOF": lambda facts: facts.alignment,
}
