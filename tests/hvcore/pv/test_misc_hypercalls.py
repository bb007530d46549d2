from __future__ import annotations

import struct

import pytest

from hvcore.cpu import state_window as sw
from hvcore.cpu.processor import FS, GS
from hvcore.public.errno import EINVAL, ENODEV, ENOSYS, EPERM
from hvcore.pv.misc_hypercalls import (
    do_fpu_taskswitch,
    do_get_debugreg,
    do_set_debugreg,
    do_set_segment_base,
    do_stack_switch,
)
from tests.hvcore.pv_cpu import CODE, INT3, PV32, PV64, PvCpu

USER_BASE = 0x11223344


@pytest.fixture(params=[PV32, PV64], ids=["pv32", "pv64"])
def cpu(request: pytest.FixtureRequest) -> PvCpu:
    return PvCpu(request.param)


@pytest.fixture
def cpu64() -> PvCpu:
    return PvCpu(PV64)


def test_fpu_taskswitch_makes_the_next_fpu_instruction_fault(cpu: PvCpu) -> None:
    assert do_fpu_taskswitch(cpu.v, 1) == 0
    assert cpu.run("0f57c0") == [(7, None, None)]
    assert cpu.run("d9ee") == [(7, None, None)]
    assert cpu.run("40") == [INT3]
    assert do_fpu_taskswitch(cpu.v, 0) == 0
    assert cpu.run("0f57c0 d9ee") == [INT3]


def test_stack_switch_raises_the_rpl(cpu: PvCpu) -> None:
    assert do_stack_switch(cpu.v, 0x20, 0x1000) == 0
    assert (cpu.v.kernel_ss, cpu.v.kernel_sp) == (0x20 | cpu.abi.kernel_cpl, 0x1000)
    assert do_stack_switch(cpu.v, 0x23, 0x2000) == 0
    assert cpu.v.kernel_ss == 0x23


# -- debug registers


def test_debug_addresses_are_kept(cpu: PvCpu) -> None:
    for reg in range(4):
        assert do_set_debugreg(cpu.v, reg, 0x1000 + reg) == 0
    assert [do_get_debugreg(cpu.v, reg) for reg in range(4)] == [0x1000, 0x1001, 0x1002, 0x1003]


@pytest.mark.parametrize(
    ("value", "rc"),
    [
        (0x7FFFFFFFFFFF, 0),
        (0x800000000000, -EPERM),
        (0xFFFF800000000000, -EPERM),
        (0xFFFF87FFFFFFFFFF, -EPERM),
        (0xFFFF880000000000, 0),
    ],
)
def test_addresses_in_xens_range_are_refused(cpu64: PvCpu, value: int, rc: int) -> None:
    assert do_set_debugreg(cpu64.v, 3, value) == rc
    assert do_get_debugreg(cpu64.v, 3) == (0 if rc else value)


def test_reserved_bits_of_dr6_and_dr7(cpu: PvCpu) -> None:
    """DR_STATUS_RESERVED_*, DR_CONTROL_RESERVED_* of asm/debugreg.h."""
    assert do_set_debugreg(cpu.v, 6, 0) == 0
    assert do_get_debugreg(cpu.v, 6) == 0xFFFF0FF0
    assert do_set_debugreg(cpu.v, 6, 0xFFFFFFFF) == 0
    assert do_get_debugreg(cpu.v, 6) == 0xFFFFEFFF
    assert do_set_debugreg(cpu.v, 7, 0) == 0
    assert do_get_debugreg(cpu.v, 7) == 0x400
    assert do_set_debugreg(cpu.v, 7, 0xFFFF_FFFF & ~0x2000 & ~0xAAAA0000) == 0
    assert do_get_debugreg(cpu.v, 7) == 0x555507FF


@pytest.mark.parametrize("reg", [6, 7])
def test_the_upper_half_is_reserved(cpu64: PvCpu, reg: int) -> None:
    assert do_set_debugreg(cpu64.v, reg, 1 << 32) == -EINVAL


def test_general_detect_and_unknown_registers(cpu: PvCpu) -> None:
    assert do_set_debugreg(cpu.v, 7, 0x2000) == -EPERM
    assert do_get_debugreg(cpu.v, 7) == 0x400
    for reg in (8, 15, 0xFFFFFFFF):
        assert do_set_debugreg(cpu.v, reg, 0) == -ENODEV
        assert do_get_debugreg(cpu.v, reg) == -ENODEV


