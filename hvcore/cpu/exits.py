"""How a run of the engine is left: the hooks for exceptions, instructions and time, and who handles them.

They run inside the library. What a handler raises is kept, and `Engine.run`, which it ends, raises it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from hvcore.clock import CELL_HORIZON, CELL_LEFT, CELL_LIMIT, CELL_TURN_END, CELL_WORDS, OUT
from hvcore.cpu import state_window as sw
from hvcore.cpu.address_spaces import keep_spaces
from hvcore.cpu.compiled import address_of_routine
from hvcore.cpu.coverage import Coverage
from hvcore.cpu.engine_internals import Internals
from hvcore.cpu.library import (
    BLOCK_CB,
    IN_CB,
    INS_CPUID,
    INS_IN,
    INS_OUT,
    INS_RDTSC,
    INS_RDTSCP,
    INS_SYSCALL,
    INS_SYSENTER,
    INSN_CB,
    INTR_CB,
    OUT_CB,
    UC_HOOK_BLOCK,
    UC_HOOK_INSN,
    UC_HOOK_INSN_INVALID,
    UC_HOOK_INTR,
    Library,
)
from hvcore.cpu.port_faults import PortFaults
from hvcore.cpu.processor import EFLAGS, R11, RAX, RCX, RDX, RIP, Processor

_OLD_EXCEPTION = sw.OLD_EXCEPTION // 4
_ERROR_CODE = sw.ERROR_CODE // 4
_DEBUG, _TF, _RF = 1, 0x100, 0x10000
_MOST_PUT_OFF = 8


class Handlers(Protocol):
    """What the hypervisor does at each exit. All run inside the engine; `engine.stop()` ends the run."""

    def interrupt(self, vector: int) -> None:
        """Exception or `int n`; RIP is past an `int`, at the instruction of a fault. #UD too."""

    def syscall(self) -> None:
        """`syscall`, RCX and R11 set: RIP is at the instruction, the handler leaves the RIP to go on at."""

    def cpuid(self) -> None:
        """`cpuid`: leaf in RAX and RCX, answer in RAX..RDX."""

    def rdtsc(self) -> int:
        """`rdtsc` and `rdtscp`: the time stamp counter."""


class _Callbacks(NamedTuple):
    interrupt: Callable[[int], None]
    invalid: Callable[[], int]
    cpuid: Callable[[], int]
    rdtsc: Callable[[], int]
    rdtscp: Callable[[], int]
    syscall: Callable[[], int]
    sysenter: Callable[[], int]


