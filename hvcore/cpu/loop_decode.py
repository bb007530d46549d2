"""Decoding what hvcore/cpu/loops.py understands of x86: moves, additions, comparisons, logic and branches.

32-bit and 64-bit code, default address size, no segment override, no store. Everything else is unknown.
Source: Intel SDM volume 2, appendix A (opcode map) and chapter 2 (ModRM and SIB forms).
"""

from __future__ import annotations

from typing import NamedTuple

ADD, OR, ADC, SBB, AND, SUB, XOR, CMP = range(8)  # as the opcodes number them
TEST, MOV, LEA, INC, DEC, NOP, JMP, JCC, LOOP = range(8, 17)
REG, IMM, MEM = range(3)

# Kind, then: a register | a value | base, index (-1: none), scale, displacement.
Operand = tuple[int, int, int, int, int]
NOTHING: Operand = (IMM, 0, 0, 0, 0)
ONE: Operand = (IMM, 1, 0, 0, 0)

_RAX, _RSP, _RBP = 0, 4, 5
_REX_W, _REX_R, _REX_X, _REX_B = 8, 4, 2, 1
_STORES_NOTHING = (CMP, TEST)


class UnknownInstruction(Exception):
    """Nothing that a counting loop may have."""


class Insn(NamedTuple):
    """Its bytes, operation, operand width in bits, operands; where a branch goes, and when."""

    size: int
    op: int
    width: int = 64
    dst: Operand = NOTHING
    src: Operand = NOTHING
    source_width: int = 64
    condition: int = 0
    target: int = 0


class _Decoder:
    """A cursor over the bytes of one instruction."""

    def __init__(self, code: bytes, rip: int, is_64bit: bool) -> None:
        self.code, self.rip, self.is_64bit = code, rip, is_64bit
        self.at = 0
        self.rex = 0
        self.width = 32
        self.has_66 = False
        self.reg = 0
        self.rm: Operand = NOTHING
        self._rip_relative = False

    def byte(self) -> int:
        if self.at >= len(self.code):
            raise UnknownInstruction
        self.at += 1
        return self.code[self.at - 1]

    def signed(self, size: int) -> int:
        raw = self.code[self.at : self.at + size]
        if len(raw) < size:
            raise UnknownInstruction
        self.at += size
        return int.from_bytes(raw, "little", signed=True)

    def opcode(self) -> int:
        """Past the prefixes: the opcode, 0x0Fxx for two bytes."""
        b = self.byte()
        while b in (0x66, 0x2E, 0x3E):  # CS and DS: nothing where segments are flat
            self.has_66 |= b == 0x66
            b = self.byte()
        if b == 0xF3:  # pause
            b = self.byte()
            if b != 0x90:
                raise UnknownInstruction
        if self.is_64bit and b & 0xF0 == 0x40:
            self.rex = b & 15
            self.width = 64 if b & _REX_W else 32
            b = self.byte()
        return 0x0F00 | self.byte() if b == 0x0F else b

    def modrm(self) -> None:
        """Take the ModRM byte and what belongs to it: `reg` and `rm`."""
        b = self.byte()
        mod, rm = b >> 6, b & 7
        self.reg = b >> 3 & 7 | (8 if self.rex & _REX_R else 0)
        high = 8 if self.rex & _REX_B else 0
        if mod == 3:
            self.rm = (REG, rm | high, 0, 0, 0)
            return
        base, index, scale = rm | high, -1, 1
        if rm == _RSP:
            sib = self.byte()
            base, index, scale = (
                sib & 7 | high,
                sib >> 3 & 7 | (8 if self.rex & _REX_X else 0),
                1 << (sib >> 6),
            )
            if index == _RSP:
                index = -1
        if mod == 0 and base & 7 == _RBP:
            self._rip_relative = self.is_64bit and rm == _RBP
            self.rm = (MEM, -1, index, scale, self.signed(4))
        else:
            self.rm = (MEM, base, index, scale, self.signed((0, 1, 4)[mod]) if mod else 0)

    def insn(
        self, op: int, dst: Operand = NOTHING, src: Operand = NOTHING, width: int = 0, source: int = 0
    ) -> Insn:
        """The instruction that ends here."""
        width = width or self.width
        if dst[0] == MEM and op not in _STORES_NOTHING:
            raise UnknownInstruction
        if self._rip_relative:
            dst, src = self._absolute(dst), self._absolute(src)
        return Insn(self.at, op, width, dst, src, source or width)

    def _absolute(self, operand: Operand) -> Operand:
        if operand[0] != MEM:
            return operand
        return MEM, -1, -1, 1, operand[4] + self.rip + self.at

    def branch(self, op: int, size: int, condition: int = 0) -> Insn:
        distance = self.signed(size)
        target = self.rip + self.at + distance & (1 << (64 if self.is_64bit else 32)) - 1
        return Insn(self.at, op, condition=condition, target=target)

    def register(self, number: int) -> Operand:
        return REG, number, 0, 0, 0

    def immediate(self, size: int) -> Operand:
        return IMM, self.signed(size), 0, 0, 0

    def byte_register(self) -> None:
        """A register operand of eight bits must be a low byte."""
        if self.rm[0] == REG and self.rm[1] > 3 and not self.rex:
            raise UnknownInstruction


