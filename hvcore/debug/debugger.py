"""A debugger of one domain: breakpoints, watchpoints, single steps, and runs until something is so.

    with Debugger(machine) as debugger:
        debugger.break_at(0xffffffff81000000, "rdi == 0")
        stopped = debugger.go()
        stopped = debugger.step()

The guest sees nothing of it: a run with stops ends with the registers, memory, console, counts and time
of the run without (hvcore/cpu/inner_stops.py). While nothing is set nothing is hooked. A breakpoint costs
what it costs to leave the engine, some 10 us, when its instruction is reached, and nothing elsewhere; a
watchpoint makes accesses to its page slower. Setting one has all code translated anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from hvcore.cpu.inner_stops import LOAD, STORE, InnerStop, Watch
from hvcore.debug.condition import ConditionError
from hvcore.debug.events import Event
from hvcore.debug.points import Breakpoint, EventBreak, Point, Stopped, Test, Watchpoint, holds, read
from hvcore.debug.registers import RegisterFile
from hvcore.debug.taps import listen
from hvcore.machine import Stop

if TYPE_CHECKING:
    import ctypes

    from hvcore.cpu.inner_stops import Access
    from hvcore.machine import Machine

__all__ = ["LOAD", "STORE", "Breakpoint", "Debugger", "Stopped", "Watchpoint"]

_MAX_INST_LEN = 15
_TIMER = "debugger"
_ENDS = {Stop.SHUTDOWN: "shutdown", Stop.CRASHED: "crashed", Stop.IDLE: "idle", Stop.PAUSED: "paused"}


class Debugger:
    """`run` runs the host until it pauses or the domain ends, as `Machine.run()`, the default, does."""

    def __init__(self, machine: Machine, run: Callable[[], Stop] | None = None) -> None:
        self.machine = machine
        self._run = machine.run if run is None else run
        self.points: dict[int, Point] = {}
        self._next_number = 1
        self._hooks: dict[int, ctypes.c_size_t] = {}  # by address; some may be of breakpoints that are gone
        self._all_hook: ctypes.c_size_t | None = None
        self._countdown = 0
        self.resumed: Callable[[], None] = lambda: None  # told before the domain goes on
        self.stopped: Stopped | None = None  # where the host's run ended, if it ended for this domain
        self._passing: int | None = None  # the engine's is_passing, while another domain uses the engine
        self._wants_step = False
        self._to_head = False  # the time to stop has come inside a block: at the next one's head
        self._step_vcpu: int | None = None  # who executes one instruction now
        self._step_hook: ctypes.c_size_t | None = None
        self._step_from = (0, 0)
        # Met by that instruction, which is at this position.
        self._watched: tuple[Watchpoint, Access, int] | None = None
        self._listening = ExitStack()
        self._had = (machine.watcher, machine.skip_loops)
        machine.watcher = self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take everything back. The domain stands where it stands, and goes on from there."""
        self.points.clear()
        self._end_step()
        self._end_count()
        self._listening.close()
        for address in list(self._hooks):
            self.machine.engine.unhook(self._hooks.pop(address))
        if self.machine.context is None and self.machine.engine.words.nr_watches:
            self.arm_watches()
        self.machine.watcher, self.machine.skip_loops = self._had

    # -- what is set

    def break_at(
        self, address: int, condition: str | Test | None = None, *, vcpu: int | None = None, ignore: int = 0
    ) -> Breakpoint:
        """Set a breakpoint. Raises ConditionError for a condition that cannot be read."""
        test = read(condition)
        point = Breakpoint(self._number(), address, test, vcpu, ignore)
        self.points[point.number] = point
        return point

    def watch(
        self, address: int, size: int, accesses: int = STORE, condition: str | Test | None = None
    ) -> Watchpoint:
        """Set a watchpoint. Raises EngineError where the engine has none, ConditionError as break_at()."""
        test = read(condition)
        point = Watchpoint(self._number(), address, size, accesses, test)
        self.points[point.number] = point
        try:
            self.arm_watches()
        except BaseException:
            del self.points[point.number]
            raise
        return point

    def break_on(self, kind: type[Event], condition: str | Test | None = None) -> EventBreak:
        """Stop on events. Raises ConditionError as break_at()."""
        test = read(condition)
        point = EventBreak(self._number(), kind, test)
        self.points[point.number] = point
        return point

    def delete(self, point: Point) -> None:
        """Take one back; one that is gone is ignored."""
        if self.points.pop(point.number, None) is not None and isinstance(point, Watchpoint):
            self.arm_watches()

    def _number(self) -> int:
        number, self._next_number = self._next_number, self._next_number + 1
        return number

    def arm_watches(self) -> None:
        """Have the engine watch what watchpoints there are, and nothing else, while it has the domain."""
        engine = self.machine.engine
        watches = [
            Watch(point.address, point.address + point.size, point.accesses)
            for point in self.points.values()
            if isinstance(point, Watchpoint)
        ]
        if self.machine.context is None:
            engine.set_watches(watches)
        else:
            engine.check_watches(watches)

    # -- running

    def go(self, *, first_counts: bool = False) -> Stopped:
        """Go on until a point is met, the host is paused, or the domain ends or is idle for good.

        A breakpoint at the instruction where the domain stands is met only if `first_counts`.
        """
        self._set_hooks()
        kinds = {point.kind for point in self.points.values() if isinstance(point, EventBreak)}
        with ExitStack() as stack:
            if kinds:
                stack.enter_context(listen(self.machine, self._event, tuple(kinds)))
            return self._resume(passes=not first_counts)

    def step(self, vcpu: int | None = None) -> Stopped:
        """Let a vCPU (None: the one that runs, or ran last) execute one instruction, breakpoint or not.

        Others run as far as it takes for it to have its turn. What interrupts it before the instruction is
        executed gets its first instruction executed instead.
        """
        self._step_vcpu = self.machine.domain.current_id if vcpu is None else vcpu
        self._wants_step = True
        try:
            return self._resume()
        finally:
            self._wants_step = False
            self._end_step()

    def run_until(
        self,
        *,
        address: int | None = None,
        ns: int | None = None,
        instructions: int | None = None,
        event: type[Event] | None = None,
        condition: str | Test | None = None,
        first_counts: bool = False,
    ) -> Stopped:
        """Go on until the first of these, or what else stops the domain.

        `ns` is system time: the first block of code then. `instructions` are those of all vCPUs together from
        here on; while they are counted the guest is some two hundred times slower.
        """
        points: list[Point] = []
        if address is not None:
            points.append(self.break_at(address, condition))
        if event is not None:
            points.append(self.break_on(event, condition))
        if ns is not None:
            self.machine.host.set_timer(_TIMER, ns, self._time_has_come)
        if instructions is not None:
            self._countdown = instructions
            self._all_hook = self.machine.engine.hook_instructions(1, 0)
        try:
            return self.go(first_counts=first_counts)
        finally:
            self._end_count()
            self.machine.host.timers.stop(_TIMER)
            for point in points:
                self.delete(point)

    def _end_count(self) -> None:
        if self._all_hook is not None:
            self.machine.engine.unhook(self._all_hook)
            self._all_hook = None

    def _resume(self, *, passes: bool = True) -> Stopped:
        with self._running(passes=passes):
            stop = self._run()
        if self.stopped is not None and stop is Stop.PAUSED:
            return self.stopped
        return self.stopped_here(_ENDS[stop])

    @contextmanager
    def _running(self, *, passes: bool) -> Iterator[None]:
        """The domain goes on while the block lasts; `stopped` is where a point is met."""
        machine = self.machine
        machine.skip_loops = False  # they could be where something is to be met
        self.resumed()
        self.stopped, self._to_head = None, False
        if passes:
            at = RegisterFile(machine, machine.domain.current).linear_rip
            if machine.context is None:
                machine.engine.pass_instruction(at)
            else:
                self._passing = at
        try:
            yield
        finally:
            self._passing = None
            if machine.context is None:
                machine.engine.words.is_passing = 0
            machine.skip_loops = self._had[1]

    @contextmanager
    def beside(self) -> Iterator[None]:
        """As go(), while the block runs the host for another domain of it. A point that is met pauses the
        host, and is in `stopped`.
        """
        self._set_hooks()
        with self._running(passes=True):
            yield

    def stopped_here(self, reason: str, **more: object) -> Stopped:
        """A stop where the domain stands, for that reason."""
        machine = self.machine
        v = machine.domain.current
        rip = RegisterFile(machine, v).read("rip") or 0
        more.setdefault("position", self.position)
        return Stopped(reason, v.vcpu_id, rip, **more)  # type: ignore[arg-type]

    @property
    def position(self) -> int:
        """Where the domain is: the time at the head of the block, and the bytes of it that are executed."""
        machine = self.machine
        return machine.clock.now() - (machine.context or machine.engine.words).paid

    def _report(self, reason: str, **more: object) -> None:
        self.stopped = self.stopped_here(reason, **more)
        self.machine.host.pause()

    def _time_has_come(self) -> None:
        if self.stopped is None:
            self._to_head = bool(self.machine.engine.words.paid)
            if not self._to_head:
                self._report("time")

    def _set_hooks(self) -> None:
        """Hook what breakpoints there are, and unhook those that are gone."""
        engine = self.machine.engine
        wanted = {point.address for point in self.points.values() if isinstance(point, Breakpoint)}
        for address in self._hooks.keys() - wanted:
            engine.unhook(self._hooks.pop(address))
        for address in wanted - self._hooks.keys():
            self._hooks[address] = engine.hook_instructions(address, address)

    # -- where the domain stops: Watcher

    def comes(self) -> None:
        """See Watcher."""
        if any(isinstance(point, Watchpoint) for point in self.points.values()):
            self.arm_watches()
        if self._passing is not None:
            self.machine.engine.pass_instruction(self._passing)
            self._passing = None

    def goes(self) -> None:
        """See Watcher. What is hooked stays: another domain passes it."""
        engine = self.machine.engine
        self._passing = engine.words.passing if engine.words.is_passing else None
        engine.words.is_passing = 0
        if self._step_hook is not None:  # nothing of the step is executed
            engine.unhook(self._step_hook)
            self._step_hook = None
        if engine.words.nr_watches:
            engine.set_watches([])

    def wants_one_block(self) -> bool:
        """See Watcher."""
        machine = self.machine
        if self._step_vcpu is None or machine.domain.current_id != self._step_vcpu:
            return self._to_head
        if self._step_hook is None:
            at = machine.engine.linear_rip
            self._step_hook = machine.engine.hook_instructions(at + 1, at + _MAX_INST_LEN)
            machine.engine.pass_instruction()
        self._step_from = machine.clock.now(), machine.engine.words.paid
        return True

    def left(self, stop: InnerStop | None) -> None:
        """See Watcher."""
        machine = self.machine
        if machine.domain.current_id == self._step_vcpu and self._step_hook is not None:
            if machine.ro_page_fault.pending and (stop is None or stop.access is None):
                if stop is not None:  # the store that Xen carries out is executed once more
                    machine.engine.pass_instruction()
                return
            here = machine.clock.now(), machine.engine.words.paid
            if stop is not None and stop.access is not None:
                self._note_access(stop.access)
                machine.engine.pass_instruction()
            elif stop is not None or here != self._step_from:
                self._stepped()
        elif stop is not None:
            self._met(stop)
        elif self._to_head and not machine.engine.words.paid:
            self._to_head = False
            self._report("time")

    def _met(self, stop: InnerStop) -> None:
        machine = self.machine
        if machine.ro_page_fault.pending:
            machine.engine.pass_instruction()
        elif stop.access is not None:
            self._note_access(stop.access)
            self._step_vcpu = machine.domain.current_id
            machine.engine.pass_instruction()
        elif not self._counted() and not self._breaks(stop.address):
            machine.engine.pass_instruction()

    def _counted(self) -> bool:
        if self._all_hook is None:
            return False
        self._countdown -= 1
        if self._countdown > 0:
            return False
        self._report("count")
        return True

    def breakpoint_at(self, address: int) -> Breakpoint | None:
        """The breakpoint that the vCPU that runs meets at a linear address, if its condition holds."""
        for point in self.points.values():
            if isinstance(point, Breakpoint) and point.address == address:
                if point.vcpu is not None and point.vcpu != self.machine.domain.current_id:
                    continue
                if self._holds(point) and point.hits > point.ignore:
                    return point
        return None

    def _breaks(self, address: int) -> bool:
        point = self.breakpoint_at(address)
        if point is not None:
            self._report("breakpoint", point=point)
        return point is not None

    def _holds(self, point: Point, event: Event | None = None) -> bool:
        """Whether the point's condition is true; one that has no value is, so that somebody sees it."""
        point.hits += 1
        point.error = ""
        if point.condition is None:
            return True
        try:
            return holds(self.machine, point.condition, event, point.hits)
        except ConditionError as error:
            point.error = str(error)
            return True

    def _event(self, event: Event) -> None:
        if self.stopped is not None:
            return
        for point in self.points.values():
            if isinstance(point, EventBreak) and point.kind is type(event) and self._holds(point, event):
                self._report("event", point=point, event=event)
                return

    # -- watchpoints, and steps

    def _note_access(self, access: Access) -> None:
        """The instruction that is executed next makes an access: it is executed without watches."""
        self.machine.engine.set_watches([])
        if self._watched is not None:
            return
        for point in self.points.values():
            if (
                isinstance(point, Watchpoint)
                and access.overlaps(point.address, point.address + point.size)
                and point.accesses & (STORE if access.is_store else LOAD)
            ):
                self._watched = point, access, self.position
                return

    def _stepped(self) -> None:
        watched = self._watched
        self._end_step()
        if watched is not None and self._holds(watched[0]):
            point, access, position = watched
            self._report("watchpoint", point=point, access=access, position=position)
        elif self._wants_step:
            self._report("step")

    def _end_step(self) -> None:
        engine = self.machine.engine
        if self._step_hook is not None:
            engine.unhook(self._step_hook)
        self._step_hook = self._step_vcpu = None
        if self._watched is not None:
            self._watched = None
            self.arm_watches()
