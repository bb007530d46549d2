"""A report on a guest whose time was up, as text."""

from __future__ import annotations

from collections.abc import Iterator

from domainbuilder.launch.crash_text import call_text, code_lines, frames, register_lines, stack_lines
from domainbuilder.launch.stop_report import StopReport, VcpuReport
from domainbuilder.visible import console_lines


def render_stop(report: StopReport) -> str:
    """The whole report: the vCPUs, events, timers, hypercalls, and what the console said last."""
    lines = [f"Domain {report.domain_id} was stopped after {report.guest_ns / 1e9:.6f} s of its time:"]
    for vcpu in report.vcpus:
        lines += _vcpu(vcpu, report)
    lines += [*_events(report), *_hypercalls(report), *console_lines(report.console)]
    return "\n".join(lines) + "\n"


def _vcpu(v: VcpuReport, report: StopReport) -> Iterator[str]:
    pending = "an upcall is pending" if v.upcall_pending else "no upcall is pending"
    masked = ", and events are masked" if v.event_mask else ""
    yield f"vcpu#{v.vcpu} ({v.state}): {pending}{masked}"
    context = f"d{report.domain_id}v{v.vcpu}"
    yield from register_lines(v.registers, v.symbol, v.line, context)
    yield from code_lines(v.code, report.word)
    yield from stack_lines(v.stack_address, v.stack, report.word)
    yield from frames(v.backtrace, 2 * report.word)


def _events(report: StopReport) -> Iterator[str]:
    yield "Pending event channels:" if report.ports else "No event channel is pending."
    for port in report.ports:
        masked = ", masked" if port.masked else ""
        yield f"  port {port.port}: {port.binding}, for vcpu {port.vcpu}{masked}"
    if told := _told_already(report):
        yield f"  {told}"
    yield "Next timers:" if report.timers else "No timer is armed."
    for timer in report.timers:
        due = f"in {timer.in_ns:,} ns" if timer.in_ns >= 0 else f"{-timer.in_ns:,} ns ago"
        yield f"  {timer.what}: {due}"


def _told_already(report: StopReport) -> str:
    """What keeps events pending that nothing masks, while the vCPU is told of none."""
    deaf = {v.vcpu for v in report.vcpus if not v.upcall_pending and not v.event_mask}
    ports = [port.port for port in report.ports if not port.masked and port.vcpu in deaf]
    if not ports:
        return ""
    return (
        "an event is told once: the guest clears its bit in evtchn_pending to be told again, and unmasks by "
        "EVTCHNOP_unmask what came while it was masked"
    )


def _hypercalls(report: StopReport) -> Iterator[str]:
    yield "Last hypercalls:" if report.hypercalls else "No hypercalls."
    for row in report.hypercalls:
        times = f"   {row.times} times" if row.times > 1 else ""
        if len(row.calls) == 1:
            yield f"  {call_text(row.calls[0])}{times}"
            continue
        yield f"  these {len(row.calls)},{times}:"
        yield from (f"    {call_text(call)}" for call in row.calls)
    if report.recently:
        told = ", ".join(
            f"{name}: {count:,} time{'s' if count > 1 else ''}" for name, count in report.recently[:8]
        )
        yield f"In the last {report.recent_ns / 1e9:.3f} s of its time: {told}"
