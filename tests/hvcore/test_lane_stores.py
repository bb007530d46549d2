"""Trapped stores to an L1 table: made by a lane, they end as the engine's own step of them ends in Python."""

from __future__ import annotations

import os
import random

import pytest

from hvcore.abi import Abi
from hvcore.cpu.processor import FS, GS, RCX, RDI, RIP
from tests.hvcore import lane_cpu
from tests.hvcore.lane_cpu import L1, LaneCpu
from tests.hvcore.pv.test_ro_page_fault import STORES, WIDE
from tests.hvcore.pv_cpu import CODE, HOLE, PV32, PV64, PvCpu

SLOT = 60  # of the L1 table, in the middle of the hole
ENTRY = 0x3000 + 8 * SLOT
TARGET, OTHER = 20, 21  # pages
DATA_PAGE, ALIAS = HOLE, HOLE + 0x1000  # a writable page, and behind it the L1 table once more

# What a lane makes itself, all to the entry at (edi/rdi) or near to it; in 64-bit code with REX, too.
TAKEN = """
    880f 66890f 890f c60701 66c7070000 c70700000000 860f 870f 66870f 080f 090f 200f 210f 300f 310f
    800f01 810f01000000 830f01 66830f01 0fb00f 0fb10f 660fb10f f0080f f0830f01 0fc70f f00fc70f 3e890f
    8827 8627 8027f0 3e8027fd f08027fd 833700 2e3e890f f0870f 2e890f
    894f08 898f08010000 890c3e 894c3e10 898c3e00010000
"""
TAKEN32 = "890de0310000 36890f 26890f"
TAKEN64 = """
    48890f 48870f 480fb10f f0480fb10f 48c70700000000 44880f 4c890f 40882f 48830f01 48890c25e0310000
    498909 49894d00 43890c21 4a890c27 4a890c67 48892f 48886708 480fb00f 6648890f 48890dd931ffff
    48c705d531ffff00000000
"""
# What a lane leaves to Python: other instructions, and prefixes that it does not know.
LEFT = (
    "000f",
    "010f",
    "f717",
    "ff07",
    "0fc10f",
    "0fab0f",
    "0f9407",
    "aa",
    "f2890f",
    "f3890f",
    "67890f",
    "8f07",
)


TRIALS = int(os.environ.get("LANE_STORE_TRIALS", "12"))  # of each form
R9, R13 = 9, 13


def both(abi: Abi) -> tuple[LaneCpu, LaneCpu]:
    cpus = lane_cpu.both(abi)
    for cpu in cpus:
        prepare(cpu)
    return cpus


def prepare(cpu: LaneCpu) -> LaneCpu:
    cpu.set_leaf(DATA_PAGE, OTHER, 0x67)
    cpu.set_leaf(ALIAS, L1, 0x25)
    cpu.engine.q[R9] = cpu.engine.q[R13] = ENTRY
    return cpu


def values(cpu: PvCpu) -> list[int]:
    """What is stored or compared: nothing, mappings, parts of them, and what may not stand in a table."""
    ptes = [(cpu.base + page) << 12 for page in (TARGET, OTHER)]
    return [
        0,
        *(pte | flags for pte in ptes for flags in (0x25, 0x27, 0x67, 0x26)),
        ptes[0] | 0x3F,
        0x61,
        (1 << 64) - 1,
    ]


def trial(cpu: PvCpu, dice: random.Random) -> tuple[int, dict[str, int], int]:
    """How TARGET was mapped in the entry, registers and flags."""
    known = values(cpu)
    old = dice.choice((0, 0x25, 0x27, 0x67))
    entry = (cpu.base + TARGET) << 12 | old if old else 0
    near = dice.choice((0, 0, 0, 0, 4, 1, 2, 7))
    ecx = dice.choice(known) >> 8 * dice.choice((0, 0, 0, near))
    eax = dice.choice((entry, entry, entry >> 8 * near, dice.choice(known)))
    regs = {
        "ax": eax,
        "bx": ecx,
        "cx": ecx,
        "dx": dice.choice((entry >> 32, 0, ecx)),
        "di": ENTRY + near,
        "si": 0,
    }
    mask = (1 << 8 * cpu.abi.word) - 1
    return old, {name: value & mask for name, value in regs.items()}, dice.choice((0x202, 0xAD7, 0x247))


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_every_store_ends_as_the_engines_own_step_ends(abi: Abi) -> None:
    dice = random.Random(1)
    with_lanes, without = both(abi)
    codes = {*STORES, *LEFT, *taken_by_lanes(abi), *(WIDE if abi is PV64 else ())}
    for code in sorted(codes):
        for _ in range(TRIALS):
            old, regs, flags = trial(with_lanes, dice)
            for cpu in (with_lanes, without):
                cpu.set_leaf(SLOT << 12, TARGET, 0)
                cpu.set_leaf(SLOT << 12, TARGET, old)
            assert with_lanes.act(code, flags, user=False, **regs) == without.act(
                code, flags, user=False, **regs
            ), (code, regs)
    taken, left = with_lanes.lanes.counts()["page table store"]
    assert min(taken, left) > 100
    assert without.lanes.counts() == {}


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_lanes_take_what_kernels_store_with(abi: Abi) -> None:
    cpu = prepare(LaneCpu(abi, lanes=True))
    assert [code for code in taken_by_lanes(abi) if not took(cpu, code)] == []
    assert [code for code in LEFT if took(cpu, code)] == []


