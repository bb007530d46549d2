"""`domainbuilder matrix`: the runs of a matrix file, here or on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domainbuilder import streams
from domainbuilder.commands._options import Jobs, ResultFormat, ResultFormatOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from domainbuilder.fleet import Matrix, Result


def matrix(
    file: Annotated[str, typer.Argument(metavar="FILE.toml", help="The matrix.", show_default=False)],
    jobs: Jobs = None,
    executor: Annotated[
        str | None,
        typer.Option(
            metavar="dask[=ADDRESS]",
            help="On a dask cluster, or on one of this machine: the extra `fleet`.",
            show_default=False,
        ),
    ] = None,
    retries: Annotated[
        int, typer.Option(metavar="N", min=0, help="Try again what was lost with a process, so many times.")
    ] = 3,
    only: Annotated[
        str | None,
        typer.Option(metavar="GLOB", help="Only runs with such names.", show_default=False),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the runs; run none.")] = False,
    output_format: ResultFormatOption = ResultFormat.text,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JUnit XML there, too.", show_default=False)
    ] = None,
) -> None:
    """Run kernels, each in several configurations, by several scripts, with several seeds.

    Runs are independent, and each is a function of its inputs: the results are the same whatever they ran on.
    Inputs are sent by their contents, once to a worker. A run whose process was lost is tried again.

    Exit codes: 0 every run passed; 1 one did not; 2 unusable input.

    \b
    Examples:
      domainbuilder matrix tests.toml --list
      domainbuilder matrix tests.toml -j 4 --junit results.xml
    """
    import fnmatch

    from domainbuilder.errors import BuildError
    from domainbuilder.fleet import Matrix, read_matrix
    from domainbuilder.output import refuse_to_overwrite, write_whole
    from domainbuilder.progress import Progress
    from domainbuilder.reports import matrix_report as report

    kind, _, address = (executor or "").partition("=")
    if kind not in ("", "dask"):
        raise BuildError("there is no such executor", found=executor, expected="dask, or dask=ADDRESS")
    whole = read_matrix(file)
    cases = tuple(case for case in whole.cases if only is None or fnmatch.fnmatchcase(case.name, only))
    if not cases:
        raise BuildError("no run has such a name", found=only)
    if list_:
        sys.stdout.write("".join(f"{case.name}\n" for case in cases))
        return
    refuse_to_overwrite([junit], [file, *whole.files.values()])
    failed, done = 0, 0
    with Progress("starting the workers", silent=False) as progress:

        def tell(result: Result) -> None:
            nonlocal failed, done
            done, failed = done + 1, failed + (not result.passed)
            progress.phase = f"{done} of {len(cases)} runs, {failed} failed"

        some = Matrix(cases, whole.files)
        results = (
            _on_dask(some, address or None, jobs, retries, tell) if kind else _here(some, jobs, retries, tell)
        )
    if junit is not None:
        write_whole(junit, report.as_junit(results).encode())
    render = {"text": report.as_text, "json": report.as_json, "junit": report.as_junit}[output_format]
    streams.document(render(results))
    raise typer.Exit(report.exit_code(results))


def _here(matrix: Matrix, jobs: int | None, retries: int, tell: Callable[[Result], None]) -> list[Result]:
    from domainbuilder.fleet import run

    return run(matrix, workers=jobs, retries=retries, tell=tell)


def _on_dask(
    matrix: Matrix, address: str | None, jobs: int | None, retries: int, tell: Callable[[Result], None]
) -> list[Result]:
    from domainbuilder.fleet.dask import cluster, run_on

    with cluster(address, jobs) as client:
        return run_on(client, matrix, retries=retries, tell=tell)
