"""`domainbuilder launch`: the console, expectations, exit codes."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from domainbuilder.launch.script import Step


class Format(StrEnum):
    """How to report."""

    text = "text"
    json = "json"


class TraceFormat(StrEnum):
    """What a trace is written as."""

    perfetto = "perfetto"
    text = "text"
    json = "json"
    xentrace = "xentrace"


class SaveForm(StrEnum):
    """What kind of file --save-at writes."""

    frozen = "frozen"
    xen = "xen"


# The command line, option by option.
File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|IMAGE",
        help="A kernel, - for stdin, or a built domain.",
        show_default=False,
    ),
]
Memory = Annotated[
    int | None,
    typer.Option("--memory", "-m", metavar="MB", help="The domain's memory; 64, or what it needs."),
]
Ramdisk = Annotated[
    str | None, typer.Option(metavar="FILE", help="A ramdisk; unzipped if it is gzip.", show_default=False)
]
Cmdline = Annotated[str, typer.Option(metavar="TEXT", help="The kernel's command line.")]
Vcpus = Annotated[int, typer.Option(metavar="N", help="Virtual CPUs.")]
UpperPtwr = Annotated[
    bool,
    typer.Option(
        "--upper-ptwr", help="Let it store to L2-L4 page tables, where Xen would not: for GNU Mach of 2022."
    ),
]
Expect = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX", help="Run until the output matches. Again and again, in order."),
]
Send = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", help=r"Type this (\n \r \t \\ \xHH), in order with --expect."),
]
UntilMatch = Annotated[
    bool, typer.Option("--until-match", help="Stop at the last --expect; do not wait for the guest's end.")
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", help="Give up (exit 4) after so much wall time.")
]
MaxGuestSeconds = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Give up after so much of the guest's time: always the same."),
]
SymbolsFile = Annotated[
    str | None,
    typer.Option(
        "--symbols", metavar="FILE", help="Names for reports: vmlinux or System.map; else the kernel's own."
    ),
]
ResumeAt = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX", help="Run until the output matches; from the next time on, begin right there."
    ),
]
Until = Annotated[str | None, typer.Option(metavar="REGEX|SECONDS", help="With --keep: as --save-at.")]
Keep = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Save the domain there, for `domainbuilder restore NAME`, and stop."),
]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Neither look for the unpacked kernel under ~/.cache nor keep it there."),
]
ConsoleLog = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the guest's output there, too.")]
Disks = Annotated[
    list[str] | None,
    typer.Option(
        "--disk", metavar="SPEC", help="A disk, as xl writes it: FILE,raw,xvda,w. Again for another one."
    ),
]
SnapshotDisks = Annotated[
    bool, typer.Option("--snapshot", help="Leave the disks' files as they are: writes stay in memory.")
]
Vifs = Annotated[
    list[str] | None,
    typer.Option(
        "--vif",
        metavar="SPEC",
        help="A network interface, as xl writes it: bridge=xenbr0, or ''; type=user leads out. Repeatable.",
    ),
]
Pcap = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the frames that pass its switches there (pcapng).")
]
Record = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write there what is typed, and when by its clock."),
]
Replay = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Type what --record wrote down: the same run again.")
]
Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write what the guest does there: .pftrace, .txt, .jsonl, .xentrace; see `trace`.",
    ),
]
TraceFormatOption = Annotated[
    TraceFormat | None, typer.Option("--trace-format", help="What to write it as, whatever FILE is called.")
]
TraceFilter = Annotated[
    str,
    typer.Option(metavar="LIST", help="What of it: hypercalls,events,vcpu=0,time=1.5-2,symbol=xen_*."),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Write where its time went: .folded, .speedscope.json or .pb.gz, by call stack."
    ),
]
ProfileEvery = Annotated[
    int, typer.Option(metavar="MICROSECONDS", help="How often the profile looks, in the guest's time.")
]
Coverage = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write which of its code ran: .drcov, or .info for lcov."),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.html", help="Write a page about the run: console, timeline, hypercalls, crash."
    ),
]
Plain = Annotated[
    bool, typer.Option("--plain", help="Use only what Unicorn documents: slow, with the same results.")
]
Gdb = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT|unix:PATH",
        help="Wait there for gdb, which then runs the domain; of this machine, unless HOST says otherwise.",
    ),
]
GdbLater = Annotated[
    bool, typer.Option("--gdb-later", help="With --gdb: do not wait; gdb may come while the domain runs.")
]
Xenstore = Annotated[
    str | None,
    typer.Option(
        metavar="unix:PATH",
        help="Listen there for xenstore-ls, xenstore-write and their kin (XENSTORED_PATH=PATH).",
    ),
]
Stats = Annotated[bool, typer.Option("--stats", help="Print counts of what the guest did.")]
Core = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Dump the domain there where it crashes, hangs or its time is up."),
]
SaveAt = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX|SECONDS",
        help="Save the domain to -o FILE where its output matches, or after so much of its time, and end.",
    ),
]
SaveAs = Annotated[
    SaveForm,
    typer.Option(help="How: to the instruction (frozen), or as xl saves a guest that suspends (xen)."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where --save-at saves to; unix:PATH moves it, live, to a `restore unix:PATH`.",
    ),
]
OutputFormat = Annotated[
    Format, typer.Option("--format", help="How our own messages look: text, or one JSON document.")
]


def steps_of(ctx: typer.Context, expect: list[str] | None, send: list[str] | None) -> tuple[Step, ...]:
    """--expect and --send in the order of the command line. Raises BuildError."""
    from domainbuilder.launch.script import script

    arguments = ctx.obj if isinstance(ctx.obj, list) else sys.argv[1:]
    valued = [
        name for option in ctx.command.params if not getattr(option, "is_flag", False) for name in option.opts
    ]
    return script(arguments, expect or [], send or [], valued)


def _kept_as(name: str) -> Path:
    """The file of a domain that is kept by that name, in a folder of the user's own."""
    from domainbuilder.kept_files import private_folder
    from domainbuilder.saved.kept import named

    path = named(name)
    private_folder(path.parent)
    return path


