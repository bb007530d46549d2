"""What is left of a guest that died, as frozen values: registers, code, stack, hypercalls, mappings.

`capture` looks at the machine as it stands. Guest memory may hold anything: every table entry is checked
before it is followed, and everything is cut to a fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from domainbuilder.hypercall_names import command_name, hypercall_name, result_name
from domainbuilder.launch.crash_meaning import crash_meaning
from domainbuilder.launch.disassembly import Instruction, disassemble
from domainbuilder.launch.names import Names
from domainbuilder.launch.registers import Registers, registers_of, stack_words
from domainbuilder.symbols.backtrace import Frame, backtrace
from hvcore.debug.view import GuestView, Walk
from hvcore.x86 import vector_name

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.refusal import Refusal
    from hvcore.trace import Call, FailedEntry, RefusedCall, Trace

STACK_WORDS = 48
_TRACE_WORDS = 1024
_TRACE_LIMIT = 24
_MULTICALL_ENTRY_WORDS = 8


@dataclass(frozen=True, slots=True)
class StackWord:
    """A word of the stack that points into code: probably a return address."""

    address: int
    value: int
    symbol: str


@dataclass(frozen=True, slots=True)
class HypercallRecord:
    """One of the last hypercalls. `command` names the first argument where that is a command
    ("EVTCHNOP_send"), `result_name` is "-EINVAL" and the like for errors. `refusals` are lines in the words
    of Xen's log that say why a page-table entry or a page's type was refused, the cause first. `entries`
    are the failed ones of a multicall, each with its place in the list.
    """

    number: int
    name: str
    command: str
    arguments: tuple[int, ...]
    result: int
    result_name: str
    refusals: tuple[str, ...] = ()
    entries: tuple[tuple[int, HypercallRecord], ...] = ()


@dataclass(frozen=True, slots=True)
class RefusedFaultRecord:
    """A fault that the guest got because Xen refused what it was about, such as a store to a page table."""

    name: str
    rip: int
    symbol: str  # RIP's
    address: int
    refusals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AddressReport:
    """How an address is mapped: `role` says what it has to do with the crash."""

    role: str
    address: int
    symbol: str
    walk: Walk


@dataclass(frozen=True, slots=True)
class CrashReport:
    """A guest's end. `reason` is in Xen's words where Xen has any; `word` is the guest's word in bytes."""

    reason: str
    domain_id: int
    vcpu: int
    word: int
    guest_ns: int
    registers: Registers
    symbol: str  # RIP's
    line: str  # RIP's: "file.c:34"
    code: tuple[Instruction, ...]
    stack_address: int
    stack: tuple[int, ...]
    trace: tuple[StackWord, ...]
    backtrace: tuple[Frame, ...]  # none in user mode
    symbols: str  # where the names are from
    hypercalls: tuple[HypercallRecord, ...]  # the oldest first
    refused_faults: tuple[RefusedFaultRecord, ...]  # the oldest first
    addresses: tuple[AddressReport, ...]
    meaning: tuple[str, ...]  # what it did, and what Xen has for that instead, a line each


def capture(
    machine: Machine,
    names: Names,
    reason: str,
    *,
    address: int | None,
    role: str,
    guest_ns: int,
) -> CrashReport:
    """Look at the running vCPU as it stands. `address` is one whose mapping matters, `role` says why.

    `names` are those of the domain's addresses.
    """
    d = machine.domain
    v, word = d.current, d.abi.word
    view = GuestView(machine)
    registers = registers_of(machine, v)
    linear, stack_at = registers.code_address, registers.stack_address
    words = stack_words(view, registers, word, _TRACE_WORDS)
    code = disassemble(view.read, linear, start=names.start(linear), names=names, long_mode=word == 8)
    return CrashReport(
        reason=reason,
        domain_id=d.domain_id,
        vcpu=v.vcpu_id,
        word=word,
        guest_ns=guest_ns,
        registers=registers,
        symbol=names(linear),
        line=names.line(linear),
        code=code,
        stack_address=stack_at,
        stack=words[:STACK_WORDS],
        trace=_trace(words, stack_at, names, word),
        backtrace=guest_backtrace(registers, word, view, names),
        symbols=names.symbols.origin,
        hypercalls=last_hypercalls(d.trace, word),
        refused_faults=tuple(
            RefusedFaultRecord(vector_name(f.vector), f.rip, names(f.rip), f.address, _lines(f.refusals))
            for f in d.trace.refused_faults
        ),
        addresses=_addresses(view, names, {} if address is None else {address: role}, linear, stack_at),
        meaning=crash_meaning(machine, view, names, registers, code),
    )


def guest_backtrace(registers: Registers, word: int, view: GuestView, names: Names) -> tuple[Frame, ...]:
    """Who called the kernel's function that the vCPU stands in; nothing of user mode."""
    if not registers.kernel_mode:
        return ()
    return backtrace(
        {**registers.general, "rip": registers.rip},
        word=word,
        read=view.read,
        in_code=names.in_code,
        symbols=names.symbols,
        stubs=names.stubs,
    )


def _lines(refusals: tuple[Refusal, ...]) -> tuple[str, ...]:
    return tuple(map(str, refusals))


def last_hypercalls(trace: Trace, word: int) -> tuple[HypercallRecord, ...]:
    """The last hypercalls, each with what was refused in it."""
    refused = {row.serial: row for row in trace.refused_calls}
    return tuple(_hypercall(call, refused.get(serial), word) for serial, call in trace.last_hypercalls())


def _hypercall(call: Call, refused: RefusedCall | None, word: int) -> HypercallRecord:
    number, arguments, result = call
    entries: tuple[tuple[int, HypercallRecord], ...] = ()
    if refused is not None:
        size = _MULTICALL_ENTRY_WORDS * word
        entries = tuple((((e.address - arguments[0]) // size), _entry(e)) for e in refused.entries)
    return HypercallRecord(
        number,
        hypercall_name(number),
        command_name(number, arguments),
        arguments,
        result,
        result_name(result),
        _lines(refused.refusals) if refused is not None else (),
        entries,
    )


def _entry(e: FailedEntry) -> HypercallRecord:
    name, command = hypercall_name(e.number), command_name(e.number, e.arguments)
    return HypercallRecord(
        e.number, name, command, e.arguments, e.result, result_name(e.result), _lines(e.refusals)
    )


def _trace(words: tuple[int, ...], at: int, names: Names, word: int) -> tuple[StackWord, ...]:
    found = []
    for i, value in enumerate(words):
        symbol = names(value)
        if symbol:
            found.append(StackWord(at + i * word, value, symbol))
            if len(found) == _TRACE_LIMIT:
                break
    return tuple(found)


def _addresses(
    view: GuestView, names: Names, wanted: dict[int, str], linear: int, stack: int
) -> tuple[AddressReport, ...]:
    """The addresses wanted; the code and the stack, too, where these are what cannot be read."""
    for address, role in ((linear, "instruction"), (stack, "stack")):
        if not view.read(address, 1):
            wanted.setdefault(address, role)
    return tuple(AddressReport(role, va, names(va), view.walk(va)) for va, role in wanted.items())
