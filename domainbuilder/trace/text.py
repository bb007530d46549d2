"""A trace as text, a line a record, like strace's: for people and for grep. It is not read back."""

from __future__ import annotations

from collections.abc import Callable

from domainbuilder.hypercall_names import result_name
from domainbuilder.trace.record import FRAME_TYPES, RUNSTATES, Head, Record, Tail
from domainbuilder.visible import visible

SMALL = 10


def call(record: Record) -> str:
    """As "event_channel_op(EVTCHNOP_send, 0xc010a010)"."""
    words = [hex(arg) for arg in record.args]
    if record.detail and words:
        words[0] = record.detail
    return f"{record.name}({', '.join(words)})"


def result(value: int | None) -> str:
    """A result as people read it: "-EINVAL", "0x40011", "0"; "?" for none."""
    return "?" if value is None else result_name(value)


def fault(record: Record) -> str:
    """As "#PF, error code 0x2, cr2 0x1000"."""
    names = ("error code", "cr2")
    return ", ".join([record.name, *(f"{n} {v:#x}" for n, v in zip(names, record.args, strict=False))])


def _at(r: Record) -> str:
    return f" at {r.rip:#x}" + (f" <{r.symbol}>" if r.symbol else "")


def _hypercall(r: Record) -> str:
    took = f" <{r.end_ns - r.ns} ns>" if r.end_ns > r.ns else ""
    return f"{call(r)} = {result(r.result)}{took}" + (f" by {r.symbol}" if r.symbol else "")


def _frames(r: Record) -> str:
    return " ".join(["frames", *(f"{n}={count}" for n, count in zip(FRAME_TYPES, r.args, strict=False))])


def _console(r: Record) -> str:
    shown = r.text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    escaped = shown.replace("\\", "\\\\").replace('"', '\\"')
    return f'{r.kind} "{visible(escaped)}"'


_LINES: dict[str, Callable[[Record], str]] = {
    "hypercall": _hypercall,
    "subcall": lambda r: f"  {call(r)} = {result(r.result)}",
    "unfinished": lambda r: f"{call(r)} = ? (it goes on later)",
    "iret": lambda _: "iret()",
    "trap": lambda r: f"trap {fault(r)}{_at(r)}",
    "exception": lambda r: f"exception {fault(r)}{_at(r)}",
    "emulated": lambda r: f"emulated {r.name}{_at(r)}",
    "store": lambda r: f"store to a page table, cr2 {r.args[0]:#x}{_at(r)}",
    "frames": _frames,
    "pending": lambda r: f"event port {r.number} ({r.detail}) for vcpu{r.args[0]}",
    "upcall": lambda r: f"upcall{_at(r)}",
    "turn": lambda _: "turn",
    "runstate": lambda r: f"{RUNSTATES[r.args[0]]} -> {RUNSTATES[r.args[1]]}",
    "print": _console,
    "typed": _console,
    "device": lambda r: f"notifies {r.name}",
}


def line(record: Record) -> str:
    """What a record says, without its time and vCPU."""
    return _LINES[record.kind](record)


class TextEncoder:
    """The text of a trace, piece by piece."""

    def begin(self, head: Head) -> bytes:
        """A line that says what was run."""
        about = f"{head.kernel}, {head.bits}-bit, {head.vcpus} vCPU{'s' * (head.vcpus > 1)}"
        more = f", filter {head.filter}" if head.filter else ""
        return _bytes(f"# {visible(about)}{visible(more)}\n")

    def encode(self, record: Record) -> bytes:
        """A line, and one for each reason of a refusal."""
        ns = record.ns
        text = f"{ns // 10**9:6d}.{ns % 10**9:09d} vcpu{record.vcpu} {line(record)}\n"
        if record.text and record.kind in ("hypercall", "subcall"):
            text += "".join(f"{'':27}{visible(why)}\n" for why in record.text.splitlines())
        return _bytes(text)

    def end(self, tail: Tail) -> bytes:
        """A line that says how it ended."""
        ns = tail.end_ns
        return _bytes(f"# {ns // 10**9}.{ns % 10**9:09d} s: {visible(tail.reason)}\n")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
