"""The small decoder against capstone, over every opcode it knows with arbitrary prefixes and operands."""

from __future__ import annotations

import capstone
import pytest
from capstone import x86 as cs_x86
from hypothesis import given, settings
from hypothesis import strategies as st

from hvcore.cpu.processor import CS, DS, ES, FS, GS, SS
from hvcore.errors import GuestFault
from hvcore.pv.x86_decode import Fetcher, Instruction, decode

MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
DISASSEMBLERS = {bits: capstone.Cs(capstone.CS_ARCH_X86, mode) for bits, mode in MODES.items()}
for _cs in DISASSEMBLERS.values():
    _cs.detail = True

GPR = [0x1111111122334455 * (n + 3) & 0xFFFFFFFFFFFFFFFF for n in range(16)]
_NAMES = (
    "rax eax", "rcx ecx", "rdx edx", "rbx ebx bx", "rsp esp", "rbp ebp bp", "rsi esi si", "rdi edi di",
    *(f"r{i} r{i}d" for i in range(8, 16)),
)  # fmt: skip
NUMBERS = {name: number for number, names in enumerate(_NAMES) for name in names.split()}
SEGMENTS = {"es": ES, "cs": CS, "ss": SS, "ds": DS, "fs": FS, "gs": GS}

PREFIXES = st.lists(
    st.sampled_from([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF2, 0xF3]), max_size=4, unique=True
)
PLAIN = [bytes([b]) for b in (*range(0x6C, 0x70), *range(0xEC, 0xF0), 0xFA, 0xFB, *range(0xE4, 0xE8))] + [
    bytes([0x0F, b]) for b in (0x06, 0x09, 0x30, 0x31, 0x32, 0xA2)
]
TAIL = st.binary(min_size=11, max_size=11)
BITS = st.sampled_from([16, 32, 64])
REX = st.one_of(st.none(), st.integers(0x40, 0x4F))


def run(code: bytes, bits: int, ip: int = 0x1000) -> Instruction | None:
    data = code.ljust(32, b"\x90")
    return decode(Fetcher(ip, lambda at: data[at - ip :]), bits, lambda n: GPR[n])


def reference(code: bytes, bits: int) -> capstone.CsInsn | None:
    return next(DISASSEMBLERS[bits].disasm(code, 0x1000, 1), None)


def expected_ea(operand: object, insn: capstone.CsInsn) -> tuple[int, int]:
    """The offset and default segment that capstone's memory operand means."""
    mem = operand.mem  # type: ignore[attr-defined]
    ea, segment = mem.disp, DS
    for register, scale in ((mem.base, 1), (mem.index, mem.scale)):
        if register:
            name = insn.reg_name(register)
            if name in ("rip", "eip"):
                ea += 0x1000 + insn.size
            elif name not in ("riz", "eiz"):
                ea += GPR[NUMBERS[name]] * scale
                if scale == 1 and register == mem.base and name in ("rsp", "esp", "rbp", "ebp", "bp"):
                    segment = SS
    if mem.segment:
        segment = SEGMENTS[insn.reg_name(mem.segment)]
    return ea & ((1 << 8 * insn.addr_size) - 1), segment


@given(st.sampled_from(PLAIN), PREFIXES, REX, TAIL, BITS)
@settings(max_examples=600, deadline=None)
def test_plain_instructions(
    opcode: bytes, prefixes: list[int], rex: int | None, tail: bytes, bits: int
) -> None:
    code = bytes(prefixes) + (bytes([rex]) if rex and bits == 64 else b"") + opcode + tail
    ours, theirs = run(code, bits), reference(code, bits)
    if theirs is None or bytes(theirs.opcode[: len(opcode)]) != opcode:
        return  # capstone knows no such combination
    assert ours is not None
    assert ours.next_ip == 0x1000 + theirs.size
    assert ours.ad_bytes == theirs.addr_size
    assert ours.opcode == (opcode[0] if len(opcode) == 1 else 0x0F00 | opcode[1])
    if opcode[0] in range(0xE4, 0xE8):
        assert ours.imm == tail[0]
        port = [o for o in theirs.operands if o.type == cs_x86.X86_OP_IMM]
        assert port[0].imm & 0xFF == ours.imm


@given(st.sampled_from([0x20, 0x21, 0x22, 0x23]), st.integers(0xC0, 0xFF), REX, st.sampled_from([32, 64]))
@settings(max_examples=300, deadline=None)
def test_moves_to_and_from_control_registers(second: int, modrm: int, rex: int | None, bits: int) -> None:
    code = (bytes([rex]) if rex and bits == 64 else b"") + bytes([0x0F, second, modrm])
    ours, theirs = run(code, bits), reference(code, bits)
    assert ours is not None
    if theirs is None:
        return
    assert ours.next_ip == 0x1000 + theirs.size
    special, general = (1, 0) if second < 0x22 else (0, 1)
    names = [theirs.reg_name(operand.reg) for operand in theirs.operands]
    assert NUMBERS[names[1 - special]] == ours.rm
    assert names[1 - general] in (f"cr{ours.reg}", f"dr{ours.reg}")


