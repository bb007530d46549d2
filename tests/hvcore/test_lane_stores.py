"""Trapped stores to an L1 table: made by a lane, they end as the engine's own step of them ends in Python."""

from __future__ import annotations

import os
import random
import zlib
from typing import NamedTuple

import pytest

from hvcore.abi import Abi
from hvcore.cpu.processor import FS, GS, RCX, RDI, RIP
from hvcore.errors import DomainCrash
from hvcore.pv.frames32 import Frames32
from hvcore.pv.frames64 import Frames64
from hvcore.pv.lanes import Lanes
from hvcore.pv.ro_page_fault import RoPageFault, VMASST_writable_pagetables
from hvcore.pv.traps import Traps
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
_XENHEAP = 24  # frames below the guest's, Xen's own of it among them


class Outcome(NamedTuple):
    """All that a store leaves."""

    crash: str
    registers: tuple[int, ...]
    eflags: int
    clock: tuple[int, int]
    counts: tuple[bytes, ...]
    memory: int
    stores: int
    page_faults: int


class StoringCpu(PvCpu):
    """A kernel that stores to its L1 table, under the real handler of traps, until its `int3`."""

    def __init__(self, abi: Abi, *, lanes: bool) -> None:
        super().__init__(abi)
        d = self.d
        d.vm_assist = VMASST_writable_pagetables
        self.ro = RoPageFault(d)
        frames = Frames32(d.vcpus) if abi.is_32bit else Frames64(d.vcpus)
        self.traps = Traps(d, frames, self.ro, lambda: None)
        self.ro.reject = self.traps.inject
        self.lanes = Lanes(d)
        self.engine.set_handlers(self)
        self.lanes.run(self.v if lanes else None)
        self.set_leaf(DATA_PAGE, OTHER, 0x67)
        self.set_leaf(ALIAS, 3, 0x25)
        self.engine.q[R9] = self.engine.q[R13] = ENTRY

    def set_leaf(self, va: int, page: int, flags: int) -> None:
        at = ((self.base + 3 - self.mem.base_mfn) << 9) + (va >> 12)
        assert self.d.mm.mod_l1_entry(at, (self.base + page) << 12 | flags if flags else 0) == 0

    def interrupt(self, vector: int) -> None:
        if vector == 3:
            self.engine.stop()
        else:
            self.traps.interrupt(vector)

    def store(self, code: str, flags: int, **regs: int) -> Outcome:
        d, engine, crash = self.d, self.engine, ""
        engine.words.horizon = engine.words.turn_end = d.clock.now() + (1 << 40)
        engine.cell[0], engine.cell[1] = 1 << 40, 0
        try:
            self.run(code, user=False, flags=flags, **regs)
        except DomainCrash as error:  # the guest has no handler for what it was told
            crash = str(error)
        frames = d.frames
        counts = (frames.count, frames.tcount, frames.ptype, frames.flags)
        return Outcome(
            crash,
            tuple(engine.q[:17]),
            engine.read_eflags(),
            (engine.cell[0], engine.cell[1]),
            tuple(map(bytes, counts)),
            zlib.crc32(self.mem.view[(self.base - _XENHEAP - self.mem.base_mfn) << 12 :]),
            self.ro.stores,
            d.trace.exceptions[14],
        )


def both(abi: Abi) -> tuple[StoringCpu, StoringCpu]:
    return StoringCpu(abi, lanes=True), StoringCpu(abi, lanes=False)


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
            assert with_lanes.store(code, flags, **regs) == without.store(code, flags, **regs), (code, regs)
    taken, left = with_lanes.lanes.counts()["page table store"]
    assert min(taken, left) > 100
    assert without.lanes.counts() == {}


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_lanes_take_what_kernels_store_with(abi: Abi) -> None:
    cpu = StoringCpu(abi, lanes=True)
    assert [code for code in taken_by_lanes(abi) if not took(cpu, code)] == []
    assert [code for code in LEFT if took(cpu, code)] == []


def taken_by_lanes(abi: Abi) -> list[str]:
    return TAKEN.split() + (TAKEN64 if abi is PV64 else TAKEN32).split()


def took(cpu: StoringCpu, code: str) -> bool:
    before = cpu.lanes.counts().get("page table store", (0, 0))[0]
    cpu.set_leaf(SLOT << 12, TARGET, 0x67)
    cpu.store(code, 0x202, **dict.fromkeys(("ax", "bx", "cx", "dx", "si"), 0), di=ENTRY)
    return cpu.lanes.counts()["page table store"][0] > before


@pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])
def test_a_store_that_begins_in_the_page_before_is_not_taken_for_one_at_the_page(abi: Abi) -> None:
    wide = "48890f" if abi is PV64 else "890f"
    outcomes = []
    for cpu in both(abi):
        cpu.d.mm.flush_tlb()
        outcomes.append(cpu.store(wide, 0x202, cx=0, di=ALIAS - (4 if abi is PV64 else 2)))
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
        outcomes.append(cpu.store("48890f", 0x202, cx=0, di=ENTRY))
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
    outcomes = [cpu.store("48890f", 0x202, cx=0, di=0x2000 + 8 * SLOT) for cpu in both(PV64)]
    assert outcomes[0] == outcomes[1]
    assert (outcomes[0].stores, outcomes[0].crash[:22]) == (0, "Unhandled: vec 14, #PF")


@pytest.mark.parametrize("behind", [0, 3])
def test_a_breakpoint_at_the_store_or_behind_it_is_met(behind: int) -> None:
    outcomes = []
    for cpu in both(PV64):
        cpu.run("")
        cpu.engine.set_debug(0, CODE + behind)
        cpu.engine.set_debug(7, 0x401)
        outcomes.append(cpu.store("48890f90", 0x202, cx=0, di=ENTRY))
    assert outcomes[0] == outcomes[1]
    assert "#DB" in outcomes[0].crash