def decode(code: bytes, rip: int, is_64bit: bool) -> Insn:
    """The instruction at the start of `code`, which lies at `rip`. Raises UnknownInstruction."""
    d = _Decoder(code, rip, is_64bit)
    b = d.opcode()
    if b == 0x90 and not d.rex:
        return d.insn(NOP)
    if b == 0x0F1F:
        d.modrm()
        return Insn(d.at, NOP)
    if d.has_66:
        raise UnknownInstruction
    if 0x70 <= b <= 0x7F:
        return d.branch(JCC, 1, b & 15)
    if 0x0F80 <= b <= 0x0F8F:
        return d.branch(JCC, 4, b & 15)
    if b in (0xEB, 0xE9, 0xE2):
        return d.branch(LOOP if b == 0xE2 else JMP, 4 if b == 0xE9 else 1)
    if b < 0x40:
        return _arithmetic(d, b)
    if not is_64bit and b < 0x50:
        return d.insn(DEC if b & 8 else INC, d.register(b & 7), ONE)
    if 0xB8 <= b <= 0xBF:
        register = d.register(b & 7 | (8 if d.rex & _REX_B else 0))
        return d.insn(MOV, register, d.immediate(8 if d.width == 64 else 4))
    d.modrm()
    return _with_modrm(d, b)


def _arithmetic(d: _Decoder, b: int) -> Insn:
    op, form = b >> 3, b & 7
    if op in (ADC, SBB):
        raise UnknownInstruction
    if form == 5:
        return d.insn(op, d.register(_RAX), d.immediate(4))
    if form not in (1, 3):
        raise UnknownInstruction
    d.modrm()
    reg = d.register(d.reg)
    return d.insn(op, d.rm, reg) if form == 1 else d.insn(op, reg, d.rm)


def _with_modrm(d: _Decoder, b: int) -> Insn:
    reg, rm = d.register(d.reg), d.rm
    match b:
        case 0x80 if d.reg & 7 == CMP:
            d.byte_register()
            return d.insn(CMP, rm, d.immediate(1), 8)
        case 0x81 | 0x83 if d.reg & 7 not in (ADC, SBB):
            return d.insn(d.reg & 7, rm, d.immediate(1 if b == 0x83 else 4))
        case 0x85:
            return d.insn(TEST, rm, reg)
        case 0xF6 if not d.reg & 7:
            d.byte_register()
            return d.insn(TEST, rm, d.immediate(1), 8)
        case 0xF7 if not d.reg & 7:
            return d.insn(TEST, rm, d.immediate(4))
        case 0x89 if rm[0] == REG:
            return d.insn(MOV, rm, reg)
        case 0x8B:
            return d.insn(MOV, reg, rm)
        case 0xC7 if not d.reg & 7:
            return d.insn(MOV, rm, d.immediate(4))
        case 0x0FB6 | 0x0FB7 if rm[0] == MEM:
            return d.insn(MOV, reg, rm, source=8 if b == 0x0FB6 else 16)
        case 0x8D if rm[0] == MEM:
            return d.insn(LEA, reg, rm)
        case 0xFF if d.reg & 7 < 2:
            return d.insn(DEC if d.reg & 7 else INC, rm, ONE)
    raise UnknownInstruction
