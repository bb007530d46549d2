"""Where a guest stands that has not ended: each vCPU, its events and timers, what it did last.

For one whose time is up. `look` only reads: the guest can go on as if nobody had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from domainbuilder.hypercall_names import hypercall_name, virq_name
from domainbuilder.launch.crash_report import (
    HypercallRecord,
    guest_backtrace,
    last_hypercalls,
)
from domainbuilder.launch.disassembly import Instruction, disassemble
from domainbuilder.launch.names import Names
from domainbuilder.launch.registers import Registers, registers_of, stack_words
from domainbuilder.symbols.backtrace import Frame
from hvcore.common.event import ECS_FREE, ECS_INTERDOMAIN, ECS_IPI, ECS_PIRQ, ECS_UNBOUND, ECS_VIRQ
from hvcore.common.schedule import PERIODIC, POLL, SINGLESHOT, WATCHDOG
from hvcore.debug.view import GuestView
from hvcore.machine import BOOT_TIME_NS
from hvcore.vcpu import VPF_down
from hvcore.x86 import vector_name

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu

STACK_WORDS = 24
_MOST_PORTS = 32
_LONGEST_CYCLE = 4  # hypercalls that come again and again together
_EVTCHNOP_send = 4
_event_channel_op = 32


@dataclass(frozen=True, slots=True)
class VcpuReport:
    """One vCPU: `state` is "running", "runnable", "blocked", "polls port 3" or "down"."""

    vcpu: int
    state: str
    event_mask: bool
    upcall_pending: bool
    registers: Registers
    symbol: str
    line: str
    code: tuple[Instruction, ...]
    stack_address: int
    stack: tuple[int, ...]
    backtrace: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class PortReport:
    """An event channel with a pending event: what it is bound to, for which vCPU, whether it is masked."""

    port: int
    binding: str
    vcpu: int
    masked: bool


@dataclass(frozen=True, slots=True)
class TimerReport:
    """A timer of the guest's: what it does, and in how many nanoseconds."""

    what: str
    in_ns: int


@dataclass(frozen=True, slots=True)
class Repeated:
    """Hypercalls in a row that came so many times, one after the other."""

    calls: tuple[HypercallRecord, ...]
    times: int


@dataclass(frozen=True, slots=True)
class StopReport:
    """A guest that was stopped. `recently` counts hypercalls, and exceptions that Xen met, of the last
    `recent_ns` of its time.
    """

    domain_id: int
    word: int
    guest_ns: int
    vcpus: tuple[VcpuReport, ...]
    ports: tuple[PortReport, ...]
    timers: tuple[TimerReport, ...]  # the next first
    hypercalls: tuple[Repeated, ...]  # the oldest first
    recent_ns: int
    recently: tuple[tuple[str, int], ...]  # the most frequent first
    console: str  # its last lines, as they were printed
    symbols: str


def look(
    machine: Machine,
    names: Names,
    *,
    console: str,
    before: tuple[int, bytes],
) -> StopReport:
    """Look at every vCPU of the domain whose addresses have these names.

    `console` is what was printed last, `before` an earlier time and Trace.counts() then.
    """
    d = machine.domain
    now = machine.clock.now()
    vcpus = [v for v in d.vcpus if v.is_initialised and not v.pause_flags & VPF_down]
    since, counted = before
    names_of_counts = [
        *map(hypercall_name, range(len(d.trace.hypercalls))),
        *map(vector_name, range(len(d.trace.exceptions))),
    ]
    now_and_then = (memoryview(words).cast("Q") for words in (d.trace.counts(), counted))
    counts = [(name, new - old) for name, new, old in zip(names_of_counts, *now_and_then, strict=True)]
    return StopReport(
        domain_id=d.domain_id,
        word=d.abi.word,
        guest_ns=now - BOOT_TIME_NS,
        vcpus=tuple(_vcpu(machine, v, names) for v in vcpus),
        ports=tuple(_ports(machine)),
        timers=tuple(sorted(_timers(machine, now), key=lambda timer: timer.in_ns)),
        hypercalls=_with_ports(machine, tuple(collapsed(last_hypercalls(d.trace, d.abi.word)))),
        recent_ns=now - since,
        recently=tuple(sorted(((n, c) for n, c in counts if c), key=lambda row: (-row[1], row[0]))),
        console=console,
        symbols=names.symbols.origin,
    )


