"""Conditions that GDB sends with a breakpoint: bytecode of its agent expressions, evaluated at our end.

It is the client's, so everything is bounded: its length, the stack, and how many operations are executed.
Source: "The GDB Agent Expression Mechanism" in GDB's manual, gdbsupport/ax.def.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.debug.condition import ConditionError

if TYPE_CHECKING:
    from hvcore.debug.condition import Environment

MOST_BYTES = 1024
_MOST_OPERATIONS = 10_000
_MOST_STACK = 100
_M64 = (1 << 64) - 1
_SIGN = 1 << 63


def _signed(value: int) -> int:
    return value - (1 << 64) if value & _SIGN else value


def _quotient(a: int, b: int) -> int:
    """As C divides: towards zero."""
    if b == 0:
        raise ConditionError("division by zero")
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _remainder(a: int, b: int) -> int:
    return a - b * _quotient(a, b)


def _shift_left(a: int, b: int) -> int:
    return a << b if b < 64 else 0


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x02: operator.add,
    0x03: operator.sub,
    0x04: operator.mul,
    0x05: lambda a, b: _quotient(_signed(a), _signed(b)),
    0x06: _quotient,
    0x07: lambda a, b: _remainder(_signed(a), _signed(b)),
    0x08: _remainder,
    0x09: _shift_left,
    0x0A: lambda a, b: _signed(a) >> min(b, 63),
    0x0B: lambda a, b: a >> min(b, 64),
    0x0F: operator.and_,
    0x10: operator.or_,
    0x11: operator.xor,
    0x13: lambda a, b: int(a == b),
    0x14: lambda a, b: int(_signed(a) < _signed(b)),
    0x15: lambda a, b: int(a < b),
}
_UNARY: dict[int, Callable[[int], int]] = {0x0E: lambda a: int(not a), 0x12: lambda a: ~a}
_REFERENCES = {0x17: 1, 0x18: 2, 0x19: 4, 0x1A: 8}
_CONSTANTS = {0x22: 1, 0x23: 2, 0x24: 4, 0x25: 8}
_EXT, _ZERO_EXT, _PICK = 0x16, 0x2A, 0x32
_IF_GOTO, _GOTO, _REG, _END = 0x20, 0x21, 0x26, 0x27
_DUP, _POP, _SWAP, _ROT = 0x28, 0x29, 0x2B, 0x33


class AgentExpression:
    """Bytecode; `registers` are the names of registers by GDB's numbers."""

    def __init__(self, code: bytes, registers: tuple[str, ...]) -> None:
        self.text = f"{len(code)} bytes of agent expression"
        self._code, self._registers = code, registers
        self._at = 0
        self._stack: list[int] = []

    def evaluate(self, env: Environment) -> int:
        """What is on the stack at the end. Raises ConditionError for code that is none, or has no value."""
        self._at, self._stack = 0, []
        for _ in range(_MOST_OPERATIONS):
            op = self._operand(1)
            if op == _END:
                return self._pop()
            self._execute(op, env)
            if len(self._stack) > _MOST_STACK:
                raise ConditionError("the expression's stack is too deep")
        raise ConditionError("the expression does not come to an end")

    def _operand(self, size: int) -> int:
        data = self._code[self._at : self._at + size]
        if len(data) != size:
            raise ConditionError("the expression is cut off")
        self._at += size
        return int.from_bytes(data, "big")

    def _pop(self) -> int:
        if not self._stack:
            raise ConditionError("the expression's stack is empty")
        return self._stack.pop()

    def _push(self, value: int) -> None:
        self._stack.append(value & _M64)

    def _execute(self, op: int, env: Environment) -> None:
        if op in _BINARY:
            b, a = self._pop(), self._pop()
            self._push(_BINARY[op](a, b))
        elif op in _UNARY:
            self._push(_UNARY[op](self._pop()))
        elif op in _CONSTANTS:
            self._push(self._operand(_CONSTANTS[op]))
        elif op in _REFERENCES:
            self._reference(_REFERENCES[op], env)
        elif op in (_EXT, _ZERO_EXT):
            self._extend(self._operand(1), is_signed=op == _EXT)
        elif op in (_IF_GOTO, _GOTO):
            to = self._operand(2)
            if op == _GOTO or self._pop():
                self._at = to
        elif op == _REG:
            self._register(self._operand(2), env)
        else:
            self._move(op)

    def _reference(self, size: int, env: Environment) -> None:
        address = self._pop()
        data = env.read(address, size)
        if len(data) != size:
            raise ConditionError(f"no memory is mapped at {address:#x}")
        self._push(int.from_bytes(data, "little"))

    def _extend(self, bits: int, *, is_signed: bool) -> None:
        value = self._pop()
        if 0 < bits < 64:
            value &= (1 << bits) - 1
            if is_signed and value >> (bits - 1):
                value -= 1 << bits
        self._push(value)

    def _register(self, number: int, env: Environment) -> None:
        value = env.name(self._registers[number]) if number < len(self._registers) else None
        if value is None:
            raise ConditionError(f"there is no register {number}")
        self._push(value)

    def _move(self, op: int) -> None:
        if op == _DUP:
            self._push(self._peek(0))
        elif op == _POP:
            self._pop()
        elif op == _SWAP:
            b, a = self._pop(), self._pop()
            self._stack += [b, a]
        elif op == _PICK:
            self._push(self._peek(self._operand(1)))
        elif op == _ROT:
            c, b, a = self._pop(), self._pop(), self._pop()
            self._stack += [c, a, b]
        else:
            raise ConditionError(f"the expression has an operation {op:#x}")

    def _peek(self, depth: int) -> int:
        if depth >= len(self._stack):
            raise ConditionError("the expression's stack is empty")
        return self._stack[-1 - depth]
