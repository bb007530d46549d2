"""A trace as text, a line a record, like strace's: for people and for grep. It is not read back."""

from __future__ import annotations

from domainbuilder.launch.visible import visible
from domainbuilder.trace.record import FRAME_TYPES, RUNSTATES, Head, Record, Tail

SMALL = 10


def call(record: Record) -> str:
    """As "event_channel_op(EVTCHNOP_send, 0xc010a010)"."""
    words = [hex(arg) for arg in record.args]
    if record.detail and words:
        words[0] = record.detail
    return f"{record.name}({', '.join(words)})"


def result(value: int | None) -> str:
    """A result as people read it: "-EINVAL", "0x40011", "0"; "?" for none."""
    from domainbuilder.launch.hypercall_names import result_name

    return "?" if value is None else result_name(value)


def fault(record: Record) -> str:
    """As "#PF, error code 0x2, cr2 0x1000"."""
    names = ("error code", "cr2")
    return ", ".join([record.name, *(f"{n} {v:#x}" for n, v in zip(names, record.args, strict=False))])


def line(record: Record) -> str:
    """What a record says, without its time and vCPU."""
    at = f" at {record.rip:#x}" + (f" <{record.symbol}>" if record.symbol else "")
    match record.kind:
        case "hypercall":
            took = record.end_ns - record.ns
            by = f" by {record.symbol}" if record.symbol else ""
            return f"{call(record)} = {result(record.result)}" + (f" <{took} ns>" if took else "") + by
        case "subcall":
            return f"  {call(record)} = {result(record.result)}"
        case "unfinished":
            return f"{call(record)} = ? (it goes on later)"
        case "iret":
            return "iret()"
        case "trap":
            return f"trap {fault(record)}{at}"
        case "exception":
            return f"exception {fault(record)}{at}"
        case "emulated":
            return f"emulated {record.name}{at}"
        case "store":
            return f"store to a page table, cr2 {record.args[0]:#x}{at}"
        case "frames":
            counts = zip(FRAME_TYPES, record.args, strict=False)
            return "frames " + " ".join(f"{name}={count}" for name, count in counts)
        case "pending":
            return f"event port {record.number} ({record.detail}) for vcpu{record.args[0]}"
        case "upcall":
            return f"upcall{at}"
        case "turn":
            return "turn"
        case "runstate":
            return f"{RUNSTATES[record.args[0]]} -> {RUNSTATES[record.args[1]]}"
        case "device":
            return f"notifies {record.name}"
        case _:
            shown = visible(
                record.text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            )
            return f'{record.kind} "{shown}"'


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
