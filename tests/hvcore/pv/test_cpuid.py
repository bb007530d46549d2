"""The processor that a PV guest sees: Xen's leaves as a real domU read them, and features that are true."""

from __future__ import annotations

import struct

import pytest

from hvcore.cpu.processor import RBX, RCX, RDX
from hvcore.pv import cpuid
from hvcore.pv.cpuid import pv_cpuid
from tests.hvcore.pv_cpu import DATA, INT3, PV32, PV64, PvCpu

FORCED = "0f0b78656e0fa2"


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


# What a domU of real Xen 4.17 read, the same on both widths.
REAL = {
    0x40000000: (0x40000005, 0x566E6558, 0x65584D4D, 0x4D4D566E),
    0x40000001: (0x40011, 0, 0, 0),
    0x40000002: (1, 0x40000000, 1, 0),
}


@pytest.mark.parametrize("leaf", REAL)
def test_xens_leaves(cpu: PvCpu, leaf: int) -> None:
    assert pv_cpuid(cpu.v, leaf, 0) == REAL[leaf]


def test_leaf_1_against_a_real_domu(cpu: PvCpu) -> None:
    _, b, c, d = pv_cpuid(cpu.v, 1, 0)
    assert b == 0x800
    assert d == 0x0789C3F5
    assert c >> 13 & 1 == (0 if cpu.abi.is_32bit else 1)  # CMPXCHG16B
    assert c & 0x80000001 == 0x80000001


def test_the_time_leaf_agrees_with_the_published_time(cpu: PvCpu) -> None:
    features, _mode, khz, _ = pv_cpuid(cpu.v, 0x40000003, 0)
    low, high, mul, shift = pv_cpuid(cpu.v, 0x40000003, 1)
    assert features & 1 == 0
    assert low == high == 0
    assert khz == pv_cpuid(cpu.v, 0x40000003, 2)[0]
    assert (khz * mul >> 32) << shift == 1_000_000  # ns in a millisecond


def test_the_width_of_machine_addresses(cpu: PvCpu) -> None:
    width = pv_cpuid(cpu.v, 0x40000005, 0)[1]
    assert 1 << width > (cpu.mem.end_mfn << 12) - 1 >= 1 << width - 1
    assert pv_cpuid(cpu.v, 0x40000005, 1) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "leaf", [2, 4, 7, 0xB, 0xD, 0x40000004, 0x40000006, 0x40000100, 0x80000007, 0x80000009, 0xFFFFFFFF]
)
def test_the_rest_is_empty(cpu: PvCpu, leaf: int) -> None:
    assert pv_cpuid(cpu.v, leaf, 0) == (0, 0, 0, 0)


def test_names(cpu: PvCpu) -> None:
    _, b, c, d = pv_cpuid(cpu.v, 0, 0)
    assert struct.pack("<III", b, d, c) == b"AuthenticAMD"
    assert pv_cpuid(cpu.v, 0x80000000, 0)[1:] == (b, c, d)
    brand = b"".join(struct.pack("<4I", *pv_cpuid(cpu.v, 0x80000002 + i, 0)) for i in range(3))
    assert brand.rstrip(b"\0") == cpuid.BRAND


def test_what_xen_hides_from_pv_guests(cpu: PvCpu) -> None:
    """Bits that arch-x86/cpufeatureset.h marks neither 'A' nor 'a', and SEP, which Xen clears on AMD."""
    _, _, c, d = pv_cpuid(cpu.v, 1, 0)
    for bit in (1, 3, 11, 12, 13, 17, 21, 22, 29, 31):  # VME PSE SEP MTRR PGE PSE36 DS ACPI TM1 PBE
        assert not d >> bit & 1, bit
    for bit in (3, 5, 6, 7, 15, 17, 21, 24):  # MONITOR VMX SMX EIST PDCM PCID X2APIC TSC_DEADLINE
        assert not c >> bit & 1, bit
    _, _, c, d = pv_cpuid(cpu.v, 0x80000001, 0)
    assert not d >> 26 & 1  # PAGE1GB
    for bit in (2, 3, 4, 9, 10, 12, 13):  # SVM EXTAPIC CR8_LEGACY OSVW IBS SKINIT WDT
        assert not c >> bit & 1, bit


def test_nothing_that_cannot_be_repeated(cpu: PvCpu) -> None:
    assert not pv_cpuid(cpu.v, 1, 0)[2] >> 30 & 1  # RDRAND
    assert not pv_cpuid(cpu.v, 7, 0)[1] >> 18 & 1  # RDSEED


def test_long_mode_is_for_64_bit_guests(cpu: PvCpu) -> None:
    _, _, c, d = pv_cpuid(cpu.v, 0x80000001, 0)
    wanted = 0 if cpu.abi.is_32bit else 1
    assert d >> 29 & 1 == c & 1 == wanted  # LM, LAHF_LM
    assert d >> 20 & 1 == d >> 11 & 1 == 1  # NX, SYSCALL