def taken_by_lanes(abi: Abi) -> list[str]:
    return TAKEN.split() + (TAKEN64 if abi is PV64 else TAKEN32).split()


def took(cpu: LaneCpu, code: str) -> bool:
    before = cpu.taken("page table store")
    cpu.set_leaf(SLOT << 12, TARGET, 0x67)
    cpu.act(code, 0x202, user=False, **dict.fromkeys(("ax", "bx", "cx", "dx", "si"), 0), di=ENTRY)
    return cpu.taken("page table store") > before


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_a_store_that_begins_in_the_page_before_is_not_taken_for_one_at_the_page(abi: Abi) -> None:
    wide = "48890f" if abi is PV64 else "890f"
    outcomes = []
    for cpu in both(abi):
        cpu.d.mm.flush_tlb()
        outcomes.append(cpu.act(wide, 0x202, cx=0, di=ALIAS - (4 if abi is PV64 else 2)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("left", [99, 100, 101, 103, 150, 202, 203, 204, 400])
def test_the_horizon_may_lie_within_the_store(left: int) -> None:
    outcomes = []
    for cpu in both(PV64):
        cpu.run("")
        cpu.put(CODE, bytes.fromhex("48890f 48890f ebfe"))
        cpu.engine.q[RCX], cpu.engine.q[RDI], cpu.engine.q[RIP] = 0, ENTRY, CODE
        cpu.engine.flush_code()
        seen = []
        cpu.engine.cell[0], cpu.engine.cell[1] = left, 0
        for _ in range(8):
            cpu.engine.run()
            seen.append((cpu.engine.q[RIP], *cpu.engine.cell[:2], cpu.ro.pending, cpu.ro.stores))
            cpu.engine.cell[0] += left
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("spoil", ["assist", "process"])
def test_without_the_assist_and_from_a_process_it_is_the_guests_own_fault(spoil: str) -> None:
    outcomes = []
    for cpu in both(PV64):
        cpu.v.user_cr3_mfn = cpu.v.cr3_mfn
        if spoil == "assist":
            cpu.d.vm_assist = 0
        else:
            cpu.v.kernel_mode = False
        outcomes.append(cpu.act("48890f", 0x202, cx=0, di=ENTRY))
        assert cpu.ro.stores == 0
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].crash


@pytest.mark.parametrize(("prefix", "segment"), [("64", FS), ("65", GS)])
def test_the_base_of_a_segment_counts(prefix: str, segment: int) -> None:
    places = []
    for cpu in both(PV64):
        cpu.run("")
        cpu.engine.set_segment_base(segment, 8)
        cpu.set_leaf((SLOT + 1) << 12, TARGET, 0x67)
        cpu.engine.q[RDI], cpu.engine.q[RIP] = ENTRY, CODE
        cpu.put(CODE, bytes.fromhex(f"{prefix}48c70700000000cc"))
        cpu.engine.flush_code()
        cpu.engine.run()
        places.append((cpu.get(ENTRY, "2Q"), cpu.ro.stores, tuple(cpu.engine.q[:17])))
    assert places[0] == places[1]
    assert places[0][:2] == ((0, 0), 1)


def test_a_store_to_a_table_above_is_refused() -> None:
    outcomes = [cpu.act("48890f", 0x202, cx=0, di=0x2000 + 8 * SLOT) for cpu in both(PV64)]
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0].stores, outcomes[0].crash[:22]) == (0, "Unhandled: vec 14, #PF")


@pytest.mark.parametrize("behind", [0, 3])
def test_a_breakpoint_at_the_store_or_behind_it_is_met(behind: int) -> None:
    outcomes = []
    for cpu in both(PV64):
        cpu.run("")
        cpu.engine.set_debug(0, CODE + behind)
        cpu.engine.set_debug(7, 0x401)
        outcomes.append(cpu.act("48890f90", 0x202, cx=0, di=ENTRY))
    assert outcomes[0] == outcomes[1]
    assert "#DB" in outcomes[0].crash
