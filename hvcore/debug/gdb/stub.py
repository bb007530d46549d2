"""A session with GDB: what each packet asks of the debugger, and what is answered.

A packet that is not known gets an empty answer, as the protocol has it; one that makes no sense "E01".
Threads are vCPUs: thread N is vCPU N-1. The stub neither waits nor runs the domain: `handle()` gives the
bytes of an answer, or says how the domain is to go on, and whoever runs it gives the stop back by
`stop_reply()`. Source: "Packets" and "General Query Packets" of "GDB Remote Serial Protocol" in GDB's
manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hvcore.debug.condition import ConditionError
from hvcore.debug.debugger import LOAD, STORE, Breakpoint, Debugger, Stopped, Watchpoint
from hvcore.debug.gdb.agent_expression import MOST_BYTES, AgentExpression
from hvcore.debug.gdb.host_files import HostFiles
from hvcore.debug.gdb.packets import PACKET_SIZE, escape
from hvcore.debug.gdb.target import target
from hvcore.debug.poke import write_memory
from hvcore.debug.registers import RegisterFile
from hvcore.debug.view import GuestView
from hvcore.errors import EngineError

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu

_MOST_POINTS = 1024
_MOST_MEMORY = PACKET_SIZE // 2 - 8
_SIGINT, _SIGTRAP, _SIGSEGV, _SIGABRT = 2, 5, 11, 6
_WATCH_KINDS = {2: (STORE, "watch"), 3: (LOAD, "rwatch"), 4: (LOAD | STORE, "awatch")}
_SUPPORTED = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;"
    "qXfer:threads:read+;vContSupported+;swbreak+;hwbreak+;ConditionalBreakpoints+"
)
_POINT = re.compile(rb"([0-4]),([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,8})(;.*)?\Z", re.S)
_CONDITION = re.compile(rb";X([0-9a-fA-F]{1,4}),")
_RANGE = re.compile(rb"r([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,16})\Z")


@dataclass(frozen=True, slots=True)
class Resume:
    """How the domain goes on: all of it, or a vCPU by an instruction or out of [start, end); or back."""

    vcpu: int | None = None
    start: int = 0
    end: int = 0
    is_back: bool = False


@dataclass(frozen=True, slots=True)
class Leave:
    """GDB detaches, or kills the domain."""

    kills: bool


class BadPacket(Exception):
    """A packet that makes no sense."""


Answer = bytes | Resume | Leave


def _number(text: bytes) -> int:
    if not re.fullmatch(rb"[0-9a-fA-F]{1,16}", text):
        raise BadPacket
    return int(text, 16)


def _unhex(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise BadPacket from None


def _piece(data: bytes, where: bytes) -> bytes:
    """What qXfer asks for: `offset,length` of `data`."""
    offset, _, length = where.partition(b",")
    start, size = _number(offset), min(_number(length), _MOST_MEMORY)
    return (b"m" if start + size < len(data) else b"l") + escape(data[start : start + size])


class Stub:
    """`monitor` answers a command of the user's; `exec_file` is the kernel's file, as far as there is one.

    `written` is told when GDB has changed something of the guest.
    """

    def __init__(
        self,
        debugger: Debugger,
        *,
        exec_file: str | None,
        monitor: Callable[[str], str],
        goes_back: bool = False,
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self.debugger = debugger
        self.machine = debugger.machine
        self._monitor = monitor
        self.written = written
        self._files = HostFiles(exec_file)
        self._exec_file = exec_file
        self._target = target(is_64bit=not self.machine.domain.abi.is_32bit)
        self._points: dict[tuple[int, int, int], Breakpoint | Watchpoint] = {}
        self._thread = 1
        self.root_mfn: int | None = None  # whose address space memory is read in; None: the vCPU's
        self.no_ack = False
        self.stopped = Stopped("paused", self.machine.domain.current_id, 0)
        supported = _SUPPORTED + ";qXfer:exec-file:read+" * bool(exec_file)
        supported += ";ReverseStep+;ReverseContinue+" * goes_back
        back = goes_back
        self._commands: tuple[tuple[bytes, Callable[[bytes], Answer]], ...] = (
            (b"qSupported", lambda _rest: supported.encode()),
            (b"QStartNoAckMode", self._start_no_ack),
            (b"qXfer:features:read:target.xml:", lambda rest: _piece(self._target.xml.encode(), rest)),
            (b"qXfer:exec-file:read:", self._exec_file_name),
            (b"qXfer:threads:read::", lambda rest: _piece(self._threads_xml(), rest)),
            (b"qfThreadInfo", lambda _rest: b"m" + b",".join(b"%x" % thread for thread in self._threads())),
            (b"qsThreadInfo", lambda _rest: b"l"),
            (b"qThreadExtraInfo,", self._thread_info),
            (b"qAttached", lambda _rest: b"1"),
            (b"qC", lambda _rest: b"QC%x" % (self.stopped.vcpu_id + 1)),
            (b"qSymbol", lambda _rest: b"OK"),
            (b"qRcmd,", self._command),
            (b"vCont?", lambda _rest: b"vCont;c;C;s;S;r"),
            (b"vCont;", self._resume),
            (b"vKill", lambda _rest: Leave(kills=True)),
            (b"vMustReplyEmpty", lambda _rest: b""),
            (b"vFile:", self._files.handle),
            (b"?", lambda _rest: self.stop_reply(self.stopped)),
            (b"g", lambda _rest: self._read_registers()),
            (b"G", self._write_registers),
            (b"p", self._read_register),
            (b"P", self._write_register),
            (b"m", self._read_memory),
            (b"M", self._write_memory),
            (b"X", self._write_binary),
            (b"Z", self._insert),
            (b"z", self._remove),
            (b"H", self._select),
            (b"T", lambda rest: b"OK" if self._vcpu(_number(rest)) else b"E01"),
            (b"bc", lambda _rest: Resume(is_back=True) if back else b""),
            (b"bs", lambda _rest: Resume(self._thread - 1, is_back=True) if back else b""),
            (b"c", lambda _rest: Resume()),
            (b"C", lambda _rest: Resume()),
            (b"s", lambda _rest: Resume(self._thread - 1)),
            (b"S", lambda _rest: Resume(self._thread - 1)),
            (b"D", lambda _rest: Leave(kills=False)),
            (b"k", lambda _rest: Leave(kills=True)),
        )

    def handle(self, data: bytes) -> Answer:
        """The answer to a packet."""
        for prefix, answer in self._commands:
            if data.startswith(prefix):
                try:
                    return answer(data[len(prefix) :])
                except BadPacket:
                    return b"E01"
        return b""

    def stop_reply(self, stopped: Stopped) -> bytes:
        """What GDB is told of a stop; the vCPU becomes the selected one."""
        self.stopped = stopped
        self._thread = stopped.vcpu_id + 1
        thread = f"thread:{self._thread:x};"
        point = stopped.point
        if isinstance(point, Watchpoint):
            kind = next(name for accesses, name in _WATCH_KINDS.values() if accesses == point.accesses)
            return f"T{_SIGTRAP:02x}{thread}{kind}:{point.address:x};".encode()
        if isinstance(point, Breakpoint):
            is_hardware = any(key[0] == 1 and known is point for key, known in self._points.items())
            return f"T{_SIGTRAP:02x}{thread}{'hwbreak' if is_hardware else 'swbreak'}:;".encode()
        if stopped.reason == "begin":
            return f"T{_SIGTRAP:02x}{thread}replaylog:begin;".encode()
        signals = {"paused": _SIGINT, "idle": _SIGINT, "crashed": _SIGSEGV, "shutdown": _SIGABRT}
        return f"T{signals.get(stopped.reason, _SIGTRAP):02x}{thread}".encode()

    def close(self) -> None:
        """GDB goes: take back what it has set."""
        self._files.close()
        for point in self._points.values():
            self.debugger.delete(point)
        self._points.clear()

    # -- threads

    def _threads(self) -> list[int]:
        return [v.vcpu_id + 1 for v in self.machine.domain.vcpus if v.is_initialised]

    def _vcpu(self, thread: int) -> Vcpu | None:
        return self.machine.domain.vcpus[thread - 1] if thread in self._threads() else None

    def _selected(self) -> Vcpu:
        return self._vcpu(self._thread) or self.machine.domain.current

    def _select(self, rest: bytes) -> bytes:
        thread = rest[1:]
        if rest[:1] not in (b"g", b"c"):
            raise BadPacket
        if thread in (b"-1", b"0", b""):
            return b"OK"
        number = _number(thread)
        if self._vcpu(number) is None:
            return b"E01"
        self._thread = number
        return b"OK"

    def _about(self, thread: int) -> str:
        v = self._vcpu(thread)
        if v is None:
            return ""
        state = "running" if v is self.machine.running else "blocked" if v.pause_flags else "runnable"
        mode = "kernel" if RegisterFile(self.machine, v).read("kernel_mode") else "user"
        return f"vCPU {v.vcpu_id}, {state}, {mode} mode"

    def _thread_info(self, rest: bytes) -> bytes:
        return self._about(_number(rest)).encode().hex().encode()

    def _threads_xml(self) -> bytes:
        threads = "".join(f'<thread id="{n:x}">{self._about(n)}</thread>' for n in self._threads())
        return f'<?xml version="1.0"?><threads>{threads}</threads>'.encode()

    # -- registers and memory

    def _file(self) -> RegisterFile:
        return RegisterFile(self.machine, self._selected())

    def _read_registers(self) -> bytes:
        file = self._file()
        numbers = range(len(self._target.registers))
        return b"".join(self._target.value(file, number).hex().encode() for number in numbers)

    def _read_register(self, rest: bytes) -> bytes:
        number = _number(rest)
        if number >= len(self._target.registers):
            return b"E01"
        return self._target.value(self._file(), number).hex().encode()

    def _write_register(self, rest: bytes) -> bytes:
        number, _, value = rest.partition(b"=")
        n = _number(number)
        if n >= len(self._target.registers):
            return b"E01"
        register = self._target.registers[n]
        written = self._file().write(register.name, int.from_bytes(_unhex(value)[:16], "little"))
        return self._wrote(written)

    def _write_registers(self, rest: bytes) -> bytes:
        data, at, file = _unhex(rest), 0, self._file()
        for number, register in enumerate(self._target.registers):
            new = data[at : at + register.bits // 8]
            at += register.bits // 8
            if len(new) == register.bits // 8 and new != self._target.value(file, number):
                self._wrote(file.write(register.name, int.from_bytes(new, "little")))
        return b"OK"

    def _view(self) -> GuestView:
        view = GuestView(self.machine, self._selected())
        if self.root_mfn is not None:
            view.root_mfn = self.root_mfn
        return view

    def _read_memory(self, rest: bytes) -> bytes:
        address, _, length = rest.partition(b",")
        data = self._view().read(_number(address), min(_number(length), _MOST_MEMORY))
        return data.hex().encode() if data or length == b"0" else b"E01"

    def _write_memory(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(where, _unhex(data))

    def _write_binary(self, rest: bytes) -> bytes:
        where, _, data = rest.partition(b":")
        return self._store(where, data)

    def _store(self, where: bytes, data: bytes) -> bytes:
        address, _, length = where.partition(b",")
        if _number(length) != len(data):
            raise BadPacket
        return self._wrote(write_memory(self.machine, self._view(), _number(address), data))

    def _wrote(self, is_done: bool) -> bytes:
        """GDB has written to the guest, or could not: the answer."""
        if is_done:
            self.written()
        return b"OK" if is_done else b"E01"

    # -- points

    def _insert(self, rest: bytes) -> bytes:
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
        code = _unhex(text[match.end() : match.end() + 2 * size])
        if size > MOST_BYTES or len(code) != size:
            raise BadPacket
        if _CONDITION.match(text, match.end() + 2 * size):
            return None  # stops if any of them holds: GDB looks itself
        return AgentExpression(code, self._target.names)

    def _remove(self, rest: bytes) -> bytes:
        match = _POINT.match(rest)
        if match is None:
            raise BadPacket
        point = self._points.pop((int(match[1]), int(match[2], 16), int(match[3], 16)), None)
        if point is not None:
            self.debugger.delete(point)
        return b"OK"

    # -- going on

    def _resume(self, rest: bytes) -> Answer:
        """vCont: the first action that steps, or all go on."""
        for action in rest.split(b";"):
            what, _, thread = action.partition(b":")
            vcpu = _number(thread) - 1 if thread and thread != b"-1" else self._thread - 1
            if self._vcpu(vcpu + 1) is None:
                vcpu = self._thread - 1
            if what[:1] in (b"s", b"S"):
                return Resume(vcpu)
            if what[:1] == b"r":
                match = _RANGE.match(what)
                if match is None:
                    raise BadPacket
                return Resume(vcpu, int(match[1], 16), int(match[2], 16))
            if what[:1] not in (b"c", b"C"):
                raise BadPacket
        return Resume()

    # -- the rest

    def _start_no_ack(self, _rest: bytes) -> bytes:
        self.no_ack = True
        return b"OK"

    def _exec_file_name(self, rest: bytes) -> bytes:
        _process, _, where = rest.partition(b":")
        if self._exec_file is None:
            return b""
        return _piece(self._exec_file.encode(), where)

    def _command(self, rest: bytes) -> bytes:
        text = self._monitor(_unhex(rest).decode("utf-8", "replace").strip())
        return (text if text.endswith("\n") else text + "\n").encode()[:_MOST_MEMORY].hex().encode()
