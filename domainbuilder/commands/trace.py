"""`domainbuilder trace`: what a trace comes to."""

from __future__ import annotations

from typing import Annotated

import typer


def trace(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A trace: JSON lines, Perfetto's, xentrace's; - for stdin.",
            show_default=False,
        ),
    ],
) -> None:
    """Sum up a trace of `launch --trace`: calls, time, latencies.

    Of traces as JSON lines, as Perfetto's protobuf, and as xentrace writes them. Time is the guest's own.

    \b
    Example:
      domainbuilder launch vmlinuz --trace boot.pftrace  # or ui.perfetto.dev
      domainbuilder trace boot.pftrace
    """
    from domainbuilder.trace.formats import opened_trace
    from domainbuilder.trace.summary import render, summarise

    with opened_trace(file) as reader:
        summary = summarise(reader.head, reader)
        summary.tail = reader.tail
    print(render(summary), end="")
