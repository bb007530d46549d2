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
    """A value. `number` is true for a plain number; else `home` is the output section that the address is
    relative to, "" for an absolute one. `value` is the whole address in either case.
    """

    value: int
    number: bool = False
    home: str = ""


class Unknown(NamedTuple):
    """No value, and the reason."""

    reason: str


Value: TypeAlias = Known | Unknown


class SectionFacts(NamedTuple):
    """What ADDR, LOADADDR, SIZEOF and ALIGNOF say of an output section, in bytes."""

    address: Value
    load: Value
    size: int | None
    alignment: int | None


class Scope(Protocol):
    """Where names get their values from. `inside` is the output section that an expression stands in."""

    inside: str

    def symbol(self, name: str) -> Value:
        """Return the value of a symbol, or of `.`."""

    def counter(self) -> Value:
        """Return `.` as ALIGN(n) sees it."""

    def section(self, name: str) -> SectionFacts | Unknown:
        """Return what is known of an output section."""

    def region(self, name: str) -> tuple[Value, Value]:
        """Return origin and length of a memory region."""

    def constant(self, name: str) -> Value:
        """Return MAXPAGESIZE or COMMONPAGESIZE."""

    def defined(self, name: str) -> bool | None:
        """Tell whether a symbol is defined, None when that cannot be told."""

    def base(self, name: str) -> Value:
        """Return where the output section starts that an address is relative to."""

    def data_segment(self, function: str, first: int, second: int) -> Value:
        """Return the value of DATA_SEGMENT_ALIGN(first, second) or DATA_SEGMENT_RELRO_END(first, second)."""


class Constants:
    """The scope of an expression that must be made of numbers alone."""

    inside = ""

    def symbol(self, name: str) -> Value:
        """Return that no symbol is known."""
        return Unknown(f"the value of '{name}' is known only when linking")

    def counter(self) -> Value:
        """Return that the location counter is not known."""
        return self.symbol(".")

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

    def base(self, name: str) -> Value:
        """Return 0: no address here is relative to a section."""
        del name
        return Known(0)

    def data_segment(self, function: str, first: int, second: int) -> Value:
        """Return that only ld can tell."""
        del function, first, second
        return Unknown("ld chooses where the data segment starts, by relro and page size")


CONSTANTS = Constants()


def align_up(value: int, alignment: int) -> int:
    """Round up as ld does: any alignment, 0 and 1 leave the value alone."""
    return value if alignment <= 1 else (value + alignment - 1) // alignment * alignment


def evaluate(node: ast.Expr, scope: Scope) -> Value:
    """Return the value of an expression in `scope`."""
    if isinstance(node, ast.Symbol):
        return scope.symbol(node.name)
    if isinstance(node, ast.Number):
        # Between output sections a number is an absolute address (ld/ldexp.c, etree_value).
        return Known(node.value & MASK, bool(scope.inside))
    if isinstance(node, ast.Call):
        return _call(node, scope)
    if isinstance(node, ast.Binary):
        return _binary(node, scope)
    if isinstance(node, ast.Unary):
        operand = evaluate(node.operand, scope)
        return operand if isinstance(operand, Unknown) else _unary(node.op, operand, scope)
    if isinstance(node, ast.Conditional):
        test = evaluate(node.test, scope)
        return test if isinstance(test, Unknown) else evaluate(node.then if test.value else node.other, scope)
    return Unknown("a text has no value")


def constant(node: ast.Expr | None) -> int | None:
    """Return the value of an expression made of numbers alone, else None."""
    if node is None:
        return None
    value = evaluate(node, CONSTANTS)
    return value.value if isinstance(value, Known) else None


def _unary(op: str, operand: Known, scope: Scope) -> Value:
    base = scope.base(operand.home) if operand.home else Known(0)
    if isinstance(base, Unknown):
        return base
    offset = operand.value - base.value
    value = {"-": -offset, "~": ~offset, "!": int(not offset)}.get(op, offset)
    return operand._replace(value=(value + base.value) & MASK)


class _Operands(NamedTuple):
    """Two operands as fold_binary sees them: offsets where an address meets a number or one of its own kind.

    `base` is added to a result that stays an address in `home`; `alike` tells that the operands are of one
    section, or both numbers.
    """

    left: int
    right: int
    base: int
    number: bool
    home: str
    alike: bool


def _operands(left: Known, right: Known, scope: Scope) -> _Operands | Unknown:
    """Bring two operands together, as exp_fold_tree_1 does (binutils 2.40, ld/ldexp.c, fold_binary)."""
    number = left.number and right.number
    if not left.number and not right.number and left.home != right.home:
        return _Operands(left.value, right.value, 0, False, "", alike=True)
    home = right.home if left.number else left.home
    base = scope.base(home) if home else Known(0)
    if isinstance(base, Unknown):
        return base
    a = left.value if left.number else left.value - base.value
    b = right.value if right.number else right.value - base.value
    return _Operands(a & MASK, b & MASK, base.value, number, home, alike=left.number == right.number)


