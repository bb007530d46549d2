"""Loops that only count or only wait: where one will be after many rounds, worked out instead of executed.

A kernel that walks an empty table of 128 million entries, or waits for a word of memory to change, executes
the same few instructions over and over, and none of them stores anything. `counting_loop()` looks at the code
at RIP. If it is such a loop, and made of instructions whose results grow by the same amount in each round,
it says by how much, and for how many rounds every branch goes on the same way.

Three rounds are interpreted. Every value on the way has to change from the second to the third as it did from
the first to the second, and only rounds count in which none leaves its range. For additions, subtractions,
moves and addresses that is proof: a round is a linear map, and one that has mapped a difference to itself
always does. Other instructions must find the same operands in each round, and memory the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from hvcore.cpu.loop_decode import (
    ADD,
    AND,
    CMP,
    DEC,
    IMM,
    INC,
    JCC,
    JMP,
    LEA,
    LOOP,
    MOV,
    NOP,
    OR,
    REG,
    SUB,
    TEST,
    XOR,
    Insn,
    Operand,
    UnknownInstruction,
    decode,
)
from hvcore.errors import GuestError

ENDLESS = 1 << 62
_MOST_INSTRUCTIONS = 24
_MOST_BYTES = 15
_CODE_READ = 128  # bytes: more than most loops have
_RCX = 1
_BRANCHES = (JMP, JCC, LOOP)
_LT, _LE, _EQ = range(3)  # of a difference and zero
_CC_B, _CC_E, _CC_BE, _CC_S, _CC_L, _CC_LE = 1, 2, 3, 4, 6, 7  # condition >> 1

Read = Callable[[int, int], bytes]


class Loop(NamedTuple):
    """A loop at RIP: bytes of code in a round, registers after the first, what each round adds to them, and
    how many rounds go the same way, the first included (ENDLESS: all).
    """

    size: int
    after: tuple[int, ...]
    step: tuple[int, ...]
    rounds: int


@dataclass(slots=True)
class _Round:
    """What one round computes, in order."""

    path: list[int] = field(default_factory=list)  # addresses of the instructions
    size: int = 0
    ranged: list[int] = field(default_factory=list)  # values, and
    tops: list[int] = field(default_factory=list)  # the largest that each can be
    fixed: list[int] = field(default_factory=list)  # values that must be the same in each round
    tests: list[tuple[int, int]] = field(default_factory=list)  # (_LT | _LE | _EQ, a difference)


@dataclass(slots=True)
class _Flags:
    """Where the flags come from: a comparison, a result, or a logic operation's result."""

    kind: int  # CMP, ADD (only ZF is known) or AND
    a: int
    b: int
    width: int


