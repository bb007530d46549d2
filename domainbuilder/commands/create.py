"""`domainbuilder create`: a domain as xl's configuration describes it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from domainbuilder.commands._run_options import Date, NoCache, RunOptions, SnapshotDisks, takes_options

if TYPE_CHECKING:
    from domainbuilder.xl.domain_config import DomainConfig

Config = Annotated[
    str, typer.Argument(metavar="CFG", help="An xl.cfg(5), or its JSON; - for stdin.", show_default=False)
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that go before the file's.", show_default=False),
]
DryRun = Annotated[
    bool, typer.Option("--dryrun", "-n", help="Show the configuration as JSON, and run nothing.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell what has no effect here.")]
More = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE|CFG]...",
        help="Settings that go before the file's; more domains, each with its settings behind it.",
        show_default=False,
    ),
]
Foreground = Annotated[bool, typer.Option("-F", help="In the foreground, as always here but with -b and -p.")]
Console = Annotated[bool, typer.Option("--console", "-c", help="Be its console, also with -b.")]
Background = Annotated[
    bool, typer.Option("--background", "-b", help="In the background, as `domainbuilder xl create`.")
]
Paused = Annotated[
    bool,
    typer.Option("--pause", "-p", help="In the background, and paused before its first instruction."),
]


def read_told(config: str, settings: list[str] | None, *, quiet: bool, dryrun: bool) -> DomainConfig | None:
    """The configuration, its remarks told; None where it was to be shown, which is done."""
    from domainbuilder.launch.create import load_config
    from domainbuilder.xl.config_json import to_json

    read = load_config(config, settings or [])
    if not quiet:
        for remark in read.remarks:
            print(f"domainbuilder: {remark}", file=sys.stderr)
    if dryrun:
        print(to_json(read.config), end="")
        return None
    return read.config


@takes_options
def create(
    ctx: typer.Context,
    config: Config,
    run: RunOptions,
    more: More = None,
    dryrun: DryRun = False,
    quiet: Quiet = False,
    background: Background = False,
    paused: Paused = False,
    console: Console = False,
    foreground: Foreground = False,
    snapshot: SnapshotDisks = False,
    date: Date = None,
    no_cache: NoCache = False,
) -> None:
    """Run a domain as an xl.cfg(5) describes it, with its console.

    Every key of xl.cfg(5) is known: it is honoured, or has no effect here and that is said, or asks for what
    cannot be had and is refused. What ends the domain is followed by what on_poweroff, on_reboot and
    on_crash say; it runs once where a script, a debugger or a file is about one run.

    Several configurations are domains of one host, and its switches lie between them. Each line has the name
    of who printed it. What is typed goes to the first, or to the one whose number was typed behind Ctrl-].

    \b
    Examples:
      domainbuilder create guest.cfg
      domainbuilder create guest.cfg 'memory=512' 'extra="single"'
      domainbuilder create -n guest.cfg
      domainbuilder create server.cfg client.cfg 'memory=128' --pcap wire.pcapng
      domainbuilder create server.cfg client.cfg --gdb unix:/tmp/host.gdb
    """
    from domainbuilder.launch.create import create as create_domain

    words = [config, *(more or [])]
    read = [read_told(*group, quiet=quiet, dryrun=dryrun) for group in _groups(words)]
    domains = [one.with_snapshots() if snapshot else one for one in read if one is not None]
    if not domains:
        return
    if (background or paused) and not foreground:
        if len(domains) > 1:
            raise typer.BadParameter("in the background each domain has a host of its own: one at a time")
        _check(run, ("console_log",), "a domain in the background takes of these --console-log alone")
        from domainbuilder.background.client import start, tell_started

        domain = start(domains[0], paused=paused, cache=not no_cache, console_log=run.console_log, date=date)
        tell_started(domain, console=console, quiet=quiet)
        return
    if len(domains) > 1:
        from domainbuilder.launch.together import TogetherOptions, create_together

        taken = ("timeout", "console_log", "pcap", "gdb", "gdb_later")
        _check(run, taken, "several domains take of these --timeout, --console-log, --pcap and --gdb alone")
        options = TogetherOptions(
            run.timeout,
            run.console_log,
            run.pcap,
            run.gdb,
            not run.gdb_later,
            date=date,
            cache=not no_cache,
            quiet=quiet,
        )
        raise typer.Exit(create_together(domains, options))
    raise typer.Exit(
        create_domain(
            domains[0], run.launch_options(ctx, "")._replace(cache=not no_cache, date=date), quiet=quiet
        )
    )


def _groups(words: list[str]) -> list[tuple[str, list[str]]]:
    """Each configuration with its settings: what has an equals sign is one, as xl has it."""
    groups: list[tuple[str, list[str]]] = []
    for word in words:
        if groups and "=" in word:
            groups[-1][1].append(word)
        else:
            groups.append((word, []))
    return groups


def _check(run: RunOptions, taken: tuple[str, ...], otherwise: str) -> None:
    """Raise BadParameter where other options of a run were given than those that are taken."""
    given = [name for name, default in run._field_defaults.items() if getattr(run, name) != default]
    if set(given) - set(taken):
        raise typer.BadParameter(otherwise)