def _vcpu(machine: Machine, v: Vcpu, names: Names) -> VcpuReport:
    running = v is machine.running
    registers = registers_of(machine, v)
    view, word, code = GuestView(machine, v), machine.domain.abi.word, registers.code_address
    return VcpuReport(
        vcpu=v.vcpu_id,
        state=_state(v, running=running),
        event_mask=bool(v.upcall_mask),
        upcall_pending=bool(v.upcall_pending),
        registers=registers,
        symbol=names(code),
        line=names.line(code),
        code=disassemble(view.read, code, start=names.start(code), names=names, long_mode=word == 8),
        stack_address=registers.stack_address,
        stack=stack_words(view, registers, word, STACK_WORDS),
        backtrace=guest_backtrace(registers, word, view, names),
    )


def _state(v: Vcpu, *, running: bool) -> str:
    if v.poll_evtchn is not None:
        return "polls its event channels" if v.poll_evtchn < 0 else f"polls port {v.poll_evtchn}"
    if v.pause_flags:
        return "blocked"
    return "running" if running else "runnable"


def _ports(machine: Machine) -> Iterator[PortReport]:
    t = machine.domain.evtchn
    shown = 0
    for port, state in enumerate(t.state):
        if state == ECS_FREE or not port or not t.port_ops.is_pending(port):
            continue
        bindings = {
            ECS_UNBOUND: f"unbound, for domain {t.remote_dom[port]}",
            ECS_INTERDOMAIN: f"to port {t.remote_port[port]} of domain {t.remote_dom[port]}",
            ECS_PIRQ: "a physical interrupt",
            ECS_VIRQ: virq_name(t.virq[port]),
            ECS_IPI: "IPI",
        }
        yield PortReport(port, bindings.get(state, ""), t.notify_vcpu_id[port], t.port_ops.is_masked(port))
        shown += 1
        if shown == _MOST_PORTS:
            return


def _timers(machine: Machine, now: int) -> Iterator[TimerReport]:
    d, clock = machine.domain, machine.clock
    keys: list[tuple[str, int, str]] = []
    for v in d.vcpus:
        keys += [
            (SINGLESHOT, v.vcpu_id, f"VIRQ_TIMER of vcpu {v.vcpu_id}, once"),
            (PERIODIC, v.vcpu_id, f"VIRQ_TIMER of vcpu {v.vcpu_id}, every {v.periodic_period:,} ns"),
            (POLL, v.vcpu_id, f"the end of the poll of vcpu {v.vcpu_id}"),
        ]
    keys += [(WATCHDOG, slot, f"watchdog {slot}") for slot in (1, 2)]
    for kind, number, what in keys:
        when = clock.expires((kind, number))
        if when is not None:
            yield TimerReport(what, when - now)


def _with_ports(machine: Machine, rows: tuple[Repeated, ...]) -> tuple[Repeated, ...]:
    """The rows; EVTCHNOP_send gets its port where the argument still says it, in the last row with it.

    The argument may have been overwritten since: a number that is no port in use is not told.
    """
    view, told, done = GuestView(machine), set[int](), []
    for row in reversed(rows):
        calls = list(row.calls)
        for i, call in reversed(list(enumerate(calls))):
            if call.number != _event_channel_op or call.arguments[:1] != (_EVTCHNOP_send,):
                continue
            raw = view.read(call.arguments[1], 4)
            port = int.from_bytes(raw, "little") if len(raw) == 4 else 0
            if machine.domain.evtchn.is_usable(port) and call.arguments[1] not in told:
                calls[i] = replace(call, command=f"{call.command}, port {port}")
            told.add(call.arguments[1])
        done.append(Repeated(tuple(calls), row.times))
    return tuple(reversed(done))


def collapsed(calls: Sequence[HypercallRecord]) -> Iterator[Repeated]:
    """The calls in order, those that come again and again, alone or up to four together, told once."""
    at = 0
    while at < len(calls):
        best = (1, 1)
        for size in range(1, _LONGEST_CYCLE + 1):
            first, times = calls[at : at + size], 1
            while calls[at + size * times : at + size * (times + 1)] == first:
                times += 1
            if times > 1 and size * times > best[0] * best[1]:
                best = size, times
        size, times = best
        yield Repeated(tuple(calls[at : at + size]), times)
        at += size * times