class _Interpreter:
    """Registers, and the rounds they go through."""

    def __init__(self, regs: list[int], rip: int, is_64bit: bool, read: Read) -> None:
        self.regs = regs
        self.start = rip
        self.width = 64 if is_64bit else 32
        self.read = read
        self._insns: dict[int, Insn] = {}
        self._code, self._code_at = b"", 0  # what was read of it, and where that begins

    def round(self) -> _Round:
        """Interpret from `start` until RIP is there again. Raises UnknownInstruction if it does not come."""
        r = _Round()
        flags: _Flags | None = None
        rip = self.start
        while True:
            insn = self._fetch(rip)
            r.path.append(rip)
            r.size += insn.size
            if len(r.path) > _MOST_INSTRUCTIONS:
                raise UnknownInstruction
            rip = rip + insn.size & (1 << self.width) - 1
            if insn.op not in _BRANCHES:
                flags = self._execute(r, insn, flags)
            elif self._branches(r, insn, flags):
                rip = insn.target
            if rip == self.start:
                return r

    def _fetch(self, rip: int) -> Insn:
        insn = self._insns.get(rip)
        if insn is None:
            insn = _decoded(self._code_of(rip), rip, self.width == 64)
            if insn is None:
                raise UnknownInstruction
            self._insns[rip] = insn
        return insn

    def _code_of(self, rip: int) -> bytes:
        """As many bytes of code at `rip` as an instruction can have."""
        begin = rip - self._code_at
        if not 0 <= begin <= len(self._code) - _MOST_BYTES:
            begin, self._code_at = 0, rip
            to_page_end = 4096 - (rip & 4095)
            self._code = self.read(rip, min(_CODE_READ, to_page_end))
            if to_page_end < _MOST_BYTES:
                self._code += self.read(rip + to_page_end, _MOST_BYTES - to_page_end)
        return self._code[begin : begin + _MOST_BYTES]

    def _range(self, r: _Round, value: int, width: int) -> int:
        r.ranged.append(value)
        r.tops.append((1 << width) - 1)
        return value

    def _address(self, operand: Operand) -> int:
        _kind, base, index, scale, displacement = operand
        address = displacement
        if base >= 0:
            address += self.regs[base]
        if index >= 0:
            address += self.regs[index] * scale
        return address & (1 << self.width) - 1

    def _get(self, r: _Round, operand: Operand, width: int) -> int:
        kind = operand[0]
        if kind == IMM:
            return operand[1] & (1 << width) - 1
        if kind == REG:
            return self._range(r, self.regs[operand[1]] & (1 << width) - 1, width)
        address = self._address(operand)
        value = int.from_bytes(self.read(address, width // 8), "little")
        r.fixed += address, value
        return value

    def _put(self, r: _Round, operand: Operand, value: int, width: int) -> int:
        if operand[0] != REG:
            raise UnknownInstruction
        value = self.regs[operand[1]] = value & (1 << width) - 1
        return self._range(r, value, width)

    def _execute(self, r: _Round, insn: Insn, flags: _Flags | None) -> _Flags | None:
        """One instruction that is no branch; the flags after it."""
        op, width, dst, src = insn.op, insn.width, insn.dst, insn.src
        if op == NOP:
            return flags
        if op == LEA:
            self._put(r, dst, self._range(r, self._address(src), self.width), width)
            return flags
        if op == MOV:
            self._put(r, dst, self._get(r, src, insn.source_width), width)
            return flags
        if op == XOR and dst == src and dst[0] == REG:
            return _Flags(AND, self._put(r, dst, 0, width), 0, width)
        a, b = self._get(r, dst, width), self._get(r, src, width)
        if op in (CMP, SUB):
            if op == SUB:
                self._put(r, dst, a - b, width)
            return _Flags(CMP, a, b, width)
        if op in (ADD, INC, DEC):
            return _Flags(ADD, self._put(r, dst, a - b if op == DEC else a + b, width), 0, width)
        r.fixed += a, b
        value = {AND: a & b, TEST: a & b, OR: a | b, XOR: a ^ b}[op]
        if op != TEST:
            self._put(r, dst, value, width)
        return _Flags(AND, value, 0, width)

    def _branches(self, r: _Round, insn: Insn, flags: _Flags | None) -> bool:
        """Whether a branch is taken; what decides it is noted."""
        if insn.op == JMP:
            return True
        if insn.op == JCC:
            return self._taken(r, insn.condition, flags)
        counter = (REG, _RCX, 0, 0, 0)
        left = self._put(r, counter, self._get(r, counter, self.width) - 1, self.width)
        r.tests.append((_EQ, left))
        return left != 0

    def _taken(self, r: _Round, condition: int, flags: _Flags | None) -> bool:
        """Whether a jump on `condition` is."""
        if flags is None:
            raise UnknownInstruction
        cc, a, b = condition >> 1, flags.a, flags.b
        if flags.kind == ADD and cc != _CC_E:
            raise UnknownInstruction
        if flags.kind == AND and cc == _CC_B:  # logic clears the carry
            return bool(condition & 1)
        if cc in (_CC_L, _CC_LE, _CC_S):
            if cc == _CC_S and flags.kind == CMP:
                raise UnknownInstruction
            half = 1 << flags.width - 1
            a = self._range(r, a + half & 2 * half - 1, flags.width)
            b = self._range(r, b + half & 2 * half - 1, flags.width)
        test = {_CC_B: _LT, _CC_L: _LT, _CC_S: _LT, _CC_E: _EQ, _CC_BE: _LE, _CC_LE: _LE}.get(cc)
        if test is None:
            raise UnknownInstruction
        r.tests.append((test, a - b))
        holds = (a < b, a <= b, a == b)[test]
        return holds != bool(condition & 1)


@lru_cache(4096)  # a guest is found in the same loops many times
def _decoded(code: bytes, rip: int, is_64bit: bool) -> Insn | None:
    """The instruction at `rip`; None for one that is not known."""
    try:
        return decode(code, rip, is_64bit)
    except UnknownInstruction:
        return None


def counting_loop(regs: list[int], rip: int, is_64bit: bool, read: Read) -> Loop | None:
    """The loop at `rip`, if there is one of this kind and it goes on for more than a round.

    `regs` are the 16 general registers; segments are flat. `read(address, size)` gives bytes of the guest's
    memory at linear addresses, or raises GuestError.
    """
    machine = _Interpreter(list(regs), rip, is_64bit, read)
    states, rounds = [tuple(regs)], []
    try:
        for _ in range(3):
            rounds.append(machine.round())
            states.append(tuple(machine.regs))
    except (UnknownInstruction, GuestError):
        return None
    first, second, third = rounds
    if (
        first.path != second.path
        or first.path != third.path
        or not first.fixed == second.fixed == third.fixed
    ):
        return None
    s0, s1, s2, s3 = states
    step = tuple(b - a for a, b in zip(s0, s1, strict=True))
    again = (tuple(b - a for a, b in zip(s, t, strict=True)) for s, t in ((s1, s2), (s2, s3)))
    if any(other != step for other in again):
        return None
    count = ENDLESS
    for a, b, c, top in zip(first.ranged, second.ranged, third.ranged, first.tops, strict=True):
        if b - a != c - b:
            return None
        count = min(count, _rounds_in_range(a, b - a, top))
    for (test, a), (_, b), (_, c) in zip(first.tests, second.tests, third.tests, strict=True):
        if b - a != c - b:
            return None
        count = min(count, _rounds_alike(test, a, b - a))
    return Loop(first.size, s1, step, count) if count > 1 else None


def _rounds_in_range(value: int, step: int, top: int) -> int:
    """For how many rounds a value that starts in range stays there."""
    if not step:
        return ENDLESS
    return (top - value) // step + 1 if step > 0 else value // -step + 1


def _rounds_alike(test: int, difference: int, step: int) -> int:
    """For how many rounds a difference compares with zero as it does in the first."""
    if not step:
        return ENDLESS
    if test == _EQ:
        if not difference:
            return 1
        rounds, rest = divmod(-difference, step)
        return rounds if not rest and rounds > 0 else ENDLESS
    threshold = 1 if test == _LE else 0  # the test is: below it
    if difference < threshold:
        return -((difference - threshold) // step) if step > 0 else ENDLESS
    return (difference - threshold) // -step + 1 if step < 0 else ENDLESS
