"""`domainbuilder launch`: the console, expectations, exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainbuilder.commands._options import Cmdline, File, Memory, Ramdisk
from domainbuilder.commands._run_options import (
    Date,
    Disks,
    Keep,
    NoCache,
    Record,
    Replay,
    ResumeAt,
    RunOptions,
    SnapshotDisks,
    Until,
    UpperPtwr,
    Vcpus,
    VfbOption,
    Vifs,
    takes_options,
)

GdbComes = Annotated[
    bool, typer.Option("--gdb-comes", hidden=True, help="Whoever starts this starts gdb, too.")
]


def _kept_as(name: str) -> Path:
    """The file of a domain that is kept by that name, in a folder of the user's own."""
    from domainbuilder.kept_files import private_folder
    from domainbuilder.saved.kept import named

    path = named(name)
    private_folder(path.parent)
    return path


@takes_options
def launch(
    ctx: typer.Context,
    file: File,
    run: RunOptions,
    memory: Memory = None,
    ramdisk: Ramdisk = None,
    cmdline: Cmdline = "",
    vcpus: Vcpus = 1,
    disk: Disks = None,
    snapshot: SnapshotDisks = False,
    vif: Vifs = None,
    vfb: VfbOption = None,
    date: Date = None,
    upper_ptwr: UpperPtwr = False,
    no_cache: NoCache = False,
    record: Record = None,
    replay: Replay = None,
    until: Until = None,
    keep: Keep = None,
    resume_at: ResumeAt = None,
    gdb_comes: GdbComes = False,
) -> None:
    """Run a kernel, or a built domain, with a console.

    The guest's output goes to stdout as it is, everything else to stderr. On a terminal the console is raw,
    and Ctrl-] closes it. With --expect or --send they are played in the order given; otherwise stdin, if it
    is no terminal, is what the guest gets to read.

    Exit codes: 0 the guest ended by itself and met what was expected; 1 an expectation was not met;
    2 unusable input; 3 the domain crashed; 4 timed out, or idle for good.

    \b
    Examples:
      domainbuilder launch vmlinuz --ramdisk initramfs.cpio --cmdline console=hvc0
      domainbuilder launch grub-i386-xen.bin --expect 'grub> ' \\
          --send 'halt\\n' --timeout 60
      domainbuilder launch vmlinuz --cmdline console=tty0 --vfb vnc=0 \\
          --timeout 9 --screenshot boot.png
      domainbuilder launch grub-i386-xen.bin --trace boot.pftrace \\
          --expect 'grub> ' --until-match
    """
    from domainbuilder.errors import BuildError
    from domainbuilder.launch.options import disks_of, vfb_of, vifs_of
    from domainbuilder.launch.run import run_launch

    options = run.launch_options(ctx, file)
    if (until is None) != (keep is None):
        raise BuildError("--until says when, and --keep by which name: both or neither")
    if keep is not None:
        if options.save_at is not None or options.output is not None:
            raise BuildError("--save-at and --keep are two places for the same")
        options = options._replace(save_at=until, output=_kept_as(keep))
    if resume_at is not None and no_cache:
        raise BuildError("--resume-at is a cache, and --no-cache wants none")
    options = options._replace(
        memory_mib=memory,
        ramdisk=ramdisk,
        cmdline=cmdline,
        vcpus=vcpus,
        disks=disks_of(disk or [], snapshot=snapshot),
        vifs=vifs_of(vif or []),
        vfb=vfb_of(vfb),
        date=date,
        upper_ptwr=upper_ptwr,
        cache=not no_cache,
        record=record,
        replay=replay,
        resume_at=resume_at,
        gdb_comes=gdb_comes,
    )
    raise typer.Exit(run_launch(options).code)
