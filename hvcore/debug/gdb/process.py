"""A domain as GDB has it: a process whose threads are its vCPUs, with registers, memory and points.

What comes from GDB is text here, and what goes to it bytes, as its remote protocol has them; BadPacket is
raised for text that makes no sense. Source: "Packets" of "GDB Remote Serial Protocol" in GDB's manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.debug.condition import ConditionError
from hvcore.debug.debugger import LOAD, STORE, Breakpoint, Debugger, Stopped, Watchpoint
from hvcore.debug.gdb.agent_expression import MOST_BYTES, AgentExpression
from hvcore.debug.gdb.packets import PACKET_SIZE
from hvcore.debug.gdb.target import target
from hvcore.debug.poke import write_memory
from hvcore.debug.registers import RegisterFile
from hvcore.debug.view import GuestView
from hvcore.errors import EngineError

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

MOST_MEMORY = PACKET_SIZE // 2 - 8
_MOST_POINTS = 1024
_SIGINT, _SIGTRAP, _SIGSEGV, _SIGABRT = 2, 5, 11, 6
_SIGNALS = {"paused": _SIGINT, "idle": _SIGINT, "crashed": _SIGSEGV, "shutdown": _SIGABRT}
_WATCH_KINDS = {2: (STORE, "watch"), 3: (LOAD, "rwatch"), 4: (LOAD | STORE, "awatch")}
_POINT = re.compile(rb"([0-4]),([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})(;.*)?\Z", re.S)
_CONDITION = re.compile(rb";X([0-9a-fA-F]{1,4}),")


class BadPacket(Exception):
    """A packet that makes no sense."""


def number(text: bytes) -> int:
    """A number of GDB's, in hexadecimal."""
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise BadPacket
    return int(text, 16)


def unhex(text: bytes) -> bytes:
    """Bytes that GDB has written as two digits each."""
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise BadPacket from None


