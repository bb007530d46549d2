"""Entering and leaving the guest's kernel by lanes: frames, selectors and flags as Python makes them."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable

import pytest

from hvcore.abi import Abi
from hvcore.cpu.processor import DS, ES, FS, GS
from hvcore.pv.segments import load_data
from hvcore.x86 import M32
from tests.hvcore.lane_cpu import LaneCpu, both
from tests.hvcore.pv_cpu import CODE, DATA, HOLE, PV32, PV64, STACK

TRIALS = int(os.environ.get("LANE_FRAME_TRIALS", "120"))  # of each way in or out
IRET, SET_SEGMENT_BASE = 23, 25
SEGBASE_GS_USER_SEL = 3
HANDLER = CODE + 0x800  # an `int3`
# The guest's GDT: code and data for its rings, and what may not be loaded.
(
    CODE1,
    DATA1,
    BASED1,
    CODE3,
    DATA3,
    CONFORMING,
    CONFORMING3,
    ABSENT,
    ABSENT_CODE,
    READ_ONLY,
    EXECUTE_ONLY,
    LONG3,
) = range(0x60, 0xC0, 8)
DESCRIPTORS = {
    CODE1: 0x00CFBA000000FFFF,
    DATA1: 0x00CFB2000000FFFF,
    BASED1: 0x00CFB20010000FFF,
    CODE3: 0x00CFFA000000FFFF,
    DATA3: 0x00CFF2000000FFFF,
    CONFORMING: 0x00CF9E000000FFFF,
    CONFORMING3: 0x00CFFE000000FFFF,
    ABSENT: 0x00CF72000000FFFF,
    ABSENT_CODE: 0x00CF7A000000FFFF,
    READ_ONLY: 0x00CFF0000000FFFF,
    EXECUTE_ONLY: 0x00CFF8000000FFFF,
    LONG3: 0x00AFFA000000FFFF,
}
FLAGS = (0x202, 0x246, 0xAD7, 0x4202, 0x3202, 0x40602, 0x10202, 0x1202)


# By instruction: `int n`, `into`, loads and stores, `cli` and `sti`, and two that have none.
WAYS_IN = {
    "cd80": "software interrupt",
    "cd21": "software interrupt",
    "ce90": "software interrupt",
    "8a07": "page fault",
    "c60700": "page fault",
    "fa": "cli, sti",
    "fb": "cli, sti",
    "0f0b": "",
    "8ed8": "",
}


def selectors(abi: Abi) -> list[int]:
    """Good and bad ones, the good ones more often."""
    flat = [abi.flat_kernel_cs, abi.flat_kernel_ss, abi.flat_user_cs, abi.flat_user_ss]
    own = [selector | rpl for selector in DESCRIPTORS for rpl in (0, 1, 3)]
    local = [selector | 7 for selector in (CODE3, DATA3)]
    return [*flat, *own, *local, 0, 3, 0xF000 | 3, 0x500 | 1]


def prepare(cpu: LaneCpu) -> LaneCpu:
    """A GDT, handlers for everything, and room for what goes to the stack."""
    allowed = (row for row in DESCRIPTORS.items() if cpu.abi is PV64 or row[0] != LONG3)
    cpu.set_gdt(dict(allowed))
    cpu.put(HANDLER, b"\xcc")
    cpu.v.user_cr3_mfn = cpu.v.cr3_mfn if cpu.abi is PV64 else 0
    for vector in range(256):
        cpu.v.trap_ctxt[vector] = (vector % 8, cpu.abi.flat_kernel_cs, HANDLER)
    cpu.v.trap_ctxt[3] = (0, 0, 0)  # lanes leave it to Python, which ends there
    return cpu


def set_state(cpu: LaneCpu, dice: random.Random, kernel: list[int]) -> None:
    """The kernel's stack and its handler, the event mask, IOPL, and data segments."""
    v, abi = cpu.v, cpu.abi
    good_cs, good_ss = (CODE1 | 1, DATA1 | 1) if abi.is_32bit else (abi.flat_kernel_cs, abi.flat_kernel_ss)
    v.kernel_ss = dice.choice((abi.flat_kernel_ss, good_ss, BASED1 | 1, dice.choice(kernel)))
    v.kernel_sp = dice.choice(
        (STACK + 0x100, STACK + 0x100, STACK + 4, HOLE + 8, 0x1000, dice.getrandbits(32))
    )
    cs = dice.choice((abi.flat_kernel_cs, good_cs, good_cs, dice.choice(kernel)))
    v.trap_ctxt[0x80] = v.trap_ctxt[14] = v.trap_ctxt[0x21] = (
        dice.randrange(8), cs, dice.choice((HANDLER, HANDLER, HANDLER, 0))
    )  # fmt: skip
    v.callbacks[0] = (cs, HANDLER, 0)
    v.info[0], v.info[1] = 0, dice.randrange(2)
    v.iopl = dice.choice((0, 0x1000, 0x2000, 0x3000))
    v.nmi_pending = v.async_exception_mask = False
    cpu.d.vm_assist = dice.choice((4, 4, 0x14))
    v.kernel_mode = True


def compare(
    abi: Abi, trial: Callable[[LaneCpu, random.Random, int], object], trials: int = TRIALS
) -> LaneCpu:
    """Both ways of many trials, each from the same dice; the one with lanes."""
    with_lanes, without = map(prepare, both(abi))
    for number in range(trials):
        outcomes = [trial(cpu, random.Random(number), number) for cpu in (with_lanes, without)]
        assert outcomes[0] == outcomes[1], number
    return with_lanes


ABIS = pytest.mark.parametrize("abi", [PV32, PV64], ids=["pv32", "pv64"])


