"""A vCPU's registers as reports show them, and the words on its stack."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.cpu.processor import CS, EFLAGS, FS, GS, RIP, SS, SavedState
from hvcore.debug.view import GuestView

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu

GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SELECTORS = ("es", "cs", "ss", "ds", "fs", "gs")


@dataclass(frozen=True, slots=True)
class Registers:
    """`struct cpu_user_regs` and what Xen prints beside it. `general` and `selectors` are by name.

    `code_address` and `stack_address` are RIP and RSP with the bases of their segments: linear addresses.
    """

    general: Mapping[str, int]
    selectors: Mapping[str, int]
    rip: int
    code_address: int
    stack_address: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    fs_base: int
    gs_base: int
    gs_shadow: int
    event_mask: int
    kernel_mode: bool


def registers_of(machine: Machine, v: Vcpu) -> Registers:
    """The registers of a vCPU, whether the engine has them or not."""
    abi, mask = v.domain.abi, v.domain.abi.word_mask
    state = SavedState(machine.state_of(v))
    general = {name: state.q[i] & mask for i, name in enumerate(GPRS)}
    selectors = {name: state.selector(i) for i, name in enumerate(SELECTORS)}
    rip = state.q[RIP] & mask
    return Registers(
        general=general,
        selectors=selectors,
        rip=rip,
        code_address=state.segment_base(CS) + rip & mask,
        stack_address=state.segment_base(SS) + general["rsp"] & mask,
        rflags=state.q[EFLAGS],
        cr0=state.control(0),
        cr2=v.ctrlreg[2],
        cr3=GuestView(machine, v).root_mfn << 12,
        cr4=state.control(4),
        fs_base=state.segment_base(FS) & mask,
        gs_base=state.segment_base(GS) & mask,
        gs_shadow=v.gs_base_user,
        event_mask=v.upcall_mask,
        kernel_mode=selectors["cs"] & 3 != 3 if abi.is_32bit else v.kernel_mode,
    )


def stack_words(view: GuestView, registers: Registers, word: int, count: int) -> tuple[int, ...]:
    """The words from the stack pointer on, as many of `count` as are mapped; `word` is their size."""
    raw = view.read(registers.stack_address, count * word)
    found = len(raw) // word
    return struct.unpack(f"<{found}{'Q' if word == 8 else 'I'}", raw[: found * word])