def _binary(node: ast.Binary, scope: Scope) -> Value:
    left = evaluate(node.left, scope)
    if isinstance(left, Known) and node.op in {"&&", "||"} and bool(left.value) == (node.op == "||"):
        return Known(int(bool(left.value)), number=True)
    right = evaluate(node.right, scope)
    if isinstance(left, Unknown):
        return left
    if isinstance(right, Unknown):
        return right
    both = _operands(left, right, scope)
    if isinstance(both, Unknown):
        return both
    if node.op in {"/", "%"} and both.right == 0:
        return Unknown("it divides by zero")
    if node.op in _COMPARISONS:
        return Known(int(_COMPARISONS[node.op](both.left, both.right)), number=True)
    value = _ARITHMETIC[node.op](both.left, both.right) & MASK
    # What two addresses of one section make is a number: a difference counts bytes.
    if both.alike:
        return Known(value, number=True)
    return Known((value + both.base) & MASK, both.number, both.home)


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
    named = _NAMED.get(node.function)
    if named is not None:
        return named(node, scope)
    values = []
    for argument in node.arguments:
        value = evaluate(argument, scope)
        if isinstance(value, Unknown):
            return value
        values.append(value)
    if node.function in {"ALIGN", "BLOCK", "NEXT"} and len(values) == 1:
        dot = scope.counter()
        if isinstance(dot, Unknown):
            return dot
        home = "" if node.function == "NEXT" else dot.home
        return Known(align_up(dot.value, values[0].value) & MASK, dot.number, home)
    return _arithmetic_call(node.function, values, scope)


def _section_count(node: ast.Call, scope: Scope) -> Value:
    facts = scope.section(_name(node))
    if isinstance(facts, Unknown):
        return facts
    count = facts.size if node.function == "SIZEOF" else facts.alignment
    return (
        Unknown(f"the size of '{_name(node)}' is not known") if count is None else Known(count, number=True)
    )


def _section_address(node: ast.Call, scope: Scope) -> Value:
    facts = scope.section(_name(node))
    if isinstance(facts, Unknown):
        return facts
    relative = node.function == "ADDR"
    address = facts.address if relative else facts.load
    if isinstance(address, Unknown):
        return address
    return Known(address.value & MASK, home=_name(node) if relative else "")


def _region_fact(node: ast.Call, scope: Scope) -> Value:
    origin, length = scope.region(_name(node))
    if node.function == "LENGTH":
        return length if isinstance(length, Unknown) else Known(length.value, number=True)
    return origin if isinstance(origin, Unknown) else Known(origin.value, home=scope.inside)


def _defined(node: ast.Call, scope: Scope) -> Value:
    defined = scope.defined(_name(node))
    if defined is None:
        return Unknown(f"whether '{_name(node)}' is defined is known only when linking")
    return Known(int(defined), number=True)


def _segment_start(node: ast.Call, scope: Scope) -> Value:
    # The default holds unless -Ttext-segment and the like are given.
    value = evaluate(node.arguments[1], scope)
    return value if isinstance(value, Unknown) else Known(value.value, home=scope.inside)


# Functions of names, and those that do not evaluate all of their arguments.
_NAMED: dict[str, Callable[[ast.Call, Scope], Value]] = {
    "SIZEOF": _section_count,
    "ALIGNOF": _section_count,
    "ADDR": _section_address,
    "LOADADDR": _section_address,
    "ORIGIN": _region_fact,
    "LENGTH": _region_fact,
    "CONSTANT": lambda node, scope: scope.constant(_name(node)),
    "DEFINED": _defined,
    "SEGMENT_START": _segment_start,
    "ASSERT": lambda node, scope: evaluate(node.arguments[0], scope),
}


def _arithmetic_call(function: str, values: list[Known], scope: Scope) -> Value:
    first = values[0].value
    if function in {"ALIGN", "MAX", "MIN"}:
        both = _operands(values[0], values[1], scope)
        if isinstance(both, Unknown):
            return both
        chosen = _PAIRS[function](both.left, both.right)
        return Known((chosen + both.base) & MASK, both.number, both.home)
    if function == "LOG2CEIL":
        return Known((first - 1).bit_length() if first > 1 else 0, number=True)
    if function in {"DATA_SEGMENT_ALIGN", "DATA_SEGMENT_RELRO_END"}:
        return scope.data_segment(function, first, values[1].value)
    if function == "DATA_SEGMENT_END":
        scope.data_segment(function, first, first)
    return Known(first)


_PAIRS: dict[str, Callable[[int, int], int]] = {"ALIGN": align_up, "MAX": max, "MIN": min}