def test_the_mode_of_moves_to_control_registers_is_ignored() -> None:
    """Processors take 0f 20 00 for 0f 20 c0; nothing of a displacement follows."""
    for modrm in (0x00, 0x44, 0x85):
        insn = run(bytes([0x0F, 0x20, modrm, 1, 2, 3, 4]), 32)
        assert insn is not None
        assert (insn.next_ip, insn.mod, insn.rm, insn.reg) == (0x1003, 3, modrm & 7, modrm >> 3 & 7)


@given(
    st.sampled_from([3, 5]), st.integers(0, 2), st.integers(0, 7), PREFIXES, TAIL, st.sampled_from([16, 32])
)
@settings(max_examples=800, deadline=None)
def test_far_pointers_in_memory(
    reg: int, mod: int, rm: int, prefixes: list[int], tail: bytes, bits: int
) -> None:
    code = bytes(p for p in prefixes if p < 0xF0) + bytes([0xFF, mod << 6 | reg << 3 | rm]) + tail
    if sum(p in (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65) for p in code[: len(code) - len(tail) - 2]) > 1:
        return  # which of several overrides counts, capstone leaves open
    ours, theirs = run(code, bits), reference(code, bits)
    assert ours is not None
    if theirs is None:
        return
    assert ours.next_ip == 0x1000 + theirs.size
    assert (ours.ea, ours.ea_segment) == expected_ea(theirs.operands[0], theirs)


@given(st.integers(0, 255), st.integers(0, 2), REX, TAIL)
@settings(max_examples=400, deadline=None)
def test_64_bit_addresses(modrm: int, mod: int, rex: int | None, tail: bytes) -> None:
    """With group 5's `jmp m`, whose operand capstone shows plainly; only the address is looked at."""
    code = (bytes([rex]) if rex else b"") + bytes([0xFF, mod << 6 | 4 << 3 | modrm & 7]) + tail
    ours, theirs = run(code, 64), reference(code, 64)
    assert ours is not None
    assert theirs is not None
    assert ours.next_ip == 0x1000 + theirs.size
    assert ours.ea == expected_ea(theirs.operands[0], theirs)[0]


@pytest.mark.parametrize(("code", "bits", "offset", "length"), [
    ("9a785634121b00", 32, 0x12345678, 7),
    ("669a78561b00", 32, 0x5678, 6),
    ("ea785634121b00", 32, 0x12345678, 7),
    ("9a78561b00", 16, 0x5678, 5),
])  # fmt: skip
def test_far_pointers(code: str, bits: int, offset: int, length: int) -> None:
    insn = run(bytes.fromhex(code), bits)
    assert insn is not None
    assert (insn.imm, insn.imm2, insn.next_ip - 0x1000) == (offset, 0x1B, length)
    theirs = reference(bytes.fromhex(code), bits)
    assert theirs is not None
    assert theirs.size == length


@pytest.mark.parametrize(
    "code", ["f4", "90", "0f0b", "0f08", "cf", "9d", "cd80", "8ed8", "0f34", "0f05", "c3"]
)
def test_other_instructions_are_none_of_ours(code: str) -> None:
    assert run(bytes.fromhex(code), 32) is None


def test_a_rex_before_another_prefix_does_not_count() -> None:
    insn = run(bytes.fromhex("49 66 0f20c0"), 64)
    assert insn is not None
    assert insn.rm == 0


@pytest.mark.parametrize(("prefixes", "fits"), [(14, True), (15, False), (40, False)])
def test_no_instruction_is_longer_than_15_bytes(prefixes: int, fits: bool) -> None:
    code = b"\x66" * prefixes + b"\xfa" * 20
    if fits:
        assert run(code, 32) is not None
    else:
        with pytest.raises(GuestFault) as caught:
            run(code, 32)
        assert (caught.value.vector, caught.value.error_code) == (13, 0)


def test_bytes_come_in_pieces_and_none_is_fetched_too_many() -> None:
    code = bytes.fromhex("67f36c")
    asked: list[int] = []

    def read(at: int) -> bytes:
        asked.append(at)
        return code[at : at + 1]

    insn = decode(Fetcher(0, read), 32, lambda n: GPR[n])
    assert insn is not None
    assert asked == [0, 1, 2]
    assert (insn.ad_bytes, insn.rep) == (2, True)


def test_lock_is_noticed() -> None:
    insn = run(bytes.fromhex("f0fa"), 32)
    assert insn is not None
    assert insn.lock
