"""The past of a domain, for Python: where it stood, who wrote this, who made a frame what it is.

    with launch("vmlinux", memory_mib=256, past=True) as dom:
        dom.wait()                                    # it crashed
        write = dom.last_write(0xffffffff82a01238)    # who wrote that last?
        print(write.moment.function, write.before.hex(), "->", write.after.hex())
        print(dom.last_change(0x10123))               # and who made this frame a page table?

The domain stands then where that was about to happen, and can be looked at, asked on, and run on from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from domainbuilder.hypercall_names import hypercall_text
from hvcore.debug.condition import parse_condition
from hvcore.debug.debugger import Debugger
from hvcore.debug.events import (
    Event,
    HypercallEvent,
    PageTableStoreEvent,
    SubcallEvent,
    UnfinishedEvent,
)
from hvcore.debug.registers import GENERAL, RegisterFile
from hvcore.debug.searches import FrameUse, last_event, last_frame_step, last_store
from hvcore.debug.timeline import BUDGET, Timeline
from hvcore.machine import BOOT_TIME_NS, Stop

if TYPE_CHECKING:
    from collections.abc import Callable

    from domainbuilder.launch.names import Names
    from hvcore.machine import Machine

_GENERAL_32 = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")


@dataclass(frozen=True, slots=True)
class Moment:
    """A place in a domain's run: a vCPU is about to execute the instruction at `rip`.

    `instruction` names it: a number that only grows from one instruction to the next, by some bytes, and is
    the same in each run. `guest_ns` is the guest's time, from its start. `registers` are the general ones,
    "rip" and "eflags" by name (32-bit names in a 32-bit guest), `function` is where `rip` is, as
    "symbol+offset", or empty where that is not known.
    """

    instruction: int
    guest_ns: int
    vcpu_id: int
    rip: int
    function: str = ""
    registers: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        where = f" {self.function}" if self.function else ""
        return f"at {self.guest_ns / 1e9:.9f} s, vCPU {self.vcpu_id}, {self.rip:#x}{where}"


@dataclass(frozen=True, slots=True)
class Happened:
    """An event of the past, and the moment from which it was about to happen."""

    moment: Moment
    event: Event

    def __str__(self) -> str:
        return f"{act_text(self.event)} {self.moment}"


@dataclass(frozen=True, slots=True)
class Write:
    """Memory at `address` was about to change from `before` to `after`, which may be the same.

    `is_by_xen`: not by an instruction of the guest's, but by Xen, in the course of `event`.
    """

    moment: Moment
    address: int
    before: bytes
    after: bytes
    event: Event | None = None

    @property
    def is_by_xen(self) -> bool:
        """Whether it was the hypervisor that wrote."""
        return self.event is not None

    def __str__(self) -> str:
        by = f", by Xen: {act_text(self.event)}" if self.event is not None else ""
        return f"{self.address:#x}: {self.before.hex()} -> {self.after.hex()} {self.moment}{by}"


@dataclass(frozen=True, slots=True)
class FrameChange:
    """What a machine frame is in use as was about to change from `before` to `after`.

    Where `refusals` are there, it was to change, or to be used for something else, and these are why not, in
    the words of Xen's log. `event` is the guest's act: a hypercall, a multicall's entry, a store to a page
    table; None where it was none of these.
    """

    moment: Moment
    mfn: int
    before: FrameUse
    after: FrameUse
    event: Event | None = None
    refusals: tuple[str, ...] = ()

    def __str__(self) -> str:
        act = f", {act_text(self.event)}" if self.event is not None else ""
        change = f"{self.before} -> {self.after}" if self.before != self.after else str(self.after)
        refused = "".join(f"\n  refused: {why}" for why in self.refusals)
        return f"mfn {self.mfn:#x}: {change} {self.moment}{act}{refused}"


def act_text(event: Event) -> str:
    """An event in words: a call with its arguments and result, else its kind."""
    if isinstance(event, HypercallEvent | SubcallEvent):
        return hypercall_text(event.number, event.args, event.result)
    if isinstance(event, UnfinishedEvent):
        return hypercall_text(event.number, event.args)
    if isinstance(event, PageTableStoreEvent):
        return f"store to the page table at {event.cr2:#x}"
    return type(event).__name__.removesuffix("Event").lower()


class Past:
    """What keeps a domain's past, from here on, in at most `budget` bytes of copies of its memory.

    `names` gives the names of its addresses, None where there are none; `went_back` is told when it did.
    """

    def __init__(
        self,
        machine: Machine,
        names: Callable[[], Names | None],
        went_back: Callable[[], None],
        budget: int = BUDGET,
    ) -> None:
        self._machine = machine
        self._debugger = Debugger(machine)
        self._timeline = Timeline(self._debugger, budget=budget, went_back=went_back)
        self._load_names: Callable[[], Names | None] | None = names
        self._names: Names | None = None

    def close(self) -> None:
        """Forget it."""
        self._timeline.close()
        self._debugger.close()

    @property
    def memory(self) -> int:
        """What the copies take, in bytes."""
        return self._timeline.memory

    def run(self) -> Stop:
        """Machine.run(), and copies of the domain now and then."""
        self._timeline.resumed()
        return self._machine.run()

    def moment(self) -> Moment:
        """Where the domain stands."""
        return self._moment()

    def at(self, moment: Moment | None, guest_ns: int | None, instruction: int | None) -> Moment:
        """See RunningDomain.at()."""
        wanted = [one for one in (moment, guest_ns, instruction) if one is not None]
        if len(wanted) != 1:
            raise TypeError("at() takes one of a moment, guest_ns, instruction and event")
        if moment is not None:
            position = moment.instruction
        elif guest_ns is not None:
            position = guest_ns + BOOT_TIME_NS
        else:
            position = instruction or 0
        self._check(position)
        if position != self._debugger.position:
            self._timeline.go_to(position)
        return self._moment()

    def before_event(self, event: Event) -> Moment:
        """Be where the last instruction before an event is about to be executed."""
        self._check(event.ns)
        self._timeline.step_back(event.vcpu_id, before=event.ns)
        return self._moment()

    def back(self, instructions: int) -> Moment:
        """Back by so many of the vCPU's instructions. Raises LookupError where there are not so many."""
        self._check()
        here, vcpu = self._debugger.position, self._machine.domain.current_id
        for _ in range(instructions):
            if self._timeline.step_back(vcpu).reason == "begin":
                self._timeline.go_to(here)
                raise LookupError("the past that is kept does not go back that far")
        return self._moment()

    def last_event(self, kind: type[Event], condition: str | None, before: Moment | None) -> Happened:
        """See RunningDomain.last_event()."""
        read = parse_condition(condition) if condition else None
        self._check(self._end(before))
        event = last_event(self._timeline, self._debugger, (kind,), read, self._end(before))
        if event is None:
            raise LookupError(f"no {kind.__name__} of that kind in the past that is kept")
        return Happened(self.before_event(event), event)

    def last_write(self, address: int, size: int, before: Moment | None) -> Write:
        """See RunningDomain.last_write()."""
        self._check(self._end(before))
        store = last_store(self._timeline, self._debugger, address, size, self._end(before))
        if store is None:
            raise LookupError(f"nothing was stored to {address:#x} in the past that is kept")
        if store.event is not None:
            moment = self.before_event(store.event)
        else:
            self._timeline.go_to(store.position)
            moment = self._moment()
        return Write(moment, address, store.before, store.after, store.event)

    def last_change(self, mfn: int, before: Moment | None) -> FrameChange:
        """See RunningDomain.last_change()."""
        self._check(self._end(before))
        step = last_frame_step(self._timeline, self._debugger, mfn, self._end(before))
        if step is None:
            raise LookupError(f"frame {mfn:#x} did not change in the past that is kept")
        if step.event is not None:
            moment = self.before_event(step.event)
        else:
            self._timeline.step_back(before=step.position)
            moment = self._moment()
        why = tuple(map(str, step.refusals))
        return FrameChange(moment, mfn, step.before, step.after, step.event, why)

    def _end(self, before: Moment | None) -> int | None:
        return None if before is None else before.instruction

    def _check(self, position: int | None = None) -> None:
        """Raise LookupError where the domain has not been there, RuntimeError where it cannot go back."""
        if self._timeline.is_listened:
            raise RuntimeError("somebody listens to the domain, and would hear everything again")
        line = self._timeline
        if position is not None and not line.begin <= position <= line.farthest:
            raise LookupError("the domain was not there in the past that is kept")

    def _moment(self) -> Moment:
        machine = self._machine
        v = machine.domain.current
        registers = RegisterFile(machine, v)
        named = (*_GENERAL_32, "eip") if machine.domain.abi.is_32bit else (*GENERAL, "rip")
        values = {name: registers.read(name) or 0 for name in (*named, "eflags")}
        rip = values[named[-1]]
        return Moment(
            self._debugger.position,
            machine.clock.now() - BOOT_TIME_NS,
            v.vcpu_id,
            rip,
            self._function(rip),
            values,
        )

    def _function(self, address: int) -> str:
        if self._load_names is not None:
            self._names, self._load_names = self._load_names(), None
        return self._names(address) if self._names is not None else ""
