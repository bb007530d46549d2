"""`domainbuilder notes` and `domainbuilder notes fix`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from domainbuilder import streams
from domainbuilder.command_names import verbs_and_files

if TYPE_CHECKING:
    from domainbuilder.errors import BuildError
    from domainbuilder.kernel.inspection import Inspection


class Format(StrEnum):
    """How to print."""

    text = "text"
    json = "json"


def notes(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Kernels: ELF, gzip or bzImage; - is standard input.",
            show_default=False,
            autocompletion=lambda incomplete: verbs_and_files("notes", incomplete),
        ),
    ],
    output_format: Annotated[
        Format, typer.Option("--format", help="Print text, or JSON for programs.")
    ] = Format.text,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 where a finding is an error.")] = False,
) -> None:
    """Show what kernels ask of Xen, and whether Xen would accept them.

    The verdict per kind of guest comes first, then what is wrong or odd, then the notes themselves.
    `domainbuilder notes fix FILE -o OUT` repairs what can be repaired; a kernel that is called
    "fix" is written ./fix.

    \b
    Examples:
      domainbuilder notes vmlinuz
      domainbuilder notes --check *.elf
    """
    from domainbuilder.errors import ExitCode

    results = [(path, _inspect(path)) for path in files]
    if output_format is Format.json:
        from domainbuilder.reports.notes_report import notes_report

        streams.document(notes_report(results).model_dump_json(indent=2))
    else:
        _print_text([result for _, result in results])
    for _, result in results:
        if isinstance(result, Exception):
            streams.tell_error(str(result))
    if any(isinstance(result, Exception) for _, result in results):
        raise typer.Exit(ExitCode.UNUSABLE_INPUT)
    if check and any(result.errors for _, result in results if not isinstance(result, Exception)):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def fix(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An ELF kernel, gzipped or not.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write the repaired kernel.")
    ],
    output_format: Annotated[
        Format, typer.Option("--format", help="Print text, or JSON for programs.")
    ] = Format.text,
) -> None:
    """Repair what can be repaired in a kernel's notes.

    The owner of notes that are Xen's in all but name, sizes that run past the end, a missing PT_NOTE.
    What gets loaded stays as it is, and OUT appears whole or not at all.

    \b
    Example:
      domainbuilder notes fix gnumach.gz -o gnumach
    """
    from domainbuilder.kernel.fix import fix as repair
    from domainbuilder.output import refuse_to_overwrite

    refuse_to_overwrite([output], [file])
    result = repair(file, output)
    if output_format is Format.json:
        from domainbuilder.reports.notes_report import fix_report

        streams.document(fix_report(result).model_dump_json(indent=2))
        return
    for line in result.changes or ("nothing to repair: a copy",):
        print(f"{result.output}: {line}")
    for line in result.left:
        print(f"{result.output}: note: {line}")


def _inspect(path: str) -> Inspection | BuildError:
    from domainbuilder.errors import BuildError
    from domainbuilder.kernel.inspection import inspect

    try:
        return inspect(path)
    except BuildError as error:
        return error


def _print_text(results: list[Inspection | BuildError]) -> None:
    from domainbuilder.kernel.notes_text import render

    colour = streams.colour(sys.stdout)
    reports = [render(result, colour=colour) for result in results if not isinstance(result, Exception)]
    sys.stdout.write("\n".join(reports))
