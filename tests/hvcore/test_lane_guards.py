"""Guards of fast lanes, each alone: a call is taken, and with one thing otherwise is Python's, untouched."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import NamedTuple

import pytest

from hvcore.abi import PV64
from hvcore.common.vcpu_op import do_vcpu_op
from hvcore.cpu.compiled import core
from hvcore.cpu.processor import EFLAGS, RAX, RDI, RDX, RIP, RSI, RSP
from hvcore.public.callback import CALLBACKTYPE_event, CALLBACKTYPE_syscall
from hvcore.public.xen import DOMID_SELF, Hypercall
from hvcore.pv.lanes import Lanes
from hvcore.pv.segments import load_cs_ss
from hvcore.x86 import M32, M64
from tests.hvcore.pv_cpu import CODE, PvCpu

H = Hypercall
TARGET, ARGUMENTS, DONE = 20, 21, 22  # pages
R10 = 10
_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
ENTRY = 0x27  # of a page: present, writable, user, accessed
L2, L1 = 2, 3  # pages that are tables


class Bench:
    """A 64-bit vCPU about to make a hypercall, with lanes, and Python's part replaced by a note."""

    def __init__(self) -> None:
        self.cpu = cpu = PvCpu(PV64)
        self.lanes = Lanes(cpu.d)
        assert self.lanes.possible
        load_cs_ss(cpu.v, PV64.flat_kernel_cs, PV64.flat_kernel_ss)
        self.lanes.run(cpu.v)
        self.left_to_python = False
        self._callback = _CALLBACK(self._note)
        self.words = cpu.engine.words
        self.words.python_syscall = ctypes.cast(self._callback, ctypes.c_void_p).value or 0
        self.words.horizon = self.words.left + 1_000_000
        self.words.turn_end = self.words.horizon
        self.pages = (TARGET, ARGUMENTS, DONE)

    def _note(self, _uc: int, _data: int) -> None:
        self.left_to_python = True

    def mfn(self, page: int) -> int:
        return self.cpu.base + page

    def entry_of(self, page: int) -> int:
        """Machine address of the leaf entry of a page."""
        return self.mfn(L1) << 12 | page << 3

    def call(self, number: int, *args: int) -> bool:
        """Whether a lane takes the hypercall."""
        q = self.cpu.engine.q
        for register, value in zip((RDI, RSI, RDX, R10), args, strict=False):
            q[register] = value
        q[RAX], q[RIP] = number, CODE
        self.left_to_python = False
        library = core()
        assert library is not None
        library.hv_syscall(None, ctypes.byref(self.words))
        return not self.left_to_python

    def state(self) -> tuple[object, ...]:
        """What must be as it was when the call is Python's, but what `syscall` itself does to RCX and R11."""
        frames, q = self.cpu.d.frames, self.cpu.engine.q.tolist()
        counts = (frames.count, frames.tcount, frames.ptype, frames.flags, frames.tlbflush_timestamp)
        words = [bytes(block) for block in (self.words, self.cpu.v, self.cpu.d.words)]
        memory = bytes(self.cpu.mem.view[-64 << 12 :])
        return (*map(bytes, counts), q[:1], q[2:11], q[12:20], words[1:], memory)


class Guard(NamedTuple):
    """A call that a lane takes, and what makes it Python's."""

    prepare: Callable[[Bench], tuple[int, ...]]
    spoil: Callable[[Bench], object]


def update(b: Bench) -> tuple[int, ...]:
    """mmu_update: one request, whose number of done ones is wanted."""
    b.cpu.put(ARGUMENTS << 12, struct.pack("<QQ", b.entry_of(TARGET), b.mfn(TARGET) << 12 | 0x25))
    return H.mmu_update, ARGUMENTS << 12, 1, DONE << 12, DOMID_SELF


def put_l2_entry(b: Bench, flags: int) -> tuple[int, ...]:
    """mmu_update: the L2 entry that maps all, as it is but for its flags."""
    b.cpu.put(ARGUMENTS << 12, struct.pack("<QQ", b.mfn(L2) << 12, b.mfn(L1) << 12 | flags))
    return H.mmu_update, ARGUMENTS << 12, 1, 0, DOMID_SELF


def unmap(_b: Bench) -> tuple[int, ...]:
    """update_va_mapping: TARGET is mapped no more."""
    return H.update_va_mapping, TARGET << 12, 0, 0


def operations(b: Bench) -> tuple[int, ...]:
    """mmuext_op: two flushes."""
    b.cpu.put(ARGUMENTS << 12, struct.pack("<I4xQQ", 6, 0, 0) * 2)
    return H.mmuext_op, ARGUMENTS << 12, 2, DONE << 12, DOMID_SELF


def calls(b: Bench) -> tuple[int, ...]:
    """multicall: two of xen_version."""
    b.cpu.put(ARGUMENTS << 12, struct.pack("<8Q", H.xen_version, 0, 0, 0, 0, 0, 0, 0) * 2)
    return H.multicall, ARGUMENTS << 12, 2


def set_leaf(page: int, flags: int) -> Callable[[Bench], None]:
    return lambda b: b.cpu.set_entry(L1, page, b.mfn(page) << 12 | flags)


def end_turn_in(ns: int) -> Callable[[Bench], None]:
    """The turn ends so long from now, with the exit still to be paid."""

    def spoil(b: Bench) -> None:
        b.words.turn_end = b.words.horizon - b.words.left + ns

    return spoil


