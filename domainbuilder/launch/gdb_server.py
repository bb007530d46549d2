"""GDB at the other end of a socket, for a domain that is launched: who listens where, and who runs when.

The server stands between the domain and its machine: it runs the machine when GDB says so, and talks to GDB
while the machine stands. A domain without a GDB runs as ever; one that comes stops it where it is.
"""

from __future__ import annotations

import ipaddress
import re
import select
import socket
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError, Where
from domainbuilder.inputs import is_elf
from domainbuilder.launch.gdb_monitor import Monitor
from domainbuilder.launch.unix_socket import listen_at
from hvcore.debug.debugger import Debugger, Stopped
from hvcore.debug.gdb.packets import Acknowledged, Damaged, Interrupted, Packet, PacketReader, packet
from hvcore.debug.gdb.stub import Leave, Resume, Stub
from hvcore.debug.periodic import Periodic
from hvcore.debug.timeline import Timeline
from hvcore.machine import Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from domainbuilder.launch.running import RunningDomain

_POLL_NS = 10_000_000  # of the guest's time: how often a running domain looks for GDB
_WAIT = 0.2  # seconds: how often one that stands looks at its limits
_CHUNK = 1 << 16
_MOST_WAITING = 256  # packets of a client that does not wait for answers
_POLL_STEPS = 64
_PORT = re.compile(r"(?:(?P<host>\[[^\]]*\]|[^:\[\]]*):)?(?P<port>[0-9]{1,5})\Z")
_REASONS = {"shutdown": Stop.SHUTDOWN, "crashed": Stop.CRASHED, "idle": Stop.IDLE}


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a unix socket, or a TCP port of a host's."""

    path: str | None = None
    host: str = "127.0.0.1"
    port: int = 0

    @property
    def is_local(self) -> bool:
        """Whether nobody from outside of this machine gets there."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        """As GDB's `target remote` takes it."""
        return self.path if self.path is not None else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`PORT`, `HOST:PORT` or `unix:PATH`; other text is the path of a unix socket. Raises BuildError."""
    match = _PORT.match(text)
    if match is not None:
        port = int(match["port"])
        if port > 0xFFFF:
            raise BuildError("that is no TCP port", found=match["port"], expected="0-65535")
        return Address(host=match["host"] or "127.0.0.1", port=port)
    path = text.removeprefix("unix:")
    if not path:
        raise BuildError("--gdb wants [HOST:]PORT or unix:PATH", found=text)
    return Address(path=path)


def _listen(address: Address) -> socket.socket:
    """A listening socket; that of a path is for its owner alone (mode 0600)."""
    try:
        if address.path is None:
            host = address.host.strip("[]")
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, address.port))
            listener.listen(1)
        else:
            return listen_at(address.path)
    except (OSError, OverflowError, UnicodeError, ValueError) as error:
        raise BuildError(f"GDB cannot be listened for: {error}", where=Where(str(address))) from error
    return listener


class GdbServer:
    """GDB for one domain: a context manager that stands between it and its machine while the block lasts.

    `waits`: the domain does not begin before GDB has come and said so. `goes_back`: GDB can go back in time,
    of a domain that nobody else listens to. `say` is told what the user is to know.
    """

    def __init__(
        self,
        dom: RunningDomain,
        address: Address,
        *,
        waits: bool = True,
        goes_back: bool = False,
        say: Callable[[str], None],
    ) -> None:
        self._dom = dom
        self._say = say
        self._listener = _listen(address)
        port = self._listener.getsockname()[1] if address.path is None else 0
        self.address = address if address.path is not None else Address(host=address.host, port=port)
        self._client: socket.socket | None = None
        self._reader = PacketReader()
        self._waiting: deque[bytes] = deque()
        self._interrupted = False
        self._last = b""
        self._debugger: Debugger | None = None
        self._stub: Stub | None = None
        self._timeline: Timeline | None = None
        self._over: Stopped | None = None  # how the domain ended, while GDB looks at what is left
        self._goes_back = goes_back
        self._monitor = Monitor(dom, self._moved)
        self._resume: Resume | None = None if waits else Resume()  # how the domain goes on; None: it stands
        self._owes_reply = False  # GDB has said how to go on, and waits for the next stop
        self._watching = ExitStack()
        self._periodic = Periodic(dom.machine, "gdb", _POLL_NS, self._poll)

    def __enter__(self) -> GdbServer:
        self._dom.run_by(self._run)
        self._watching.enter_context(self._dom.watching(self._periodic))
        return self

    def __exit__(self, *_: object) -> None:
        self._watching.close()
        self._dom.run_by(None)
        self._drop_client()
        self._listener.close()
        if self.address.path is not None:
            with suppress(OSError):
                Path(self.address.path).unlink()

    # -- running: what the domain calls in place of Machine.run()

    def _run(self) -> Stop:
        """Until the domain's holder is wanted; GDB has its say in between."""
        while True:
            if self._resume is None:
                if not self._talk():
                    return Stop.PAUSED
            elif self._debugger is None:
                stop = self._dom.machine.run()
                if stop is not Stop.PAUSED or self._client is None:
                    return stop
                self._attached()
            else:
                ended = self._go(self._debugger)
                if ended is not None:
                    return ended

    def _go(self, debugger: Debugger) -> Stop | None:
        """As GDB said; where the domain ended or somebody else is wanted, that."""
        assert self._resume is not None
        if self._resume.is_back and self._timeline is not None:
            back, vcpu = self._timeline, self._resume.vcpu
            self._over = None
            self._monitor.close()  # what is executed again would be heard again
            self._tell_stop(back.continue_back() if vcpu is None else back.step_back(vcpu))
            return None
        if self._over is not None:
            return self._leave(self._over)
        stopped = self._step(debugger, self._resume)
        if self._interrupted:
            self._interrupted = False
            self._tell_stop(stopped)
            return None
        if stopped.reason == "paused":
            return Stop.PAUSED  # the rest of a step comes when the domain goes on
        if stopped.reason == "idle":
            return self._idle(stopped)
        if stopped.reason in ("shutdown", "crashed"):
            return self._ended(stopped)
        self._tell_stop(stopped)
        return None

    def _step(self, debugger: Debugger, resume: Resume) -> Stopped:
        if resume.vcpu is None:
            return debugger.go()
        for count in range(1 << 62):
            stopped = debugger.step(resume.vcpu)
            if stopped.reason != "step" or not resume.start <= stopped.rip < resume.end:
                break
            point = debugger.breakpoint_at(stopped.rip)
            if point is not None:
                return Stopped("breakpoint", stopped.vcpu_id, stopped.rip, point)
            if count % _POLL_STEPS == _POLL_STEPS - 1:
                self._poll()
                if self._interrupted:
                    break
        return stopped

    def _idle(self, stopped: Stopped) -> Stop | None:
        """Nothing can ever happen but by GDB, or by input."""
        if self._dom.takes_input:
            return Stop.IDLE
        while self._client is not None and not self._interrupted:
            if not self._receive(_WAIT) and self._is_wanted():
                return Stop.PAUSED
        if self._client is None:
            return Stop.IDLE
        self._interrupted = False
        self._tell_stop(stopped)
        return None

    def _ended(self, stopped: Stopped) -> Stop | None:
        """The domain is over. After a crash GDB may look at what is left, and go back, until it goes on."""
        if stopped.reason == "crashed" or self._dom.machine.shutdown_reason == "crash":
            self._over = stopped
            self._tell_stop(stopped)
            return None
        return self._leave(stopped)

    def _leave(self, stopped: Stopped) -> Stop:
        """GDB is told that there is nothing any more."""
        crashed = stopped.reason == "crashed" or self._dom.machine.shutdown_reason == "crash"
        self._send((b"X0b" if stopped.reason == "crashed" else b"X06") if crashed else b"W00")
        self._drop_client()
        return _REASONS[stopped.reason]

    def _moved(self, stopped: Stopped) -> None:
        """The domain stands elsewhere in its time, by `monitor restart`."""
        assert self._stub is not None
        self._stub.stop_reply(stopped)
        self._over = None

    def _tell_stop(self, stopped: Stopped) -> None:
        self._resume = None
        if self._stub is not None and self._owes_reply:
            self._owes_reply = False
            self._send(self._stub.stop_reply(stopped))

    # -- talking: the domain stands

    def _talk(self) -> bool:
        """Answer GDB until the domain is to go on; False where its holder is wanted."""
        while self._resume is None:
            if self._waiting:
                self._answer(self._waiting.popleft())
            elif not self._receive(_WAIT) and self._is_wanted():
                return False
        return True

    def _is_wanted(self) -> bool:
        """Whether a limit has come, or a signal."""
        host = self._dom.machine.host
        host.attend()
        return host.is_to_pause

    def _answer(self, data: bytes) -> None:
        assert self._stub is not None
        answer = self._stub.handle(data)
        if isinstance(answer, Resume):
            self._resume, self._owes_reply = answer, True
        elif isinstance(answer, Leave):
            self._send(b"OK")
            self._drop_client()
            if answer.kills:
                self._dom.end_run()
                self._dom.machine.host.pause()
        else:
            self._send(answer)

    def _attached(self) -> None:
        """A GDB has come: the debugger is there, and the domain stands."""
        self._debugger = Debugger(self._dom.machine)
        plan = self._dom.plan
        kernel = str(Path(plan.kernel).resolve()) if plan is not None and is_elf(plan.kernel) else None
        if self._goes_back:
            self._timeline = Timeline(self._debugger, went_back=self._dom.went_back)
        line = self._timeline
        self._stub = Stub(
            self._debugger,
            exec_file=kernel,
            monitor=self._monitor,
            goes_back=line is not None,
            written=line.changed if line is not None else lambda: None,
        )
        self._monitor.stub, self._monitor.timeline = self._stub, self._timeline
        self._stub.stopped = Stopped("paused", self._dom.machine.domain.current_id, 0)
        self._resume, self._owes_reply, self._interrupted = None, False, False

    # -- the socket

    def _poll(self) -> None:
        """While the domain runs: is there somebody, or something said?"""
        if self._receive(0) and (self._interrupted or self._client is None or self._debugger is None):
            self._dom.machine.host.pause()

    def _receive(self, seconds: float) -> bool:
        """Take what comes within so many seconds; whether something did."""
        source = self._client or self._listener
        try:
            if not select.select([source], [], [], seconds)[0]:
                return False
            if self._client is None:
                self._accept()
                return True
            data = self._client.recv(_CHUNK)
        except (OSError, ValueError):
            data = b""
        if not data:
            self._drop_client()
            return True
        for item in self._reader.feed(data):
            self._take(item)
        return True

    def _accept(self) -> None:
        self._client, _ = self._listener.accept()
        if self._client.family != socket.AF_UNIX:
            self._client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client.settimeout(10)
        self._reader = PacketReader()
        self._waiting.clear()
        if self._resume is None:  # it stands, and waits for GDB
            self._attached()

    def _take(self, item: Packet | Damaged | Acknowledged | Interrupted) -> None:
        acknowledges = self._stub is None or not self._stub.no_ack
        if isinstance(item, Packet):
            if acknowledges:
                self._write(b"+")
            if len(self._waiting) >= _MOST_WAITING:
                self._drop_client()
            else:
                self._waiting.append(item.data)
        elif isinstance(item, Damaged):
            if acknowledges:
                self._write(b"-")
        elif isinstance(item, Acknowledged):
            if not item.good and acknowledges:
                self._write(self._last)
        elif self._resume is not None:
            self._interrupted = True

    def _send(self, data: bytes) -> None:
        self._last = packet(data)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        if self._client is None:
            return
        try:
            self._client.sendall(data)
        except OSError:
            self._drop_client()

    def _drop_client(self) -> None:
        """GDB has gone, or is sent away: nothing of it is left, and the domain goes on."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
            if not self._dom.machine.is_over:
                self._say("gdb has gone; the domain goes on")
        self._waiting.clear()
        self._monitor.close()
        if self._stub is not None:
            self._stub.close()
        if self._timeline is not None:
            self._timeline.close()
        if self._debugger is not None:
            self._debugger.close()
        self._debugger = self._stub = self._timeline = self._over = None
        self._monitor.stub = self._monitor.timeline = None
        self._interrupted = False
        self._resume = self._resume or Resume()