@ABIS
@pytest.mark.parametrize("code", WAYS_IN)
def test_ways_into_the_kernel(abi: Abi, code: str) -> None:
    if code == "ce90" and abi is PV64:
        return  # there is no `into`

    def trial(cpu: LaneCpu, dice: random.Random, _number: int) -> object:
        set_state(cpu, dice, selectors(abi))
        user = dice.random() < 0.6
        if abi is PV64:
            cpu.v.kernel_mode = not user
        sp = dice.choice((STACK, STACK + 12, DATA + 20, HOLE + 4))
        di, ax = dice.choice((HOLE, 0x1000, 0x30)), dice.choice((0x2013, DATA3 | 3))  # the one beyond the GDT
        return cpu.act(code, dice.choice(FLAGS), user=user, sp=sp, di=di, ax=ax)

    cpu = compare(abi, trial)
    lane = WAYS_IN[code]
    assert not lane or cpu.taken(lane) > TRIALS // 20


@ABIS
def test_ways_out_of_the_kernel(abi: Abi) -> None:
    code = "cd82" if abi.is_32bit else "0f05"
    known = selectors(abi)
    pairs = [
        (abi.flat_user_cs, abi.flat_user_ss),
        (abi.flat_kernel_cs, abi.flat_kernel_ss),
        (CODE3 | 3, DATA3 | 3),
    ]
    pairs += [(CODE1 | 1, DATA1 | 1)] if abi.is_32bit else [(LONG3 | 3, DATA3 | 3), (0xE023, 0xE02B)]

    odd = [(cs, ss) for good in pairs for bad in known for cs, ss in ((good[0], bad), (bad, good[1]))]

    def trial(cpu: LaneCpu, dice: random.Random, number: int) -> object:
        set_state(cpu, dice, known)
        cs, ss = dice.choice(pairs) if number % 2 else odd[number // 2 % len(odd)]
        eflags = dice.choice((*FLAGS, *FLAGS, 0x2, 0x20202, 0x302))
        sp = dice.choice((STACK, STACK, STACK, STACK + 8, STACK + 0xFF0, HOLE - 24))
        if abi.is_32bit:
            frame = struct.pack("<6I", 7, HANDLER, cs | dice.getrandbits(16) << 16, eflags, DATA, ss)
        else:
            in_syscall = dice.choice((0, 0, 0x100))
            cs &= dice.choice((~0, ~3))
            frame = struct.pack("<9Q", 7, 8, 9, in_syscall, HANDLER, cs, eflags, DATA, ss)
        cpu.put(sp, frame[: max(HOLE - sp, 0)])
        cpu.v.info[0] = dice.randrange(2)
        cpu.v.info[1] = 1
        for register in (DS, ES, FS, GS):
            load_data(cpu.v, register, dice.choice((DATA1 | 1, DATA3 | 3, 0)))
        return cpu.act(code, 0x202, sp=sp, ax=IRET)

    assert compare(abi, trial, 2 * len(odd)).taken("iret") > len(odd) // 2


@ABIS
def test_an_upcall_comes_on_the_way_back_from_a_hypercall(abi: Abi) -> None:
    """iret lets events through, of which one is pending."""
    code = "cd82" if abi.is_32bit else "0f05"
    with_lanes, without = map(prepare, both(abi))
    for cpu in (with_lanes, without):
        cpu.v.callbacks[0] = (cpu.abi.flat_kernel_cs, HANDLER, 0)
        frame = [7, CODE + 5, abi.flat_kernel_cs, 0x202]
        if abi is PV64:
            frame = [7, 8, 9, 0, CODE + 5, abi.flat_kernel_cs & ~3, 0x202, DATA, abi.flat_kernel_ss]
        cpu.put(STACK, struct.pack(f"<{len(frame)}{'I' if abi.is_32bit else 'Q'}", *frame))
        cpu.v.info[0], cpu.v.info[1] = 1, 1
    outcomes = [cpu.act(code, 0x202, sp=STACK, ax=IRET) for cpu in (with_lanes, without)]
    assert outcomes[0] == outcomes[1]
    assert with_lanes.taken("iret") == 1
    assert with_lanes.d.words.events_delivered == without.d.words.events_delivered == 1
    assert outcomes[0].registers[16] & M32 == HANDLER + 1


@ABIS
def test_closed_ports_keep_nothing(abi: Abi) -> None:
    cpu = LaneCpu(abi, lanes=True)
    assert "#GP" in cpu.act("b007 e670").crash
    assert cpu.d.cmos_idx == 0


@ABIS
def test_what_is_written_to_ports_that_xen_keeps_is_there(abi: Abi) -> None:
    """Once ports are open: out 0x70, out 0xcf8 as four bytes and as one, in from there."""
    cpu = LaneCpu(abi, lanes=True)
    cpu.v.iopl = 0x3000
    outcome = cpu.act("e480 b834120000 e670 baf80c0000 ef b007 ee 31c0 ed")
    assert outcome.registers[0] & M32 == 0x1234
    assert (cpu.d.cmos_idx, cpu.d.pci_cf8) == (0x34, 0x1234)
    assert cpu.engine.words.port_writes == 2
    assert cpu.d.trace.exceptions[13] == 3  # what opened them, the byte to 0xcf8, and the last


def test_any_selector_as_the_gs_of_processes() -> None:
    known = selectors(PV64)

    def trial(cpu: LaneCpu, dice: random.Random, number: int) -> object:
        cpu.v.gs_base_user, selector = dice.getrandbits(40), known[number]
        return cpu.act(
            "0f05", ax=SET_SEGMENT_BASE, di=SEGBASE_GS_USER_SEL, si=selector | dice.choice((0, 1 << 20))
        )

    assert compare(PV64, trial, len(known)).taken("set_segment_base") > len(known) // 3
