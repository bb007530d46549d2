"""The counts of a run, which are the same for the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hvcore.x86 import TRAP_gp_fault

if TYPE_CHECKING:
    from hvcore.refusal import Reason, Refusal
    from hvcore.trace import Trace


class Stats(NamedTuple):
    """Counts of a run: the same for the same inputs."""

    hypercalls: dict[int, int]
    unknown_hypercalls: dict[int, int]
    exceptions: dict[int, int]
    emulated: dict[str, int]
    refused: dict[Reason, tuple[int, Refusal]]
    page_table_stores: int
    events_delivered: int
    tlb_flushes: int
    code_bytes: int
    system_time_ns: int


def count(
    trace: Trace,
    *,
    port_reads: int,
    port_writes: int,
    page_table_stores: int,
    events_delivered: int,
    tlb_flushes: int,
    code_bytes: int,
    system_time_ns: int,
) -> Stats:
    """The counts of `trace` and of those who count for themselves.

    `port_reads` and `port_writes` are those that were no exits here; under Xen each is a #GP and emulated.
    """
    exceptions, emulated = trace.exceptions.tolist(), trace.emulated.copy()
    exceptions[TRAP_gp_fault] += port_reads + port_writes
    cli, sti = trace.cli_sti
    for name, number in (("in", port_reads), ("out", port_writes), ("cli", cli), ("sti", sti)):
        if number:
            emulated[name] = emulated.get(name, 0) + number
    return Stats(
        hypercalls={i: n for i, n in enumerate(trace.hypercalls) if n},
        unknown_hypercalls=dict(sorted(trace.unknown_hypercalls.items())),
        exceptions={i: n for i, n in enumerate(exceptions) if n},
        emulated=dict(sorted(emulated.items())),
        refused=dict(trace.refused),
        page_table_stores=page_table_stores,
        events_delivered=events_delivered,
        tlb_flushes=tlb_flushes,
        code_bytes=code_bytes,
        system_time_ns=system_time_ns,
    )
