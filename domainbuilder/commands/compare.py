"""`domainbuilder compare`: where two recorded runs part."""

from __future__ import annotations

from typing import Annotated

import typer


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A trace of a run.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="B", help="A trace of another.", show_default=False)],
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Compare arguments, addresses and times as well."),
    ] = False,
) -> None:
    """Show where two traced runs part first, in hypercalls and console.

    A and B are traces of `launch --trace`: JSON lines, Perfetto's, or xentrace's. Hypercalls are compared by
    name, command and result, lines of the console without the time that Linux puts in front of them.

    Exit codes: 0 they part nowhere; 1 they do; 2 unusable input.

    \b
    Example:
      domainbuilder launch vmlinuz --trace a.jsonl
      domainbuilder launch vmlinuz --cmdline quiet --trace b.jsonl
      domainbuilder compare a.jsonl b.jsonl
    """
    from domainbuilder.errors import ExitCode
    from domainbuilder.trace.compare import compare as compared
    from domainbuilder.trace.compare import render

    found = compared(first, second, exact=exact)
    print(render(found), end="")
    raise typer.Exit(ExitCode.FINE if found.is_same else ExitCode.CHECK_FAILED)
