"""What GDB's `monitor` asks of a guest that stands: page walks, frames, events, hypercalls, xenstore."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError
from domainbuilder.visible import visible
from hvcore.common.event import ECS_FREE, ECS_INTERDOMAIN, ECS_IPI, ECS_PIRQ, ECS_UNBOUND, ECS_VIRQ
from hvcore.debug.events import Event
from hvcore.debug.registers import RegisterFile
from hvcore.debug.taps import listen
from hvcore.debug.view import GuestView
from hvcore.machine import BOOT_TIME_NS
from hvcore.page_info import NO_OWNER, PGT_NAMES, PGT_pinned, PGT_validated

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.debug.debugger import Stopped
    from hvcore.debug.gdb.process import Process
    from hvcore.debug.timeline import Bookmark, Timeline

HELP = """\
help          this
notes         the kernel's Xen notes, as `domainbuilder notes` has them
map ADDR      the page walk of a virtual address
frame MFN     a machine frame: whose it is, what it is in use as, by how many
as CR3|off    look at memory in the address space of these page tables, whatever vCPU is selected
events        the event channels
trace on|off  keep the last 1,000 events; `trace` shows them
hypercalls    how many there were, and the last
xenstore      the nodes of the guest's part of xenstore
checkpoint    remember where the guest stands; `checkpoints` lists what is remembered
restart N     be where the guest stood at checkpoint N, in the run that it is of
forget N      forget checkpoint N"""
_NO_PAST = "this launch keeps no past: it records, replays, traces, is plain, or writes to a disk"
_NO_CHECKPOINT = "there is no such checkpoint; `monitor checkpoints` lists them"
_MOST_LINES = 200
_MOST_EVENTS = 1000


class Monitor:
    """The commands by name. Nothing of the guest changes by any of them."""

    def __init__(self, dom: RunningDomain, moved: Callable[[Stopped], None] = lambda _stopped: None) -> None:
        self._dom = dom
        self.moved = moved  # told where the guest stands after a way through its time
        self.process: Process | None = None
        self.timeline: Timeline | None = None
        self._events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._listening = ExitStack()
        self._commands: dict[str, Callable[[str], Iterator[str]]] = {
            "help": lambda _rest: iter(HELP.splitlines()),
            "notes": self._notes,
            "map": self._map,
            "frame": self._frame,
            "as": self._as,
            "events": self._channels,
            "trace": self._trace,
            "hypercalls": self._hypercalls,
            "xenstore": self._xenstore,
            "checkpoint": self._checkpoint,
            "checkpoints": self._checkpoints,
            "restart": self._restart,
            "forget": self._forget,
        }

    def __call__(self, text: str) -> str:
        name, _, rest = text.partition(" ")
        command = self._commands.get(name or "help")
        if command is None:
            return f"{visible(name)!r} is no command; `monitor help` lists them"
        lines = list(islice(command(rest.strip()), _MOST_LINES + 1))
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = ["..."]
        return "\n".join(lines)

    def close(self) -> None:
        """Listen no more."""
        self._listening.close()

    def _number(self, text: str) -> int | None:
        try:
            value = int(text, 0)
        except ValueError:
            return None
        return value if 0 <= value < 1 << 64 else None

    def _notes(self, _rest: str) -> Iterator[str]:
        from domainbuilder.kernel.inspection import inspect
        from domainbuilder.kernel.notes_text import render

        if self._dom.plan is None:
            yield "the kernel's file is not known"
            return
        try:
            yield from render(inspect(self._dom.plan.kernel)).splitlines()
        except (BuildError, OSError) as error:
            yield str(error)

    def _view(self) -> GuestView:
        view = GuestView(self._dom.machine)
        if self.process is not None and self.process.root_mfn is not None:
            view.root_mfn = self.process.root_mfn
        return view

    def _map(self, rest: str) -> Iterator[str]:
        address = self._number(rest)
        if address is None:
            yield "map ADDR: a number, as 0xffffffff81000000"
            return
        walk = self._view().walk(address & self._dom.machine.domain.abi.word_mask)
        for entry in walk.entries:
            pfn = "none of the guest's" if entry.pfn is None else f"pfn {entry.pfn:#x}"
            yield (
                f"L{entry.level}[{entry.index:#05x}] = {entry.entry:016x}  mfn {entry.mfn:#x}, {pfn}: "
                f"{', '.join(entry.flags)}"
            )
        at = "" if walk.machine_address is None else f" to machine address {walk.machine_address:#x}"
        yield walk.end + at

    def _frame(self, rest: str) -> Iterator[str]:
        mfn, frames = self._number(rest), self._dom.machine.domain.frames
        pg = -1 if mfn is None else mfn - frames.base_mfn
        if not 0 <= pg < frames.nr:
            yield f"frame MFN: {frames.base_mfn:#x} to {frames.base_mfn + frames.nr - 1:#x}"
            return
        owner = frames.owner[pg]
        whose = "free" if owner == NO_OWNER else f"of domain {owner}"
        flags = [
            name
            for bit, name in ((PGT_validated, "validated"), (PGT_pinned, "pinned"))
            if frames.flags[pg] & bit
        ]
        pfn = self._view().pfn_of(pg + frames.base_mfn)
        yield f"mfn {mfn:#x}: {whose}" + ("" if pfn is None else f", its pfn {pfn:#x}")
        yield ", ".join((f"type {PGT_NAMES[frames.ptype[pg]]}", f"{frames.tcount[pg]} times", *flags))
        yield f"{frames.count[pg]} references"

    def _as(self, rest: str) -> Iterator[str]:
        if self.process is None:
            return
        value = None if rest == "off" else self._number(rest)
        if value is None and rest != "off":
            yield "as CR3: the machine address of a root page table; or as off"
            return
        self.process.root_mfn = None if value is None else value >> 12
        yield "memory is looked at " + (
            "as the selected vCPU sees it" if value is None else f"by the page tables at {value & -4096:#x}"
        )

    def _channels(self, _rest: str) -> Iterator[str]:
        t = self._dom.machine.domain.evtchn
        for port, state in enumerate(t.state):
            if state == ECS_FREE or not port:
                continue
            bindings = {
                ECS_UNBOUND: f"unbound, for domain {t.remote_dom[port]}",
                ECS_INTERDOMAIN: f"to port {t.remote_port[port]} of domain {t.remote_dom[port]}",
                ECS_PIRQ: "a physical interrupt",
                ECS_VIRQ: f"virtual interrupt {t.virq[port]}",
                ECS_IPI: "IPI",
            }
            flags = ", pending" * t.port_ops.is_pending(port) + ", masked" * t.port_ops.is_masked(port)
            yield f"port {port}: {bindings.get(state, 'reserved')}, for vcpu {t.notify_vcpu_id[port]}{flags}"

    def _trace(self, rest: str) -> Iterator[str]:
        if rest == "on":
            self._listening.close()
            self._events.clear()
            self._listening.enter_context(listen(self._dom.machine, self._events.append))
            yield "events are kept from now on"
        elif rest == "off":
            self._listening.close()
            yield f"{len(self._events)} events are kept"
        else:
            for event in list(self._events)[-_MOST_LINES:]:
                yield self._event_line(event)

    def _event_line(self, event: Event) -> str:
        own = [field.name for field in fields(event)][4:]
        values = ", ".join(f"{name}={self._shown(getattr(event, name))}" for name in own)
        kind = type(event).__name__.removesuffix("Event")
        return f"{event.ns} vcpu {event.vcpu_id} {event.rip:#x} {kind}" + (f": {values}" if values else "")

    def _shown(self, value: object) -> str:
        return f"{value:#x}" if type(value) is int and abs(value) > 9 else visible(str(value))

    def _hypercalls(self, _rest: str) -> Iterator[str]:
        for name, count in self._dom.stats().hypercalls.items():
            yield f"{count:10,} {name}"
        yield "the last:"
        from domainbuilder.launch.crash_report import last_hypercalls
        from domainbuilder.launch.crash_text import call_text

        d = self._dom.machine.domain
        for call in last_hypercalls(d.trace, d.abi.word):
            yield f"  {call_text(call)}"

    def _xenstore(self, _rest: str) -> Iterator[str]:
        nodes = self._dom.machine.xenstore.store.tree.nodes
        prefix = f"/local/domain/{self._dom.domain_id}"
        for path in sorted(nodes):
            if path.startswith((prefix, "/vm")):
                yield visible(f'{path} = "{nodes[path].value.decode("utf-8", "replace")}"')

    # -- bookmarks

    def _checkpoint(self, _rest: str) -> Iterator[str]:
        line = self.timeline
        if line is None:
            yield _NO_PAST
            return
        self._listening.close()  # or the copy would have it, too
        bookmark = line.bookmark(self._place())
        if bookmark is None:
            yield "the checkpoints that there are take all the memory for them; `forget N` frees some"
        else:
            yield f"checkpoint {bookmark.number}: {bookmark.label}"

    def _checkpoints(self, _rest: str) -> Iterator[str]:
        bookmarks = self.timeline.bookmarks if self.timeline is not None else {}
        for bookmark in bookmarks.values():
            apart = "" if bookmark.apart is None else ", of another run"
            yield f"{bookmark.number}: {bookmark.label}{apart}"
        if not bookmarks:
            yield "no checkpoints"

    def _restart(self, rest: str) -> Iterator[str]:
        bookmark = self._bookmark(rest)
        if bookmark is None or self.timeline is None:
            yield _NO_CHECKPOINT
            return
        self._listening.close()
        self.moved(self.timeline.return_to(bookmark))
        yield f"at checkpoint {bookmark.number}: {bookmark.label}"
        yield "gdb shows what it knew: `maintenance flush register-cache` has it look again"

    def _forget(self, rest: str) -> Iterator[str]:
        bookmark = self._bookmark(rest)
        if bookmark is None or self.timeline is None:
            yield _NO_CHECKPOINT
            return
        del self.timeline.bookmarks[bookmark.number]
        yield f"checkpoint {bookmark.number} is forgotten"

    def _bookmark(self, text: str) -> Bookmark | None:
        number = self._number(text)
        return self.timeline.bookmarks.get(number or 0) if self.timeline is not None else None

    def _place(self) -> str:
        machine = self._dom.machine
        v = machine.domain.current
        rip = RegisterFile(machine, v).read("rip") or 0
        name = self._dom.names()(rip) if self._dom.has_symbols else ""
        seconds = (machine.clock.now() - BOOT_TIME_NS) / 1e9
        return f"{seconds:.9f} s, vCPU {v.vcpu_id}, {rip:#x}" + (f" {name}" if name else "")
