"""Stops inside blocks of code: at instructions that are hooked, before accesses to memory that is watched.

A block is paid for at its head, so where it is left in the middle its rest is paid already. `words.paid` says
how much that is. When the guest goes on there, the new block that begins at that instruction pays nothing for
it, is not left at its head, and ends where the old one did: whoever stops in between, the guest has the same
time. A position is the time at the head of a block, and how far the guest is in it.

Nothing is hooked and nothing watched until somebody asks, and then translated code is made anew. The
compiled core leaves a block by itself (core/inner_stops.c). Without it, by the documented API alone,
hooks work the same, and there are no watches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from hvcore.clock import CELL_LEFT, CELL_SPENT
from hvcore.cpu import state_window as sw
from hvcore.cpu.compiled import address_of_routine
from hvcore.cpu.engine_internals import Internals
from hvcore.cpu.exits import Exits
from hvcore.cpu.library import BLOCK_CB, CODE_CB, CTL_TLB_FLUSH, UC_HOOK_BLOCK, UC_HOOK_CODE, Library
from hvcore.cpu.processor import CS, RIP
from hvcore.errors import EngineError

LOAD, STORE = 1, 2  # of a watch
_AT_INSTRUCTION = 1  # words.stop_kind
_LONG_BLOCK = 128  # bytes: a shorter block was not cut, for it has too few instructions and operations
_PG = 1 << 31
_MOST_WATCHES = 64
_DR6 = 6
_DR_SIZES = (1, 2, 8, 4)  # by the length bits in DR7
_MAX_INST_LEN = 15


class Access(NamedTuple):
    """A load or store of `size` bytes at a linear address."""

    address: int
    size: int
    is_store: bool

    def overlaps(self, start: int, end: int) -> bool:
        """Whether it has to do with [start, end)."""
        return self.address < end and start < self.address + self.size


class InnerStop(NamedTuple):
    """The engine stands before the instruction at linear `address`; `access` is what it is about to do."""

    address: int
    access: Access | None = None


class Watcher(Protocol):
    """Somebody who stops a domain inside its blocks of code, and looks."""

    def wants_one_block(self) -> bool:
        """Before the engine runs: whether it is to be left at the next block."""

    def left(self, stop: InnerStop | None) -> None:
        """The engine was left, and where if that was inside a block: pass_instruction(), or have it pause."""

    def comes(self) -> None:
        """The domain has the engine now, after another or for the first time."""

    def goes(self) -> None:
        """Another domain is about to have the engine."""


class Watch(NamedTuple):
    """Linear addresses from `start` up to `end`, and the kinds of access (LOAD, STORE)."""

    start: int
    end: int
    accesses: int


class _Rest(NamedTuple):
    """The rest of a block that is gone on with: where it begins and ends, and the clock's words then."""

    start: int
    end: int
    left: int
    spent: int


@dataclass(slots=True)
class _Hook:
    """Instructions that are hooked, for so many who asked for just these."""

    callback: object  # which the library calls as long as there is the hook
    handle: ctypes.c_size_t
    instructions: tuple[int, int]
    users: int = 1