class Exits(Processor):
    """A processor whose exits call handlers.

    `cell` is the clock's block of words (clock.CELL_*), of which pacing uses LEFT and LIMIT; it begins
    `words`, which the compiled core shares.
    """

    def __init__(
        self, library: Library, window: sw.StateWindow, internals: Internals, core: ctypes.CDLL | None
    ) -> None:
        super().__init__(library, window, internals, core)
        self.cell = memoryview(self.words).cast("B")[: 8 * CELL_WORDS].cast("q")
        self._pending: BaseException | None = None
        self._step_deferred = False
        self._keep: list[object] = []
        self._stop = self._lib.uc_emu_stop
        self.native_pacing = False
        self.coverage: Coverage | None = None  # who wants to know which blocks run
        self.nowhere = 0  # a physical address behind memory
        self.port_faults: PortFaults | None = None  # where the core cannot raise #GP
        self.set_handlers: Callable[[Handlers], None] = self.install

    def _callbacks(self, handlers: Handlers) -> _Callbacks:
        """What the exits call, which keep the handlers at hand: `set_handlers` changes them."""
        interrupt, syscall, cpuid, rdtsc = (
            handlers.interrupt,
            handlers.syscall,
            handlers.cpuid,
            handlers.rdtsc,
        )

        def set_handlers(other: Handlers) -> None:
            nonlocal interrupt, syscall, cpuid, rdtsc
            interrupt, syscall, cpuid, rdtsc = other.interrupt, other.syscall, other.cpuid, other.rdtsc

        self.set_handlers = set_handlers
        q, d, words = self.q, self.d, self.words
        saved_by_core = self._core_sees_exits  # what `syscall` does to RCX and R11

        def on_interrupt(vector: int) -> None:
            d[_OLD_EXCEPTION] = 0xFFFFFFFF
            if vector == _DEBUG and words.step_rechecked:
                words.step_rechecked = 0
                self.take_debug_status()
            else:
                interrupt(vector)

        def on_syscall() -> int:
            if not saved_by_core:
                q[RCX] = q[RIP] + 2 & 0xFFFFFFFFFFFFFFFF
                q[R11] = self.read_eflags() & ~_RF
            syscall()
            q[RIP] = (q[RIP] - 2) & 0xFFFFFFFFFFFFFFFF  # the instruction's length is added on return
            # The engine looks at TF once more behind it, and so does a processor that comes back by `sysret`.
            # One that comes back by `iret` executes an instruction first.
            words.step_rechecked = self._step_deferred and bool(q[EFLAGS] & _TF)
            self._step_deferred = False
            return 0

        def on_cpuid() -> int:
            cpuid()
            return 1

        def on_rdtsc() -> int:
            tsc = rdtsc()
            q[RAX] = tsc & 0xFFFFFFFF
            q[RDX] = tsc >> 32
            return 1

        def on_rdtscp() -> int:
            q[RCX] = 0
            return on_rdtsc()

        def on_sysenter() -> int:  # AMD processors have none in long mode, and `cpuid` shows an AMD one
            d[_ERROR_CODE + 1] = 0  # not by `int`
            on_interrupt(6)
            q[RIP] = (q[RIP] - 2) & 0xFFFFFFFFFFFFFFFF
            return 0

        def on_invalid() -> int:
            on_interrupt(6)
            return 1

        return _Callbacks(on_interrupt, on_invalid, on_cpuid, on_rdtsc, on_rdtscp, on_syscall, on_sysenter)

    def install(self, handlers: Handlers) -> None:
        """Connect the exits; once, before the first run."""
        self._install_ports()
        on = self._callbacks(handlers)
        faults = self.port_faults
        if faults is not None:
            faults.interrupt = on.interrupt
            on = _Callbacks(faults.inert_interrupt(on.interrupt), *map(faults.inert, on[1:]))
        enter, leave = self._enter_leave()
        guard = self._guard
        interrupt_callback = INTR_CB(self._interrupt_callback(on.interrupt, enter, leave))
        self._hook_exit(UC_HOOK_INTR, "interrupt", interrupt_callback)
        self._hook(UC_HOOK_INSN_INVALID, INSN_CB(guard(on.invalid, enter, leave)))
        for number, name, call in (
            (INS_CPUID, "", on.cpuid),
            (INS_RDTSC, "rdtsc", on.rdtsc),
            (INS_RDTSCP, "rdtscp", on.rdtscp),
            (INS_SYSCALL, "syscall", on.syscall),
            (INS_SYSENTER, "", on.sysenter),
        ):
            self._hook_exit(UC_HOOK_INSN, name, INSN_CB(guard(call, enter, leave)), number)
        self._install_pacing()
        if self._core is not None and self._core_sees_exits:
            keep_spaces(self._lib, self._core, self.words)

    def _enter_leave(self) -> tuple[Callable[[], None] | None, Callable[[], None] | None]:
        return (None, None) if self.window.live else (self.window.load, self.window.store)

    def _interrupt_callback(
        self,
        call: Callable[[int], None],
        enter: Callable[[], None] | None,
        leave: Callable[[], None] | None,
    ) -> Callable[[int, int, int], None]:
        def live(_uc: int, vector: int, _data: int) -> None:
            try:
                call(vector)
            except BaseException as caught:  # ctypes would swallow it
                self._fail(caught)

        def copied(_uc: int, vector: int, _data: int) -> None:
            try:
                if enter and leave:
                    enter()
                    call(vector)
                    leave()
            except BaseException as caught:
                self._fail(caught)

        return live if enter is None else copied

    def _guard(
        self, call: Callable[[], int], enter: Callable[[], None] | None, leave: Callable[[], None] | None
    ) -> Callable[[int, int], int]:
        def run(_uc: int, _data: int) -> int:
            result = 1
            try:
                if enter is None or leave is None:
                    return call()
                enter()
                result = call()
                leave()
            except BaseException as caught:
                self._fail(caught)
            return result

        return run

    def _fail(self, caught: BaseException) -> None:
        self._pending = caught
        self.stop()

    def stop(self) -> None:
        """In a handler: end the run when it returns."""
        self.cell[CELL_LIMIT] = OUT  # which may be all that is looked at
        self._stop(self._uc)

    def _hook(
        self,
        kind: int,
        callback: object,
        *extra: int,
        data: object = None,
        addresses: tuple[int, int] = (1, 0),
    ) -> ctypes.c_size_t:
        """Hook code from the first to the last of `addresses`; (1, 0): all. The hook's handle."""
        handle = ctypes.c_size_t()
        self._keep += [callback, handle]
        self._call(
            "uc_hook_add",
            ctypes.byref(handle),
            ctypes.c_int(kind),
            callback,
            ctypes.c_void_p() if data is None else data,
            *(ctypes.c_uint64(address) for address in addresses),
            *(ctypes.c_int(number) for number in extra),
        )
        return handle

    def _hook_core(self, kind: int, routine: str, *extra: int) -> None:
        """Hook a function of the compiled core, which is given the engine's words."""
        assert self._core is not None
        address = ctypes.c_void_p(address_of_routine(self._core, routine))
        self._hook(kind, address, *extra, data=ctypes.c_void_p(ctypes.addressof(self.words)))

    def _hook_exit(self, kind: int, name: str, callback: Any, *extra: int) -> None:
        """Hook an exit: through the core's `hv_NAME`, which may know what to do, where there is one."""
        if not name or not self._core_sees_exits:
            self._hook(kind, callback, *extra)
            return
        self._keep.append(callback)
        setattr(self.words, f"python_{name}", ctypes.cast(callback, ctypes.c_void_p).value)
        self._hook_core(kind, f"hv_{name}", *extra)

    @property
    def _core_sees_exits(self) -> bool:
        return self._core is not None and self.window.live

    @property
    def has_lanes(self) -> bool:
        """Whether the compiled core sees the exits and can do what a lane needs."""
        return self._core_sees_exits and bool(self.words.tlb_flush)

    def _install_ports(self) -> None:
        """Make port I/O raise #GP, as it does in a ring above IOPL with no I/O bitmap."""
        found = self.internals.io_callbacks()
        if found is not None:
            for routine, instruction in zip(found, (INS_IN, INS_OUT), strict=True):
                self._hook_core(UC_HOOK_INSN, routine, instruction)
            return
        faults = PortFaults(self, self._library, self.cell, self.nowhere, self.stop)
        self._hook(UC_HOOK_INSN, IN_CB(faults.read), INS_IN)
        self._hook(UC_HOOK_INSN, OUT_CB(faults.write), INS_OUT)
        self.port_faults = faults

    def _install_pacing(self) -> None:
        routine = self.internals.pacing_callback()
        if routine is not None:
            self.native_pacing = True
            self._hook_core(UC_HOOK_BLOCK, routine)
            return
        cell, stop, uc, faults = self.cell, self._stop, self._uc, self.port_faults
        turns = cell.cast("B").cast("Q")
        before, end, put_off = 0, 0, 0  # the block before; how many stops in a row were put off

        def count(_uc: int, address: int, size: int, _data: int) -> None:
            nonlocal before, end, put_off
            left = cell[CELL_LEFT]
            if left <= cell[CELL_LIMIT]:
                # This may be the rest of a store into the block before it, which QEMU executes as a block of
                # its own, and which a stop would lose. A stop from outside can always come a block later.
                again = before <= address < end and turns[CELL_HORIZON] - left < turns[CELL_TURN_END]
                if not again or put_off == _MOST_PUT_OFF or (faults is not None and faults.is_left):
                    before, end, put_off = 0, 0, 0
                    stop(uc)
                    return
                put_off += 1
            before, end = address, address + size
            cell[CELL_LEFT] = left - size
            if self.coverage is not None:
                self.coverage.enter(address, size)

        self._hook(UC_HOOK_BLOCK, BLOCK_CB(count))

    def defer_step(self) -> None:
        """In the `syscall` handler: go back as `iret` does, with no trap by TF before an instruction."""
        self._step_deferred = True
