"""Random hypercalls and stores by the hundred thousand: `python -m tests.hvcore.hostile.fuzz --seed S`.

Rounds and shards are those of shards.py. What is passed is biased: frames that are page tables or lately
were, boundary sizes, bad pointers, huge counts.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random

from hvcore.public.memory import xen_memory_exchange, xen_memory_reservation
from hvcore.public.xen import Hypercall
from tests.hvcore.hostile import shards
from tests.hvcore.hostile.fifo_acts import event_channel_problems, fifo
from tests.hvcore.hostile.grant_acts import COUNTS, GRANT_ACTS
from tests.hvcore.hostile.shards import ROUND
from tests.hvcore.hostile.world import GUESTS, PRESENT, World, words

H = Hypercall
_FLAGS = (0x1, 0x3, 0x21, 0x23, 0x61, 0x63, 0x67, 0x27, 0x25, 0x0, 0x20, 0xE3, 0x81, 0x11, 0x103, 0xFF, 0xE01)
_NX = 1 << 63
_ODD = (
    0, 1, 2, 3, 4, 7, 8, 0xF, 16, 31, 32, 0x7F, 0x80, 0xFF, 512, 513, 4095, 4096, 0x7FF0, 0xFFFF, 0x10000,
    0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFF000, 0xF5800000, 0xF57FFFFC, 0xFFBFFFFF,
)  # fmt: skip
_DOMS = (0x7FF0, 0x7FF0, 0x7FF0, 0x7FF0, 1, 0, 2, 0x7FF1, 0x7FF2, 0x7FF4, 0x10000 | 0x7FF0, 0xFFFFFFFF)

_PROCESSOR = (
    H.set_trap_table, H.stack_switch, H.set_callbacks, H.fpu_taskswitch, H.set_debugreg, H.get_debugreg,
    H.vm_assist, H.callback_op, H.set_segment_base, H.nmi_op, H.physdev_op,
)  # fmt: skip


class Fuzzer:
    """One domain and the random acts upon it. `act()` does one."""

    def __init__(self, world: World, rng: Random) -> None:
        self.w = world
        self.word_size = world.abi.word
        self.pte_size = world.mm.e.itemsize
        self.last_slot = world.mm.entries - 1
        self.rng = rng
        self.random = rng.random
        self.counts: Counter[str] = Counter()
        mapped = world.mapped
        self.writable = [m for m in mapped if m.writable]
        free = [m for m in self.writable if m.va > mapped[0].va]
        # A few frames get nearly all the attention, so that they meet themselves in different roles.
        self.hot = [free[int(self.random() * len(free))] for _ in range(24)]
        rings = (world.image.start_info.store_mfn, world.image.start_info.console_mfn)
        self.hot += [m for m in mapped if m.mfn in rings]
        self.frames = [m.mfn for m in self.hot] + world.tables * 2 + [world.d.shared_info_mfn]
        self.args = self.hot[0].va + 64
        self.kinds: list[Callable[[], None]] = []
        for kind, weight in _WEIGHTS.items():
            self.kinds += [self._act_of(kind)] * weight

    def _act_of(self, kind: str) -> Callable[[], None]:
        grant = GRANT_ACTS.get(kind)
        if grant is not None:
            return partial(grant, self)
        act: Callable[[], None] = getattr(self, kind)
        return act

    def do(self, kind: str) -> None:
        """An act of that kind."""
        self._act_of(kind)()

    def act(self) -> None:
        self.kinds[int(self.random() * len(self.kinds))]()

    # -- values

    def pick(self, values: tuple[int, ...]) -> int:
        return values[int(self.random() * len(values))]

    def frame(self) -> int:
        r = self.random()
        if r < 0.93:
            return self.frames[int(r * 1.0752 * len(self.frames))]
        mm = self.w.mm
        if r < 0.98:
            return mm.base + int(self.random() * mm.nr)
        return self.pick((0, mm.base, mm.base + mm.nr, mm.base - 1, 0xFFFFF, 0xFFFFFFFF, (1 << 40) - 1))

    def entry(self) -> int:
        r = self.random()
        if r < 0.12:
            return 0
        value = self.frame() << 12 | self.pick(_FLAGS)
        if r > 0.92:
            value |= _NX
        if r > 0.985:
            value ^= 1 << int(self.random() * 64)
        return value & (1 << 8 * self.pte_size) - 1

    def pte(self, value: int) -> bytes:
        return value.to_bytes(self.pte_size, "little")

    def longs(self, *values: int) -> bytes:
        """Words of the guest's width."""
        mask = self.w.abi.word_mask
        return b"".join((value & mask).to_bytes(self.word_size, "little") for value in values)

    def slot(self) -> int:
        r = self.random()
        if r < 0.6:
            return int(r * 8)
        return (
            self.last_slot - int(self.random() * 4) if r < 0.7 else int(self.random() * (self.last_slot + 1))
        )

    def entry_address(self) -> int:
        if self.random() < 0.4:  # the very entry that maps one of the pages
            m = self.hot[int(self.random() * len(self.hot))]
            return m.table << 12 | m.slot * self.pte_size
        return self.frame() << 12 | self.slot() * self.pte_size

    def va(self) -> int:
        r = self.random()
        if r < 0.75:
            return self.hot[int(self.random() * len(self.hot))].va + (int(self.random() * 1024) << 2)
        if r < 0.85:
            return self.w.mapped[int(self.random() * len(self.w.mapped))].va
        if r < 0.98:
            return self.pick(_ODD)
        return self.rng.getrandbits(8 * self.word_size)

    def word(self) -> int:
        r = self.random()
        if r < 0.3:
            return int(self.random() * 14)
        if r < 0.55:
            return self.frame() & 0xFFFFFFFF
        if r < 0.75:
            return self.va()
        return self.pick(_ODD) if r < 0.95 else self.rng.getrandbits(8 * self.word_size)

    def pass_args(self, data: bytes) -> int:
        """Put arguments where the guest has them: their address."""
        va = self.args if self.random() < 0.97 else self.va()
        self.w.store(va, data)
        return va if self.random() < 0.99 else self.pick(_ODD)

    def some_words(self, n: int) -> int:
        word = self.word
        pack = self.longs if self.random() < 0.6 else words
        return self.pass_args(pack(*[word() for _ in range(n)]))

    def call(self, number: int, *args: int) -> None:
        rc = self.w.call(number, (*args, 0, 0, 0, 0, 0, 0)[:6])
        self.counts["refused" if rc < 0 else "done"] += 1

    # -- acts

    def mmu_update(self) -> None:
        n = 1 + int(self.random() * 4)
        data = b""
        for _ in range(n):
            pointer = self.entry_address() | (self.pick((0, 0, 0, 0, 1, 2, 3)))
            data += pointer.to_bytes(8, "little") + self.entry().to_bytes(8, "little")
        count = n if self.random() < 0.97 else self.pick(COUNTS)
        at = self.pass_args(data)
        self.call(H.mmu_update, at, count, self.va() if self.random() < 0.2 else 0, self.domain())

    def domain(self) -> int:
        return 0x7FF0 if self.random() < 0.95 else self.pick(_DOMS)

    def update_va_mapping(self) -> None:
        flags = self.pick((0, 1, 2, 1, 2, 5, 6, 3)) if self.random() < 0.95 else self.word()
        self.map(self.va(), self.entry(), flags)

    def map(self, va: int, entry: int, flags: int = 2) -> None:
        self.call(H.update_va_mapping, va, *self.wide(entry), flags)

    def wide(self, value: int) -> tuple[int, ...]:
        """A 64-bit value as the arguments of a hypercall."""
        return (value,) if self.word_size == 8 else (value & 0xFFFFFFFF, value >> 32)

    def extended(self, *ops: tuple[int, int, int]) -> int:
        """Requests of mmuext_op: their address."""
        return self.pass_args(b"".join(self.longs(*op) for op in ops))

    def pin(self, command: int, mfn: int) -> None:
        self.call(H.mmuext_op, self.extended((command, mfn, 0)), 1, 0, 0x7FF0)

    def update_va_mapping_otherdomain(self) -> None:
        self.call(H.update_va_mapping_otherdomain, self.va(), *self.wide(self.entry()), 1, self.domain())

    def mmuext_op(self) -> None:
        n = 1 + int(self.random() * 3)
        ops = []
        for _ in range(n):
            command = int(self.random() * 5) if self.random() < 0.6 else int(self.random() * 24)
            first = self.va() if command in (7, 8, 9, 11, 13) else self.frame()
            if command == 5 and self.random() < 0.7:
                first = self.w.v.cr3_mfn
            ops.append((command, first, self.frame() if command in (16, 17) else self.pick(_ODD)))
        count = n if self.random() < 0.97 else self.pick(COUNTS)
        self.call(H.mmuext_op, self.extended(*ops), count, 0, self.domain())

    def new_tables(self) -> None:
        """A frame filled as a table of some level, which random entries hardly ever make."""
        m = self.hot[int(self.random() * len(self.hot))]
        n = self.pick((1, 4, 8, 64))
        data = b"".join(self.pte(self.entry()) for _ in range(n))
        self.w.store(m.va, data + bytes(4096 - len(data)))
        self.counts["stores"] += 1
        if self.random() < 0.7:
            self.map(m.va, m.mfn << 12 | 0x21)
            self.pin(self.pick((0, 0, 1, 2, 3)), m.mfn)

    def linear(self) -> None:
        """Empty tables of one level, joined this way and that, the live ones among them."""
        level = 2 + int(self.random() * (self.w.mm.levels - 1))
        some = [self.hot[int(self.random() * len(self.hot))] for _ in range(3)]
        for m in some:
            if self.random() < 0.5:
                self.pin(4, m.mfn)
                self.map(m.va, m.mfn << 12 | 0x67)
                self.w.store(m.va, bytes(4096))
                self.map(m.va, m.mfn << 12 | 0x25)
                self.pin(level - 1, m.mfn)
        tables = [m.mfn for m in some] + self.w.tables[-2:]
        for _ in range(6):
            at = self.pick(tuple(tables)) << 12 | self.slot() * self.pte_size
            value = self.pick(tuple(tables)) << 12 | self.pick((0x25, 0x25, 0x25, 0x5, 0x27, 0))
            self.call(H.mmu_update, self.pass_args(words(at, at >> 32, value, value >> 32)), 1, 0, 0x7FF0)
        self.counts["linear"] += sum(count < 0 for count in self.w.mm.linear_pt_count)

    def whole_tree(self) -> None:
        """A second address space: the tables of the first one under a new L3, pinned or loaded."""
        w, mm = self.w, self.w.mm
        m = self.hot[int(self.random() * len(self.hot))]
        top = (w.v.cr3_mfn - mm.base) << mm.shift
        used = 4 if self.w.abi.pt_levels == 3 else mm.entries
        entries = [e & ~(0x1E6 if used == 4 else 0x180) if e & PRESENT else 0 for e in mm.e[top : top + used]]
        if self.random() < 0.5:
            entries[int(self.random() * used)] = self.entry()
        w.store(m.va, b"".join(map(self.pte, entries)))
        self.map(m.va, m.mfn << 12 | 0x21)
        self.pin(self.pick((mm.levels - 1, 5, 15)), m.mfn)

    def store(self) -> None:
        value = self.entry() if self.random() < 0.7 else self.word()
        data = value.to_bytes(8, "little")[: self.pick((8, 8, 4, 2, 1))]
        self.w.store(self.va(), data)
        self.counts["stores"] += 1

    def table_store(self) -> None:
        """A store to a page table through its own read-only mapping."""
        tables = [m for m in self.w.mapped if not m.writable]
        m = tables[int(self.random() * len(tables))]
        data = self.pte(self.entry())[: self.pick((8, 8, 8, 4))]
        self.w.store(m.va + self.pte_size * self.slot(), data)
        self.counts["stores"] += 1

    def remap(self) -> None:
        """Put a page back where it was, or the guest soon has nothing left."""
        m = self.hot[int(self.random() * len(self.hot))]
        self.map(m.va, m.mfn << 12 | 0x67)

    def unpin(self) -> None:
        self.pin(4, self.frame())

    def write_cr3(self) -> None:
        self.w.write_cr3(self.frame())

    def set_gdt(self) -> None:
        n = self.pick((0, 1, 2, 3, 14, 15))
        at = self.pass_args(self.longs(*[self.frame() for _ in range(n)]))
        self.call(H.set_gdt, at, self.pick((0, 1, 512, 513, 512 * n, 7168, 7169, 0xFFFFFFFF)))

    def update_descriptor(self) -> None:
        address = self.frame() << 12 | (int(self.random() * 512) << 3) | (self.random() < 0.02)
        low, high = self.word(), self.pick((0, 0xCFFB00, 0xCFB300, 0x8C00, 0x8200, 0xAFFB00, 0xCF9300))
        descriptor = low & 0xFFFFFFFF | high << 32
        self.call(H.update_descriptor, *self.wide(address), *self.wide(descriptor))

    def ldt(self) -> None:
        at = self.extended((13, self.va() & ~0xFFF, self.pick((0, 1, 512, 8192, 8193))))
        self.call(H.mmuext_op, at, 1, 0, 0x7FF0)
        for _ in range(3):
            self.w.ldt_fault(int(self.random() * 0x10000))

    def reservation(self) -> None:
        n = 1 + int(self.random() * 4)
        at = self.pass_args(self.longs(*[self.frame() for _ in range(n)]))
        count = n if self.random() < 0.9 else self.pick(COUNTS)
        order = 0 if self.random() < 0.9 else self.pick((1, 9, 10, 31, 63))
        command = self.pick((0, 1, 1, 6, 6, 6))
        flags = 0 if self.random() < 0.9 else self.word() & 0xFFFFFFFF
        block = xen_memory_reservation[self.word_size].pack(
            at & self.w.abi.word_mask, count, order, flags, self.domain() & 0xFFFF
        )
        self.w.store(self.args + 512, block)
        self.call(H.memory_op, command, self.args + 512)

    def exchange(self) -> None:
        n = 1 + int(self.random() * 2)
        self.w.store(self.args + 256, self.longs(*[self.frame() for _ in range(n)]))
        out = self.args + 384 if self.random() < 0.8 else self.va()
        self.w.store(out, self.longs(*range(n)))
        order = 0 if self.random() < 0.9 else self.pick((1, 9, 10, 31))
        block = xen_memory_exchange[self.word_size].pack(
            self.args + 256, n, order, 0, 0x7FF0, out, n, 0, 0, 0x7FF0, 0
        )
        self.call(H.memory_op, 11, self.pass_args(block))

    def memory_op(self) -> None:
        self.call(
            H.memory_op, int(self.random() * 30) | self.pick((0, 0, 0, 64, 0x7FFFFFC0)), self.some_words(12)
        )

    def event_channel_op(self) -> None:
        number = H.event_channel_op if self.random() < 0.9 else H.event_channel_op_compat
        if number == H.event_channel_op:
            self.call(number, int(self.random() * 16), self.some_words(4))
        else:
            self.call(number, self.some_words(8))

    def fifo(self) -> None:
        fifo(self)

    def sched_op(self) -> None:
        number = H.sched_op if self.random() < 0.9 else H.sched_op_compat
        self.call(number, int(self.random() * 10), self.some_words(4))
        self.w.revive()

    def vcpu_op(self) -> None:
        r = self.random()
        if r < 0.2:
            self.call(H.vcpu_op, 10, int(self.random() * 3), self.registration())
        elif r < 0.3:
            self.initialise()
        else:
            self.call(H.vcpu_op, int(self.random() * 16), int(self.random() * 4), self.some_words(6))
        self.w.revive()

    def registration(self) -> int:
        offset = self.pick((0, 64, 0xFC0, 0xFFC, 3))
        return self.pass_args(self.frame().to_bytes(8, "little") + words(offset, 0))

    def initialise(self) -> None:
        """VCPUOP_initialise with the boot vCPU's context, and the start of the vCPU."""
        context = bytearray(self.w.context)
        for _ in range(int(self.random() * 3)):
            at = int(self.random() * (len(context) // 4)) * 4
            context[at : at + 4] = words(self.word())
        va = self.hot[2].va
        self.w.store(va, bytes(context))
        self.call(H.vcpu_op, 0, 1, va)
        self.call(H.vcpu_op, 1, 1, 0)

    def switch(self) -> None:
        self.w.switch()

    def timers(self) -> None:
        r = self.random()
        if r < 0.5:
            high = self.pick((0, 0, 1, 0x7FFFFFFF, 0x80000000))
            self.call(H.set_timer_op, *self.wide(self.word() & 0xFFFFFFFF | high << 32))
        else:
            self.w.pass_time(int(self.random() * 2_000_000))
        self.w.revive()
        if r > 0.8:
            self.w.short_turn()

    def multicall(self) -> None:
        n = 1 + int(self.random() * 4)
        values: list[int] = []
        for _ in range(n):
            number = int(self.random() * 64)
            if self.random() < 0.5:
                number = H.update_va_mapping
            arguments = (self.va(), *self.wide(self.entry()), 2, self.word(), 0, 0)
            values += [number, 0, *arguments[:6]]
        at = self.pass_args(self.longs(*values))
        count = n if self.random() < 0.97 else self.pick((0, 17, 64, 300))
        self.call(H.multicall, at, count)
        self.w.revive()

    def anything(self) -> None:
        number = int(self.random() * 70) if self.random() < 0.95 else self.word()
        args = [self.word() for _ in range(6)]
        if number in (H.mmu_update, H.mmuext_op, H.multicall, H.grant_table_op) and args[1] > 64:
            args[1] &= 63
        self.some_words(16)
        if self.random() < 0.5:
            args[1] = self.args
        self.call(number, *args)
        self.w.revive()

    def processor(self) -> None:
        number = self.pick(_PROCESSOR)
        if number == H.set_trap_table:
            self.call(number, self.some_words(6))
        elif number in (H.callback_op, H.nmi_op, H.physdev_op):
            self.call(number, int(self.random() * 30), self.some_words(6))
        else:
            self.call(number, self.word(), self.word(), self.word(), self.word())


# How often each act is chosen.
_WEIGHTS = {
    "mmu_update": 18, "update_va_mapping": 12, "update_va_mapping_otherdomain": 1, "mmuext_op": 10,
    "new_tables": 4, "linear": 2, "whole_tree": 2, "store": 8, "table_store": 6, "remap": 8, "unpin": 5,
    "write_cr3": 1,
    "set_gdt": 3, "update_descriptor": 3, "ldt": 2, "reservation": 4, "exchange": 2, "memory_op": 2,
    "grant_frames": 1, "grant_map": 3, "grant_unmap": 3, "grant_table_op": 2, "event_channel_op": 2,
    "fifo": 6, "sched_op": 2, "vcpu_op": 2, "switch": 1, "timers": 2, "multicall": 3, "anything": 4,
    "processor": 2,
}  # fmt: skip


def run_round(seed: int, number: int, folder: str, acts: int = ROUND) -> Counter[str]:
    """One round; what was done. Raises Failure."""
    world = World(GUESTS[number % len(GUESTS)], folder)
    fuzzer = Fuzzer(world, Random(f"{seed}/{number}"))

    def problems() -> list[str]:
        return world.problems() + event_channel_problems(world.d)

    try:
        shards.run_acts(
            fuzzer.act, acts, problems, f"tests.hvcore.hostile.fuzz --seed {seed} --round {number}"
        )
    finally:
        world.close()
    fuzzer.counts["crashes"] += world.crashes
    return fuzzer.counts


if __name__ == "__main__":
    sys.exit(shards.main("Random hypercalls and page-table writes.", run_round))
