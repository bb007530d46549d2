"""A boot as steps worth telling: the domain before it runs, then the first of each kind of act."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder.launch.address_space import Span, spans
from domainbuilder.launch.trace_records import frames_by_type
from domainbuilder.launch.tracing import recording
from domainbuilder.plan.regions import human, regions, registers, tables
from domainbuilder.plan.segments import PADDING
from domainbuilder.tour.lessons import BEFORE, COMMANDS, HYPERCALLS, KINDS, Lesson
from domainbuilder.trace.filter import Filter
from domainbuilder.trace.record import FRAME_TYPES, Record
from domainbuilder.trace.text import call, fault, result
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.plan.domain_plan import DomainPlan

MOST_STEPS = 300
MOST_LINES = 12  # of the console, quoted at a step
_MOST_TEXT = 1 << 16


class Step(NamedTuple):
    """Something worth telling. `ns` is None before the guest runs; `shown` are lines of what happened.

    `console` is what was printed since the step before, `frames` (type, then, now) where the domain's frames
    have changed since, and `since` what else happened meanwhile, how often. `facts` are of the act itself,
    `totals` the frames of each of FRAME_TYPES, and `spans` what is mapped then.
    """

    title: str
    ns: int | None
    shown: tuple[str, ...]
    lesson: Lesson
    console: tuple[str, ...] = ()
    frames: tuple[tuple[str, int, int], ...] = ()
    since: tuple[tuple[str, int], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    totals: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()
    is_refused: bool = False


class Named(NamedTuple):
    """A part of the address space that the builder made, and what is in it."""

    start: int
    end: int
    name: str


def named(plan: DomainPlan) -> list[Named]:
    """The parts that have names."""
    parts = (r for r in regions(plan) if r.name != PADDING)
    return [Named(r.vstart, r.vend, r.name) for r in parts if r.vstart is not None and r.vend is not None]


def before(plan: DomainPlan) -> Iterator[Step]:
    """The domain as it is built."""
    parms = plan.parms
    notes = (
        f"virt_base {parms.virt_base:#x}, entry {parms.virt_entry:#x}, hypercalls {parms.virt_hypercall:#x}",
        f"{plan.guest.name}, {plan.guest.paging.name} paging, {human(plan.nr_pages << PAGE_SHIFT)}",
    )
    yield Step("The notes are read", None, notes, BEFORE["notes"])
    rows = tuple(
        f"{r.name:<22} {r.vstart:#x}  pfn {r.pfn:#x}, {r.pages:,} pages{', read-only' if r.read_only else ''}"
        for r in regions(plan)
        if r.vstart is not None
    )
    yield Step("The address space is laid out", None, rows, BEFORE["layout"])
    made = tuple(
        f"L{t.level}: {t.tables:,} from pfn {t.pfn:#x}, for {t.start:#x} to {t.end:#x}" for t in tables(plan)
    )
    mapped = tuple(Span(t.start, t.end, t.tables) for t in tables(plan) if t.level == 1)
    yield Step("Page tables are made", None, made, BEFORE["tables"], spans=mapped)
    shown = tuple(f"{name:<8} {value:#x}" for name, value in registers(plan).items())
    title = "Xen checks the domain, and its first vCPU gets registers"
    yield Step(title, None, shown, BEFORE["start"], spans=mapped)


class Tour:
    """The steps of a run, as they happen. Memory is bounded: there are as many as kinds of acts."""

    def __init__(self, dom: RunningDomain) -> None:
        self._machine = dom.machine
        self._known: set[str] = set()
        self._frames = frames_by_type(dom.machine)
        self._since = Counter[str]()
        self._console = ""
        self.steps: list[Step] = []

    def watching(self, dom: RunningDomain) -> AbstractContextManager[None]:
        """While this lasts the steps are collected."""
        return recording(dom, self.take, Filter(), is_live=True)

    def take(self, r: Record) -> None:
        """A record: a step, if it is the first of its kind."""
        if r.kind == "print":
            self._console = (self._console + r.text)[-_MOST_TEXT:]
            return
        found = _told(r)
        if found is None:
            return
        name, title, shown, lesson = found
        if name in self._known or len(self.steps) >= MOST_STEPS:
            self._since[name] += 1
            return
        self._known.add(name)
        is_refused = r.result is not None and -4096 < r.result < 0
        self._add(title, r.ns, shown, lesson, _facts(r), is_refused=is_refused)

    def end(self, ns: int, outcome: str) -> None:
        """The last step: how it ended."""
        self._add("The end", ns, (outcome,), COMMANDS["SCHEDOP_shutdown"])

    def _add(
        self,
        title: str,
        ns: int,
        shown: tuple[str, ...],
        lesson: Lesson,
        facts: tuple[tuple[str, str], ...] = (),
        *,
        is_refused: bool = False,
    ) -> None:
        was, self._frames = self._frames, frames_by_type(self._machine)
        changed = zip(FRAME_TYPES[1:], was[1:], self._frames[1:], strict=True)
        lines = self._console.replace("\r", "").splitlines()
        left_out = [f"({len(lines) - MOST_LINES} lines before)"] if len(lines) > MOST_LINES else []
        self._console = ""
        since = tuple(self._since.most_common(6))
        self._since.clear()
        frames = tuple(row for row in changed if row[1] != row[2])
        console = (*left_out, *lines[-MOST_LINES:])
        self.steps.append(
            Step(
                title, ns, shown, lesson, console, frames, since, facts, self._frames, spans(self._machine),
                is_refused,
            )
        )  # fmt: skip


def _facts(r: Record) -> tuple[tuple[str, str], ...]:
    """What is known of an act beside what it is."""
    facts = [("vCPU", str(r.vcpu))]
    if r.rip:
        facts.append(("at", f"{r.rip:#x}" + (f" <{r.symbol}>" if r.symbol else "")))
    if r.kind in ("hypercall", "subcall"):
        facts += [
            ("number", str(r.number)),
            *((f"argument {i}", f"{arg:#x}") for i, arg in enumerate(r.args, 1)),
        ]
    if r.result is not None:
        facts.append(("result", f"{result(r.result)} ({r.result & (1 << 64) - 1:#x})"))
    if r.end_ns > r.ns:
        facts.append(("took", f"{r.end_ns - r.ns:,} ns"))
    return tuple(facts)


def _told(r: Record) -> tuple[str, str, tuple[str, ...], Lesson] | None:
    """What a record is the first of, a title, what is shown, and the lesson; None for what is not told."""
    if r.kind in ("hypercall", "subcall"):
        return _hypercall(r)
    if r.kind == "iret":
        return "iret", "The first return by hypercall: iret", (), HYPERCALLS["iret"]
    lesson = KINDS.get(r.kind)
    if lesson is None:
        return None
    if r.kind == "exception":
        return r.name, f"An exception of its own: {r.name}", (f"{fault(r)}, at {r.rip:#x}",), lesson
    if r.kind == "emulated":
        return f"emulated {r.name}", f"An instruction is emulated: {r.name}", (f"at {r.rip:#x}",), lesson
    if r.kind == "pending":
        name = f"event of {r.detail}"
        return (
            name,
            f"An event channel is raised: {r.detail}",
            (f"port {r.number}, for vcpu{r.args[0]}",),
            lesson,
        )
    if r.kind == "device":
        return f"{r.name} notified", f"The {r.name} backend is notified", (), lesson
    if r.kind == "store":
        return "store to a page table", "A store to a page table", (f"at {r.args[0]:#x}",), lesson
    return r.kind, "The first upcall", (f"the vCPU was at {r.rip:#x}",), lesson


def _hypercall(r: Record) -> tuple[str, str, tuple[str, ...], Lesson]:
    name, refused = r.detail or r.name, KINDS["refused"]
    shown = (f"{call(r)} = {result(r.result)}", *r.text.splitlines())
    lesson = COMMANDS.get(r.detail) or HYPERCALLS.get(r.name) or refused
    if r.result is not None and -4096 < r.result < 0:
        name = f"{name} = {result(r.result)}"
        return (
            name,
            f"It is refused: {name}",
            shown,
            lesson._replace(asks=refused.asks, checks=refused.checks),
        )
    return name, f"It asks: {r.name}: {r.detail}" if r.detail else f"It asks: {r.name}", shown, lesson
