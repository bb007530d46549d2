"""`domainbuilder gdb`: a kernel in gdb, from its first instruction on."""

from __future__ import annotations

from typing import Annotated

import typer

from domainbuilder.commands._options import Cmdline, File, Memory, Ramdisk
from domainbuilder.commands._run_options import (
    ConsoleLog,
    Plain,
    SymbolsFile,
    Vcpus,
)

Commands = Annotated[
    list[str] | None, typer.Option("--ex", metavar="COMMAND", help="Have gdb do this first. Again and again.")
]
Batch = Annotated[bool, typer.Option("--batch", help="Have gdb end after the commands.")]
Program = Annotated[str, typer.Option("--gdb", metavar="PROGRAM", help="Which gdb.")]


def gdb(
    file: File,
    memory: Memory = None,
    ramdisk: Ramdisk = None,
    cmdline: Cmdline = "",
    vcpus: Vcpus = 1,
    symbols: SymbolsFile = None,
    console_log: ConsoleLog = None,
    ex: Commands = None,
    batch: Batch = False,
    plain: Plain = False,
    program: Program = "gdb",
) -> None:
    """Run a kernel in gdb, from its first instruction on.

    The domain stands at its entry, gdb knows the symbols of an ELF kernel (or those of --symbols), and the
    guest's output is on the same terminal. vCPUs are threads; breakpoints, watchpoints and steps are seen by
    no guest; `monitor help` lists what can be asked of Xen's side. When gdb ends the domain ends.

    Exit codes: that of gdb; 2 unusable input, or there is no gdb.

    \b
    Examples:
      domainbuilder gdb vmlinuz --ramdisk initramfs.cpio --cmdline console=hvc0
      domainbuilder gdb vmlinuz --ex 'break start_kernel' --ex continue
    """
    from domainbuilder.launch.gdb_session import GdbOptions, run_gdb

    options: list[str] = []
    for name, value in (
        ("-m", memory), ("--ramdisk", ramdisk), ("--cmdline", cmdline or None), ("--vcpus", vcpus),
        ("--symbols", symbols), ("--console-log", console_log),
    ):  # fmt: skip
        if value is not None:
            options += [name, str(value)]
    if plain:
        options.append("--plain")
    raise typer.Exit(run_gdb(GdbOptions(file, tuple(options), symbols, tuple(ex or ()), batch, program)))