class InnerStops(Exits):
    """Exits that can also be left at instructions and before accesses."""

    def __init__(
        self, library: Library, window: sw.StateWindow, internals: Internals, core: ctypes.CDLL | None
    ) -> None:
        super().__init__(library, window, internals, core)
        self._hooks: dict[int, _Hook] = {}  # by handle
        self._watch_words = (ctypes.c_uint64 * (3 * (_MOST_WATCHES + 4)))()
        self.words.watches = ctypes.addressof(self._watch_words)
        self._watches: list[Watch] = []  # of whoever asked for them
        self._own_hit = 0  # which of the guest's own data breakpoints the instruction under way has met
        self._stop_found: InnerStop | None = None
        self._block = (0, 0)  # the last that was entered, where Python sees them
        self._block_hook: ctypes.c_size_t | None = None
        self._boundary: ctypes.c_size_t | None = None
        self._code_callback = CODE_CB(self._at_instruction)
        self._block_callback = BLOCK_CB(self._at_block)

    # -- hooks

    @property
    def _stops_natively(self) -> bool:
        return self.native_pacing and bool(self.words.tcg_tb_lookup) and self.internals.is_lean

    @property
    def can_watch(self) -> bool:
        """Whether this engine sees accesses to memory."""
        return self._stops_natively and bool(self.words.tracks_pages and self.words.cpu_loop_exit_restore)

    def hook_instructions(self, first: int, last: int) -> ctypes.c_size_t:
        """Stop at each instruction that begins at a linear address from `first` to `last`.

        Raises EngineError where this build of the library offers no way.
        """
        for hook in self._hooks.values():
            if hook.instructions == (first, last):
                hook.users += 1  # two hooks at an instruction could not both be passed
                return hook.handle
        if self.native_pacing and self.internals.is_lean and not self._stops_natively:
            raise EngineError("this Unicorn library cannot be stopped inside a block of code")
        if self._stops_natively:
            assert self._core is not None
            callback: object = ctypes.c_void_p(address_of_routine(self._core, "hv_at_instruction"))
        else:
            callback = self._code_callback
            if self._block_hook is None:
                self._block_hook = self._hook(UC_HOOK_BLOCK, self._block_callback)
        handle = self._hook(UC_HOOK_CODE, callback, addresses=(first, last))
        del self._keep[-2:]
        self._hooks[handle.value] = _Hook(callback, handle, (first, last))
        self.flush_code()
        return handle

    @property
    def hooks_instructions(self) -> bool:
        """Whether any instruction is hooked."""
        return bool(self._hooks)

    def unhook(self, handle: ctypes.c_size_t) -> None:
        """Take back `hook_instructions()`."""
        hook = self._hooks[handle.value]
        hook.users -= 1
        if hook.users:
            return
        del self._hooks[handle.value]
        self._delete_hook(handle)
        if not self._hooks and self._block_hook is not None:
            self._delete_hook(self._block_hook)
            self._block_hook = None
        self.flush_code()

    def _delete_hook(self, handle: ctypes.c_size_t) -> None:
        """uc_hook_del() looks hooked addresses up as code, which could set Accessed bits and raise faults.

        Without paging there are none.
        """
        cr0 = sw.CR // 8
        if not self.window.live:
            self.window.load()
        before = self.q[cr0]
        self.q[cr0] = before & ~_PG
        self._store_and_flush()
        self._call("uc_hook_del", handle)
        self.q[cr0] = before
        self._store_and_flush()

    def _store_and_flush(self) -> None:
        if not self.window.live:
            self.window.store()
        self._ctl(self._uc, CTL_TLB_FLUSH)

    def _at_block(self, _uc: int, address: int, size: int, _data: int) -> None:
        self._block = address, size

    def _at_instruction(self, _uc: int, address: int, _size: int, _data: int) -> None:
        if self.port_faults is not None and self.port_faults.is_left:
            return
        words = self.words
        goes_on = words.is_passing and words.passing == address
        words.is_passing = 0
        if goes_on:
            return
        words.stop_kind, words.stop_address = _AT_INSTRUCTION, address
        words.stop_block, words.stop_block_size = self._block
        self._stop(self._uc)

    # -- watches

    def set_watches(self, watches: list[Watch]) -> None:
        """Stop before each access to these; in place of those before. Raises EngineError."""
        self.check_watches(watches)
        self._watches = watches
        self.arm_watches()

    def check_watches(self, watches: list[Watch]) -> None:
        """Raise EngineError where set_watches() would."""
        if watches and not self.can_watch:
            raise EngineError("accesses to memory cannot be watched with this engine")
        if len(watches) > _MOST_WATCHES:
            raise EngineError(f"no more than {_MOST_WATCHES} ranges of memory can be watched")

    def arm_watches(self, *, own_only: bool = False) -> None:
        """Have the core watch what debug registers name, save those met already, and what was asked for."""
        if not self.can_watch:
            return
        own = [watch for bit, watch in self._data_breakpoints() if not self._own_hit & bit]
        watches = own if own_only else [*own, *self._watches]
        for i, watch in enumerate(watches):
            self._watch_words[3 * i : 3 * i + 3] = list(watch)
        if watches or self.words.nr_watches:
            self.words.nr_watches = len(watches)
            self._ctl(self._uc, CTL_TLB_FLUSH)

    # -- the guest's own data breakpoints

    def set_debug(self, number: int, value: int) -> None:
        """Set DR0..DR7; breakpoints that DR7 enables are armed, on instructions and on data."""
        super().set_debug(number, value)
        if number != _DR6:
            self.arm_watches()

    def _data_breakpoints(self) -> Iterator[tuple[int, Watch]]:
        """Those that DR7 enables: their bit in DR6, and what they watch."""
        dr = sw.DR // 8
        dr7 = self.q[dr + 7]
        if not dr7 & 0xFF:
            return
        for i in range(4):
            kind, size = dr7 >> (16 + 4 * i) & 3, _DR_SIZES[dr7 >> (18 + 4 * i) & 3]
            if dr7 >> 2 * i & 3 and kind & 1:  # 1: stores, 3: loads, too
                start = self.q[dr + i] & -size
                yield 1 << i, Watch(start, start + size, STORE if kind == 1 else LOAD | STORE)

    def meets_data_breakpoint(self, access: Access) -> int:
        """The bits in DR6 of the guest's own data breakpoints that watch an access."""
        kind = STORE if access.is_store else LOAD
        return sum(
            bit
            for bit, watch in self._data_breakpoints()
            if watch.accesses & kind and access.overlaps(watch.start, watch.end)
        )

    def execute_past(self, access: Access, run: Callable[[], object]) -> int:
        """Execute the instruction that is about to make an access which data breakpoints watch.

        `run` runs the engine to the next block at most. Returns the bits in DR6 of all that it met; 0 where
        it raised an exception instead, which has been handled.
        """
        at, spent = self.linear_rip, self.cell[CELL_SPENT]
        self._own_hit = self.meets_data_breakpoint(access)
        self.arm_watches(own_only=True)
        hook = self.hook_instructions(at + 1, at + _MAX_INST_LEN)
        try:
            self.pass_instruction()
            while True:
                before = self.cell[CELL_LEFT] - self.words.horizon, self.words.paid
                run()
                stop = self.take_stop()
                if stop is not None and stop.access is not None:
                    self._own_hit |= self.meets_data_breakpoint(stop.access)
                    self.arm_watches(own_only=True)
                    self.pass_instruction()
                elif stop or before != (self.cell[CELL_LEFT] - self.words.horizon, self.words.paid):
                    return self._own_hit if self.cell[CELL_SPENT] == spent else 0
        finally:
            self._own_hit = 0
            self.unhook(hook)
            self.arm_watches()

    # -- stops

    def take_stop(self) -> InnerStop | None:
        """Where the last run ended inside a block, once."""
        found, self._stop_found = self._stop_found, None
        return found

    def pass_instruction(self, address: int | None = None) -> None:
        """Go on with no stop at linear `address` (None: at RIP), though it is hooked; once."""
        self.words.passing, self.words.is_passing = self.linear_rip if address is None else address, 1

    @property
    def linear_rip(self) -> int:
        """RIP as a linear address."""
        rip = self.q[RIP]
        return rip if self.code_is_64bit else rip + self.segment_base(CS) & 0xFFFFFFFF

    def _begin_rest(self) -> _Rest:
        """The guest goes on inside a block: what begins there gets back what it will pay once more."""
        rip, paid = self.linear_rip, self.words.paid
        if self.words.paid_is_of_long:  # which may have been cut, and would now go on farther
            self._boundary = self.hook_instructions(rip + paid, rip + paid)
        self.cell[CELL_LEFT] += paid
        return _Rest(rip, rip + paid, self.cell[CELL_LEFT], self.cell[CELL_SPENT])

    def _account(self, rest: _Rest | None) -> None:
        """After a run that began or ended inside a block: what is paid, and where the guest stands."""
        words, cell = self.words, self.cell
        kind, words.stop_kind = words.stop_kind, 0
        if rest is not None:
            if not kind and cell[CELL_LEFT] == rest.left:  # somebody wanted the engine out before anything
                cell[CELL_LEFT] -= words.paid
                self._remove_boundary()
                return
            words.paid = 0
        if kind:
            self._stopped(kind, rest)
        self._remove_boundary()

    def _remove_boundary(self) -> None:
        if self._boundary is not None:
            self.unhook(self._boundary)
            self._boundary = None

    def _stopped(self, kind: int, rest: _Rest | None) -> None:
        words, cell = self.words, self.cell
        start, size = words.stop_block, words.stop_block_size
        here, end = self.linear_rip, start + size
        is_rest = False
        if rest is not None and rest.start == start:
            code = rest.left - cell[CELL_LEFT] - (cell[CELL_SPENT] - rest.spent)
            is_rest = code == size  # or it came there once more
        if rest is not None and is_rest:
            cell[CELL_LEFT] += end - rest.end  # paid for what the old block did not have
            end = rest.end
        if here == start and not is_rest:  # nothing of it was executed: the guest stands at its head
            cell[CELL_LEFT] += size
        else:
            words.paid = end - here
        words.paid_is_of_long = size >= _LONG_BLOCK or (is_rest and words.paid_is_of_long)
        if kind == _AT_INSTRUCTION and rest is not None and self._boundary is not None and here == rest.end:
            if not is_rest:
                self.pass_instruction()
            return
        access = None
        if kind != _AT_INSTRUCTION:
            access = Access(words.stop_address, words.stop_size, bool(words.stop_is_store))
        self._stop_found = InnerStop(here, access)
