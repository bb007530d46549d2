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

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from hvcore.cpu.inner_stops import LOAD, STORE, InnerStop, Watch
from hvcore.debug.condition import ConditionError, Environment, parse_condition
from hvcore.debug.events import Event
from hvcore.debug.registers import RegisterFile
from hvcore.debug.taps import listen
from hvcore.debug.view import GuestView
from hvcore.machine import Stop

if TYPE_CHECKING:
    import ctypes

    from hvcore.cpu.inner_stops import Access
    from hvcore.machine import Machine

__all__ = ["LOAD", "STORE", "Breakpoint", "Debugger", "Stopped", "Watchpoint"]

_MAX_INST_LEN = 15
_TIMER = "debugger"
_ENDS = {Stop.SHUTDOWN: "shutdown", Stop.CRASHED: "crashed", Stop.IDLE: "idle", Stop.PAUSED: "paused"}


class Test(Protocol):
    """A condition: text that was read, or a client's bytecode."""

    @property
    def text(self) -> str:
        """What it was written as."""

    def evaluate(self, env: Environment) -> int:
        """Its value. Raises ConditionError where it has none."""


def _read(condition: str | Test | None) -> Test | None:
    return (parse_condition(condition) if condition else None) if isinstance(condition, str) else condition


@dataclass(slots=True)
class Breakpoint:
    """Stop before the instruction at linear `address`, where `condition` holds; `vcpu`: of that one alone.

    The first `ignore` times do not count. `error` is why the condition had no value, the last time it had
    none.
    """

    number: int
    address: int
    condition: Test | None
    vcpu: int | None = None
    ignore: int = 0
    hits: int = 0
    error: str = ""


@dataclass(slots=True)
class Watchpoint:
    """Stop after an instruction that makes one of `accesses` (LOAD, STORE) to [address, address + size)."""

    number: int
    address: int
    size: int
    accesses: int
    condition: Test | None
    hits: int = 0
    error: str = ""


@dataclass(slots=True)
class EventBreak:
    """Stop after an event of `kind` for which `condition` holds: at the next block of code."""

    number: int
    kind: type[Event]
    condition: Test | None
    hits: int = 0
    error: str = ""


Point = Breakpoint | Watchpoint | EventBreak


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why the domain stands: "breakpoint", "watchpoint", "event", "step", "time", "count", "paused", "idle",
    "shutdown" or "crashed"; "begin" of what is known. With its vCPU, that one's RIP, and the position
    (Debugger.position): that of the instruction that made the access, for a watchpoint.
    """

    reason: str
    vcpu_id: int
    rip: int
    point: Point | None = None
    access: Access | None = None
    event: Event | None = None
    position: int = field(default=0, compare=False)


class _Environment:
    """What conditions are about: the vCPU that runs, how often the point was met, and the event."""

    def __init__(self, machine: Machine, hits: int, event: Event | None = None) -> None:
        self._machine, self._hits, self._event = machine, hits, event

    def name(self, name: str) -> int | None:
        machine = self._machine
        own = {"hits": self._hits, "vcpu": machine.domain.current_id}
        if name in own:
            return own[name]
        if name == "ns":
            return machine.clock.now()
        event = self._event
        if event is not None:
            if name.startswith("arg") and name[3:].isdecimal():
                args = getattr(event, "args", ())
                return args[int(name[3:])] if int(name[3:]) < len(args) else None
            if name in {field.name for field in fields(event)}:
                value = getattr(event, name)
                return value if isinstance(value, int) else None
        return RegisterFile(machine, machine.domain.current).read(name)

    def read(self, address: int, size: int) -> bytes:
        return GuestView(self._machine).read(address, size)


def holds(machine: Machine, condition: Test, event: Event | None = None, hits: int = 0) -> bool:
    """Whether a condition is true of the vCPU that runs, and of an event. Raises ConditionError."""
    return bool(condition.evaluate(_Environment(machine, hits, event)))


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
        self._stopped: Stopped | None = None
        self._wants_step = False
        self._to_head = False  # time has come inside a block, which is executed to its end
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
        if self.machine.engine.words.nr_watches:
            self.arm_watches()
        self.machine.watcher, self.machine.skip_loops = self._had

    # -- what is set

    def break_at(
        self, address: int, condition: str | Test | None = None, *, vcpu: int | None = None, ignore: int = 0
    ) -> Breakpoint:
        """Set a breakpoint. Raises ConditionError for a condition that cannot be read."""
        read = _read(condition)
        point = Breakpoint(self._number(), address, read, vcpu, ignore)
        self.points[point.number] = point
        return point

    def watch(
        self, address: int, size: int, accesses: int = STORE, condition: str | Test | None = None
    ) -> Watchpoint:
        """Set a watchpoint. Raises EngineError where the engine has none, ConditionError as break_at()."""
        read = _read(condition)
        point = Watchpoint(self._number(), address, size, accesses, read)
        self.points[point.number] = point
        try:
            self.arm_watches()
        except BaseException:
            del self.points[point.number]
            raise
        return point

    def break_on(self, kind: type[Event], condition: str | Test | None = None) -> EventBreak:
        """Stop on events. Raises ConditionError as break_at()."""
        read = _read(condition)
        point = EventBreak(self._number(), kind, read)
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
        """Have the engine watch what watchpoints there are, and nothing else."""
        engine = self.machine.engine
        engine.set_watches(
            [
                Watch(point.address, point.address + point.size, point.accesses)
                for point in self.points.values()
                if isinstance(point, Watchpoint)
            ]
        )

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
        machine = self.machine
        machine.skip_loops = False  # they could be where something is to be met
        self.resumed()
        self._stopped, self._to_head = None, False
        if passes:
            machine.engine.pass_instruction(RegisterFile(machine, machine.domain.current).linear_rip)
        try:
            stop = self._run()
        finally:
            machine.engine.words.is_passing = 0
            machine.skip_loops = self._had[1]
        if self._stopped is not None and stop is Stop.PAUSED:
            return self._stopped
        return self.stopped_here(_ENDS[stop])

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
        return machine.clock.now() - (machine.engine.words.paid if machine.context is None else 0)

    def _report(self, reason: str, **more: object) -> None:
        self._stopped = self.stopped_here(reason, **more)
        self.machine.host.pause()

    def _time_has_come(self) -> None:
        if self._stopped is None:
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
        if self._stopped is not None:
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
