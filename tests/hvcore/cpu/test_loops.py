"""What is worked out of a loop against the processor that executes it, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hvcore import abi as abi_module
from hvcore.cpu.loop_decode import Insn, UnknownInstruction, decode
from hvcore.cpu.loops import ENDLESS, Loop, counting_loop
from hvcore.cpu.processor import DS, ES, RIP
from hvcore.errors import GuestError
from hvcore.pv.segments import load_cs_ss, load_data
from tests.hvcore import opened
from tests.hvcore.pv_cpu import CODE, DATA, PvCpu

RCX, RDX, RSI, RDI = 1, 2, 6, 7
MOST = 3000  # rounds that a test executes


CPUS: dict[bool, PvCpu] = {}  # by whether it runs a 64-bit guest


@pytest.fixture(scope="module", autouse=True)
def _processors() -> Iterator[None]:
    with opened.closing():
        CPUS.update({False: PvCpu(abi_module.PV32_PAE), True: PvCpu(abi_module.PV64)})
        yield


def load(is_64bit: bool, code: bytes, regs: dict[int, int]) -> tuple[PvCpu, Loop | None]:
    """A processor at the start of `code`, and what is worked out of it."""
    c = CPUS[is_64bit]
    c.put(CODE, code + b"\xcc" * 16)
    load_cs_ss(c.v, c.abi.flat_kernel_cs, c.abi.flat_kernel_ss)
    for register in (DS, ES):
        assert load_data(c.v, register, c.abi.flat_kernel_ss)
    c.engine.flush_code()
    c.engine.write_eflags(0x202)
    for number in range(16):
        c.engine.q[number] = regs.get(number, 0)
    c.engine.q[RIP] = CODE
    assert c.engine.is_flat
    return c, counting_loop(c.engine.q[:16].tolist(), CODE, is_64bit, c.d.guest.copy_from)


def execute(c: PvCpu, loop: Loop, rounds: int) -> tuple[int, list[int]]:
    """RIP and the registers after so many rounds."""
    c.events = []
    c.engine.cell[0] = loop.size * rounds
    c.engine.run()
    return c.engine.q[RIP], c.engine.q[:16].tolist()


def holds(is_64bit: bool, code: bytes, regs: dict[int, int]) -> Loop | None:
    """Check a loop at its first rounds, and where it ends if that is near."""
    c, loop = load(is_64bit, code, regs)
    if loop is None:
        return None
    start = c.engine.q[:16].tolist()
    done = 0
    for rounds in sorted({1, 2, min(loop.rounds, 17), loop.rounds if loop.rounds <= MOST else 40}):
        found = execute(c, loop, rounds - done)
        done = rounds
        assert found == (CODE, [a + rounds * step for a, step in zip(start, loop.step, strict=True)])
        if rounds == 1:
            assert found[1] == list(loop.after)
    return loop


# -- loops that are known

# cmp rdi, r9; jae; xor r8d, r8d; jmp; cmp esi, r8d; jne; inc edx; inc rdi; cmp edx, eax; jne (Linux's p2m)
P2M = "4c39cf 7302 ebfe 4531c0 eb00 4439c6 7509 ffc2 48ffc7 39c2 75e6"

LOOPS: dict[str, tuple[bool, str, dict[int, int], int]] = {
    "p2m": (True, P2M, {0: 512, RDX: 1, RDI: 70000, 9: 65536}, 510),
    "down": (False, "49 75fd", {RCX: 1000}, 999),  # dec ecx; jne
    "down 64": (True, "48ffc9 75fb", {RCX: 1000}, 999),
    "loop": (True, "90 e2fd", {RCX: 1000}, 999),
    "up to": (True, "4883c104 4839d1 72f7", {RDX: 4001}, 1000),  # add rcx, 4; cmp rcx, rdx; jb
    "signed": (True, "83c103 39d1 7cf9", {RCX: 0xFFFFFF00, RDX: 0xFFFFFFF0}, 79),  # add ecx, 3; cmp; jl
    "wait": (True, "f390 833d00000000 00 75f5", {}, ENDLESS),  # pause; cmp dword [rip], 0; jne
    "wait 32": (False, "803d00400100 01 75f7", {}, ENDLESS),  # cmp byte [DATA], 1; jne
    "for ever": (True, "ebfe", {}, ENDLESS),
    "lea": (True, "488d4c5102 4881f900000100 72f2", {RDX: 1}, 16383),  # lea rcx, [rcx + rdx * 2 + 2]; cmp; jb
    "wraps": (True, "ffc1 85d2 74fa", {RCX: 0xFFFFFFF0}, 15),  # inc ecx; test edx, edx; je
}


@pytest.mark.parametrize("name", LOOPS)
def test_known_loops(name: str) -> None:
    is_64bit, code, regs, rounds = LOOPS[name]
    loop = holds(is_64bit, bytes.fromhex(code), regs)
    assert loop is not None
    assert loop.rounds == rounds


NOT_LOOPS: dict[str, tuple[bool, str, dict[int, int]]] = {
    "stores": (True, "4889 0c25 00400100 ffc9 75f4", {RCX: 100}),
    "falls through": (True, "ffc9 ffc9 90", {RCX: 100}),
    "flags from before": (True, "75fe", {}),
    "squares": (True, "01d1 ffc2 81fa00100000 72f4", {}),  # add ecx, edx; inc edx
    "doubles": (True, "01c9 83f900 75f9", {RCX: 1}),
    "walks memory": (True, "488b07 4883c708 4839f7 72f4", {RDI: DATA, RSI: DATA + 0x1000}),
    "masks what changes": (True, "ffc1 89ca 83e20f 85f6 74f5", {}),
    "memory that is not there": (True, "8b0425 0000f07f ffc9 75f5", {RCX: 100}),
    "the last round": (True, "ffc9 75fc", {RCX: 2}),
    "an instruction with an effect": (True, "0f31 ffc9 75fa", {RCX: 100}),
    "parity": (True, "ffc1 7afc", {RCX: 2}),
    "carry": (True, "83c101 73fb", {RCX: 2}),
}


@pytest.mark.parametrize("name", NOT_LOOPS)
def test_others_are_left_alone(name: str) -> None:
    is_64bit, code, regs = NOT_LOOPS[name]
    assert load(is_64bit, bytes.fromhex(code), regs)[1] is None


# -- any

LOW = (0, 1, 2, 3, 5, 6, 7)  # registers without REX, and not the stack pointer
IMM8 = st.integers(-128, 127)


def _reg(d: st.DataObject) -> int:
    return d.draw(st.sampled_from(LOW))


def _modrm(d: st.DataObject, reg: int) -> bytes:
    return bytes([0xC0 | reg << 3 | _reg(d)])


def _imm(d: st.DataObject, size: int) -> bytes:
    value = d.draw(IMM8 if size == 1 else st.integers(-(2**31), 2**31 - 1))
    return value.to_bytes(size, "little", signed=True)


OPS = st.sampled_from((0x01, 0x03, 0x29, 0x2B, 0x31, 0x21, 0x09))  # add, sub, xor, and, or
SCALES = st.sampled_from((0, 0x40, 0x80))

BODY: dict[str, Callable[[st.DataObject], bytes]] = {
    "op r, r": lambda d: bytes([d.draw(OPS)]) + _modrm(d, _reg(d)),
    "op r, imm8": lambda d: b"\x83" + _modrm(d, d.draw(st.sampled_from((0, 1, 4, 5, 6)))) + _imm(d, 1),
    "op r, imm32": lambda d: b"\x81" + _modrm(d, d.draw(st.sampled_from((0, 5)))) + _imm(d, 4),
    "mov r, r": lambda d: b"\x89" + _modrm(d, _reg(d)),
    "mov r, imm": lambda d: b"\xc7" + _modrm(d, 0) + _imm(d, 4),
    "inc": lambda d: b"\xff" + _modrm(d, 0),
    "dec": lambda d: b"\xff" + _modrm(d, 1),
    "lea": lambda d: bytes([0x8D, 0x44 | _reg(d) << 3, d.draw(SCALES) | RCX << 3 | RDX]) + _imm(d, 1),
    "nop": lambda _d: b"\x90",
    "test": lambda d: b"\x85" + _modrm(d, _reg(d)),
}


def _test(d: st.DataObject) -> bytes:
    """A comparison, and a branch that leaves the loop or does not."""
    kind = d.draw(st.sampled_from(("cmp r, r", "cmp r, imm", "test", "dec")))
    condition = d.draw(st.sampled_from((2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15)))
    what = {
        "cmp r, r": lambda: b"\x39" + _modrm(d, _reg(d)),
        "cmp r, imm": lambda: b"\x83" + _modrm(d, 7) + _imm(d, 1),
        "test": lambda: b"\x85" + _modrm(d, _reg(d)),
        "dec": lambda: b"\xff" + _modrm(d, 1),
    }[kind]()
    return what + bytes([0x70 | condition])


@st.composite
def loops(draw: st.DrawFn) -> tuple[bool, bytes, dict[int, int]]:
    """Width, code and registers of something that may be a counting loop."""
    d: st.DataObject = draw(st.data())
    is_64bit = draw(st.booleans())
    code = bytearray()

    def wide() -> bytes:
        return b"\x48" if is_64bit and draw(st.booleans()) else b""

    for name in draw(st.lists(st.sampled_from(sorted(BODY)), max_size=4)):
        code += wide() + BODY[name](d)
    for _ in range(draw(st.integers(0, 2))):  # forward, out of the loop
        code += wide() + _test(d) + b"\x40"
    code += wide() + _test(d)
    code += (256 - len(code) - 1).to_bytes(1, "little")
    near = st.one_of(
        st.integers(0, 2000),
        st.integers(2**31 - 2000, 2**31 + 2000),
        st.integers(2**32 - 2000, 2**32 - 1),
        st.integers(2**64 - 2000, 2**64 - 1) if is_64bit else st.just(0),
    )
    return is_64bit, bytes(code), {number: draw(near) for number in LOW}


@settings(max_examples=600, deadline=None)
@given(loops())
def test_whatever_is_worked_out_is_what_happens(what: tuple[bool, bytes, dict[int, int]]) -> None:
    assume(len(what[1]) < 120)
    holds(*what)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=15), st.booleans())
def test_any_bytes_decode_or_are_unknown(code: bytes, is_64bit: bool) -> None:
    try:
        insn = decode(code, 0x1000, is_64bit)
    except UnknownInstruction:
        return
    assert isinstance(insn, Insn)
    assert 0 < insn.size <= len(code)


def test_code_that_cannot_be_read_is_no_loop() -> None:
    def read(_address: int, _size: int) -> bytes:
        raise GuestError(14)

    assert counting_loop([0] * 16, 0x1000, True, read) is None
