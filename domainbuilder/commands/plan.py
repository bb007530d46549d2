"""`domainbuilder plan`."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """How to print."""

    text = "text"
    json = "json"
    svg = "svg"


def plan(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|IMAGE",
            help="A kernel: ELF, gzip or bzImage; or what `build` wrote.",
            show_default=False,
        ),
    ],
    memory: Annotated[
        int | None, typer.Option("--memory", "-m", metavar="MB", help="The domain's memory; 64 if not given.")
    ] = None,
    ramdisk: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A ramdisk; unzipped if it is gzip.", show_default=False),
    ] = None,
    cmdline: Annotated[str, typer.Option(metavar="TEXT", help="The kernel's command line.")] = "",
    output_format: Annotated[
        Format, typer.Option("--format", help="Print text, JSON for programs, or a picture.")
    ] = Format.text,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a finding is an error.")] = False,
) -> None:
    """Show the domain a kernel would get, without building it.

    Where everything goes and how it is mapped, the page tables, what start_info says, the registers, and
    whether what must own whole pages in the kernel does.
    """
    from domainbuilder.build.image import is_image, load_image
    from domainbuilder.errors import BuildError, ExitCode
    from domainbuilder.plan.domain_plan import DEFAULT_MEMORY_MIB
    from domainbuilder.plan.domain_plan import plan as make_plan
    from domainbuilder.plan.findings import survey

    if is_image(file):
        if (memory, ramdisk, cmdline) != (None, None, ""):
            raise BuildError("a built domain has its memory, ramdisk and command line already")
        planned = load_image(file).plan
    else:
        mib = DEFAULT_MEMORY_MIB if memory is None else memory
        planned = make_plan(file, memory_mib=mib, ramdisk=ramdisk, cmdline=cmdline)
    surveyed = survey(planned)
    if output_format is Format.json:
        from domainbuilder.reports.plan_report import plan_report

        typer.echo(plan_report(planned, surveyed).model_dump_json(indent=2))
    elif output_format is Format.svg:
        from domainbuilder.plan.svg import svg

        typer.echo(svg(planned, surveyed), nl=False)
    else:
        from domainbuilder.plan.text import render

        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        sys.stdout.write(render(planned, surveyed, colour=colour))
    if check and surveyed.failed:
        raise typer.Exit(ExitCode.CHECK_FAILED)