class Process:
    """The domain of a debugger. Thread N is vCPU N-1, and `thread` the one that GDB speaks of.

    `monitor` answers a command of the user's; `exec_file` is the kernel's file, as far as there is one;
    `written` is told when GDB has changed something of the guest.
    """

    def __init__(
        self,
        debugger: Debugger,
        *,
        exec_file: str | None = None,
        monitor: Callable[[str], str],
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self.debugger, self.machine = debugger, debugger.machine
        self.pid = self.machine.domain.domain_id
        self.exec_file, self.monitor, self.written = exec_file, monitor, written
        self.target = target(is_64bit=not self.machine.domain.abi.is_32bit)
        self.thread = 1
        self.root_mfn: int | None = None  # whose address space memory is read in; None: the vCPU's
        self.stopped = Stopped("paused", self.machine.domain.current_id, 0)
        self._points: dict[tuple[int, int, int], Breakpoint | Watchpoint] = {}

    def close(self) -> None:
        """GDB goes: take back what it has set."""
        for point in self._points.values():
            self.debugger.delete(point)
        self._points.clear()

    def stop(self, stopped: Stopped) -> tuple[int, str]:
        """The domain stands: the signal and the reason of a stop reply. Its vCPU becomes the selected one."""
        self.stopped = stopped
        self.thread = stopped.vcpu_id + 1
        point = stopped.point
        if isinstance(point, Watchpoint):
            kind = next(name for accesses, name in _WATCH_KINDS.values() if accesses == point.accesses)
            return _SIGTRAP, f"{kind}:{point.address:x};"
        if isinstance(point, Breakpoint):
            is_hardware = any(key[0] == 1 and known is point for key, known in self._points.items())
            return _SIGTRAP, f"{'hwbreak' if is_hardware else 'swbreak'}:;"
        if stopped.reason == "begin":
            return _SIGTRAP, "replaylog:begin;"
        return _SIGNALS.get(stopped.reason, _SIGTRAP), ""

    # -- threads

    def threads(self) -> list[int]:
        """The numbers of the threads that there are."""
        return [v.vcpu_id + 1 for v in self.machine.domain.vcpus if v.is_initialised]

    def vcpu(self, thread: int) -> Vcpu | None:
        """The vCPU that a thread is; None where there is no such thread."""
        return self.machine.domain.vcpus[thread - 1] if thread in self.threads() else None

    def about(self, thread: int) -> str:
        """What a vCPU is doing, in words."""
        v = self.vcpu(thread)
        if v is None:
            return ""
        state = "running" if v is self.machine.running else "blocked" if v.pause_flags else "runnable"
        mode = "kernel" if RegisterFile(self.machine, v).read("kernel_mode") else "user"
        return f"vCPU {v.vcpu_id}, {state}, {mode} mode"

    def _selected(self) -> Vcpu:
        return self.vcpu(self.thread) or self.machine.domain.current

    # -- registers and memory

    def _file(self) -> RegisterFile:
        return RegisterFile(self.machine, self._selected())

    def read_registers(self) -> bytes:
        """`g`."""
        file = self._file()
        numbers = range(len(self.target.registers))
        return b"".join(self.target.value(file, n).hex().encode() for n in numbers)

    def read_register(self, rest: bytes) -> bytes:
        """`p N`."""
        n = number(rest)
        if n >= len(self.target.registers):
            return b"E01"
        return self.target.value(self._file(), n).hex().encode()

    def write_register(self, rest: bytes) -> bytes:
        """`P N=VALUE`."""
        which, _, value = rest.partition(b"=")
        n = number(which)
        if n >= len(self.target.registers):
            return b"E01"
        register = self.target.registers[n]
        return self._wrote(self._file().write(register.name, int.from_bytes(unhex(value)[:16], "little")))

    def write_registers(self, rest: bytes) -> bytes:
        """`G VALUES`."""
        data, at, file = unhex(rest), 0, self._file()
        for n, register in enumerate(self.target.registers):
            new = data[at : at + register.bits // 8]
            at += register.bits // 8
            if len(new) == register.bits // 8 and new != self.target.value(file, n):
                self._wrote(file.write(register.name, int.from_bytes(new, "little")))
        return b"OK"

    def _view(self) -> GuestView:
        view = GuestView(self.machine, self._selected())
        if self.root_mfn is not None:
            view.root_mfn = self.root_mfn
        return view

    def read_memory(self, rest: bytes) -> bytes:
        """`m ADDRESS,LENGTH`."""
        address, _, length = rest.partition(b",")
        data = self._view().read(number(address), min(number(length), MOST_MEMORY))
        return data.hex().encode() if data or length == b"0" else b"E01"

    def write_memory(self, rest: bytes) -> bytes:
        """`M ADDRESS,LENGTH:DIGITS`."""
        where, _, data = rest.partition(b":")
        return self._store(where, unhex(data))

    def write_binary(self, rest: bytes) -> bytes:
        """`X ADDRESS,LENGTH:BYTES`."""
        where, _, data = rest.partition(b":")
        return self._store(where, data)

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, _, length = where.partition(b",")
        if number(length) != len(data):
            raise BadPacket
        return self._wrote(write_memory(self.machine, self._view(), number(address), data))

    def _wrote(self, is_done: bool) -> bytes:
        """GDB has written to the guest, or could not: the answer."""
        if is_done:
            self.written()
        return b"OK" if is_done else b"E01"

    # -- points

    def insert(self, rest: bytes) -> bytes:
        """`Z KIND,ADDRESS,SIZE;CONDITIONS`."""
        match = _POINT.match(rest)
        if match is None:
            raise BadPacket
        kind, address, size = int(match[1]), int(match[2], 16), int(match[3], 16)
        condition = self._condition(match[4] or b"")
        old = self._points.pop((kind, address, size), None)
        if old is not None:
            self.debugger.delete(old)
        if len(self._points) >= _MOST_POINTS:
            return b"E01"
        try:
            if kind in _WATCH_KINDS:
                accesses = _WATCH_KINDS[kind][0]
                point: Breakpoint | Watchpoint = self.debugger.watch(address, min(size, 1 << 20), accesses)
            else:
                point = self.debugger.break_at(address, condition)
        except (EngineError, ConditionError):
            return b"E01"
        self._points[kind, address, size] = point
        return b"OK"

    def _condition(self, text: bytes) -> AgentExpression | None:
        """The first of the conditions; GDB sends one for each of its own breakpoints at the address."""
        match = _CONDITION.match(text)
        if match is None:
            return None
        size = int(match[1], 16)
        code = unhex(text[match.end() : match.end() + 2 * size])
        if size > MOST_BYTES or len(code) != size:
            raise BadPacket
        if _CONDITION.match(text, match.end() + 2 * size):
            return None  # stops if any of them holds: GDB looks itself
        return AgentExpression(code, self.target.names)

    def remove(self, rest: bytes) -> bytes:
        """`z KIND,ADDRESS,SIZE`."""
        match = _POINT.match(rest)
        if match is None:
            raise BadPacket
        point = self._points.pop((int(match[1]), int(match[2], 16), int(match[3], 16)), None)
        if point is not None:
            self.debugger.delete(point)
        return b"OK"
