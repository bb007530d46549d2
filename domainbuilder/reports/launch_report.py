"""The JSON that `domainbuilder launch --format json` prints, as pydantic models.

Addresses and registers are strings such as "0xc0100000", since JSON's numbers are doubles to many readers;
counts are numbers. `statistics.host` apart, the document is the same for the same inputs. docs/launch.md
describes it, docs/launch.schema.json is the JSON Schema of `LaunchReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from domainbuilder.launch.crash_report import CrashReport, HypercallRecord
from domainbuilder.launch.disassembly import Instruction
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.launch.script import Step
from domainbuilder.launch.session import Outcome
from domainbuilder.launch.stop_report import StopReport, VcpuReport
from domainbuilder.reports import Address, Model, Text
from domainbuilder.visible import visible

if TYPE_CHECKING:
    from domainbuilder.saved.core_vcpu import VcpuState


class ExpectationReport(Model):
    """One `--expect`, in order."""

    pattern: Text
    met: bool


class LaneReport(Model):
    """One kind of exit: how many the compiled core answered, and how many it looked at and left to Python."""

    taken: int
    left: int


class DiskReport(Model):
    """One kind of request to one disk: how many, their bytes, the seconds they took, all and the longest."""

    requests: int
    bytes: int
    seconds: float
    longest_seconds: float


class HostReport(Model):
    """What the run cost this host, and who answered the guest's exits."""

    wall_seconds: float
    peak_rss: int
    lanes: dict[str, LaneReport]
    disks: dict[str, DiskReport]


class RefusedReport(Model):
    """One kind of refusal by the page-table rules: how often, and the last one in the words of Xen's log."""

    count: int
    last: str


class StatisticsReport(Model):
    """The counts; times of the guest are in nanoseconds."""

    hypercalls: dict[str, int]
    unknown_hypercalls: dict[str, int]
    traps: dict[str, int]
    emulated: dict[str, int]
    refused: dict[str, RefusedReport]
    page_table_stores: int
    events_delivered: int
    tlb_flushes: int
    code_bytes: int
    guest_ns: int
    console_bytes: int
    host: HostReport


class RegistersReport(Model):
    """The registers, by Xen's names."""

    general: dict[str, Address]
    selectors: dict[str, Address]
    rip: Address
    rflags: Address
    cr0: Address
    cr2: Address
    cr3: Address
    cr4: Address
    fs_base: Address
    gs_base: Address
    gs_shadow: Address
    event_mask: int
    kernel_mode: bool


class InstructionReport(Model):
    """One instruction around RIP."""

    address: Address
    code: str
    text: str
    symbol: str
    current: bool


class StackWordReport(Model):
    """A word of the stack that points into code."""

    address: Address
    value: Address
    symbol: str


class FrameReport(Model):
    """A function that is not done yet, the innermost first; `how` is by what it was found."""

    address: Address
    symbol: str
    line: str
    how: str


class CallReport(Model):
    """A hypercall; `refusals` are lines in the words of Xen's log that say why, the cause first."""

    number: int
    name: str
    command: str
    arguments: list[Address]
    result: int
    result_name: str
    refusals: list[str]


class EntryReport(CallReport):
    """An entry of a multicall that failed; `place` is its place in the list."""

    place: int


class HypercallReport(CallReport):
    """One of the last hypercalls, the oldest first."""

    entries: list[EntryReport]


class RefusedFaultReport(Model):
    """A fault that the guest got because Xen refused what it was about; the oldest first."""

    name: str
    rip: Address
    symbol: str
    address: Address
    refusals: list[str]


class PageEntryReport(Model):
    """One entry of a page walk."""

    level: int
    index: int
    entry: Address
    flags: list[str]
    mfn: Address
    pfn: Address | None


class AddressReport(Model):
    """How an address is mapped."""

    role: str
    address: Address
    symbol: str
    entries: list[PageEntryReport]
    end: str
    machine_address: Address | None


