"""What a debugger's user sets and gets: points with their conditions, and where the domain stands."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

from hvcore.cpu.inner_stops import LOAD, STORE
from hvcore.debug.condition import Environment, parse_condition
from hvcore.debug.events import Event
from hvcore.debug.registers import RegisterFile
from hvcore.debug.view import GuestView

if TYPE_CHECKING:
    from hvcore.cpu.inner_stops import Access
    from hvcore.machine import Machine

__all__ = [
    "LOAD",
    "STORE",
    "Breakpoint",
    "EventBreak",
    "Point",
    "Stopped",
    "Test",
    "Watchpoint",
    "holds",
    "read",
]


class Test(Protocol):
    """A condition: text that was read, or a client's bytecode."""

    @property
    def text(self) -> str:
        """What it was written as."""

    def evaluate(self, env: Environment) -> int:
        """Its value. Raises ConditionError where it has none."""


def read(condition: str | Test | None) -> Test | None:
    """A condition that was written down, or is one already. Raises ConditionError."""
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
