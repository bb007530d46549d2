"""A processor with a few pages of 32-bit code in compatibility mode: enough to test the engine alone."""

from __future__ import annotations

from collections.abc import Callable

from hvcore.cpu.engine import Engine
from hvcore.cpu.processor import (
    CS,
    DS,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    ES,
    FS,
    GDTR,
    GS,
    MSR_EFER,
    RIP,
    RSP,
    SS,
    TR,
)
from hvcore.machine_memory import MachineMemory
from tests.hvcore.opened import note

GDT_VA = 0xFFFF800000000000
RING1_CS, RING1_DS, RING3_CS, RING3_DS = 0x19, 0x21, 0x2B, 0x33
_GDT = {3: 0x00CFBB000000FFFF, 4: 0x00CFB3000000FFFF, 5: 0x00CFFB000000FFFF, 6: 0x00CFF3000000FFFF}
CODE_PAGES = 64


class Rig:
    """Pages at linear 0 .. 64 * 4096 are RAM for ring 1, of which page 2 is open to ring 3 as well."""

    def __init__(self, *, live_window: bool = True, use_core: bool = True) -> None:
        self.mem = MachineMemory(1024)
        start = self.mem.base_mfn << 12
        self.engine = Engine(self.mem.buffer, start, live_window=live_window, use_core=use_core)
        note(self.engine, self.mem)
        self.exits: list[tuple[int, int, int, int]] = []  # vector, RIP, error code, CPL
        self.on_interrupt: Callable[[int], None] | None = None
        self.on_syscall: Callable[[], None] | None = None
        self.tsc = 0x1_0000_0002
        self._page_tables()
        self.engine.install(self)
        self.engine.write_msr(MSR_EFER, EFER_LME | EFER_LMA | EFER_NXE)
        self.engine.set_control(0, 0x80050033)
        self.engine.set_control(4, 0x660)
        self.engine.set_control(3, self.root << 12)
        self.engine.set_table(GDTR, GDT_VA, 0xFFFF)
        self.engine.set_table(TR, 0, 0, 0xE040, 0x8B00)
        self.enter(RING1_CS, RING1_DS)
        self.engine.cell[0] = 1 << 40

    def _page_tables(self) -> None:
        mem, first = self.mem, self.mem.first_mfn
        heap = [mem.alloc_xenheap_page() for _ in range(5)]
        self.root, l3x, l2x, l1x, self.gdt = heap
        l3, l2, self.l1 = first + 1, first + 2, first + 3
        self.pte(self.root, 0, l3 << 12 | 0x27)
        self.pte(l3, 0, l2 << 12 | 0x67)
        self.pte(l2, 0, self.l1 << 12 | 0x67)
        for i in range(CODE_PAGES):
            self.pte(self.l1, i, (first + 16 + i) << 12 | (0x27 if i == 2 else 0x23))
        self.pte(self.root, 256, l3x << 12 | 0x63)
        self.pte(l3x, 0, l2x << 12 | 0x63)
        self.pte(l2x, 0, l1x << 12 | 0x63)
        self.pte(l1x, 0, self.gdt << 12 | 0x63)
        for index, descriptor in _GDT.items():
            mem.q[((self.gdt - mem.base_mfn) << 9) + index] = descriptor

    def pte(self, table: int, slot: int, value: int) -> None:
        self.mem.q[((table - self.mem.base_mfn) << 9) + slot] = value

    def code(self, address: int, hexes: str) -> None:
        raw = bytes.fromhex(hexes)
        start = (address >> 12) + 16
        page = self.mem.frame(self.mem.first_mfn + start)
        page[address & 4095 : (address & 4095) + len(raw)] = raw

    def enter(self, cs: int, ss: int) -> None:
        """Flat segments of one ring."""
        self.engine.set_segment(CS, cs, 0, 0xFFFFFFFF, _GDT[cs >> 3] >> 32)
        for register in (SS, DS, ES, FS, GS):
            self.engine.set_segment(register, ss, 0, 0xFFFFFFFF, _GDT[ss >> 3] >> 32)
        self.engine.write_eflags(0x202)
        self.engine.q[RSP] = 0x8000

    def run(self, address: int) -> tuple[int, int, int, int]:
        """Run from `address` to the next exit that stops; (vector, RIP, error code, CPL)."""
        self.engine.q[RIP] = address
        self.engine.run()
        return self.exits[-1]

    # engine.Handlers
    def interrupt(self, vector: int) -> None:
        if self.on_interrupt is not None:
            self.on_interrupt(vector)
            return
        e = self.engine
        self.exits.append((vector, e.q[RIP], e.error_code, e.cpl))
        e.stop()

    def syscall(self) -> None:
        if self.on_syscall is not None:
            self.on_syscall()
            return
        self.exits.append((-1, self.engine.q[RIP], 0, self.engine.cpl))
        self.engine.q[RIP] += 2
        self.engine.stop()

    def cpuid(self) -> None:
        self.engine.q[0] = 0xC0DE

    def rdtsc(self) -> int:
        return self.tsc