def trap_flag(b: Bench) -> None:
    b.cpu.engine.q[EFLAGS] |= 0x100


def give_up_page(b: Bench) -> None:
    """Its mapping is all that holds the frame."""
    assert b.cpu.d.mm.guest_remove_page(b.mfn(TARGET)) == 0


def another_owner(b: Bench) -> None:
    b.cpu.d.frames.owner[b.mfn(TARGET) - b.cpu.mem.base_mfn] = 7


def version(_b: Bench) -> tuple[int, ...]:
    """xen_version, the only call that an event may wait for."""
    return H.xen_version, 0, 0


HANDLER, STACK = CODE + 0x800, (DONE << 12) + 0x800


def event(b: Bench) -> None:
    """One waits, and there is a handler for it."""
    b.cpu.v.callbacks[CALLBACKTYPE_event] = (0, HANDLER, 0)
    b.cpu.v.info[:2] = b"\1\0"
    b.cpu.engine.q[RSP] = b.cpu.v.kernel_sp = STACK


def nmi(b: Bench) -> None:
    """The same without an event, but with an NMI."""
    event(b)
    b.cpu.v.info[0], b.cpu.v.nmi_pending = 0, True


def process_with_event(b: Bench) -> None:
    """pread64 of a process has the number of xen_version."""
    event(b)
    b.cpu.v.callbacks[CALLBACKTYPE_syscall] = (0, HANDLER, 0)
    b.cpu.v.kernel_mode = False


GUARDS = {
    "arguments that are no user's": Guard(update, set_leaf(ARGUMENTS, 0x23)),
    "arguments that are not there": Guard(update, set_leaf(ARGUMENTS, 0)),
    "a result in a read-only page": Guard(update, set_leaf(DONE, 0x25)),
    "a result under a read-only table": Guard(
        update, lambda b: b.cpu.set_entry(2, 0, b.mfn(L1) << 12 | 0x65)
    ),
    "a frame of somebody else's": Guard(update, another_owner),
    "a global entry above the last level": Guard(
        lambda b: put_l2_entry(b, 0x67), lambda b: put_l2_entry(b, 0x167)
    ),
    "a single step": Guard(update, trap_flag),
    "an event": Guard(update, event),
    "an event for a process": Guard(version, process_with_event),
    "an event and no handler": Guard(version, lambda b: b.cpu.v.info.__setitem__(slice(0, 2), b"\1\0")),
    "an NMI where an event may wait": Guard(version, lambda b: setattr(b.cpu.v, "nmi_pending", True)),
    "an NMI": Guard(update, lambda b: setattr(b.cpu.v, "nmi_pending", True)),
    "an NMI, and a call that lets events through": Guard(lambda _b: (H.xen_version, 0, 0), nmi),
    "a process": Guard(update, lambda b: setattr(b.cpu.v, "kernel_mode", False)),
    "the last that holds a frame": Guard(unmap, give_up_page),
    "the end of a turn between operations": Guard(operations, end_turn_in(150)),
}


@pytest.mark.parametrize("name", GUARDS)
def test_a_call_is_taken_and_with_one_thing_otherwise_it_is_not(name: str) -> None:
    guard = GUARDS[name]
    taken = Bench()
    assert taken.call(*guard.prepare(taken))
    spoilt = Bench()
    call = guard.prepare(spoilt)
    guard.spoil(spoilt)
    q = spoilt.cpu.engine.q
    for register, value in zip((RDI, RSI, RDX, R10), call[1:], strict=False):
        q[register] = value
    q[RAX], q[RIP] = call[0], CODE
    before = spoilt.state()
    assert not spoilt.call(*call)
    assert spoilt.state() == before


def test_an_event_comes_behind_the_call_that_asks_for_it() -> None:
    b = Bench()
    event(b)
    q = b.cpu.engine.q
    assert b.call(*version(b))
    assert q[RAX] == 4 << 16 | 17
    assert (q[RIP], bytes(b.cpu.v.info[:2])) == (HANDLER - 2, b"\1\1")  # `syscall` is added behind this
    assert b.cpu.get(STACK - 40, "Q")[0] == CODE + 2


def test_an_end_of_a_turn_within_a_multicall_keeps_the_entries_that_were_made() -> None:
    b = Bench()
    call = calls(b)
    end_turn_in(120)(b)  # the exit, and a part of the first entry
    assert not b.call(*call)
    assert b.words.multicall_done == 1
    results = [b.cpu.get((ARGUMENTS << 12) + 64 * i + 8, "Q")[0] for i in range(2)]
    assert results == [4 << 16 | 17, 0]


def test_a_multicall_is_taken_whole() -> None:
    b = Bench()
    assert b.call(*calls(b))
    assert b.words.multicall_done == 0
    assert b.cpu.engine.q[RAX] == 0


@pytest.mark.parametrize("command", [0, 3, 13, 99])
def test_a_vcpu_that_the_domain_does_not_have(command: int) -> None:
    b = Bench()
    absent = (len(b.cpu.d.vcpus), 8191, M32, 1 << 32 | 7)
    for vcpuid in absent:
        assert b.call(H.vcpu_op, command, vcpuid, 0)
        assert b.cpu.engine.q[RAX] == do_vcpu_op(b.cpu.v, command, vcpuid, 0) & M64
    assert b.call(H.vcpu_op, command, 0, 0) == (command == 3)
    assert b.call(H.vcpu_op, command, 1 << 32, 0) == (command == 3)
