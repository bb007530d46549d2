"""Patches of this process's Unicorn library: made for the first engine, taken back after the last."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hvcore.cpu.compiled import address_of_routine
from hvcore.cpu.process_memory import address_of, function, jump_slot


@dataclass
class Patches:
    """Words of the library's memory with ours and its own contents, and who undoes what else was done."""

    slots: dict[int, tuple[int, int]] = field(default_factory=dict)  # address: (ours, the library's own)
    others: list[tuple[Callable[[], object], Callable[[], object]]] = field(default_factory=list)
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def acquire(self) -> None:
        """An engine comes: what was done for others before, and undone, is done again."""
        with self.lock:
            self.users += 1
            if self.users == 1:
                for slot, (ours, _) in self.slots.items():
                    _write(slot, ours)
                for do, _ in self.others:
                    do()

    def release(self) -> None:
        """An engine has gone."""
        with self.lock:
            self.users -= 1
            if not self.users:
                for slot, (_, own) in self.slots.items():
                    _write(slot, own)
                for _, undo in self.others:
                    undo()

    def patch(self, slot: int, ours: int) -> None:
        """Write `ours` to the word at `slot`; an engine must be there."""
        with self.lock:
            own = self.slots[slot][1] if slot in self.slots else ctypes.c_uint64.from_address(slot).value
            self.slots[slot] = (ours, own)
            _write(slot, ours)

    def call(self, do: Callable[[], bool], undo: Callable[[], object]) -> bool:
        """Do something else that reaches the whole process: whether it could be done."""
        with self.lock:
            done = do()
            if done:
                self.others.append((do, undo))
            return done


def _write(slot: int, value: int) -> None:
    ctypes.c_uint64.from_address(slot).value = value


PATCHES = Patches()


def take_over(
    lib: ctypes.CDLL, core: ctypes.CDLL, routines: Mapping[str, str], *, tell: str, also: tuple[str, ...] = ()
) -> bool:
    """Put routines of the core into the library's jump slots, by the names of the functions that lead there.

    The core's `tell` is given what it calls of the library itself: `also`, and the functions that were there.
    False, and nothing is done, if one cannot be found or its slot not be written.
    """
    found = [function(lib, name) for name in (*also, *routines)]
    addresses = [address_of(one) for one in found if one]
    if len(addresses) != len(found):
        return False
    slots = [jump_slot(lib, target) for target in addresses[len(also) :]]
    if not all(slots):
        return False
    getattr(core, tell)(*map(ctypes.c_void_p, addresses))
    for slot, name in zip(slots, routines.values(), strict=True):
        PATCHES.patch(slot, address_of_routine(core, name))
    return True
