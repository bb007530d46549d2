"""The options that several commands have: which kernel in how much memory, and how many runs are told."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class ResultFormat(StrEnum):
    """How the results of many runs are printed."""

    text = "text"
    json = "json"
    junit = "junit"


File = Annotated[
    str,
    typer.Argument(
        metavar="FILE|IMAGE",
        help="A kernel, - for stdin, or a built domain.",
        show_default=False,
    ),
]
Memory = Annotated[
    int | None,
    typer.Option("--memory", "-m", metavar="MB", help="The domain's memory; 64, or what it needs."),
]
Ramdisk = Annotated[
    str | None, typer.Option(metavar="FILE", help="A ramdisk; unzipped if it is gzip.", show_default=False)
]
Cmdline = Annotated[str, typer.Option(metavar="TEXT", help="The kernel's command line.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", metavar="N", min=1, help="So many at a time; as many as there are cores."),
]
ResultFormatOption = Annotated[ResultFormat, typer.Option("--format", help="How to print results.")]
