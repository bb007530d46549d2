"""How a domain is driven: until something is wanted, within limits, with input as it comes.

Nothing that this host does reaches the guest, save what is typed: that arrives where the guest stands,
between two of its instructions. Limits on wall time are looked at now and then, and only ever end the run.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import ref

from domainbuilder.errors import BuildError, ExitCode
from domainbuilder.inputs import is_elf
from domainbuilder.launch.bounded import TimeIsUp, until
from domainbuilder.launch.interruptions import Interruptions
from domainbuilder.launch.limits import Limits
from domainbuilder.launch.options import Chosen
from domainbuilder.launch.session import Console, Input, Outcome
from domainbuilder.launch.start import Start
from domainbuilder.launch.tape import Tape
from domainbuilder.launch.transcript import Search
from domainbuilder.launch.waiting import wait_for
from domainbuilder.launch.watchdog import WATCHDOG
from hvcore.clock import NEVER
from hvcore.errors import EngineError
from hvcore.machine import BOOT_TIME_NS, Stop

if TYPE_CHECKING:
    from domainbuilder.launch.crash_report import CrashReport
    from domainbuilder.launch.names import Names
    from domainbuilder.launch.outside import Outside
    from domainbuilder.launch.vnc_server import VncServer
    from domainbuilder.launch.xenstore_server import XenstoreServer
    from domainbuilder.plan.domain_plan import DomainPlan
    from domainbuilder.symbols.table import Symbols
    from hvcore.backends.net_outside import Outside as End
    from hvcore.debug.periodic import Periodic

TICK = "launch"  # the name of our timer among the host's
_TICK_NS = 10_000_000
_RECENT_TICKS = 100
_INPUT_ROOM = 4096
# What goes wrong in a host that was restored from a file whose values do not fit together.
_CONTRADICTIONS = (
    LookupError,
    ArithmeticError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)


class Runner:
    """A domain and its runs, each within `run_until`. RunningDomain is what its holder sees of it."""

    def __init__(
        self,
        start: Start,
        options: Chosen,
        *,
        shares_host: bool,
        started: float,
        symbols: Symbols | None = None,
    ) -> None:
        self._symbols = symbols
        self._names: ref[Names] | None = None
        self._cache = options.cache
        self._counts: deque[tuple[int, bytes]] = deque(maxlen=_RECENT_TICKS)  # Trace.counts(), now and then
        self._limits = Limits(started, options.timeout)
        self._sink = options.console_output
        self._wanted: Callable[[], bool] | None = None
        self._outcome: Outcome | None = None
        self._input: Input | None = None
        self._transcript = start.transcript
        self._console_bytes = start.console_bytes
        self._closed = False
        self._interruptions = Interruptions(self._pause)
        self._searching = False  # for what is wanted
        self._shares_host = shares_host
        self._watchers: list[Periodic] = []
        self._runner: Callable[[], Stop] | None = None  # a debugger, where there is one
        self._tools: XenstoreServer | None = None  # who talk to the store by a socket
        self._viewers: VncServer | None = None  # who see the framebuffer
        self._is_to_end = False
        self._is_trusted = start.is_trusted
        self._plan = start.plan
        self.machine = start.machine(self._output)
        if options.max_guest_seconds is not None:
            self._limits.guest_ns = self.machine.clock.now() + int(options.max_guest_seconds * 1e9)
        self.console = Console(self.run_until, self.send, self._transcript, start.used)
        self._outside: Outside | None = None
        self._nobody_at: list[End] = []  # the other ends of interfaces that a file had
        self._tape: Tape | None = None
        if options.record or options.replay is not None:
            self._tape = Tape(self.machine, start.subject(), options.replay, self._interruptions.keep)
        self._begin(options)

    def _begin(self, options: Chosen) -> None:
        """The domain is there; what else it needs before it runs. Raises BuildError."""
        if not self._is_trusted:  # no file opens ports here
            again = {vif.devid for vif in options.parsed_vifs}
            outsides = self.machine.devices.outsides
            self._nobody_at = [end for devid, end in outsides.items() if devid not in again]
        if options.replay is None:
            self._look_outside()

    def _look_outside(self) -> None:
        """Have somebody at the other end of each interface that leads out. Raises BuildError."""
        if self._outside is not None:
            self._outside.look()
        elif any(end not in self._nobody_at for end in self.machine.devices.outsides.values()):
            from domainbuilder.launch.outside import Outside  # few domains have one

            self._outside = Outside(self.machine, self._nobody_at)

    def _pause(self) -> None:
        self.machine.host.pause()

    def run_until(self, search: Search | None, timeout: float | None) -> Outcome | None:
        """Run until `search` has its match (None), or for another reason (that)."""
        wanted = None if search is None else search.more
        return self._run(wanted, timeout, may_backtrack=search is not None and search.may_backtrack)

    def _run(
        self, wanted: Callable[[], bool] | None, timeout: float | None, *, may_backtrack: bool = False
    ) -> Outcome | None:
        """Run until `wanted` is true (None), or for another reason (that).

        To find that out may take a regular expression for ever, if it may backtrack.
        """
        self._limits.begin(timeout)
        self._wanted = wanted
        try:
            with until(self._limits.deadline if may_backtrack else None, self._is_searching):
                return self._resume_until_met()
        finally:
            self._wanted = None

    def _resume_until_met(self) -> Outcome | None:
        if self._met():
            return None
        if self._outcome is not None:
            return self._outcome
        self._check_open()
        outcome = None
        with WATCHDOG.over(self._limits.deadline, self.machine.host.nudge), self._interruptions.of_signals():
            while outcome is None:
                if self._limits.passed:
                    return Outcome("timeout", self._limits.passed)
                outcome = self._resume()
                if self._met():
                    return None
        return outcome

    def wait_with(self, others: Sequence[Runner], timeout: float | None = None) -> Outcome | None:
        """Run until this domain ends, or one of the others on its host does (None); else as `wait`.

        Whoever is outside of the others is heard, too.
        """
        machines = [other.machine for other in others]
        outsides = [one.outside for one in (self, *others) if one.outside is not None]
        own, runner = self._outside, self._runner
        if outsides:
            from domainbuilder.launch.outside import Outsides

            self._outside = Outsides(outsides)
        self._runner = runner or self._until_any_stops
        try:
            return self._run(lambda: any(machine.is_over for machine in machines), timeout)
        finally:
            self._outside, self._runner = own, runner

    @property
    def outside(self) -> Outside | None:
        """Who is at the other end of its interfaces that lead out of the host."""
        return self._outside

    def _until_any_stops(self) -> Stop:
        machine, stop = self.machine.host.run()
        return stop if machine is None or machine is self.machine else Stop.PAUSED

    def _is_searching(self) -> bool:
        return self._searching

    def _met(self) -> bool:
        """Whether what is wanted has come. A pattern that takes for ever ends with the time, or a signal."""
        if self._wanted is None:
            return False
        try:
            with self._interruptions.allowed():
                self._searching = True
                return self._wanted()
        except TimeIsUp:
            self._limits.passed = "wall time ran out while a pattern was looked for"
            self._pause()
            return False
        finally:
            self._searching = False

    def _resume(self) -> Outcome | None:
        """One `Machine.run()`; None where there is nothing to say about its end."""
        host = self.machine.host
        host.idle, host.attend = self._idle, self._check_limits
        self._arm_tick()
        try:
            with self._interruptions.run():
                stop = (self._runner or self.machine.run)()
                if stop is not Stop.PAUSED:
                    self.machine.console.drain()
        except EngineError as error:  # of the plain profile, first of all, which cannot trap everything
            raise BuildError(f"the emulator cannot run this guest: {error}") from error
        except _CONTRADICTIONS as error:
            if self._is_trusted:
                raise
            kind = type(error).__name__
            raise BuildError(f"the saved domain contradicts itself: {kind}: {error}") from error
        self._interruptions.raise_kept()
        if stop is Stop.PAUSED:
            if self._limits.passed:
                return Outcome("timeout", self._limits.passed)
            if self._tape is not None and self._tape.is_over:
                return Outcome("replayed")
            is_detached = self._is_to_end or (self._input is not None and self._input.detached)
            return Outcome("detached") if is_detached else None
        if stop is Stop.IDLE:
            if self._limits.passed:
                return Outcome("timeout", self._limits.passed)
            return None if self._is_waited_for else Outcome("idle")
        self._outcome = self._shut_down() if stop is Stop.SHUTDOWN else self._crashed()
        return self._outcome

    @property
    def _is_waited_for(self) -> bool:
        """Whether somebody outside may still wake a guest that is idle for good."""
        if self._outside is not None or self._is_listening or self._is_looked_at:
            return True
        return self._tools is not None and self._tools.has_clients

    def _shut_down(self) -> Outcome:
        outcome = Outcome(self.machine.shutdown_reason)
        if outcome.exit_code is not ExitCode.DOMAIN_CRASHED:
            return outcome
        text = f"SCHEDOP_shutdown: {outcome}"
        cr2 = self.machine.domain.current.ctrlreg[2]
        return replace(outcome, report=self._report(text, cr2 or None, "address of the last page fault"))

    def _crashed(self) -> Outcome:
        crash = self.machine.crash
        assert crash is not None
        return Outcome("crashed", crash.reason, self._report(crash.reason, crash.address, "faulting address"))

    def _report(self, reason: str, address: int | None, role: str) -> CrashReport:
        from domainbuilder.launch.crash_report import capture

        guest_ns = self.machine.clock.now() - BOOT_TIME_NS
        return capture(self.machine, self.names(), reason, address=address, role=role, guest_ns=guest_ns)

    @property
    def plan(self) -> DomainPlan | None:
        """The plan of its kernel; None where nobody knows that."""
        return self._plan()

    def names(self) -> Names:
        """The names of the guest's addresses, as reports have them.

        All who have them at a time have the same: a packed Linux takes a second to give its own, and 90 MB.
        """
        from domainbuilder.launch.names import Names

        found = self._names() if self._names is not None else None
        if found is None:
            found = Names(self.plan, self._symbols, cache=self._cache)
            self._names = ref(found)
        return found

    @property
    def has_symbols(self) -> bool:
        """Whether names are at hand: a file of symbols was given, or the kernel is a plain ELF file."""
        if self._symbols is not None:
            return True
        plan = self.plan
        return plan is not None and is_elf(plan.kernel)

    def _names_at_hand(self) -> Names | None:
        return self.names() if self.has_symbols else None

    def run_by(self, runner: Callable[[], Stop] | None) -> None:
        """Have `runner` called in place of `Machine.run()`, of which it does the same; None: no more."""
        self._runner = runner

    def rearm(self) -> None:
        """Have limits, input and watchers looked at from now on, wherever in the guest's time that is."""
        self._arm_tick()
        for watcher in self._watchers:
            watcher.arm()

    # -- what the machine calls

    def _output(self, data: bytes) -> None:
        self._console_bytes += len(data)
        self._transcript.append(data)
        if self._sink is not None:
            try:
                with self._interruptions.allowed():
                    self._sink(data)
            except BaseException as error:  # which must not end the guest's hypercall half done
                self._interruptions.keep(error)
        try:
            if self._met():
                self._pause()
        except BaseException as error:
            self._interruptions.keep(error)

    def _arm_tick(self) -> None:
        host = self.machine.host
        now = max(self.machine.clock.now(), host.now())  # a domain that waits may be far behind the others
        when = now + _TICK_NS
        last = self._limits.guest_ns
        host.set_timer(TICK, min(when, last) if now < last else when, self._tick)

    def _tick(self) -> None:
        """Every ten milliseconds of the guest's time: are limits passed, has something been typed?"""
        self._counts.append((self.machine.clock.now(), self.machine.domain.trace.counts()))
        self._check_limits()
        if not self._limits.passed:
            self._take()
            self._arm_tick()

    def _check_limits(self) -> None:
        if self._limits.check(self.machine.clock.now()):
            self._pause()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the domain was closed")

    def send(self, data: bytes) -> None:
        """Type `data`, as `console.send` does."""
        self._check_open()
        self.machine.input(data)

    def _take(self) -> None:
        """Pass on what was typed, and what came to its interfaces."""
        source = self._input
        if source is not None and self._is_listening:
            with self._interruptions.allowed():
                data = source.read()
            if source.detached:
                self._pause()
            elif data:
                self.machine.input(data)
        if self._outside is not None:
            self._outside.take()

    @property
    def _is_listening(self) -> bool:
        """Whether what is typed is read: there is room for it."""
        return self._has_input and self.machine.pending_input < _INPUT_ROOM

    def _idle(self, deadline: int) -> None:
        """Every vCPU is blocked: pass the time until `deadline`, which may be our own tick's."""
        host = self.machine.host
        host.timers.stop(TICK)
        for watcher in self._watchers:
            watcher.idle()
        if not host.is_asked and not self._pass_time(deadline):
            return
        self._check_limits()
        if not self._limits.passed:
            self._arm_tick()
        for watcher in self._watchers:
            watcher.arm()

    def _pass_time(self, deadline: int) -> bool:
        """Pass it, or wait; False where the tick was all there was.

        The machine looks again then, and finds that out.
        """
        host = self.machine.host
        due = host.next_deadline()
        if due == NEVER and deadline != NEVER:
            return False
        due = due if due == NEVER else min(due, self._limits.guest_ns)
        is_live = self._input is not None and self._input.real_time
        if self._outside is not None or is_live or self._is_looked_at:
            self._wait_in_real_time(due)
            return True
        host.advance_to(due)
        if due == NEVER and self._is_waited_for:  # not before nothing else can ever happen
            self._wait(None)
        self._take()
        return True

    @property
    def shares_host(self) -> bool:
        """Whether others may run on its host."""
        return self._shares_host

    @property
    def _is_looked_at(self) -> bool:
        """Whether somebody sees its framebuffer."""
        return self._viewers is not None and self._viewers.has_viewers

    @property
    def _has_input(self) -> bool:
        return self._input is not None and self._input.open

    def _wait_in_real_time(self, due: int) -> None:
        """Wait for whoever may wake the guest, as long as it would, and let as much of its time pass."""
        now, started = self.machine.clock.now(), time.monotonic_ns()
        self._wait(None if due == NEVER else max(due - now, 0) / 1e9)
        self._take()
        self.machine.host.advance_to(min(now + time.monotonic_ns() - started, due))

    def _wait(self, seconds: float | None) -> None:
        sources = [self._input if self._is_listening else None, self._tools, self._outside, self._viewers]
        with self._interruptions.allowed():
            wait_for([one for one in sources if one is not None], self._limits.patience(seconds))
