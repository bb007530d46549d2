"""`domainbuilder conform`: which guests, which format."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from domainbuilder import streams
from domainbuilder.commands._options import Jobs, ResultFormat, ResultFormatOption


def _guests(incomplete: str) -> Iterator[tuple[str, str]]:
    """The bundled guests, each with what it covers, for the shell to complete."""
    from domainbuilder.conform.run import bundled

    with bundled() as known:
        for guest in known:
            if guest.name.startswith(incomplete):
                yield guest.name, guest.covers


def conform(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Only these.", show_default=False, autocompletion=_guests),
    ] = None,
    list_: Annotated[
        bool, typer.Option("--list", help="Name the guests and what they cover; run none.")
    ] = False,
    output_format: ResultFormatOption = ResultFormat.text,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="The wall time that one guest may take.")
    ] = 60.0,
    jobs: Jobs = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help="Guests that samples/build.py --conformance --to DIR built, instead of the bundled ones.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the bundled conformance guests: is everything done and refused as Xen does?

    Exit codes: 0 every guest ended with SUCCESS or SKIP, or with a FAILURE that is known; 1 one ended with
    FAILURE or ERROR; 2 usage; 3 one crashed; 4 one did not end in time.

    \b
    Examples:
      domainbuilder conform
      domainbuilder conform mmu_update event_channel --format json
    """
    from domainbuilder.conform import report
    from domainbuilder.conform import run as runner
    from domainbuilder.conform.cases import run_all

    jobs = jobs or len(os.sched_getaffinity(0))
    with runner.bundled() if from_ is None else nullcontext(runner.in_folder(from_)) as every:
        tests = runner.select(every, names or [])
        if list_:
            sys.stdout.write(report.listing(tests))
            return
        if output_format is not ResultFormat.text:
            results = run_all(tests, timeout, jobs=jobs)
            render = report.as_json if output_format is ResultFormat.json else report.as_junit
            streams.document(render(results))
        else:
            table = report.Table(tests, color=streams.colour(sys.stdout))

            def tell(result: runner.Result) -> None:
                sys.stdout.write(table.row(result))
                sys.stdout.flush()

            sys.stdout.write(table.head())
            results = run_all(tests, timeout, tell, jobs)
            sys.stdout.write(table.foot(results))
    raise typer.Exit(runner.exit_code(results))
