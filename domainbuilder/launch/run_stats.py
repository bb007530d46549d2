"""The counts of a run: those that equal runs have in common, and what the run cost this host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HostUse:
    """What a run cost here; differs from run to run. `peak_rss` is the process's, in bytes.

    `lanes` has, by exit, how many the compiled core answered, and how many it looked at and left to Python;
    `disks`, by disk and kind of request ("xvda read"), how many there were, their bytes, and the nanoseconds
    that they took, together and the longest.
    """

    wall_seconds: float
    peak_rss: int
    lanes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    disks: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of a run, by name. Two runs of the same inputs compare equal: `host` is left out of that.

    `guest_ns` is the time that passed for the guest since its first instruction, idle time included;
    `code_bytes` the bytes of guest code that were executed. `refused` counts what page tables and types
    were refused for, by kind, each with its last wording.
    """

    hypercalls: Mapping[str, int]
    unknown_hypercalls: Mapping[int, int]
    traps: Mapping[str, int]
    emulated: Mapping[str, int]
    refused: Mapping[str, tuple[int, str]]
    page_table_stores: int
    events_delivered: int
    tlb_flushes: int
    code_bytes: int
    guest_ns: int
    console_bytes: int
    host: HostUse = field(compare=False)


def _counts(title: str, counts: Mapping[str, int]) -> list[str]:
    total = sum(counts.values())
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return [f"{title:<30}{total:>15,}", *(f"  {name:<28}{count:>15,}" for name, count in rows)]


def render_stats(stats: Statistics) -> str:
    """The numbers as text. The lines of this host come last, behind a title of their own."""
    unknown = {f"hypercall {number}": count for number, count in stats.unknown_hypercalls.items()}
    lines = _counts("hypercalls", stats.hypercalls)
    if unknown:
        lines += _counts("unknown hypercalls (-ENOSYS)", unknown)
    lines += _counts("traps and faults", stats.traps)
    lines += _counts("emulated instructions", stats.emulated)
    if stats.refused:
        lines.append(f"{'page-table refusals':<30}{sum(n for n, _ in stats.refused.values()):>15,}")
        rows = sorted(stats.refused.values(), key=lambda row: (-row[0], row[1]))
        lines += [f"  {count:>9,} x {last}" for count, last in rows]
    singles = {
        "page-table stores emulated": stats.page_table_stores,
        "events delivered": stats.events_delivered,
        "TLB flushes": stats.tlb_flushes,
        "console output, bytes": stats.console_bytes,
        "guest code executed, bytes": stats.code_bytes,
    }
    lines += [f"{name:<30}{value:>15,}" for name, value in singles.items()]
    lines.append(f"{'guest time':<30}{stats.guest_ns / 1e9:>13.6f} s")
    lines.append("on this host, this time:")
    lines.append(f"  {'wall time':<28}{stats.host.wall_seconds:>13.2f} s")
    lines.append(f"  {'peak memory (RSS)':<28}{stats.host.peak_rss / 2**20:>12.1f} MB")
    if stats.host.disks:
        lines.append(f"  {'requests to disks':<28}{'requests':>10}{'MB':>10}{'mean, us':>10}{'longest':>10}")
        for name, (requests, size, ns, longest) in stats.host.disks.items():
            mean = ns / requests / 1000
            lines.append(
                f"    {name:<26}{requests:>10,}{size / 2**20:>10.1f}{mean:>10.1f}{longest / 1000:>10.1f}"
            )
    if stats.host.lanes:
        lines.append(f"  {'answered by the compiled core':<33}{'taken':>10}{'left':>10}")
        lanes = sorted(stats.host.lanes.items(), key=lambda lane: (-sum(lane[1]), lane[0]))
        lines += [f"    {name:<31}{taken:>10,}{left:>10,}" for name, (taken, left) in lanes]
    return "\n".join(lines) + "\n"
