"""A decoder for the few instructions that Xen emulates for PV guests, and no others.

Those are: ins, outs, in, out, cli, sti, clts, wbinvd, mov to and from control and debug registers, wrmsr,
rdtsc, rdmsr, cpuid, xsetbv, rdtscp (emul-priv-op.c, validate()) and, for call gates, far call and jmp
(emul-gate-op.c).
Prefixes, address forms and lengths follow x86_decode() of xen/arch/x86/x86_emulate/x86_emulate.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hvcore.cpu.processor import CS, DS, ES, FS, GS, SS
from hvcore.errors import GuestFault
from hvcore.x86 import TRAP_gp_fault

MAX_INST_LEN = 15
REX_B, REX_X, REX_R, REX_W = 1, 2, 4, 8

_SEGMENT_PREFIXES = {0x26: ES, 0x2E: CS, 0x36: SS, 0x3E: DS, 0x64: FS, 0x65: GS}
_STILL_IN_64BIT = (FS, GS)
_LOCK, _REPNE, _REP, _OPSIZE, _ADSIZE = 0xF0, 0xF2, 0xF3, 0x66, 0x67

TWO_BYTE = 0x0F00
_PLAIN = frozenset((*range(0x6C, 0x70), *range(0xEC, 0xF0), 0xFA, 0xFB))
_IMM8 = frozenset(range(0xE4, 0xE8))
_FAR_POINTER = frozenset((0x9A, 0xEA))
_FAR_INDIRECT = 0xFF
_PLAIN_0F = frozenset((0x06, 0x09, 0x30, 0x31, 0x32, 0xA2))
_MODRM_0F = frozenset((0x01, 0x20, 0x21, 0x22, 0x23))

# Which opcodes have a ModRM byte (SDM volume 2, appendix A); of those after 0F, which have none.
_ANY_MODRM = frozenset((
    *(group + i for group in range(0, 0x40, 8) for i in range(4)), 0x62, 0x63, 0x69, 0x6B,
    *range(0x80, 0x90), 0xC0, 0xC1, *range(0xC4, 0xC8), *range(0xD0, 0xD4), *range(0xD8, 0xE0),
    0xF6, 0xF7, 0xFE, 0xFF,
))  # fmt: skip
_NO_MODRM_0F = frozenset((
    *range(0x04, 0x0D), 0x0E, *range(0x30, 0x38), 0x77, *range(0x80, 0x90), *range(0xA0, 0xA3),
    *range(0xA8, 0xAB), *range(0xC8, 0xD0),
))  # fmt: skip
_THREE_BYTES = (0x38, 0x3A)

# 16-bit addressing: base and index registers, and whether the stack segment is the default.
_BX, _BP, _SI, _DI = 3, 5, 6, 7
_FORMS16 = (
    (_BX, _SI), (_BX, _DI), (_BP, _SI), (_BP, _DI), (_SI,), (_DI,), (_BP,), (_BX,),
)  # fmt: skip


class Instruction(NamedTuple):
    """A decoded instruction. `opcode` is one byte, or 0x0f00 plus the second; `next_ip` where it ends.

    `segment` is the override or None; `reg` and `rm` are ModRM's fields with REX applied, `mod` its mode;
    `imm` and `imm2` immediates; `ea` the offset of a memory operand in segment `ea_segment`.
    """

    opcode: int
    next_ip: int
    op_bytes: int
    ad_bytes: int
    segment: int | None = None
    rep: bool = False
    prefixed: bool = False  # 66, F2 or F3 stood before the opcode
    lock: bool = False
    mod: int = 3
    reg: int = 0
    rm: int = 0
    imm: int = 0
    imm2: int = 0
    ea: int = 0
    ea_segment: int = DS

    @property
    def has_memory(self) -> bool:
        """Whether ModRM names memory."""
        return self.mod != 3


class Fetcher:
    """The bytes from `ip` on. `read(offset)` gives at least one byte at that offset, or raises GuestFault."""

    __slots__ = ("_at", "_bytes", "_read", "ip")

    def __init__(self, ip: int, read: Callable[[int], bytes]) -> None:
        self.ip = ip
        self._read = read
        self._bytes = b""
        self._at = 0

    def take(self, size: int) -> int:
        """The next `size` bytes as an unsigned number; #GP for an instruction longer than 15 bytes."""
        end = self._at + size
        if end > MAX_INST_LEN:
            raise GuestFault(TRAP_gp_fault, 0)
        while len(self._bytes) < end:
            self._bytes += self._read(self.ip + len(self._bytes))
        value = int.from_bytes(self._bytes[self._at : end], "little")
        self._at = end
        return value

    def take_signed(self, size: int) -> int:
        """The next `size` bytes as a signed number."""
        value = self.take(size)
        return value - (1 << 8 * size) if value >> (8 * size - 1) else value

    @property
    def next_ip(self) -> int:
        """Where the fetching stands."""
        return self.ip + self._at


class _Prefixes:
    """What stood before the opcode."""

    __slots__ = ("ad_bytes", "lock", "mandatory", "op_bytes", "opcode", "rex", "segment")

    def __init__(self, fetch: Fetcher, bits: int) -> None:
        self.segment: int | None = None
        self.lock = False
        self.mandatory = 0  # 66, F2 or F3, the latter two winning
        self.rex = 0
        default_op = 4 if bits == 64 else bits // 8
        self.op_bytes = default_op
        self.ad_bytes = bits // 8
        while True:
            byte = fetch.take(1)
            if bits == 64 and byte & 0xF0 == 0x40:
                self.rex = byte
                continue
            if byte in _SEGMENT_PREFIXES:
                segment = _SEGMENT_PREFIXES[byte]
                if bits != 64 or segment in _STILL_IN_64BIT:
                    self.segment = segment
            elif byte == _OPSIZE:
                self.op_bytes = default_op ^ 6
                self.mandatory = self.mandatory or byte
            elif byte == _ADSIZE:
                self.ad_bytes = bits // 8 ^ (12 if bits == 64 else 6)
            elif byte == _LOCK:
                self.lock = True
            elif byte in (_REPNE, _REP):
                self.mandatory = byte
            else:
                break
            self.rex = 0
        if self.rex & REX_W:
            self.op_bytes = 8
        self.opcode = byte


