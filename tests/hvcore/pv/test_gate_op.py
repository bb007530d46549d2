"""Call gates of PV32 guests, through the engine: the far call faults, Xen makes it."""

from __future__ import annotations

import struct

import pytest

from hvcore.cpu.processor import CS, RSP, SS
from tests.hvcore.pv_cpu import CODE, HOLE, INT3, PV32, STACK, PvCpu

GATE, TARGET, KERNEL_CS, USER_CS, USER_SS = 0x40, 0x18, 0x19, 0xE02B, 0xE033
ENTRY = CODE + 0x100
KERNEL_STACK = 0x13000


def gate(selector: int, offset: int, dpl: int = 3, *, present: bool = True, params: int = 0) -> int:
    high = offset & 0xFFFF0000 | (0x8C00 if present else 0x0C00) | dpl << 13 | params
    return high << 32 | selector << 16 | offset & 0xFFFF


@pytest.fixture
def cpu() -> PvCpu:
    cpu = PvCpu(PV32)
    for page in (CODE >> 12, (STACK >> 12) - 1, (KERNEL_STACK >> 12) - 1):
        cpu.map(page, 0x27)
    cpu.v.kernel_ss, cpu.v.kernel_sp = 0xE021, KERNEL_STACK
    cpu.put(ENTRY, b"\xcc")
    return cpu


def with_gate(cpu: PvCpu, descriptor: int, target: int = 0x00CFBB000000FFFF) -> PvCpu:
    cpu.set_gdt({TARGET: target, GATE: descriptor})
    return cpu


def far_call(selector: int) -> bytes:
    return b"\x9a" + struct.pack("<IH", 0xDEADBEEF, selector)


def test_a_call_to_the_kernel_switches_stacks(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY))
    assert cpu.run(far_call(GATE | 3), user=True) == [INT3]
    engine = cpu.engine
    assert cpu.rip == 0x101
    assert (engine.selector(CS), engine.selector(SS), engine.cpl) == (KERNEL_CS, 0xE021, 1)
    assert engine.q[RSP] == KERNEL_STACK - 16
    assert cpu.get(KERNEL_STACK - 16, "4I") == (CODE + 7, USER_CS, STACK, USER_SS)
    assert cpu.d.trace.emulated == {"call gate": 1}


def test_parameters_are_copied(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY, params=2))
    cpu.put(STACK - 8, struct.pack("<2I", 0x11111111, 0x22222222))
    assert cpu.run(far_call(GATE | 3), user=True, sp=STACK - 8) == [INT3]
    assert cpu.get(KERNEL_STACK - 24, "6I") == (CODE + 7, USER_CS, 0x11111111, 0x22222222, STACK - 8, USER_SS)


def test_a_call_within_the_ring(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY, dpl=1))
    assert cpu.run(far_call(GATE | 1)) == [INT3]
    assert cpu.rip == 0x101
    assert cpu.engine.q[RSP] == STACK - 8
    assert cpu.get(STACK - 8, "2I") == (CODE + 7, 0xE019)


def test_a_jmp_within_the_ring(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY, dpl=1))
    assert cpu.run(b"\xea" + far_call(GATE | 1)[1:]) == [INT3]
    assert (cpu.rip, cpu.engine.q[RSP], cpu.engine.selector(CS)) == (0x101, STACK, KERNEL_CS)


def test_a_jmp_to_an_inner_ring_is_refused(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY))
    assert cpu.run(b"\xea" + far_call(GATE | 3)[1:], user=True) == [(13, TARGET, None)]


def test_a_call_through_memory(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY))
    cpu.put(STACK - 0x100, struct.pack("<IH", 0, GATE | 3))
    assert cpu.run("ff5b08", user=True, bx=STACK - 0x108) == [INT3]  # lcall *8(%ebx)
    assert cpu.rip == 0x101
    assert cpu.get(KERNEL_STACK - 16, "I") == (CODE + 3,)


def test_a_single_step_through_a_gate(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY, dpl=1))
    assert cpu.run(far_call(GATE | 1), flags=0x302) == [(1, None, None)]
    assert cpu.rip == 0x100


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        (gate(TARGET, ENTRY, dpl=1), (13, GATE, None)),  # not for user mode
        (gate(TARGET, ENTRY, present=False) & ~(3 << 45) | 3 << 16, (11, GATE, None)),
        (gate(0x50, ENTRY), (13, 0x50, None)),  # to an empty descriptor
        (0, (13, GATE, None)),
    ],
    ids=["dpl", "not present", "no target", "no gate"],
)
def test_gates_that_do_not_open(cpu: PvCpu, descriptor: int, expected: tuple[int, int, None]) -> None:
    with_gate(cpu, descriptor)
    assert cpu.run(far_call(GATE | 3), user=True) == [expected]
    assert cpu.rip == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (0x00CF3B000000FFFF, (11, TARGET, None)),  # not present
        (0x00CFB3000000FFFF, (13, TARGET, None)),  # data
        (0x00403B0000000FFF | 0x8000 << 32, (13, 0, None)),  # beyond the limit
    ],
    ids=["not present", "data", "limit"],
)
def test_targets_that_do_not_do(cpu: PvCpu, target: int, expected: tuple[int, int, None]) -> None:
    with_gate(cpu, gate(TARGET, ENTRY), target)
    assert cpu.run(far_call(GATE | 3), user=True) == [expected]


def test_a_bad_kernel_stack(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY))
    cpu.v.kernel_ss = 0xE033
    assert cpu.run(far_call(GATE | 3), user=True) == [(10, 0xE030, None)]
    cpu.v.kernel_ss = 0xE019
    assert cpu.run(far_call(GATE | 3), user=True) == [(10, 0xE018, None)]


def test_a_kernel_stack_that_is_not_mapped(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY))
    cpu.v.kernel_sp = HOLE + 0x1000
    assert cpu.run(far_call(GATE | 3), user=True) == [(14, 2, HOLE + 0xFFC)]


def test_a_kernel_stack_in_xens_range(cpu: PvCpu) -> None:
    with_gate(cpu, gate(TARGET, ENTRY))
    cpu.v.kernel_sp = 0xF5801000
    assert cpu.run(far_call(GATE | 3), user=True) == [(13, GATE, None)]


def test_a_far_call_to_a_plain_segment_needs_no_help(cpu: PvCpu) -> None:
    with_gate(cpu, 0)
    assert cpu.run(b"\x9a" + struct.pack("<IH", ENTRY, TARGET | 1)) == [INT3]
    assert cpu.engine.selector(CS) == KERNEL_CS
    assert cpu.d.trace.emulated == {}


def test_other_faults_that_name_a_gate_are_the_guests(cpu: PvCpu) -> None:
    """A data segment register cannot hold a gate; Xen looks at the instruction and leaves it."""
    with_gate(cpu, gate(TARGET, ENTRY, dpl=1))
    assert cpu.run(b"\xb8" + struct.pack("<I", GATE | 1) + b"\x8e\xd8") == [(13, GATE, None)]
