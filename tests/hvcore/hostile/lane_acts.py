"""Random acts upon a vCPU, for two that differ in one thing: whether lanes answer.

The kernel and its process have page tables of their own (test_address_spaces.py), the GDT has good and bad
descriptors, every vector a handler. Registers, flags, stacks, arguments and clocks are random; what an act
leaves is compared whole.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random

from hvcore.abi import PV64, Abi
from hvcore.cpu import state_window as sw
from hvcore.cpu.processor import DS, ES, FS, GS, RIP, RSP
from hvcore.errors import DomainCrash
from hvcore.public.xen import DOMID_SELF, Hypercall
from hvcore.pv.frames64 import Frames64
from hvcore.pv.segments import load_cs_ss, load_data
from tests.hvcore.lane_cpu import Outcome
from tests.hvcore.pv.test_ro_page_fault import STORES, WIDE
from tests.hvcore.pv_cpu import GDT_PAGE
from tests.hvcore.test_address_spaces import (
    CODE,
    DATA,
    KERNEL_COPY,
    NEW,
    SPARE,
    SPARE_L1,
    STACK,
    USER_L1,
    USER_L2,
    USER_L4,
    USERS,
    WRITTEN,
    Spaces,
)
from tests.hvcore.test_lane_frames import FLAGS, HANDLER, prepare, selectors, set_state
from tests.hvcore.test_lane_stores import LEFT, TAKEN, TAKEN32, TAKEN64

H = Hypercall
L1, HOLE = 3, 46  # the kernel's L1 table; pages from there on are not mapped
ARGUMENTS = WRITTEN << 12
LIST = ARGUMENTS + 0x800  # of a multicall
HOT = (DATA, USERS, NEW, SPARE, SPARE_L1, KERNEL_COPY, 46, 47, 48)
TABLES = (0, 1, 2, L1, USER_L4, USER_L2, USER_L1, SPARE_L1, KERNEL_COPY)
PTE_FLAGS = (0, 0x1, 0x5, 0x7, 0x21, 0x25, 0x25, 0x27, 0x61, 0x63, 0x65, 0x67, 0x67, 0xA7, 0x3F, 0x167, 0xE67)
ODD = (0, 1, 2, 3, 7, 64, 65, 513, 0x7FF0, 0x7FFFFFFF, 0xF57FFFFC, 0xF5800000, 0xFFFFFFFF,
       (1 << 47) - 8, 1 << 47, 0xFFFF800000000000, 0xFFFF880000000000, (1 << 64) - 8)  # fmt: skip
# Interrupts, and what is emulated or refused.
INSTRUCTIONS = (
    "cd80", "cd80", "cd21", "fa", "fb", "f4", "0f0b", "0f01d0", "0f31", "0fa2", "e421", "e670", "0f05",
    "cd82", "8ed8", "0f20d8", "0f06", "0f01f9",
)  # fmt: skip
REGISTERS = 16
CLOCK = 1 << 13  # nanoseconds of an act that nothing cuts short


class ActingCpu(Spaces):
    """A vCPU that does as the dice say."""

    def __init__(self, abi: Abi, *, lanes: bool) -> None:
        super().__init__(lanes=lanes, abi=abi)
        gdt = (self.base + GDT_PAGE) << 12 | 0x25  # not writable anywhere
        assert self.d.mm.mod_l1_entry(((self.base + USER_L1 - self.mem.base_mfn) << 9) + GDT_PAGE, gdt) == 0
        self.set_entry(SPARE_L1, GDT_PAGE, gdt)
        self.set_entry(KERNEL_COPY, GDT_PAGE, gdt)
        prepare(self)
        self.v.is_initialised = True
        if abi is PV64:
            self.v.user_cr3_mfn = self.base + USER_L4  # prepare() has one page table for both
        self.selectors = selectors(abi)
        self.stores = [*STORES, *LEFT, *TAKEN.split(), *(TAKEN64 if abi is PV64 else TAKEN32).split()]
        self.stores += WIDE if abi is PV64 else []

    # -- values

    def frame(self, dice: Random) -> int:
        r = dice.random()
        if r < 0.6:
            return self.base + dice.choice(HOT)
        if r < 0.9:
            return self.base + dice.choice(TABLES)
        return dice.choice((0, self.base - 1, self.base + 64, self.d.shared_info_mfn, dice.getrandbits(40)))

    def entry(self, dice: Random) -> int:
        value = self.frame(dice) << 12 | dice.choice(PTE_FLAGS)
        r = dice.random()
        if r > 0.97:
            value ^= 1 << dice.randrange(64)
        return 0 if r < 0.15 else value

    def entry_address(self, dice: Random) -> int:
        if dice.random() < 0.7:
            return (self.base + dice.choice((L1, USER_L1))) << 12 | dice.choice(HOT) << 3
        slot = dice.choice((*HOT, 0, 256, 511)) if dice.random() < 0.9 else dice.randrange(512)
        return self.frame(dice) << 12 | slot << 3

    def done(self, dice: Random, at: int) -> int:
        """Where a call is to say how much it did, if anywhere."""
        return dice.choice((0, at + 0x200)) if dice.random() < 0.9 else self.word(dice)

    def word(self, dice: Random) -> int:
        r = dice.random()
        if r < 0.3:
            return dice.choice(ODD)
        if r < 0.6:
            return dice.choice((DATA, L1, WRITTEN, HOLE, 1)) * 4096 + dice.choice((0, 8 * DATA, 0xFF8, 0xFFC))
        return self.frame(dice) if r < 0.8 else dice.getrandbits(dice.choice((8, 32, 64)))

    # -- arguments of hypercalls: number, and what goes to the registers

    def mmu_update(self, dice: Random, at: int) -> tuple[int, ...]:
        count = dice.choice((1, 1, 2, 3, 8))
        for i in range(count):
            command = dice.choice((0, 0, 0, 0, 1, 2, 3))
            value = dice.choice(HOT) if command == 1 else self.entry(dice)
            self.put(at + 16 * i, struct.pack("<QQ", self.entry_address(dice) + command, value))
        domain = DOMID_SELF if dice.random() < 0.95 else dice.choice(ODD)
        count = count if dice.random() < 0.95 else dice.choice(ODD)
        return H.mmu_update, at, count, self.done(dice, at), domain

    def update_va_mapping(self, dice: Random, _at: int) -> tuple[int, ...]:
        va = dice.choice(HOT) << 12 if dice.random() < 0.9 else self.word(dice)
        value, flags = self.entry(dice), dice.choice((0, 1, 2, 5, 6, 3, 1 | at_page(WRITTEN)))
        if self.abi.is_32bit:
            return H.update_va_mapping, va, value & 0xFFFFFFFF, value >> 32, flags
        return H.update_va_mapping, va, value, flags

    def mmuext_op(self, dice: Random, at: int) -> tuple[int, ...]:
        count, form = dice.choice((1, 1, 2, 4)), "<I4xQQ" if self.abi is PV64 else "<III"
        for i in range(count):
            root = 3 if self.abi is PV64 else 2
            command = (
                dice.choice((0, 0, root, 4, 4, 5, 15, 6, 7, 8, 9, 10, 11))
                if dice.random() < 0.8
                else dice.randrange(18)
            )
            target = self.frame(dice)
            if dice.random() < 0.8 and command in (0, 4, 5, 15, root):
                roots = (0, USER_L4) if command else (SPARE_L1, KERNEL_COPY, L1)
                target = self.base + dice.choice(roots if command != 4 else (*roots, SPARE_L1, KERNEL_COPY))
            mask = ~0 if self.abi is PV64 else 0xFFFFFFFF
            words = (target & mask & (1 << 64) - 1, self.word(dice) & mask & (1 << 64) - 1)
            self.put(at + struct.calcsize(form) * i, struct.pack(form, command, *words))
        domain = DOMID_SELF if dice.random() < 0.95 else dice.choice(ODD)
        return H.mmuext_op, at, count, self.done(dice, at), domain

    def small_call(self, dice: Random, _at: int) -> tuple[int, ...]:
        number = dice.choice((H.stack_switch, H.set_segment_base, H.fpu_taskswitch, H.xen_version, H.vcpu_op))
        first = dice.choice((0, 1, 2, 3, self.word(dice)))
        if number == H.stack_switch:
            first = dice.choice(self.selectors)
        second = dice.choice((STACK + 0x400, 0, 1, dice.choice(self.selectors), self.word(dice)))
        return number, first, second, dice.choice((0, ARGUMENTS))

    def multicall(self, dice: Random, _at: int) -> tuple[int, ...]:
        word, count = self.abi.word, dice.choice((1, 2, 3, 5, 8))
        form, mask = "<8Q" if word == 8 else "<8I", (1 << 8 * word) - 1
        for i in range(count):
            make = dice.choice(
                (self.mmu_update, self.update_va_mapping, self.mmuext_op, self.small_call, self.small_call)
            )
            number, *args = make(dice, ARGUMENTS + 0x80 * i)
            words = [number if dice.random() < 0.97 else dice.choice((H.multicall, H.iret, 63)), 0, *args]
            words += [0] * (8 - len(words))
            self.put(LIST + 8 * word * i, struct.pack(form, *(value & mask for value in words)))
        return H.multicall, LIST if dice.random() < 0.97 else self.word(dice), count

    # -- acts: the code that is run

    def any_call(self, dice: Random) -> str:
        make = dice.choice((self.mmu_update, self.update_va_mapping, self.mmuext_op, self.small_call,
                            self.multicall))  # fmt: skip
        number, *args = make(dice, ARGUMENTS)
        registers = (3, 1, 2, 6, 7, 5) if self.abi.is_32bit else (7, 6, 2, 10, 8, 9)
        for register, value in zip(registers, args, strict=False):
            self.engine.q[register] = value & self.abi.word_mask
        self.engine.q[0] = number
        return "cd82" if self.abi.is_32bit else "0f05"

    def iret(self, dice: Random) -> str:
        abi, eflags = self.abi, dice.choice((*FLAGS, *FLAGS, 0x2, 0x20202, 0x302))
        good = [(abi.flat_user_cs, abi.flat_user_ss), (abi.flat_kernel_cs, abi.flat_kernel_ss)]
        cs, ss = dice.choice(good)
        if dice.random() < 0.5:
            cs, ss = dice.choice(((cs, dice.choice(self.selectors)), (dice.choice(self.selectors), ss)))
        at = dice.choice((STACK, STACK, STACK + 4, STACK - 40, HOLE * 4096 - 24))
        if abi.is_32bit:
            frame = struct.pack("<6I", 7, HANDLER, cs | dice.getrandbits(16) << 16, eflags, STACK, ss)
        else:
            rip = dice.choice((HANDLER, HANDLER, HANDLER, 1 << 47))
            cs &= dice.choice((~0, ~3))
            frame = struct.pack("<9Q", 7, 8, 9, dice.choice((0, 0, 0x100)), rip, cs, eflags, STACK, ss)
        self.put(at, frame[: HOLE * 4096 - at])
        self.engine.q[RSP], self.engine.q[0] = at, H.iret
        return "cd82" if abi.is_32bit else "0f05"

    def trapped_store(self, dice: Random) -> str:
        q, mask = self.engine.q, self.abi.word_mask
        entry = at_page(dice.choice((L1, L1, L1, SPARE_L1, USER_L1, 2))) + 8 * dice.choice((*HOT, 511))
        near = dice.choice((0, 0, 0, 0, 4, 1, 2, 7))
        q[7], q[6] = entry + near, 0
        q[9] = q[13] = entry
        for register in (0, 1, 2, 3):
            q[register] = self.entry(dice) >> 8 * dice.choice((0, 0, near)) & mask
        if dice.random() < 0.5:  # what is compared is there
            there = self.get(entry, "Q")[0]
            q[0], q[2] = there >> 8 * near & mask, there >> 32
        return dice.choice(self.stores)

    def fault(self, dice: Random) -> str:
        self.engine.q[7] = dice.choice((HOLE << 12, 0x1000, at_page(DATA), STACK, 0x30, self.word(dice)))
        self.engine.q[7] &= self.abi.word_mask
        return dice.choice(("8a07", "c60700", "8b07", "890f", "ff07", "ff17", "ff27"))

    def instruction(self, dice: Random) -> str:
        other = f"cd{dice.choice((0, 1, 4, 13, 14, 0x20, 255)):02x}"
        return dice.choice((*INSTRUCTIONS, other, "cf" if self.abi.is_32bit else "48cf"))

    # -- one act

    def act_of(self, dice: Random) -> Outcome:
        """What the next act is, and what it leaves."""
        v, engine, abi = self.v, self.engine, self.abi
        user = dice.random() < 0.3
        if isinstance(self.frames, Frames64) and v.kernel_mode == user:
            self.frames.toggle_guest_mode(v)
        kernel_mode = v.kernel_mode
        set_state(self, dice, self.selectors)
        v.kernel_mode = kernel_mode
        if dice.random() < 0.7:  # or most acts would end the domain
            self._be_well()
        if dice.random() < 0.05:
            v.callbacks[dice.choice((0, 2))] = (0, 0, 0)
        v.pause_flags, self.d.is_shutting_down = 0, False  # VCPUOP_down
        self._load_segments(dice, user=user and abi.is_32bit)
        q = engine.q
        for register in range(REGISTERS if abi is PV64 else 8):
            q[register] = self.word(dice) & abi.word_mask
        q[RSP] = dice.choice(
            (STACK, STACK, STACK, STACK + 12, STACK + 4, at_page(DATA) + 20, (HOLE << 12) + 4)
        )
        acts: list[Callable[[Random], str]] = [self.any_call] * 5
        acts += [self.iret, self.trapped_store, self.trapped_store, self.fault, self.instruction]
        code = dice.choice(acts)(dice)
        self.put(CODE << 12, bytes.fromhex(code) + b"\xcc")
        engine.flush_code()
        q[RIP] = CODE << 12
        engine.write_eflags(dice.choice((0x202, 0x202, *FLAGS)))
        self._set_clock(dice)
        v.info[0] = dice.random() < 0.1
        v.nmi_pending = dice.random() < 0.03
        return self._run()

    def _be_well(self) -> None:
        """A stack and handlers as kernels have them."""
        v, abi = self.v, self.abi
        v.kernel_ss, v.kernel_sp = abi.flat_kernel_ss, STACK + 0x100
        for vector in (14, 0x21, 0x80):
            v.trap_ctxt[vector] = (7, abi.flat_kernel_cs, HANDLER)
        v.callbacks[0] = v.callbacks[2] = (abi.flat_kernel_cs, HANDLER, 0)

    def _load_segments(self, dice: Random, *, user: bool) -> None:
        abi, v = self.abi, self.v
        cs, ss = (abi.flat_user_cs, abi.flat_user_ss) if user else (abi.flat_kernel_cs, abi.flat_kernel_ss)
        load_cs_ss(v, cs, ss)
        for register in (DS, ES, FS, GS):
            if not load_data(v, register, ss if dice.random() < 0.9 else dice.choice(self.selectors)):
                load_data(v, register, ss)
        if abi is PV64 and dice.random() < 0.2:
            self.engine.set_segment_base(dice.choice((FS, GS)), dice.choice((8, at_page(L1), 1 << 46)))

    def _set_clock(self, dice: Random) -> None:
        """Mostly plenty; sometimes the turn, or what the engine may run, ends within the act."""
        words, cell = self.engine.words, self.engine.cell
        left = CLOCK if dice.random() < 0.9 else dice.randrange(3000)
        now = max(self.d.clock.now(), 0)
        words.horizon = now + left
        words.turn_end = words.horizon if dice.random() < 0.9 else now + dice.randrange(1500)
        cell[0], cell[1] = left, 0

    def _run(self) -> Outcome:
        crash = ""
        try:
            self.engine.run()
            while self.ro.pending:  # whatever the time is, as machine.py has it
                self.engine.words.horizon += CLOCK
                self.engine.cell[0] += CLOCK
                self.engine.run()
        except DomainCrash as error:
            crash = str(error)
            self.engine._step_deferred = False  # of an exit that has no end: no such domain goes on
        return self.outcome(crash)


def at_page(page: int) -> int:
    return page << 12


def state_of(outcome: Outcome) -> list[str]:
    """An outcome in a few lines, for whoever looks at a difference."""
    registers = " ".join(f"{value:x}" for value in outcome.registers)
    words = struct.unpack_from("<4Q", outcome.processor, sw.CR)
    return [f"crash {outcome.crash!r}", f"registers {registers}", f"CRs {words}", f"clock {outcome.clock}",
            f"vcpu {outcome.vcpu}", f"memory {outcome.memory:08x} stores {outcome.stores}"]  # fmt: skip
