"""GDB for the domains of a host: which of them it has, and who runs when.

The server stands between domains and their machines: it runs them when GDB says so, and talks to GDB
while all of them stand. Domains without a GDB run as ever; one that comes stops them where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from domainbuilder.closing import Closing
from domainbuilder.launch.gdb_domain import GdbDomain
from domainbuilder.launch.gdb_line import Address, GdbLine
from hvcore.debug.gdb.stub import Attach, Leave, Listed, Resume, Stub
from hvcore.debug.periodic import Periodic
from hvcore.machine import Stop

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.debug.debugger import Stopped

_POLL_NS = 10_000_000  # of the guest's time: how often running domains look for GDB
_WAIT = 0.2  # seconds: how often those that stand look at their limits
_SIGABRT, _SIGSEGV = 6, 11


class GdbServer(Closing):
    """A context manager that stands between a host's domains and their machines while the block lasts.

    GDB has the first of them when it comes, and attaches to others; what it has not goes on with what it
    has. `waits`: none begins before GDB has come and said so. `goes_back`: GDB can go back in time, of a
    single domain that nobody else listens to. `stops_at_crash`: the first one stands where it crashes, and
    waits for GDB, with its past from the beginning. `say` is told what the user is to know.
    """

    def __init__(
        self,
        *doms: RunningDomain,
        address: Address,
        waits: bool = True,
        goes_back: bool = False,
        stops_at_crash: bool = False,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.closed = False
        self._all: list[RunningDomain] = []
        self._say = say
        self._line = GdbLine(address)
        self._goes_back = goes_back
        self._stub: Stub | None = None  # while there is a GDB
        self._domains: dict[int, GdbDomain] = {}  # that it has, by domid
        self._killed: list[RunningDomain] = []  # by it: they stand as long as it is listened for
        self._stands = waits  # all that GDB has stand, and it is listened to
        self._resume: Resume | None = None  # how they go on if not
        self._owes_reply = False  # GDB has said how to go on, and waits for the next stop
        self._watching = ExitStack()
        self._host = doms[0].machine.host
        self._periodic = Periodic(doms[0].machine, "gdb", _POLL_NS, self._poll)
        for dom in doms:
            self.add(dom)
        self._stops_at_crash = stops_at_crash
        if stops_at_crash:
            self._wait_for_crash()

    @property
    def address(self) -> Address:
        """Where GDB is listened for."""
        return self._line.address

    def add(self, dom: RunningDomain) -> None:
        """A domain more of the host, which GDB can attach to."""
        self._all.append(dom)
        dom.run_by(partial(self._run, dom))
        self._watching.enter_context(dom.watching(self._periodic))

    def _wait_for_crash(self) -> None:
        """The first domain goes on, and is had, so that it has a past and stands where it crashes."""
        pid = self._take(self._all[0]).process.pid
        self._stands, self._resume = False, Resume(pid, goes_on=frozenset((pid,)))

    def close(self) -> None:
        """Send GDB away, and have the domains run without."""
        if self.closed:
            return
        self._watching.close()
        self._stops_at_crash = False
        for dom in self._all:
            dom.run_by(None)
            dom.machine.is_held = False
        self._gone()
        self._line.close()
        self._all.clear()
        self.closed = True

    # -- running: what a domain calls in place of Machine.run()

    def _run(self, dom: RunningDomain) -> Stop:
        """Until the domain's holder is wanted; GDB has its say in between."""
        while True:
            if dom in self._killed:
                return Stop.PAUSED
            had = self._domains.get(dom.domain_id)
            if dom.machine.is_over and (had is None or had.over is None):
                return Stop.CRASHED if dom.machine.crash is not None else Stop.SHUTDOWN
            if self._stands:
                if not self._talk():
                    return Stop.PAUSED
                continue
            stop = self._go() if self._domains else self._go_without(dom)
            if stop is not None:
                return stop

    def _go_without(self, dom: RunningDomain) -> Stop | None:
        """GDB has no domain, or there is none: a GDB may come, or ask for one."""
        stop = dom.machine.run()
        if stop is not Stop.PAUSED or not self._line.is_up:
            return stop
        if self._stub is None:
            self._attached()
            return None
        if not self._line.has_packets:
            return stop
        while self._line.has_packets and not self._domains:
            self._answer(self._line.next_packet() or b"")
        return None

    def _go(self) -> Stop | None:
        """As GDB said; where somebody else is wanted, that."""
        resume = self._resume
        lead = self._domains.get(resume.pid) if resume is not None else None
        if resume is None or lead is None:  # it is gone: GDB has to say more
            self._stands = True
            return None
        if resume.is_back and lead.timeline is not None:
            self._tell_stop(lead, lead.go_back(resume.vcpu))
            return None
        going = [domain for pid, domain in self._domains.items() if pid in resume.goes_on]
        for domain in going:
            if domain.over is not None or domain.dom.closed:
                return self._tell_end(domain)
        who, stopped = self._run_together(lead, going, resume)
        if self._line.interrupted:
            self._line.interrupted = False
            self._tell_stop(who, stopped)
            return None
        if stopped.reason == "paused" and self._line.is_up and self._stub is None:
            self._attached()
            return None
        if stopped.reason == "paused":
            return Stop.PAUSED  # the rest of a step comes when the domain goes on
        if stopped.reason == "idle":
            return self._idle(who, stopped)
        if stopped.reason not in ("shutdown", "crashed"):
            self._tell_stop(who, stopped)
        elif who.has_crashed:  # GDB may look at what is left, and go back, until it goes on
            who.over = stopped
            self._tell_stop(who, stopped)
        else:
            return self._tell_end(who)
        return None

    def _run_together(
        self, lead: GdbDomain, going: list[GdbDomain], resume: Resume
    ) -> tuple[GdbDomain, Stopped]:
        """Run those that go on, the others of GDB's held: who stands now for a reason, and where."""
        for domain in self._domains.values():
            domain.machine.is_held = domain not in going
        others = [domain for domain in going if domain is not lead]
        with ExitStack() as stack:
            for domain in others:
                stack.enter_context(domain.debugger.beside())
            stopped = lead.go(resume)
        if stopped.reason == "paused":
            for domain in others:
                if domain.machine.is_over:
                    return domain, domain.stop_at_end
                if domain.debugger.stopped is not None:
                    return domain, domain.debugger.stopped
        return lead, stopped

    def _idle(self, who: GdbDomain, stopped: Stopped) -> Stop | None:
        """Nothing can ever happen but by GDB, or by input."""
        if any(dom.takes_input for dom in self._all):
            return Stop.IDLE
        while self._line.is_up and not self._line.interrupted:
            if not self._receive(_WAIT) and self._is_wanted():
                return Stop.PAUSED
        if not self._line.is_up:
            return Stop.IDLE
        self._line.interrupted = False
        self._tell_stop(who, stopped)
        return None

    def _tell_stop(self, domain: GdbDomain, stopped: Stopped) -> None:
        self._stands, self._resume = True, None
        if self._stub is None:
            domain.process.stop(stopped)
            self._say(f"it stands where it crashed; waiting for gdb: target remote {self.address}")
        elif self._owes_reply:
            self._owes_reply = False
            self._line.send(self._stub.stop_reply(domain.process, stopped))

    def _tell_end(self, domain: GdbDomain) -> Stop:
        """GDB is told that there is a domain no more; it goes with the last of them. Holders look, too."""
        pid = domain.process.pid
        self._drop(pid)
        self._stands, self._resume = bool(self._domains), None
        if self._stub is None:
            return Stop.PAUSED
        crash = _SIGSEGV if domain.machine.crash is not None else _SIGABRT
        self._line.send(self._stub.end_reply(pid, crash if domain.has_crashed else None))
        self._owes_reply = False
        if not self._domains and not (self._stub.is_extended and any(self._alive())):
            self._gone()
        return Stop.PAUSED

    # -- talking: the domains stand

    def _talk(self) -> bool:
        """Answer GDB until domains are to go on; False where their holder is wanted."""
        while self._stands:
            if self._line.is_up and self._stub is None:
                self._attached()
            data = self._line.next_packet()
            if data is not None:
                self._answer(data)
            elif not self._receive(_WAIT) and self._is_wanted():
                return False
        return True

    def _is_wanted(self) -> bool:
        """Whether a limit has come, or a signal."""
        self._host.attend()
        return self._host.is_to_pause

    def _answer(self, data: bytes) -> None:
        assert self._stub is not None
        answer = self._stub.handle(data)
        if isinstance(answer, Resume):
            self._resume, self._owes_reply, self._stands = answer, True, False
        elif isinstance(answer, Leave):
            self._leave(answer)
        elif isinstance(answer, Attach):
            self._attach(answer.pid)
        else:
            self._line.send(answer)
            self._line.wants_no_acks = self._stub.no_ack

    def _leave(self, leave: Leave) -> None:
        self._line.send(b"OK")
        for pid in leave.pids:
            domain = self._drop(pid)
            if leave.kills and domain is not None:
                self._killed.append(domain.dom)
                domain.machine.is_held = True
                domain.dom.end_run()
                self._host.pause()
        if leave.hangs_up:
            self._gone()
        elif not self._domains:
            self._stands = False

    def _attach(self, pid: int) -> None:
        assert self._stub is not None
        for dom in self._alive():
            if dom.domain_id == pid:
                domain = self._take(dom)
                self._stub.add(domain.process)
                self._stands = True
                stopped = domain.debugger.stopped_here("attached")
                self._line.send(self._stub.stop_reply(domain.process, stopped))
                return
        self._line.send(b"E01")

    def _alive(self) -> Iterator[RunningDomain]:
        """The domains that GDB can have, or has."""
        return (dom for dom in self._all if not (dom.closed or dom.machine.is_over or dom in self._killed))

    def _take(self, dom: RunningDomain) -> GdbDomain:
        """GDB has a domain from now on."""
        domain = GdbDomain(dom, goes_back=self._goes_back, poll=self._poll_within_steps)
        self._domains[dom.domain_id] = domain
        return domain

    def _drop(self, pid: int) -> GdbDomain | None:
        """GDB has a domain no more, which goes on when any does."""
        domain = self._domains.pop(pid, None)
        if domain is not None:
            if self._stub is not None:
                self._stub.drop(pid)
            domain.close()
        return domain

    def _attached(self) -> None:
        """A GDB has come: it has the first domain, which stands, and attaches to others if it wants them."""
        had = list(self._domains.values()) or [self._take(next(self._alive(), self._all[0]))]
        self._stub = Stub([domain.process for domain in had], listed=self._listed, goes_back=self._goes_back)
        self._stands, self._resume, self._owes_reply = True, None, False

    def _listed(self) -> Iterator[Listed]:
        for dom in self._all:
            if not dom.closed:
                vcpus = sum(v.is_initialised for v in dom.machine.domain.vcpus)
                state = (
                    "over"
                    if dom.machine.is_over
                    else "debugged"
                    if dom.domain_id in self._domains
                    else "free"
                )
                kernel = dom.plan.kernel if dom.plan is not None else ""
                columns = (
                    ("name", dom.machine.name),
                    ("kernel", kernel),
                    ("vcpus", str(vcpus)),
                    ("state", state),
                )
                yield Listed(dom.domain_id, columns)

    # -- the line

    def _poll(self) -> None:
        """While domains run: is there somebody, or something said?"""
        if self._receive(0) and (self._line.interrupted or self._stub is None or not self._domains):
            self._host.pause()

    def _poll_within_steps(self) -> bool:
        self._poll()
        return self._line.interrupted

    def _receive(self, seconds: float) -> bool:
        was_up = self._line.is_up
        came = self._line.receive(seconds)
        if self._stands:
            self._line.interrupted = False  # nothing runs
        if was_up and not self._line.is_up:
            self._gone()
        return came

    def _gone(self) -> None:
        """GDB has gone, or is sent away: nothing of it is left, and the domains go on."""
        had_one = self._stub is not None
        self._line.hang_up()
        for pid in list(self._domains):
            self._drop(pid)
        if self._stub is not None:
            self._stub.close()
        self._stub = self._resume = None
        self._stands = self._owes_reply = False
        alive = len(list(self._alive()))
        if had_one and alive:
            self._say("gdb has gone; " + ("the domain goes on" if alive == 1 else "the domains go on"))
        if self._stops_at_crash and self._all[0] in self._alive():
            self._wait_for_crash()
