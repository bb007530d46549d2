"""The call chain of a guest's kernel where it stands: return addresses that are known, and no guesses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from domainbuilder.launch.registers import GPRS
from domainbuilder.symbols.backtrace import callers
from hvcore.cpu.processor import CS, RIP, SS
from hvcore.debug.view import GuestView

if TYPE_CHECKING:
    from domainbuilder.launch.names import Names
    from hvcore.machine import Machine

_STACK_BYTES = 4096  # read at once; a deeper frame is read by itself
_SAVED_BY_STUBS = {4: 0, 8: 16}  # bytes, by word size: a 64-bit stub of the hypercall page saves RCX and R11


def left_stub(word: int, read: Callable[[int, int], bytes], stack: int) -> tuple[int, int]:
    """Where a stub of the hypercall page returns to, and the stack pointer then."""
    at = stack + _SAVED_BY_STUBS[word]
    return int.from_bytes(read(at, word), "little"), at + word


class CallChain:
    """The call chain of the vCPU in the engine, as often as it is asked for."""

    def __init__(self, machine: Machine, names: Names) -> None:
        self._machine, self._names = machine, names
        self._word = machine.domain.abi.word

    def addresses(self) -> list[int]:
        """Where the vCPU is, and for each caller an address within its call, from the innermost out.

        (Where a call returns to may be behind the end of its function.) Empty in user mode. Reading changes
        nothing.
        """
        machine = self._machine
        engine, mask = machine.engine, machine.domain.abi.word_mask
        if not machine.traps.guest_kernel_mode():
            return []
        rip = engine.q[RIP] & mask
        if engine.segment_base(CS) or engine.segment_base(SS):
            return [rip + engine.segment_base(CS) & mask]
        registers = {name: engine.q[i] & mask for i, name in enumerate(GPRS)}
        registers["rip"] = rip
        read = _StackReader(GuestView(machine), registers["rsp"])
        stub: list[int] = []
        if rip in self._names.stubs:
            registers["rip"], registers["rsp"] = left_stub(self._word, read, registers["rsp"])
            stub = [registers["rip"]]
        above = callers(
            registers,
            word=self._word,
            read=read,
            in_code=self._names.in_code,
            symbols=self._names.symbols,
        )
        return [rip, *(address - 1 for address in (*stub, *above))]


class _StackReader:
    """Guest memory, of which the top of the stack is read at once."""

    def __init__(self, view: GuestView, stack: int) -> None:
        self._view, self._start = view, stack
        self._bytes = view.read(stack, _STACK_BYTES)

    def __call__(self, address: int, size: int) -> bytes:
        at = address - self._start
        if at >= 0 and at + size <= len(self._bytes):
            return self._bytes[at : at + size]
        return self._view.read(address, size)