class CrashModel(Model):
    """A guest's end."""

    reason: str
    domain_id: int
    vcpu: int
    guest_ns: int
    registers: RegistersReport
    symbol: str
    line: str
    code: list[InstructionReport]
    stack_address: Address
    stack: list[Address]
    trace: list[StackWordReport]
    backtrace: list[FrameReport]
    symbols: str
    hypercalls: list[HypercallReport]
    refused_faults: list[RefusedFaultReport]
    addresses: list[AddressReport]
    meaning: list[str]


class VcpuModel(Model):
    """Where a vCPU of a guest that was stopped stands."""

    vcpu: int
    state: str
    event_mask: bool
    upcall_pending: bool
    registers: RegistersReport
    symbol: str
    line: str
    code: list[InstructionReport]
    stack_address: Address
    stack: list[Address]
    backtrace: list[FrameReport]


class PortModel(Model):
    """An event channel with a pending event."""

    port: int
    binding: str
    vcpu: int
    masked: bool


class TimerModel(Model):
    """A timer of the guest's, and in how many nanoseconds of its time it is due."""

    what: str
    in_ns: int


class RepeatedReport(Model):
    """Hypercalls in a row that came so many times, one after the other."""

    calls: list[HypercallReport]
    times: int


class StopModel(Model):
    """A guest that had not ended: time was up, or nothing can wake it. The next timer is the first."""

    domain_id: int
    guest_ns: int
    vcpus: list[VcpuModel]
    ports: list[PortModel]
    timers: list[TimerModel]
    hypercalls: list[RepeatedReport]
    recent_ns: int
    recently: dict[str, int]
    console: list[Text]
    symbols: str


class LaunchReport(Model):
    """One run. `schema_version` grows when a field changes its meaning or goes away."""

    schema_version: Literal[1] = 1
    file: Text
    reason: str
    message: Text
    exit_code: int
    expectations: list[ExpectationReport]
    statistics: StatisticsReport | None = None
    crash: CrashModel | None = None
    stop: StopModel | None = None


def _statistics(stats: Statistics) -> StatisticsReport:
    return StatisticsReport(
        hypercalls=dict(stats.hypercalls),
        unknown_hypercalls={str(number): count for number, count in stats.unknown_hypercalls.items()},
        traps=dict(stats.traps),
        emulated=dict(stats.emulated),
        refused={
            name: RefusedReport(count=count, last=last) for name, (count, last) in stats.refused.items()
        },
        page_table_stores=stats.page_table_stores,
        events_delivered=stats.events_delivered,
        tlb_flushes=stats.tlb_flushes,
        code_bytes=stats.code_bytes,
        guest_ns=stats.guest_ns,
        console_bytes=stats.console_bytes,
        host=HostReport(
            wall_seconds=round(stats.host.wall_seconds, 3),
            peak_rss=stats.host.peak_rss,
            lanes={
                name: LaneReport(taken=taken, left=left) for name, (taken, left) in stats.host.lanes.items()
            },
            disks={
                name: DiskReport(
                    requests=requests, bytes=size, seconds=ns / 1e9, longest_seconds=longest / 1e9
                )
                for name, (requests, size, ns, longest) in stats.host.disks.items()
            },
        ),
    )


def _registers(crash: CrashReport | VcpuReport | VcpuState) -> RegistersReport:
    r = crash.registers
    return RegistersReport(
        general=dict(r.general),
        selectors=dict(r.selectors),
        rip=r.rip,
        rflags=r.rflags,
        cr0=r.cr0,
        cr2=r.cr2,
        cr3=r.cr3,
        cr4=r.cr4,
        fs_base=r.fs_base,
        gs_base=r.gs_base,
        gs_shadow=r.gs_shadow,
        event_mask=r.event_mask,
        kernel_mode=r.kernel_mode,
    )


