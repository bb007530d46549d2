"""A session with GDB: what each packet asks of the debuggers, and what is answered.

A packet that is not known gets an empty answer, as the protocol has it; one that makes no sense "E01".
Processes are domains, by domid, and threads their vCPUs: thread N is vCPU N-1. A GDB that knows nothing of
processes has the first one. The stub neither waits nor runs a domain: `handle()` gives the bytes of an
answer, or says how the domains are to go on, and whoever runs them gives the stop back by `stop_reply()`.
Source: "Packets" and "General Query Packets" of "GDB Remote Serial Protocol" in GDB's manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape as quoted

from hvcore.debug.gdb.host_files import HostFiles
from hvcore.debug.gdb.packets import PACKET_SIZE, escape
from hvcore.debug.gdb.process import MOST_MEMORY, BadPacket, Process, number, unhex
from hvcore.debug.points import Stopped

_SUPPORTED = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;qXfer:osdata:read+;"
    "qXfer:threads:read+;vContSupported+;swbreak+;hwbreak+;ConditionalBreakpoints+;multiprocess+"
)
_RANGE = re.compile(rb"r([0-9a-fA-F]{1,16}),([0-9a-fA-F]{1,16})\Z")
_THREAD = re.compile(rb"(?:p(-1|[0-9a-fA-F]{1,8})(?:\.|\Z))?(-1|[0-9a-fA-F]{1,8})?\Z")
_KINDS_OF_OSDATA = (("Type", "processes"), ("Description", "Listing of all domains"))
_ALL = -1


@dataclass(frozen=True, slots=True)
class Resume:
    """How the domains go on: those that `goes_on` names, others stand. `pid` is the one that GDB is about:
    all of it goes on, or a vCPU by an instruction or out of [start, end); or back.
    """

    pid: int
    vcpu: int | None = None
    start: int = 0
    end: int = 0
    is_back: bool = False
    goes_on: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Leave:
    """GDB detaches from domains, or kills them; `hangs_up`: and is gone then."""

    pids: tuple[int, ...]
    kills: bool
    hangs_up: bool = False


@dataclass(frozen=True, slots=True)
class Attach:
    """GDB wants a domain that it does not have."""

    pid: int


Answer = bytes | Resume | Leave | Attach


@dataclass(frozen=True, slots=True)
class Listed:
    """A domain as `info os processes` shows it; `columns` are what there is to say of it."""

    pid: int
    columns: tuple[tuple[str, str], ...] = ()


def _piece(data: bytes, where: bytes) -> bytes:
    """What qXfer asks for: `offset,length` of `data`."""
    offset, _, length = where.partition(b",")
    start, size = number(offset), min(number(length), MOST_MEMORY)
    return (b"m" if start + size < len(data) else b"l") + escape(data[start : start + size])


def _thread_id(text: bytes) -> tuple[int | None, int]:
    """A process (None: none is named; -1: all) and a thread (-1: all, 0: any)."""
    match = _THREAD.match(text)
    if match is None or not text:
        raise BadPacket
    return None if match[1] is None else int(match[1], 16), int(match[2] or b"-1", 16)


class Stub:
    """`processes` are those that GDB has at first; `listed` tells which domains there are."""

    def __init__(
        self,
        processes: Iterable[Process],
        *,
        listed: Callable[[], Iterable[Listed]] = tuple,
        goes_back: bool = False,
    ) -> None:
        self.processes = {process.pid: process for process in processes}
        self._listed = listed
        self._pid = min(self.processes)
        self._files = HostFiles()
        self.no_ack = False
        self.is_multiprocess = False  # GDB knows of processes
        self.is_extended = False  # and stays when it has none
        self._supported = (
            _SUPPORTED + ";qXfer:exec-file:read+" + ";ReverseStep+;ReverseContinue+" * goes_back
        ).encode()
        self._commands: tuple[tuple[bytes, Callable[[bytes], Answer]], ...] = (
            (b"qSupported", self._negotiate),
            (b"QStartNoAckMode", self._start_no_ack),
            (b"!", self._extend),
            (b"qXfer:features:read:target.xml:", lambda rest: _piece(self._at().target.xml.encode(), rest)),
            (b"qXfer:exec-file:read:", self._exec_file_name),
            (b"qXfer:threads:read::", lambda rest: _piece(self._threads_xml(), rest)),
            (b"qXfer:osdata:read:", self._osdata),
            (b"qfThreadInfo", lambda _rest: b"m" + b",".join(self._names_of_threads())),
            (b"qsThreadInfo", lambda _rest: b"l"),
            (b"qThreadExtraInfo,", self._thread_info),
            (b"qAttached", lambda _rest: b"1"),
            (b"qC", lambda _rest: b"QC" + self._name(self._at(), self._at().stopped.vcpu_id + 1)),
            (b"qSymbol", lambda _rest: b"OK"),
            (b"qRcmd,", self._command),
            (b"vCont?", lambda _rest: b"vCont;c;C;s;S;r"),
            (b"vCont;", self._resume),
            (b"vAttach;", self._attach),
            (b"vKill", self._kill),
            (b"vMustReplyEmpty", lambda _rest: b""),
            (b"vFile:", self._host_file),
            (b"?", self._why),
            (b"g", lambda _rest: self._at().read_registers()),
            (b"G", lambda rest: self._at().write_registers(rest)),
            (b"p", lambda rest: self._at().read_register(rest)),
            (b"P", lambda rest: self._at().write_register(rest)),
            (b"m", lambda rest: self._at().read_memory(rest)),
            (b"M", lambda rest: self._at().write_memory(rest)),
            (b"X", lambda rest: self._at().write_binary(rest)),
            (b"Z", lambda rest: self._at().insert(rest)),
            (b"z", lambda rest: self._at().remove(rest)),
            (b"H", self._select),
            (b"T", lambda rest: b"OK" if self._known(rest) else b"E01"),
            (b"bc", lambda _rest: self._one(is_back=True) if goes_back else b""),
            (b"bs", lambda _rest: self._one(self._at().thread, is_back=True) if goes_back else b""),
            (b"c", lambda _rest: self._one()),
            (b"C", lambda _rest: self._one()),
            (b"s", lambda _rest: self._one(self._at().thread)),
            (b"S", lambda _rest: self._one(self._at().thread)),
            (b"D", self._detach),
            (b"k", lambda _rest: Leave(tuple(self.processes), kills=True, hangs_up=True)),
        )  # fmt: skip

    def handle(self, data: bytes) -> Answer:
        """The answer to a packet."""
        for prefix, answer in self._commands:
            if data.startswith(prefix):
                try:
                    return answer(data[len(prefix) :])
                except BadPacket:
                    return b"E01"
        return b""

    def stop_reply(self, process: Process, stopped: Stopped) -> bytes:
        """What GDB is told of a stop; the vCPU becomes the selected one."""
        self._pid = process.pid
        signal, reason = process.stop(stopped)
        return b"T%02xthread:%b;%b" % (signal, self._name(process, process.thread), reason.encode())

    def end_reply(self, pid: int, signal: int | None) -> bytes:
        """What GDB is told of a domain that is over: by a signal, or as its guest wanted."""
        text = b"W00" if signal is None else b"X%02x" % signal
        return text + (b";process:%x" % pid if self.is_multiprocess else b"")

    def add(self, process: Process) -> None:
        """GDB has a domain more."""
        self.processes[process.pid] = process

    def drop(self, pid: int) -> None:
        """GDB has a domain no more; whoever had the process made closes it."""
        self.processes.pop(pid, None)

    def close(self) -> None:
        """GDB goes: take back what it has set."""
        self._files.close()
        for process in self.processes.values():
            process.close()

    # -- processes and threads

    def _at(self) -> Process:
        """The process that GDB speaks of."""
        process = self.processes.get(self._pid)
        if process is None:
            raise BadPacket
        return process

    def _name(self, process: Process, thread: int) -> bytes:
        return b"p%x.%x" % (process.pid, thread) if self.is_multiprocess else b"%x" % thread

    def _names_of_threads(self) -> list[bytes]:
        return [self._name(process, n) for process in self._shown() for n in process.threads()]

    def _shown(self) -> list[Process]:
        """The processes that GDB is told of."""
        processes = list(self.processes.values())
        return processes if self.is_multiprocess else processes[:1]

    def _find(self, text: bytes) -> tuple[Process, int]:
        """The process and the thread (-1: all, 0: any) of an id that names no other than one process."""
        pid, thread = _thread_id(text)
        process = self.processes.get(self._pid if pid in (None, _ALL, 0) else pid or 0)
        if process is None:
            raise BadPacket
        return process, thread

    def _known(self, rest: bytes) -> bool:
        process, thread = self._find(rest)
        return process.vcpu(thread) is not None

    def _select(self, rest: bytes) -> bytes:
        if rest[:1] not in (b"g", b"c"):
            raise BadPacket
        if rest[1:] == b"":
            return b"OK"
        process, thread = self._find(rest[1:])
        if thread > 0:
            if process.vcpu(thread) is None:
                return b"E01"
            process.thread = thread
        self._pid = process.pid
        return b"OK"

    def _thread_info(self, rest: bytes) -> bytes:
        process, thread = self._find(rest)
        return process.about(thread).encode().hex().encode()

    def _threads_xml(self) -> bytes:
        threads = "".join(
            f'<thread id="{self._name(process, n).decode()}">{process.about(n)}</thread>'
            for process in self._shown()
            for n in process.threads()
        )
        return f'<?xml version="1.0"?><threads>{threads}</threads>'.encode()

    def _osdata(self, rest: bytes) -> bytes:
        kind, _, where = rest.partition(b":")
        if kind == b"processes":
            items = [(("pid", str(domain.pid)), *domain.columns) for domain in self._listed()]
        elif not kind:
            items = [_KINDS_OF_OSDATA]
        else:
            return b"E01"
        text = "".join(
            "<item>"
            + "".join(f'<column name="{name}">{quoted(value)}</column>' for name, value in columns)
            + "</item>"
            for columns in items
        )
        kind_text = kind.decode("ascii") or "types"
        return _piece(f'<?xml version="1.0"?><osdata type="{kind_text}">{text}</osdata>'.encode(), where)

    # -- going on

    def _one(self, thread: int | None = None, *, is_back: bool = False) -> Resume:
        """The process that GDB speaks of, with all others."""
        vcpu = None if thread is None else thread - 1
        return Resume(self._at().pid, vcpu, is_back=is_back, goes_on=frozenset(self.processes))

    def _resume(self, rest: bytes) -> Answer:
        """vCont: each thread does what the first action for it says; one of them steps, at most."""
        goes_on: set[int] = set()
        step: Resume | None = None
        for action in rest.split(b";"):
            what, _, name = action.partition(b":")
            pid, thread = _thread_id(name) if name else (_ALL, _ALL)
            is_all = pid == _ALL or (pid is None and thread == _ALL)
            process = self.processes.get(self._pid if is_all else pid or self._pid)
            move = self._step(what)
            goes_on |= set(self.processes) if is_all else {process.pid} if process is not None else set()
            if move is not None and step is None and process is not None:
                thread = thread if process.vcpu(thread) is not None else process.thread
                step = Resume(process.pid, thread - 1, *move)
        if not goes_on:
            raise BadPacket
        if step is not None:
            return replace(step, goes_on=frozenset(goes_on))
        return Resume(self._pid if self._pid in goes_on else min(goes_on), goes_on=frozenset(goes_on))

    def _step(self, what: bytes) -> tuple[int, int] | None:
        """The range that a vCPU is to step out of, which is empty for a single step; None: it goes on."""
        if what[:1] in (b"s", b"S"):
            return 0, 0
        if what[:1] == b"r":
            match = _RANGE.match(what)
            if match is None:
                raise BadPacket
            return int(match[1], 16), int(match[2], 16)
        if what[:1] not in (b"c", b"C"):
            raise BadPacket
        return None

    def _why(self, _rest: bytes) -> bytes:
        process = self.processes.get(self._pid) or next(iter(self.processes.values()), None)
        return b"W00" if process is None else self.stop_reply(process, process.stopped)

    # -- coming and going

    def _attach(self, rest: bytes) -> Answer:
        pid = number(rest)
        return b"E01" if pid in self.processes else Attach(pid)

    def _detach(self, rest: bytes) -> Answer:
        """`D` is all of GDB, `D;PID` a process."""
        if not rest:
            return Leave(tuple(self.processes), kills=False, hangs_up=True)
        return self._leave(rest, kills=False)

    def _kill(self, rest: bytes) -> Answer:
        return self._leave(rest, kills=True)

    def _leave(self, rest: bytes, *, kills: bool) -> Answer:
        """A process of GDB's, which one that knows of none may number as it likes."""
        pid = number(rest.removeprefix(b";"))
        if not self.is_multiprocess:
            return Leave(tuple(self.processes), kills=kills, hangs_up=True)
        return Leave((pid,), kills=kills) if pid in self.processes else b"E01"

    # -- the rest

    def _negotiate(self, rest: bytes) -> bytes:
        self.is_multiprocess = b"multiprocess+" in rest.lstrip(b":").split(b";")
        return self._supported

    def _start_no_ack(self, _rest: bytes) -> bytes:
        self.no_ack = True
        return b"OK"

    def _extend(self, _rest: bytes) -> bytes:
        self.is_extended = True
        return b"OK"

    def _exec_file_name(self, rest: bytes) -> bytes:
        pid, _, where = rest.partition(b":")
        process = self.processes.get(number(pid) if pid else self._pid)
        if process is None or process.exec_file is None:
            return b"E01"
        return _piece(process.exec_file.encode(), where)

    def _host_file(self, rest: bytes) -> bytes:
        return self._files.handle(rest, {process.exec_file for process in self.processes.values()})

    def _command(self, rest: bytes) -> bytes:
        text = self._at().monitor(unhex(rest).decode("utf-8", "replace").strip())
        return (text if text.endswith("\n") else text + "\n").encode()[:MOST_MEMORY].hex().encode()
