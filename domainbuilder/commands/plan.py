"""`domainbuilder plan`: text, JSON or a picture."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from domainbuilder import streams
from domainbuilder.commands._options import Cmdline, File, Memory, Ramdisk


class Format(StrEnum):
    """How to print."""

    text = "text"
    json = "json"
    svg = "svg"


def plan(
    file: File,
    memory: Memory = None,
    ramdisk: Ramdisk = None,
    cmdline: Cmdline = "",
    symbols: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The kernel's symbols: vmlinux or System.map; else its own.",
            show_default=False,
        ),
    ] = None,
    output_format: Annotated[
        Format, typer.Option("--format", help="Print text, JSON for programs, or a picture.")
    ] = Format.text,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a finding is an error.")] = False,
) -> None:
    """Show the domain a kernel would get, without building it.

    Where everything goes and how it is mapped, the page tables, what start_info says, the registers, and
    whether what must own whole pages in the kernel does.

    \b
    Examples:
      domainbuilder plan vmlinuz -m 256
      domainbuilder plan vmlinuz -m 256 --format svg > vmlinuz.svg
    """
    from domainbuilder.build.image import is_image, load_image
    from domainbuilder.errors import BuildError, ExitCode
    from domainbuilder.plan.domain_plan import plan as make_plan
    from domainbuilder.plan.findings import survey

    if is_image(file):
        if (memory, ramdisk, cmdline) != (None, None, ""):
            raise BuildError("a built domain has its memory, ramdisk and command line already")
        planned = load_image(file).plan
    else:
        planned = make_plan(file, memory, ramdisk=ramdisk, cmdline=cmdline)
    names = None
    if symbols is not None:
        from domainbuilder.symbols.read import read_symbols

        names = read_symbols(symbols, planned.elf)
    surveyed = survey(planned, names)
    if output_format is Format.json:
        from domainbuilder.reports.plan_report import plan_report

        streams.document(plan_report(planned, surveyed).model_dump_json(indent=2))
    elif output_format is Format.svg:
        from domainbuilder.plan.svg import svg

        streams.document(svg(planned, surveyed))
    else:
        from domainbuilder.plan.text import render

        sys.stdout.write(render(planned, surveyed, colour=streams.colour(sys.stdout)))
    if check and surveyed.failed:
        raise typer.Exit(ExitCode.CHECK_FAILED)