def _addresses(crash: CrashReport) -> list[AddressReport]:
    return [
        AddressReport(
            role=a.role,
            address=a.address,
            symbol=a.symbol,
            entries=[
                PageEntryReport(
                    level=e.level, index=e.index, entry=e.entry, flags=list(e.flags), mfn=e.mfn, pfn=e.pfn
                )
                for e in a.walk.entries
            ],
            end=a.walk.end,
            machine_address=a.walk.machine_address,
        )
        for a in crash.addresses
    ]


def _hypercall(call: HypercallRecord) -> HypercallReport:
    entries = [EntryReport(place=place, **_call(entry)) for place, entry in call.entries]
    return HypercallReport(entries=entries, **_call(call))


def _call(call: HypercallRecord) -> dict[str, Any]:
    return {
        "number": call.number,
        "name": call.name,
        "command": call.command,
        "arguments": list(call.arguments),
        "result": call.result,
        "result_name": call.result_name,
        "refusals": list(call.refusals),
    }


def _instructions(code: Sequence[Instruction]) -> list[InstructionReport]:
    return [
        InstructionReport(
            address=i.address, code=i.code.hex(" "), text=i.text, symbol=i.symbol, current=i.current
        )
        for i in code
    ]


def vcpu_fields(at: CrashReport | VcpuReport | VcpuState) -> dict[str, Any]:
    """Where a vCPU stands."""
    return {
        "registers": _registers(at),
        "symbol": at.symbol,
        "line": at.line,
        "code": _instructions(at.code),
        "stack_address": at.stack_address,
        "stack": list(at.stack),
        "backtrace": [
            FrameReport(address=f.address, symbol=f.symbol, line=f.line, how=f.how) for f in at.backtrace
        ],
    }


def _crash(crash: CrashReport) -> CrashModel:
    return CrashModel(
        reason=crash.reason,
        domain_id=crash.domain_id,
        vcpu=crash.vcpu,
        guest_ns=crash.guest_ns,
        **vcpu_fields(crash),
        trace=[StackWordReport(address=w.address, value=w.value, symbol=w.symbol) for w in crash.trace],
        symbols=crash.symbols,
        hypercalls=[_hypercall(call) for call in crash.hypercalls],
        refused_faults=[
            RefusedFaultReport(
                name=f.name, rip=f.rip, symbol=f.symbol, address=f.address, refusals=list(f.refusals)
            )
            for f in crash.refused_faults
        ],
        addresses=_addresses(crash),
        meaning=list(crash.meaning),
    )


def _stop(stop: StopReport) -> StopModel:
    return StopModel(
        domain_id=stop.domain_id,
        guest_ns=stop.guest_ns,
        vcpus=[
            VcpuModel(
                vcpu=v.vcpu,
                state=v.state,
                event_mask=v.event_mask,
                upcall_pending=v.upcall_pending,
                **vcpu_fields(v),
            )
            for v in stop.vcpus
        ],
        ports=[PortModel(port=p.port, binding=p.binding, vcpu=p.vcpu, masked=p.masked) for p in stop.ports],
        timers=[TimerModel(what=t.what, in_ns=t.in_ns) for t in stop.timers],
        hypercalls=[
            RepeatedReport(calls=[_hypercall(call) for call in row.calls], times=row.times)
            for row in stop.hypercalls
        ],
        recent_ns=stop.recent_ns,
        recently=dict(stop.recently),
        console=[visible(line) for line in stop.console.splitlines()],
        symbols=stop.symbols,
    )


def launch_report(
    file: str,
    outcome: Outcome,
    message: str,
    exit_code: int,
    expectations: Sequence[tuple[Step, bool]],
    statistics: Statistics | None,
    stop: StopReport | None = None,
) -> LaunchReport:
    """The report of one run. `expectations` are the `--expect` steps, each with whether it was met."""
    return LaunchReport(
        file=file,
        reason=outcome.reason,
        message=message,
        exit_code=int(exit_code),
        expectations=[ExpectationReport(pattern=step.text, met=met) for step, met in expectations],
        statistics=None if statistics is None else _statistics(statistics),
        crash=None if outcome.report is None else _crash(outcome.report),
        stop=None if stop is None else _stop(stop),
    )