def test_what_linux_on_amd64_requires() -> None:
    """arch/x86/include/asm/required-features.h: FPU MSR PAE CX8 CMOV FXSR SSE SSE2; LM NX."""
    policy = cpuid.policy(False)
    for bit in (0, 5, 6, 8, 15, 24, 25, 26):
        assert policy[1][3] >> bit & 1, bit
    assert policy[0x80000001][3] & (1 << 29 | 1 << 20) == 1 << 29 | 1 << 20


# One instruction of each feature that is shown: (leaf, register, bit) -> code; rdi and rsi point to data.
INSTRUCTIONS = {
    (1, 3, 0): "d9ee ddd8", (1, 3, 4): "0f31", (1, 3, 8): "0fc70f", (1, 3, 15): "0f44c1",
    (1, 3, 19): "0fae3f",
    (1, 3, 23): "0fefc0", (1, 3, 24): "0fae07", (1, 3, 25): "0f57c0", (1, 3, 26): "660fefc0",
    (1, 2, 0): "f20f7cc0", (1, 2, 1): "660f3a44c000", (1, 2, 9): "660f3800c1", (1, 2, 13): "480fc70f",
    (1, 2, 19): "660f3839c1", (1, 2, 20): "660f3837c1 f20f38f1c1 660f3a63c100", (1, 2, 22): "0f38f007",
    (1, 2, 23): "f30fb8c1", (1, 2, 25): "660f38dcc1 660f3adfc101",
    (0x80000001, 3, 22): "0fdac1", (0x80000001, 2, 0): "9f 9e", (0x80000001, 2, 5): "f30fbdc1",
    (0x80000001, 2, 8): "0f0d0f",
}  # fmt: skip


def test_every_feature_shown_can_be_executed(cpu: PvCpu) -> None:
    shown = 0
    for (leaf, register, bit), code in INSTRUCTIONS.items():
        if pv_cpuid(cpu.v, leaf, 0)[register] >> bit & 1:
            shown += 1
            assert cpu.run(code, di=DATA, si=DATA, cx=1) == [INT3], code
    assert shown == len(INSTRUCTIONS) - (2 if cpu.abi.is_32bit else 0)


def test_every_instruction_feature_has_its_instruction_here() -> None:
    """No bit is shown that neither the list above nor the list of machine features knows."""
    machine = {
        (1, 3): {2, 5, 6, 7, 9, 14, 16}, (1, 2): {31}, (0x80000001, 3): {11, 20, 29}, (0x80000001, 2): set(),
    }  # fmt: skip
    for (leaf, register), bits in machine.items():
        value = cpuid.policy(False)[leaf][register]
        if (leaf, register) == (0x80000001, 3):
            value &= ~cpuid.COMMON_1D
        known = bits | {bit for at_leaf, at, bit in INSTRUCTIONS if (at_leaf, at) == (leaf, register)}
        assert {bit for bit in range(32) if value >> bit & 1} == known


# -- the instruction itself


@pytest.mark.parametrize("code", ["0fa2", FORCED], ids=["native", "forced"])
def test_both_forms_of_cpuid_give_the_same(cpu: PvCpu, code: str) -> None:
    assert cpu.run(code, ax=0x40000000) == [INT3]
    q = cpu.engine.q
    assert (cpu.eax(), q[RBX], q[RCX], q[RDX]) == REAL[0x40000000]


def test_forced_emulation_is_for_cpuid_alone(cpu: PvCpu) -> None:
    assert cpu.run("0f0b78656e0f31") == [(6, None, None)]
    assert cpu.rip == 0
    assert cpu.run("0f0b78656f0fa2") == [(6, None, None)]


def test_forced_emulation_single_steps(cpu: PvCpu) -> None:
    assert cpu.run(FORCED, flags=0x302) == [(1, None, None)]
    assert cpu.rip == 7
    assert cpu.v.debugreg[6] & 0x4000


def test_forced_emulation_in_user_mode(cpu: PvCpu) -> None:
    assert cpu.run(FORCED, user=True, ax=0x40000001) == [INT3]
    assert cpu.eax() == 0x40011


def test_forced_emulation_that_runs_off_the_mapping(cpu: PvCpu) -> None:
    """Xen reads the whole signature before it knows that this is another #UD."""
    from tests.hvcore.pv_cpu import CODE, HOLE

    at = HOLE - 2
    cpu.put(at, b"\x0f\x0b")
    jump = b"\xe9" + struct.pack("<i", at - (CODE + 5))
    assert cpu.run(jump) == [(14, 0, HOLE)]
