"""A vCPU under the real handlers of traps and hypercalls, with lanes or without: what an act of it leaves."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from hvcore.abi import Abi
from hvcore.cpu import state_window as sw
from hvcore.errors import DomainCrash
from hvcore.pv.frames32 import Frames32
from hvcore.pv.frames64 import Frames64
from hvcore.pv.hypercall import HypercallTable
from hvcore.pv.lanes import Lanes
from hvcore.pv.ro_page_fault import RoPageFault, VMASST_writable_pagetables
from hvcore.pv.traps import Traps
from tests.hvcore.pv_cpu import PvCpu

L1 = 3  # page that is the L1 table
_XENHEAP = 24  # frames below the guest's, Xen's own of it among them
# Of the state, what a step of the engine's may touch and nobody looks at: CR2, the last exception's words.
_TOUCHED = ((sw.CR + 16, 8), (sw.ERROR_CODE, 16))
_PLENTY = 1 << 16  # nanoseconds: code that goes astray ends all the same


class Outcome(NamedTuple):
    """All that an act leaves. `processor` is its whole state, `clock` what is left and what was no code."""

    crash: str
    registers: tuple[int, ...]
    processor: bytes
    clock: tuple[int, int]
    vcpu: tuple[object, ...]
    counts: tuple[bytes, ...]
    memory: int
    stores: int
    seen: tuple[object, ...]


class LaneCpu(PvCpu):
    """Its code ends at an `int3`, or with the domain."""

    def __init__(self, abi: Abi, *, lanes: bool) -> None:
        super().__init__(abi)
        d = self.d
        d.vm_assist = VMASST_writable_pagetables
        self.ro = RoPageFault(d)
        self.frames = Frames32(d.vcpus) if abi.is_32bit else Frames64(d.vcpus)
        table = HypercallTable(d, self.frames)
        entry = table.entry32 if abi.is_32bit else table.entry64
        self.traps = Traps(d, self.frames, self.ro, entry)
        self.ro.reject = self.traps.inject
        self.lanes = Lanes(d)
        self.engine.set_handlers(self)
        self.lanes.run(self.v if lanes else None)

    def set_leaf(self, va: int, page: int, flags: int) -> None:
        """Map a page of the guest's at `va`; not, without flags."""
        at = ((self.base + L1 - self.mem.base_mfn) << 9) + (va >> 12)
        assert self.d.mm.mod_l1_entry(at, (self.base + page) << 12 | flags if flags else 0) == 0

    def interrupt(self, vector: int) -> None:
        if vector == 3:
            self.engine.stop()
        else:
            self.traps.interrupt(vector)

    def syscall(self) -> None:
        self.traps.syscall()

    def rdtsc(self) -> int:
        return self.traps.rdtsc()

    def act(self, code: str, flags: int = 0x202, *, user: bool = False, **regs: int) -> Outcome:
        """Run `code` and an `int3` behind it."""
        engine = self.engine
        engine.words.horizon = engine.words.turn_end = self.d.clock.now() + _PLENTY
        engine.cell[0], engine.cell[1] = _PLENTY, 0
        crash = ""
        try:
            self.run(code, user=user, flags=flags, **regs)
        except DomainCrash as error:
            crash = str(error)
        return self.outcome(crash)

    def outcome(self, crash: str = "") -> Outcome:
        d, v, engine = self.d, self.v, self.engine
        frames, trace = d.frames, d.trace
        state = bytearray(engine.save_state())
        for at, size in _TOUCHED:
            state[at : at + size] = bytes(size)
        vcpu = (
            v.kernel_mode,
            v.gs_base_kernel,
            v.gs_base_user,
            v.iopl,
            v.async_exception_mask,
            bytes(v.ctrlreg),
            (v.cr3_mfn, v.user_cr3_mfn, v.kernel_ss, v.kernel_sp, v.ts_set),
            (engine.words.tlb_flushes, d.words.events_delivered),
        )
        return Outcome(
            crash,
            tuple(engine.q[:17]),
            bytes(state),
            (engine.cell[0], engine.cell[1]),
            vcpu,
            tuple(map(bytes, (frames.count, frames.tcount, frames.ptype, frames.flags))),
            zlib.crc32(self.mem.view[(self.base - _XENHEAP - self.mem.base_mfn) << 12 :]),
            self.ro.stores,
            (bytes(trace.exceptions), bytes(trace.hypercalls), *trace.last_hypercalls()),
        )

    def taken(self, lane: str) -> int:
        """How many exits of a kind a lane took."""
        return self.lanes.counts().get(lane, (0, 0))[0]


def both(abi: Abi) -> tuple[LaneCpu, LaneCpu]:
    """With lanes, and without."""
    return LaneCpu(abi, lanes=True), LaneCpu(abi, lanes=False)
