"""Which exception an instruction ends with, as the manuals have it and as this host's processor does."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvcore.cpu.processor import RIP
from tests.hvcore import opened
from tests.hvcore.pv_cpu import CODE, DATA, PV32, PV64, STACK, PvCpu
from tests.needs import find_tool, other_processor

UD, SS, GP = 6, 12, 13
BAD = "49be0000000000000080"  # mov r14, 1 << 63
AX, BX, SP, BP, SI, DI = "4c89f0", "4c89f3", "4c89f4", "4c89f5", "4c89f6", "4c89f7"  # mov it, r14
WORDS = struct.pack("<32H", *(0xF003 + 8 * i for i in range(32)))  # at DATA: selectors that do not exist

# What the code does once r14 is an address that is not canonical: vector, error code.
ROWS = {
    "mov [rax]": (AX + "c60000", GP, 0),
    "mov [rsp]": (SP + "c6042400", SS, 0),
    "mov [rbp]": (BP + "c6450000", SS, 0),
    "mov [r12], encoded as rsp is": ("4d89f4 41c6042400", GP, 0),
    "mov [r13]": ("4d89f5 41c6450000", GP, 0),
    "index rbp": (BP + "c6042800", GP, 0),
    "base rbp, index rax": (BP + "c644050000", SS, 0),
    "rbp as an index without a base": (BP + "c6042d0000000000", GP, 0),
    "ds:[rsp]": (SP + "3ec6042400", SS, 0),
    "ss:[rax]": (AX + "36c60000", GP, 0),
    "fs:[rsp]": (SP + "64c6042400", GP, 0),
    "ss fs [rsp]": (SP + "3664c6042400", GP, 0),
    "push": (SP + "50", SS, 0),
    "pop": (SP + "58", SS, 0),
    "push imm": (SP + "6801000000", SS, 0),
    "pushw": (SP + "6650", SS, 0),
    "pushf": (SP + "9c", SS, 0),
    "popf": (SP + "9d", SS, 0),
    "push fs": (SP + "0fa0", SS, 0),
    "pop gs": (SP + "0fa9", SS, 0),
    "call": (SP + "e800000000", SS, 0),
    "ret": (SP + "c3", SS, 0),
    "ret imm": (SP + "c20800", SS, 0),
    "lret": (SP + "cb", SS, 0),
    "lretq": (SP + "48cb", SS, 0),
    "iretq": (SP + "48cf", SS, 0),
    "enter": (SP + "c8100001", SS, 0),
    "leave": (BP + "c9", SS, 0),
    "leave, the stack pointer being no matter": (SP + "4889dd c9 4889dc", 3, None),
    "push [rbx], a bad stack": (SP + "ff33", SS, 0),
    "push [bad rbx]": (BX + "ff33", GP, 0),
    "push [bad rbp]": (BP + "ff7500", SS, 0),
    "pop [bad rbx]": (BX + "8f03", GP, 0),
    "pop [rbx], a bad stack": (SP + "8f03", SS, 0),
    "both bad, pop": (SP + BX + "8f03", SS, 0),
    "both bad, push": (SP + BX + "ff33", GP, 0),
    "call [bad rax]": (AX + "ff10", GP, 0),
    "call [bad rbp]": (BP + "ff5500", SS, 0),
    "call bad rax": (AX + "ffd0", GP, 0),
    "call bad r11": ("4d89f3 41ffd3", GP, 0),
    "call bad [rbx]": ("4c8933 ff13", GP, 0),
    "call bad [rbx+8]": ("4c897308 ff5308", GP, 0),
    "call bad [rsp+rax*8+16]": ("4c89742410 ff94c410000000", GP, 0),
    "push and call": (AX + "50 50 ffd0", GP, 0),
    "jmp [bad rbp]": (BP + "ff6500", SS, 0),
    "lcall [bad rsp]": (SP + "ff1c24", SS, 0),
    "movsb": (SI + "a4", GP, 0),
    "stosb": (DI + "aa", GP, 0),
    "ss lodsb": (SI + "36ac", GP, 0),
    "xlat": (BX + "d7", GP, 0),
    "moffs": ("36a00000000000000080", GP, 0),
    "fld": (SP + "d90424", SS, 0),
    "fxsave": (BP + "0fae4500", SS, 0),
    "movups": (SP + "0f100424", SS, 0),
    "pshufb": (SP + "660f38000424", SS, 0),
    "palignr": (BP + "660f3a0f450001", SS, 0),
    "cmpxchg16b": (SP + "480fc70c24", SS, 0),
    "lock xadd": (SP + "f00fc10424", SS, 0),
    "imul": (BP + "6b450002", SS, 0),
    "movzx": (BP + "0fb64500", SS, 0),
    "mov ds, [rsp]": (SP + "8e1c24", SS, 0),
    "lss": (SP + "0fb20424", SS, 0),
    "bt by a register": ("4889e5 48b800000000000000 40 480fa34500", SS, 0),
    "lgdt, privileged first": (SP + "0f011424", GP, 0),
    "invlpg": (SP + "0f013c24", GP, 0),
    "lldt": (SP + "0f001424", GP, 0),
    "verr": (SP + "0f002424", SS, 0),
    "lea": (SP + "488d0424 4889dc", 3, None),
    "into the hole by the stack": ("48bc fcffffffffff7f00 488b0424", SS, 0),
    "into the hole": ("48b8 fcffffffffff7f00 488b00", GP, 0),
    "push at its start": ("48bc 0800000000800000 50", SS, 0),
    "pop at its start": ("48bc f8ffffffffff7f00 58", SS, 0),
    "below its end": ("48bc f8ffffffff7fffff 488b0424", SS, 0),
    "lcall": ("ff1b", GP, 0xF010),
    "o16 lcall": ("66ff1b", GP, 0xF008),
    "rex lcall": ("48ff1b", GP, 0xF010),  # AMD's; Intel's has 0xF020
    "rex ljmp": ("48ff2b", GP, 0xF010),
    "rex o16 lcall": ("6648ff1b", GP, 0xF010),
    "lss by selector": ("0fb203", GP, 0xF010),
    "rdpmc": ("0f33", GP, 0),
    "sysret": ("480f07", GP, 0),
    "sysexit": ("0f35", GP, 0),
    "sysenter": ("0f34", UD, None),
    "ud2": ("0f0b", UD, None),
    "into": ("ce", UD, None),
    "rsm": ("0faa", UD, None),
}
_AMD_ONLY = ("rex lcall", "rex ljmp", "rex o16 lcall", "sysenter", "sysexit")


@pytest.fixture(scope="module")
def cpu() -> Iterator[PvCpu]:
    with opened.closing():
        yield PvCpu(PV64)


def outcome(cpu: PvCpu, code: str) -> tuple[int, int | None, int]:
    """Vector, error code, and RIP from the start of `code`."""
    cpu.put(DATA, WORDS)
    prepared = bytes.fromhex(BAD + code)
    vector, error, _ = cpu.run(
        prepared, user=True, bx=DATA, si=DATA, di=DATA, bp=STACK, sp=STACK, ax=0, cx=0
    )[-1]
    return vector, error, cpu.engine.q[RIP] - CODE


@pytest.mark.parametrize("name", ROWS)
def test_the_exception_is_the_manuals(cpu: PvCpu, name: str) -> None:
    code, vector, error = ROWS[name]
    got, got_error, _ = outcome(cpu, code)
    assert got == vector
    if error is not None:
        assert got_error == error


def test_icebp_is_a_trap(cpu: PvCpu) -> None:
    assert outcome(cpu, "f1") == (1, None, 11)


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
@pytest.mark.parametrize("register", [1, 5, 6, 7])
def test_control_registers_that_do_not_exist(abi: object, register: int) -> None:
    bench = PvCpu(abi)  # type: ignore[arg-type]
    for opcode in (0x20, 0x22):
        assert bench.run(bytes([0x0F, opcode, 0xC0 | register << 3])) == [(UD, None, None)]


# -- the same code on the processor at hand


def this_processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return next((line.split()[-1] for line in text.splitlines() if line.startswith("vendor_id")), "")


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int, int]]:
    """Vector, error code and RIP of each row, run as a process of this host."""
    compiler = find_tool("gcc")
    if this_processor() not in ("AuthenticAMD", "GenuineIntel"):
        other_processor("AMD's and Intel's are compared")
    program = tmp_path_factory.mktemp("native") / "run_native"
    source = Path(__file__).with_name("run_native.c")
    subprocess.run([compiler, "-O1", "-Wall", "-Werror", source, "-o", program], check=True)
    codes = "\n".join((BAD + code).replace(" ", "") for code, _, _ in ROWS.values())
    done = subprocess.run([program, WORDS.hex()], input=codes, capture_output=True, text=True, check=True)
    rows = [tuple(int(word, 16) for word in line.split()) for line in done.stdout.splitlines()]
    return dict(zip(ROWS, rows, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ROWS)
def test_the_exception_is_this_processors(
    cpu: PvCpu, native: dict[str, tuple[int, int, int]], name: str
) -> None:
    if name in _AMD_ONLY and this_processor() != "AuthenticAMD":
        other_processor("AMD's processors alone do it so")
    vector, error, rip = native[name]
    got, got_error, got_rip = outcome(cpu, ROWS[name][0])
    assert (got, got_rip) == (vector, rip)
    if vector != 14:  # whose error code depends on what is mapped there
        assert (got_error or 0) == error
