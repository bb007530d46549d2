"""The CPU: Unicorn in long mode, behind exits and plain integers. Knows x86, never Xen.

The engine runs guest code at CPL 1 or 3 through its own MMU: guest page tables hold machine addresses, and a
machine address is a physical address here. Whatever leaves the guest (every exception and `int n`, `syscall`,
`cpuid`, `rdtsc`) calls one of the handlers, which read and write the state window and return; the guest goes
on from there without the engine being left. Pacing is synchronous: at the head of each block of code a native
callback either leaves, where the horizon is reached, or takes the block's size from what is left until then
(clock.CELL_*). So runs are exactly repeatable, however often they are stopped.
docs/engine.md tells what each oddity below is for.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from hvcore.clock import CELL_LIMIT, OUT
from hvcore.cpu import state_window as sw
from hvcore.cpu.code_pages import CodePages
from hvcore.cpu.compiled import core
from hvcore.cpu.coverage import SLOTS, Coverage
from hvcore.cpu.division import guard_division
from hvcore.cpu.engine_internals import Internals
from hvcore.cpu.inner_stops import InnerStops
from hvcore.cpu.library import (
    CPU_MODEL_EPYC,
    CTL_CPU_MODEL,
    CTL_TCG_BUFFER_SIZE,
    CTL_TLB_TYPE,
    CTL_USE_EXITS,
    TCG_BUFFER_SIZE,
    TCG_SLACK,
    TLB_CPU,
    UC_PROT_ALL,
    Library,
)
from hvcore.cpu.patches import PATCHES
from hvcore.cpu.processor import RIP
from hvcore.cpu.words import NO_RING, address_of
from hvcore.errors import EngineError

PLAIN_VARIABLE = "DOMAINBUILDER_PLAIN"  # "1": only what Unicorn documents
_REASONS = {6: "read from unmapped memory", 7: "write to unmapped memory", 8: "fetch from unmapped memory"}

# Instructions whose results nobody could repeat.
_CPUID_EXT_RDRAND, _CPUID_7_0_EBX_RDSEED = 1 << 30, 1 << 18


def _require_room() -> None:
    """Raise EngineError where there is no address space for translations: Unicorn ends the process then."""
    try:
        mmap.mmap(-1, TCG_BUFFER_SIZE + TCG_SLACK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise EngineError(f"no address space for translated code: {error.strerror}") from error


class EngineContext(NamedTuple):
    """What a domain leaves in the engine: the processor's state, and the words that are not the clock's."""

    state: bytes
    step_deferred: bool
    port_ring: int
    port_cost: int
    port_keeps: int
    port_reads: int
    port_writes: int
    tlb_flushes: int
    step_rechecked: int
    vcpu: int
    journal: int
    lane_counts: int
    multicall_done: int
    paid: int
    paid_is_of_long: bool


_CONTEXT_WORDS = EngineContext._fields[2:]


class Engine(InnerStops):
    """One Unicorn instance over `memory`, which is physical memory from `phys_base` on.

    `live_window=False` forces the portable fallback, `use_core=False` Python alone.
    `plain` is both, and nothing of the library but its documented API; None: as PLAIN_VARIABLE says.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        phys_base: int,
        *,
        live_window: bool = True,
        use_core: bool = True,
        plain: bool | None = None,
    ) -> None:
        self.plain = plain = plain if plain is not None else os.environ.get(PLAIN_VARIABLE) == "1"
        _require_room()
        library = Library()
        library.call("uc_ctl", CTL_CPU_MODEL, ctypes.c_int(CPU_MODEL_EPYC))
        library.call("uc_ctl", CTL_TCG_BUFFER_SIZE, ctypes.c_uint32(TCG_BUFFER_SIZE))
        library.call("uc_ctl", CTL_TLB_TYPE, ctypes.c_int(TLB_CPU))
        library.call("uc_ctl", CTL_USE_EXITS, ctypes.c_int(1))
        ram = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        library.call(
            "uc_mem_map_ptr",
            ctypes.c_uint64(phys_base),
            ctypes.c_size_t(len(memory)),
            UC_PROT_ALL,
            ctypes.c_void_p(ram),
        )
        window = sw.StateWindow(library.lib, library.uc, allow_live=live_window and not plain)
        self.has_no_random = not plain and window.hide_features(_CPUID_EXT_RDRAND, _CPUID_7_0_EBX_RDSEED)
        cpu, env = window.cpu_address, window.env_address
        internals = Internals(library.lib, library.uc, cpu, env, plain=plain)
        super().__init__(library, window, internals, core() if use_core and not plain else None)
        self.nowhere = phys_base + len(memory)
        self._end_patches: Callable[[], object] = lambda: None
        if self._core is not None:
            PATCHES.acquire()
            self._end_patches = weakref.finalize(self, PATCHES.release)
            guard_division(self._lib, self._core)
            internals.use_core(self._core, self.words)
        self.code_pages = CodePages(self._lib, self._core, self.words, phys_base, len(memory), ram)
        self.words.ram = ram
        self._base_mfn = phys_base >> 12
        self.close_ports()

    # -- running

    def run(self) -> None:
        """Run the guest from the window's state until nothing is left or somebody wants the engine out.

        Raises what a handler raised, and EngineError for what no guest can be allowed to cause.
        """
        if not self.window.live:
            self.window.store()
        rest = self._begin_rest() if self.words.paid else None
        self._running = True
        rip = ctypes.c_uint64(self.q[RIP])
        if self._core is not None:
            err = self._core.hv_run(ctypes.byref(self.words), self._lib.uc_emu_start, rip)
        else:
            zero = ctypes.c_uint64(0)
            err = self._lib.uc_emu_start(self._uc, rip, zero, zero, ctypes.c_size_t(0))
        self._running = False
        self.cell[CELL_LIMIT] = 0
        if not self.window.live:
            self.window.load()
        if rest is not None or self.words.stop_kind:
            self._account(rest)
        if self._pending is not None:
            caught, self._pending = self._pending, None
            raise caught
        if self.port_faults is not None and self.port_faults.is_left:
            self.port_faults.deliver()
            self.cell[CELL_LIMIT] = 0  # this run is over
        elif err:
            reason = _REASONS.get(err, f"Unicorn error {err}")
            raise EngineError(f"the engine stopped at {self.q[RIP]:#x}: {reason}")

    @property
    def port_accesses(self) -> tuple[int, int]:
        """How many reads and writes of ports were no exits."""
        return self.words.port_reads, self.words.port_writes

    def wrote_frame(self, mfn: int) -> None:
        """A device wrote into a frame of the guest's: code that was translated from it is no more."""
        pages = self.code_pages
        if not pages.known or pages.holding[mfn - self._base_mfn]:
            self.flush_code(mfn << 12, (mfn + 1) << 12)

    def want_out(self) -> None:
        """For signal handlers and other threads: end this run, or the next, at a block of code."""
        self.cell[CELL_LIMIT] = OUT

    def close(self) -> None:
        """Free the engine."""
        if self._uc:
            self.window.close()
            self.internals.close()
            self._library.close()
            self._uc = self._library.uc
            self._keep.clear()
            self._end_patches()

    @contextmanager
    def covering(self, start: int, end: int, slots: int = SLOTS) -> Iterator[Coverage]:
        """Note which blocks in [start, end) run while this lasts; code is translated anew, and behind it."""
        self.coverage = coverage = Coverage(start, end, slots)
        self.words.coverage = address_of(coverage.words)
        self.flush_code()
        try:
            yield coverage
        finally:
            self.words.coverage = 0
            self.coverage = None
            self.flush_code()

    # -- ports

    def open_ports(self, cost: int) -> None:
        """Let code in the present ring do port I/O with nothing behind it, for `cost` ns each.

        Until `close_ports()`; without it, and for the ports that Xen keeps, port I/O is a #GP.
        """
        self.words.port_cost = cost
        self.words.port_ring = self.cpl

    def close_ports(self) -> None:
        """Make all port I/O a #GP again."""
        self.words.port_ring = NO_RING

    # -- what a domain leaves behind

    def save_context(self) -> EngineContext:
        """All that another domain must find untouched when its turn comes again, but the clock's words."""
        words = self.words
        return EngineContext(
            self.save_state(), self._step_deferred, *(getattr(words, name) for name in _CONTEXT_WORDS)
        )

    def load_context(self, context: EngineContext, root: int = 0) -> None:
        """Put back what `save_context()` gave; `root` as of `load_state()`."""
        self.load_state(context.state, root)
        self._step_deferred = context.step_deferred
        for name in _CONTEXT_WORDS:
            setattr(self.words, name, getattr(context, name))
