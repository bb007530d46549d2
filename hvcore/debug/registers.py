"""Registers of a vCPU by name, read and written in the engine or where they are kept while it does not run.

What belongs to the processor comes from its state (hvcore/cpu/state_window.py); control and debug registers
are the guest's own idea of them, and the event mask, the pending flag and the mode are Xen's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.cpu import state_window as sw
from hvcore.cpu.processor import CS
from hvcore.debug.view import GuestView

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
_HALVES = {
    "eax": "rax", "ecx": "rcx", "edx": "rdx", "ebx": "rbx", "esp": "rsp", "ebp": "rbp", "esi": "rsi",
    "edi": "rdi", "eip": "rip", "rflags": "eflags",
}  # fmt: skip
_M32, _M64 = (1 << 32) - 1, (1 << 64) - 1
_NR_ST, _NR_XMM = 8, 16


@dataclass(frozen=True, slots=True)
class _Field:
    """Where a register lies in the state, and how many bytes it has."""

    at: int
    size: int


def _fields() -> Iterator[tuple[str, _Field]]:
    for i, name in enumerate(GENERAL):
        yield name, _Field(8 * i, 8)
    yield "rip", _Field(sw.RIP, 8)
    yield "eflags", _Field(sw.EFLAGS, 4)
    for i, name in enumerate(SEGMENTS):
        yield name, _Field(sw.SEGS + 24 * i, 4)
    for i, name in ((4, "fs_base"), (5, "gs_base")):
        yield name, _Field(sw.SEGS + 24 * i + 8, 8)
    for i in range(_NR_XMM):
        yield f"xmm{i}", _Field(sw.XMM + sw.XMM_STRIDE * i, 16)
    yield "mxcsr", _Field(sw.MXCSR, 4)
    yield "fctrl", _Field(sw.FPUC, 2)


_FIELDS = dict(_fields())
_GUEST: dict[str, Callable[[Vcpu], int]] = {
    "k_gs_base": lambda v: v.gs_base_user if v.kernel_mode else v.gs_base_kernel,
    "event_pending": lambda v: v.info[0],
    "event_mask": lambda v: v.upcall_mask,
    "vcpu_id": lambda v: v.vcpu_id,
    **{f"cr{n}": lambda v, n=n: v.ctrlreg[n] for n in (0, 2, 4)},  # type: ignore[misc]
    **{f"dr{n}": lambda v, n=n: v.debugreg[n] for n in (0, 1, 2, 3, 6, 7)},  # type: ignore[misc]
}


class RegisterFile:
    """The registers of one vCPU, as they are now. Reading changes nothing."""

    def __init__(self, machine: Machine, vcpu: Vcpu) -> None:
        self._machine, self._vcpu = machine, vcpu
        self._in_engine = vcpu is machine.in_engine and machine.context is None
        self._bytes: bytes | None = None

    @property
    def _state(self) -> bytes:
        if self._bytes is None:
            self._bytes = self._machine.state_of(self._vcpu) or bytes(sw.DR + 64)
        return self._bytes

    def read(self, name: str) -> int | None:
        """The value of a register; None where there is none of that name."""
        if name in _HALVES:
            return _and(self.read(_HALVES[name]), _M32)
        if name in _FIELDS:
            return self._read_field(name)
        if name in _GUEST:
            return _GUEST[name](self._vcpu)
        if name == "cr3":
            return GuestView(self._machine, self._vcpu).root_mfn << 12
        if name == "kernel_mode":
            v = self._vcpu
            return int((self._read_field("cs") & 3) != 3 if v.domain.abi.is_32bit else v.kernel_mode)
        return self._read_fpu(name)

    def _read_field(self, name: str) -> int:
        field = _FIELDS[name]
        if self._in_engine and self._bytes is None and (field.at <= sw.RIP):
            return self._machine.engine.q[field.at // 8]
        return int.from_bytes(self._state[field.at : field.at + field.size], "little")

    def _read_fpu(self, name: str) -> int | None:
        state = self._state
        top = state[sw.FPSTT] & 7
        if name[:2] == "st" and name[2:].isdecimal() and int(name[2:]) < _NR_ST:
            at = sw.FPREGS + 16 * (top + int(name[2:]) & 7)
            return int.from_bytes(state[at : at + 10], "little")
        if name == "fstat":
            return int.from_bytes(state[sw.FPUS : sw.FPUS + 2], "little") & ~0x3800 | top << 11
        if name == "ftag":  # two bits a register, 3 for an empty one
            return sum(3 << 2 * i for i in range(_NR_ST) if state[sw.FPTAGS + i])
        return 0 if name in ("fiseg", "fioff", "foseg", "fooff", "fop") else None

    def write(self, name: str, value: int) -> bool:
        """Give a register another value, which the guest sees; False for one that cannot be written.

        Where RIP changes, what is left of the block under way is not gone on with.
        """
        name = _HALVES.get(name, name)
        field = _FIELDS.get(name)
        if field is None or name in SEGMENTS:
            return False
        state = bytearray(self._state)
        if name == "eflags":
            value = value & 0xCD5 | self._read_field(name) & ~0xCD5 & _M32  # the rest is Xen's
            state[sw.CC_SRC : sw.CC_SRC + 8] = (value & 0x8D5).to_bytes(8, "little")
            state[sw.DF : sw.DF + 4] = (_M32 if value & 0x400 else 1).to_bytes(4, "little")
        state[field.at : field.at + field.size] = (value & (1 << 8 * field.size) - 1).to_bytes(
            field.size, "little"
        )
        m, self._bytes = self._machine, bytes(state)
        if self._in_engine:
            m.engine.load_state(self._bytes)
            if name == "rip":
                m.engine.words.paid = 0
        elif self._vcpu is m.in_engine and m.context is not None:
            m.context = m.context._replace(state=self._bytes)
        else:
            self._vcpu.saved_state = self._bytes
        return True

    @property
    def linear_rip(self) -> int:
        """Where the vCPU stands, as a linear address."""
        rip = self._read_field("rip")
        if not self._vcpu.domain.abi.is_32bit:
            return rip
        at = sw.SEGS + 24 * CS + 8
        return rip + int.from_bytes(self._state[at : at + 8], "little") & _M32


def _and(value: int | None, mask: int) -> int | None:
    return None if value is None else value & mask
