"""`domainbuilder tour`: a kernel's boot, told step by step."""

from __future__ import annotations

from typing import Annotated

import typer

from domainbuilder.commands._options import Cmdline, Memory, Ramdisk


def tour(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A kernel, or - for stdin.", show_default=False)
    ],
    memory: Memory = None,
    ramdisk: Ramdisk = None,
    cmdline: Cmdline = "",
    send: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help=r"Type this (\n \r \t \\ \xHH)."),
    ] = None,
    max_guest_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="Tell of so much of the guest's time at most.")
    ] = 60.0,
    no_pause: Annotated[bool, typer.Option("--no-pause", help="Write all steps at once, as text.")] = False,
    text: Annotated[
        bool,
        typer.Option("--text", help="Tell it as text, Enter for Enter, where the application would come."),
    ] = False,
) -> None:
    """Tell a kernel's boot step by step: what it asks, what Xen checks.

    First the domain as it is built, then the first of each kind of act of the guest: hypercalls, exceptions,
    emulated instructions, events; with what it printed, and how its page tables grow. On a terminal that is
    an application with a list to search, the address space then, and the sources, where the extra `tour` is
    installed (pip install 'domainbuilder[tour]'); if not, Enter shows the next step, and q ends.

    \b
    Example:
      domainbuilder tour kernel.elf --send 'halt\\n'
      domainbuilder tour vmlinuz --ramdisk initramfs.cpio --cmdline console=hvc0 \\
          --send 'poweroff -f\\n'
    """
    from domainbuilder.launch.script import unescape
    from domainbuilder.tour.run import TourOptions, run_tour

    typed = b"".join(map(unescape, send or []))
    options = TourOptions(
        file, memory, ramdisk, cmdline, typed, max_guest_seconds, pause=not no_pause, as_text=text
    )
    raise typer.Exit(run_tour(options))
