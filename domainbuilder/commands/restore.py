"""`domainbuilder restore`: a saved domain goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from domainbuilder.commands._run_options import Disks, RunOptions, SnapshotDisks, Vifs, takes_options

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|NAME|unix:PATH",
        help="A saved domain, ours or xl's; a kept one's name; or a socket, to await one that is moved here.",
        show_default=False,
    ),
]


@takes_options
def restore(
    ctx: typer.Context,
    file: File,
    run: RunOptions,
    disk: Disks = None,
    snapshot: SnapshotDisks = False,
    vif: Vifs = None,
) -> None:
    """Go on with a domain that `launch --save-at` saved, with a console.

    It goes on exactly as it would have without being saved: the same output, times and counts. The options
    are those of `launch`; limits count from where it was saved. A domain that had disks gets them again by
    --disk, and only if they have not changed; an interface that led out of the host leads there again where
    --vif says so.

    Exit codes: 0 the guest ended by itself and met what was expected; 1 an expectation was not met;
    2 unusable input; 3 the domain crashed; 4 timed out, or idle for good.

    \b
    Examples:
      domainbuilder restore booted.domain
      domainbuilder restore booted.domain --expect '# ' \\
          --send 'uptime\\n' --expect '# ' --until-match
      domainbuilder restore networked.domain --vif type=user,tcp=8080:80
    """
    from domainbuilder.kept_files import find_named
    from domainbuilder.launch.options import disks_of, vifs_of
    from domainbuilder.launch.run import run_restore

    options = run.launch_options(ctx, find_named(file))
    options = options._replace(disks=disks_of(disk or [], snapshot=snapshot), vifs=vifs_of(vif or []))
    raise typer.Exit(run_restore(options).code)
