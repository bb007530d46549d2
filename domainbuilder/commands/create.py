"""`domainbuilder create`: a domain as xl's configuration describes it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from domainbuilder.commands._run_options import NoCache, RunOptions, SnapshotDisks, takes_options

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
Foreground = Annotated[
    bool, typer.Option("--console", "-c", "-F", help="In the foreground with its console, as always here.")
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
    settings: Settings = None,
    dryrun: DryRun = False,
    quiet: Quiet = False,
    _foreground: Foreground = False,
    snapshot: SnapshotDisks = False,
    no_cache: NoCache = False,
) -> None:
    """Run a domain as an xl.cfg(5) describes it, with its console.

    Every key of xl.cfg(5) is known: it is honoured, or has no effect here and that is said, or asks for what
    cannot be had and is refused. What ends the domain is followed by what on_poweroff, on_reboot and
    on_crash say; it runs once where a script, a debugger or a file is about one run.

    \b
    Examples:
      domainbuilder create guest.cfg
      domainbuilder create guest.cfg 'memory=512' 'extra="single"'
      domainbuilder create -n guest.cfg
    """
    from domainbuilder.launch.create import create as create_domain

    domain = read_told(config, settings, quiet=quiet, dryrun=dryrun)
    if domain is None:
        return
    options = replace(run.launch_options(ctx, ""), cache=not no_cache)
    domain = domain.with_snapshots() if snapshot else domain
    raise typer.Exit(create_domain(domain, options, quiet=quiet))