def decode(fetch: Fetcher, bits: int, gpr: Callable[[int], int]) -> Instruction | None:
    """The instruction at `fetch.ip` in code of `bits` (16, 32 or 64), or None if it is none of ours.

    `gpr(n)` gives a general register, for addresses. Raises what `fetch` raises.
    """
    prefixes = _Prefixes(fetch, bits)
    opcode = prefixes.opcode
    if opcode == 0x0F:
        second = fetch.take(1)
        opcode = TWO_BYTE | second
        if second in _MODRM_0F:
            return _with_modrm(fetch, prefixes, opcode, bits, gpr)
        if second not in _PLAIN_0F:
            return None
        return _make(fetch, prefixes, opcode)
    if opcode in _PLAIN:
        return _make(fetch, prefixes, opcode)
    if opcode in _IMM8:
        return _make(fetch, prefixes, opcode, imm=fetch.take(1))
    if opcode in _FAR_POINTER and bits != 64:
        offset = fetch.take(prefixes.op_bytes)
        return _make(fetch, prefixes, opcode, imm=offset, imm2=fetch.take(2))
    if opcode == _FAR_INDIRECT:
        return _with_modrm(fetch, prefixes, opcode, bits, gpr)
    return None


def decode_any(fetch: Fetcher, bits: int, gpr: Callable[[int], int]) -> Instruction:
    """Any instruction's opcode and memory operand; without its immediates, and `next_ip` is where they begin.

    Opcodes of three bytes are told by their first two. Raises what `fetch` raises.
    """
    prefixes = _Prefixes(fetch, bits)
    opcode = prefixes.opcode
    if opcode != 0x0F:
        has_modrm = opcode in _ANY_MODRM
    else:
        second = fetch.take(1)
        opcode, has_modrm = TWO_BYTE | second, second not in _NO_MODRM_0F
        if second in _THREE_BYTES:
            fetch.take(1)
    if has_modrm:
        return _with_modrm(fetch, prefixes, opcode, bits, gpr)
    return _make(fetch, prefixes, opcode)


def _make(fetch: Fetcher, prefixes: _Prefixes, opcode: int, **fields: int) -> Instruction:
    return Instruction(
        opcode,
        fetch.next_ip,
        prefixes.op_bytes,
        prefixes.ad_bytes,
        prefixes.segment,
        prefixes.mandatory in (_REPNE, _REP),
        bool(prefixes.mandatory),
        prefixes.lock,
        **fields,
    )


def _with_modrm(
    fetch: Fetcher, prefixes: _Prefixes, opcode: int, bits: int, gpr: Callable[[int], int]
) -> Instruction:
    modrm = fetch.take(1)
    rex = prefixes.rex
    mod, reg, rm = modrm >> 6, modrm >> 3 & 7 | (rex & REX_R) << 1, modrm & 7
    if TWO_BYTE | 0x20 <= opcode <= TWO_BYTE | 0x23:
        mod = 3  # moves to and from CRn and DRn ignore the mode
    if mod == 3:
        return _make(fetch, prefixes, opcode, mod=3, reg=reg, rm=rm | (rex & REX_B) << 3)
    if prefixes.ad_bytes == 2:
        ea, segment = _ea16(fetch, mod, rm, gpr)
        ea &= 0xFFFF
    else:
        ea, segment = _ea(fetch, mod, rm, rex, bits, gpr)
        ea &= (1 << 8 * prefixes.ad_bytes) - 1
    if prefixes.segment is not None:
        segment = prefixes.segment
    return _make(fetch, prefixes, opcode, mod=mod, reg=reg, rm=rm, ea=ea, ea_segment=segment)


def _ea16(fetch: Fetcher, mod: int, rm: int, gpr: Callable[[int], int]) -> tuple[int, int]:
    if mod == 0 and rm == 6:
        return fetch.take_signed(2), DS
    form = _FORMS16[rm]
    ea = sum(gpr(register) for register in form)
    if mod:
        ea += fetch.take_signed(mod)
    return ea, SS if form[0] == _BP else DS


def _ea(fetch: Fetcher, mod: int, rm: int, rex: int, bits: int, gpr: Callable[[int], int]) -> tuple[int, int]:
    """32-bit and 64-bit addressing."""
    segment, ea, base = DS, 0, rm
    rip_relative = False
    if rm == 4:
        sib = fetch.take(1)
        base = sib & 7
        index = sib >> 3 & 7 | (rex & REX_X) << 2
        if index != 4:
            ea = gpr(index) << (sib >> 6)
    if mod == 0 and base == 5:
        rip_relative = bits == 64 and rm == 5
        ea += fetch.take_signed(4)
    else:
        number = base | (rex & REX_B) << 3
        ea += gpr(number)
        if number in (4, 5):
            segment = SS
        if mod:
            ea += fetch.take_signed(1 if mod == 1 else 4)
    if rip_relative:
        ea += fetch.next_ip
    return ea, segment
