"""The options of the commands that run a domain: each is written once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from copy import copy
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

if TYPE_CHECKING:
    from domainbuilder.launch.launch_options import LaunchOptions
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


class StopPlace(StrEnum):
    """Where `--stop-at` has a domain stand."""

    crash = "crash"


class SaveForm(StrEnum):
    """What kind of file --save-at writes."""

    frozen = "frozen"
    xen = "xen"


# Option by option.
Vcpus = Annotated[int, typer.Option(metavar="N", help="Virtual CPUs.")]
Date = Annotated[
    str | None,
    typer.Option(
        metavar="DATE",
        help="When it begins by its own clock: 2026-11-30T12:00:00Z; a day in 2007, unless told.",
        show_default=False,
    ),
]
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
VfbOption = Annotated[
    str | None,
    typer.Option(
        "--vfb",
        metavar="SPEC",
        help="A framebuffer, as xl writes it: vncdisplay=5, or ''; vnc=0: for --screenshot alone.",
    ),
]
Screenshot = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write there what its framebuffer shows at the end (PNG)."),
]
ScreenshotAt = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Or at this second of the guest's time; the run goes on."),
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
StopAt = Annotated[
    StopPlace | None,
    typer.Option(
        "--stop-at", help="With --gdb: do not wait; stand where the domain crashes, with its past, for gdb."
    ),
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


class RunOptions(NamedTuple):
    """What every command takes that runs a domain."""

    expect: Expect = None
    send: Send = None
    until_match: UntilMatch = False
    timeout: Timeout = None
    max_guest_seconds: MaxGuestSeconds = None
    console_log: ConsoleLog = None
    trace: Trace = None
    trace_format: TraceFormatOption = None
    trace_filter: TraceFilter = ""
    profile: Profile = None
    profile_every: ProfileEvery = 1000
    coverage: Coverage = None
    report: Report = None
    pcap: Pcap = None
    screenshot: Screenshot = None
    screenshot_at: ScreenshotAt = None
    stats: Stats = False
    core: Core = None
    output_format: OutputFormat = Format.text
    symbols: SymbolsFile = None
    gdb: Gdb = None
    gdb_later: GdbLater = False
    stop_at: StopAt = None
    xenstore: Xenstore = None
    save_at: SaveAt = None
    save_as: SaveAs = SaveForm.frozen
    output: Output = None
    plain: Plain = False

    def launch_options(self, ctx: typer.Context, file: str) -> LaunchOptions:
        """The same for the work behind the commands. Raises BuildError."""
        from domainbuilder.launch.launch_options import LaunchOptions
        from domainbuilder.launch.observing import Observing

        return LaunchOptions(
            file=file,
            steps=_steps_of(ctx, self.expect, self.send),
            until_match=self.until_match,
            timeout=self.timeout,
            max_guest_seconds=self.max_guest_seconds,
            console_log=self.console_log,
            stats=self.stats,
            core=self.core,
            json=self.output_format is Format.json,
            symbols=self.symbols,
            gdb=self.gdb,
            gdb_waits=not self.gdb_later and self.stop_at is None,
            stops_at_crash=self.stop_at is StopPlace.crash,
            xenstore=self.xenstore,
            save_at=self.save_at,
            save_as=self.save_as.value,
            output=self.output,
            plain=self.plain,
            observing=Observing(
                trace=self.trace,
                trace_format=self.trace_format.value if self.trace_format is not None else None,
                trace_filter=self.trace_filter,
                profile=self.profile,
                profile_us=self.profile_every,
                coverage=self.coverage,
                report=self.report,
                pcap=self.pcap,
                screenshot=self.screenshot,
                screenshot_at=self.screenshot_at,
            ),
        )


def _steps_of(ctx: typer.Context, expect: list[str] | None, send: list[str] | None) -> tuple[Step, ...]:
    """--expect and --send in the order of the command line. Raises BuildError."""
    from domainbuilder.launch.script import script

    arguments = ctx.obj if isinstance(ctx.obj, list) else sys.argv[1:]
    valued = [
        name for option in ctx.command.params if not getattr(option, "is_flag", False) for name in option.opts
    ]
    return script(arguments, expect or [], send or [], valued)


SECTIONS = {
    "The domain": (
        "memory", "ramdisk", "cmdline", "vcpus", "disk", "snapshot", "vif", "vfb", "date", "upper_ptwr",
        "plain",
        "no_cache",
    ),
    "Script and limits": ("expect", "send", "until_match", "timeout", "max_guest_seconds"),
    "What is written": (
        "console_log", "stats", "output_format", "core", "record", "replay", "trace", "trace_format",
        "trace_filter", "profile", "profile_every", "coverage", "report", "pcap", "screenshot",
        "screenshot_at",
    ),
    "Looking inside": ("symbols", "gdb", "gdb_later", "stop_at", "xenstore"),
    "Saving and going on": ("save_at", "save_as", "output", "until", "keep", "resume_at"),
}  # fmt: skip
_SECTION_OF = {option: section for section, options in SECTIONS.items() for option in options}
_ORDER = {option: number for number, option in enumerate(_SECTION_OF)}


def _in_section(name: str, annotation: Any) -> Any:
    """The annotation of an option with its section, for help (command_line.py)."""
    section = _SECTION_OF.get(name)
    if section is None:
        return annotation
    kind, info = get_args(annotation)
    info = copy(info)
    info.rich_help_panel = section
    return Annotated[kind, info]


def takes_options(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator of commands: for Typer, a parameter that is a NamedTuple of options stands for its fields.

    Help has the options in the sections of SECTIONS, in their order.
    """
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if hasattr(hint, "_field_defaults")}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group = groups.get(parameter.name)
        if group is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        options = get_type_hints(group, include_extras=True)
        parameters += [
            inspect.Parameter(name, parameter.kind, default=default, annotation=options[name])
            for name, default in group._field_defaults.items()
        ]

    @wraps(command)
    def with_groups(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(*map(given.pop, group._fields))
        command(**given)

    parameters = [one.replace(annotation=_in_section(one.name, one.annotation)) for one in parameters]
    parameters.sort(key=lambda one: _ORDER.get(one.name, -1))
    with_groups.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_groups.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_groups