def launch(
    ctx: typer.Context,
    file: File,
    memory: Memory = None,
    ramdisk: Ramdisk = None,
    cmdline: Cmdline = "",
    vcpus: Vcpus = 1,
    disk: Disks = None,
    vif: Vifs = None,
    pcap: Pcap = None,
    snapshot: SnapshotDisks = False,
    upper_ptwr: UpperPtwr = False,
    expect: Expect = None,
    send: Send = None,
    until_match: UntilMatch = False,
    timeout: Timeout = None,
    max_guest_seconds: MaxGuestSeconds = None,
    console_log: ConsoleLog = None,
    symbols: SymbolsFile = None,
    record: Record = None,
    replay: Replay = None,
    trace: Trace = None,
    trace_format: TraceFormatOption = None,
    trace_filter: TraceFilter = "",
    profile: Profile = None,
    profile_every: ProfileEvery = 1000,
    coverage: Coverage = None,
    report: Report = None,
    plain: Plain = False,
    gdb: Gdb = None,
    gdb_later: GdbLater = False,
    xenstore: Xenstore = None,
    stats: Stats = False,
    core: Core = None,
    save_at: SaveAt = None,
    save_as: SaveAs = SaveForm.frozen,
    output: Output = None,
    until: Until = None,
    keep: Keep = None,
    resume_at: ResumeAt = None,
    no_cache: NoCache = False,
    output_format: OutputFormat = Format.text,
) -> None:
    """Run a kernel, or a built domain, with a console.

    The guest's output goes to stdout as it is, everything else to stderr. On a terminal the console is raw,
    and Ctrl-] closes it. With --expect or --send they are played in the order given; otherwise stdin, if it
    is no terminal, is what the guest gets to read.

    Exit codes: 0 the guest ended by itself and met what was expected; 1 an expectation was not met;
    2 unusable input; 3 the domain crashed; 4 timed out, or idle for good.
    """
    from domainbuilder.errors import BuildError
    from domainbuilder.launch.launch_options import LaunchOptions
    from domainbuilder.launch.observing import Observing
    from domainbuilder.launch.options import disks_of, vifs_of
    from domainbuilder.launch.run import run_launch

    if (until is None) != (keep is None):
        raise BuildError("--until says when, and --keep by which name: both or neither")
    if keep is not None:
        if save_at is not None or output is not None:
            raise BuildError("--save-at and --keep are two places for the same")
        save_at, output = until, _kept_as(keep)
    if resume_at is not None and no_cache:
        raise BuildError("--resume-at is a cache, and --no-cache wants none")
    options = LaunchOptions(
        file=file,
        memory_mib=memory,
        ramdisk=ramdisk,
        cmdline=cmdline,
        vcpus=vcpus,
        disks=disks_of(disk or [], snapshot=snapshot),
        vifs=vifs_of(vif or []),
        upper_ptwr=upper_ptwr,
        steps=steps_of(ctx, expect, send),
        until_match=until_match,
        timeout=timeout,
        max_guest_seconds=max_guest_seconds,
        console_log=console_log,
        symbols=symbols,
        record=record,
        replay=replay,
        plain=plain,
        gdb=gdb,
        gdb_waits=not gdb_later,
        xenstore=xenstore,
        stats=stats,
        cache=not no_cache,
        core=core,
        save_at=save_at,
        save_as=save_as.value,
        output=output,
        resume_at=resume_at,
        json=output_format is Format.json,
        observing=Observing(
            trace=trace,
            trace_format=trace_format.value if trace_format is not None else None,
            trace_filter=trace_filter,
            profile=profile,
            profile_us=profile_every,
            coverage=coverage,
            report=report,
            pcap=pcap,
        ),
    )
    raise typer.Exit(run_launch(options).code)
