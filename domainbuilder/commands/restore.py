"""`domainbuilder restore`: a saved domain goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from domainbuilder.commands.launch import (
    ConsoleLog,
    Core,
    Coverage,
    Disks,
    Expect,
    Format,
    Gdb,
    GdbLater,
    MaxGuestSeconds,
    Output,
    OutputFormat,
    Plain,
    Profile,
    ProfileEvery,
    Report,
    SaveAs,
    SaveAt,
    SaveForm,
    Send,
    SnapshotDisks,
    Stats,
    SymbolsFile,
    Timeout,
    Trace,
    TraceFilter,
    TraceFormatOption,
    UntilMatch,
    steps_of,
)

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME|unix:PATH",
        help="A saved domain, ours or xl's; a kept one's name; or a socket, to await one that is moved here.",
        show_default=False,
    ),
]


def restore(
    ctx: typer.Context,
    file: File,
    expect: Expect = None,
    send: Send = None,
    until_match: UntilMatch = False,
    timeout: Timeout = None,
    max_guest_seconds: MaxGuestSeconds = None,
    console_log: ConsoleLog = None,
    symbols: SymbolsFile = None,
    trace: Trace = None,
    trace_format: TraceFormatOption = None,
    trace_filter: TraceFilter = "",
    profile: Profile = None,
    profile_every: ProfileEvery = 1000,
    coverage: Coverage = None,
    report: Report = None,
    disk: Disks = None,
    snapshot: SnapshotDisks = False,
    plain: Plain = False,
    gdb: Gdb = None,
    gdb_later: GdbLater = False,
    stats: Stats = False,
    core: Core = None,
    save_at: SaveAt = None,
    save_as: SaveAs = SaveForm.frozen,
    output: Output = None,
    output_format: OutputFormat = Format.text,
) -> None:
    """Go on with a domain that `launch --save-at` saved, with a console.

    It goes on exactly as it would have without being saved: the same output, times and counts. The options
    are those of `launch`; limits count from where it was saved. A domain that had disks gets them again by
    --disk, and only if they have not changed.

    Exit codes: 0 the guest ended by itself and met what was expected; 1 an expectation was not met;
    2 unusable input; 3 the domain crashed; 4 timed out, or idle for good.
    """
    from domainbuilder.kept_files import find_named
    from domainbuilder.launch.launch_options import LaunchOptions
    from domainbuilder.launch.observing import Observing
    from domainbuilder.launch.options import disks_of
    from domainbuilder.launch.run import run_restore

    options = LaunchOptions(
        file=find_named(file),
        steps=steps_of(ctx, expect, send),
        until_match=until_match,
        timeout=timeout,
        max_guest_seconds=max_guest_seconds,
        console_log=console_log,
        symbols=symbols,
        disks=disks_of(disk or [], snapshot=snapshot),
        plain=plain,
        stats=stats,
        core=core,
        save_at=save_at,
        save_as=save_as.value,
        output=output,
        json=output_format is Format.json,
        gdb=gdb,
        gdb_waits=not gdb_later,
        observing=Observing(
            trace=trace,
            trace_format=trace_format.value if trace_format is not None else None,
            trace_filter=trace_filter,
            profile=profile,
            profile_us=profile_every,
            coverage=coverage,
            report=report,
        ),
    )
    raise typer.Exit(run_restore(options).code)