def test_aliases_end_with_cr4_de(cpu: PvCpu) -> None:
    assert do_set_debugreg(cpu.v, 4, 1) == 0
    assert do_get_debugreg(cpu.v, 4) == 0xFFFF0FF1
    assert do_set_debugreg(cpu.v, 5, 1) == 0
    assert do_get_debugreg(cpu.v, 5) == 0x401
    cpu.v.ctrlreg[4] |= 8
    assert [do_set_debugreg(cpu.v, reg, 0) for reg in (4, 5)] == [-ENODEV, -ENODEV]
    assert [do_get_debugreg(cpu.v, reg) for reg in (4, 5)] == [-ENODEV, -ENODEV]


def test_io_breakpoints_are_xens_to_emulate(cpu: PvCpu) -> None:
    value = 0x00D20401 | 0xC  # breakpoint 0 on I/O, 1 on writes and globally enabled
    assert do_set_debugreg(cpu.v, 7, value) == -EPERM
    cpu.v.ctrlreg[4] |= 8
    assert do_set_debugreg(cpu.v, 7, value) == 0
    assert do_get_debugreg(cpu.v, 7) == value
    assert cpu.v.debugreg[7] & 0xF == 0xC  # what the processor would get
    assert do_set_debugreg(cpu.v, 7, 0x400) == 0
    assert do_get_debugreg(cpu.v, 7) == 0x400


def test_another_vcpus_registers_do_not_reach_the_engine(cpu: PvCpu) -> None:
    from hvcore.vcpu import Vcpu

    other = Vcpu(cpu.d, 1)
    cpu.d.vcpus.append(other)
    assert do_set_debugreg(other, 0, 0x5000) == 0
    assert other.debugreg[0] == 0x5000
    assert cpu.engine.q[sw.DR // 8] == 0


def test_a_breakpoint_on_code_raises_db_before_it_runs(cpu: PvCpu) -> None:
    assert do_set_debugreg(cpu.v, 0, CODE + 2) == 0
    assert do_set_debugreg(cpu.v, 7, 0x401) == 0  # L0
    assert cpu.run("9090b8ffffffff", ax=0) == [(1, None, None)]
    assert (cpu.rip, cpu.eax()) == (2, 0)
    assert cpu.engine.take_debug_status() & 0xF == 1
    assert do_set_debugreg(cpu.v, 7, 0x400) == 0
    assert cpu.run("9090b8ffffffff", ax=0) == [INT3]


# -- segment bases


def test_segment_bases_are_not_for_32_bit_guests() -> None:
    cpu = PvCpu(PV32)
    for which in range(5):
        assert do_set_segment_base(cpu.v, which, 0) == -ENOSYS


def test_fs_and_kernel_gs_take_effect_at_once(cpu64: PvCpu) -> None:
    assert do_set_segment_base(cpu64.v, 0, 0x7FFFDEAD0000) == 0
    assert do_set_segment_base(cpu64.v, 2, 0xFFFF8800BEEF0000) == 0
    assert cpu64.engine.segment_base(FS) == 0x7FFFDEAD0000
    assert cpu64.engine.segment_base(GS) == 0xFFFF8800BEEF0000
    assert do_set_segment_base(cpu64.v, 1, 0x1000) == 0
    assert cpu64.v.gs_base_user == 0x1000
    assert cpu64.engine.segment_base(GS) == 0xFFFF8800BEEF0000


def test_bases_must_be_canonical_and_known(cpu64: PvCpu) -> None:
    for which in range(3):
        assert do_set_segment_base(cpu64.v, which, 1 << 47) == -EINVAL
    assert do_set_segment_base(cpu64.v, 4, 0) == -EINVAL


def test_the_user_gs_selector(cpu64: PvCpu) -> None:
    base = (USER_BASE & 0xFFFFFF) << 16 | (USER_BASE >> 24) << 56
    cpu64.set_gdt({0x18: 0x00CFF3000000FFFF | base, 0x20: 0x00CFFB000000FFFF & ~(1 << 41)})
    assert do_set_segment_base(cpu64.v, 2, 0xFFFF8800BEEF0000) == 0
    assert do_set_segment_base(cpu64.v, 3, 0x18) == 0
    assert cpu64.engine.selector(GS) == 0x1B
    assert cpu64.v.gs_base_user == USER_BASE
    assert cpu64.engine.segment_base(GS) == 0xFFFF8800BEEF0000


@pytest.mark.parametrize("selector", [0, 3, 0x20, 0x28, 0x1000, 0xF000, 0xE008], ids=hex)
def test_a_bad_user_gs_selector_becomes_null(cpu64: PvCpu, selector: int) -> None:
    cpu64.set_gdt({0x20: struct.unpack("<Q", bytes.fromhex("ffff000000f9cf00"))[0]})  # execute-only code
    cpu64.v.gs_base_user = 0x999
    assert do_set_segment_base(cpu64.v, 3, selector) == 0
    assert cpu64.engine.selector(GS) & ~3 == 0
    assert cpu64.v.gs_base_user == 0
