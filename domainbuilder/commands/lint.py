"""`domainbuilder lint`, `lint diff` and `lint format`: the layout of kernels, judged before they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from linker.session import Request


class Format(StrEnum):
    """How findings are written."""

    text = "text"
    json = "json"
    sarif = "sarif"
    github = "github"
    junit = "junit"


class DiffFormat(StrEnum):
    """How differences are written."""

    text = "text"
    json = "json"


Include = Annotated[
    list[str] | None, typer.Option("-I", metavar="DIR", help="Where the preprocessor finds includes.")
]
Define = Annotated[
    list[str] | None, typer.Option("-D", metavar="NAME[=VALUE]", help="Define for the preprocessor.")
]
Cpp = Annotated[
    str, typer.Option("--cpp", metavar="COMMAND", help="The C preprocessor; forces preprocessing.")
]


@contextmanager
def _input_errors() -> Iterator[None]:
    """Turn the linter's error about an input into the one that every command ends with."""
    from domainbuilder.errors import BuildError
    from linker.errors import LayoutInputError

    try:
        yield
    except LayoutInputError as error:
        raise BuildError(str(error)) from error


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    from domainbuilder.errors import BuildError, Where

    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BuildError(f"cannot be written: {error.strerror}", where=Where(str(output))) from error


def _explain(name: str) -> None:
    from domainbuilder.errors import BuildError
    from linker import rules
    from linker.explain import SPECIAL, explain

    if name == "all":
        for rule in rules.load():
            typer.echo(f"{rule.id:28} {rule.severity:8} {rule.summary}")
        return
    found = rules.find(name)
    if found is None and name not in SPECIAL:
        raise BuildError("there is no such rule", found=name, expected="one of `lint --explain all`")
    typer.echo(explain(found) if found is not None else SPECIAL[name], nl=False)


def _draw(request: Request, output: Path) -> None:
    from linker.elffile import read_elf
    from linker.errors import LayoutInputError
    from linker.mapfile import read_map
    from linker.output import svg

    if request.elf is not None:
        _write(svg.render(svg.bars_of_elf(read_elf(request.elf)), Path(request.elf).name), output)
    elif request.map is not None:
        _write(svg.render(svg.bars_of_map(read_map(request.map)), Path(request.map).name), output)
    else:
        raise LayoutInputError("a drawing needs addresses", expected="--elf or --map")


def lint(
    scripts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SCRIPT]...", help="Linker scripts, .lds or .lds.S.", show_default=False),
    ] = None,
    link_map: Annotated[
        str | None, typer.Option("--map", metavar="MAP", help="The link map of GNU ld or lld.")
    ] = None,
    elf: Annotated[str | None, typer.Option("--elf", metavar="ELF", help="The linked kernel.")] = None,
    output_format: Annotated[Format, typer.Option("--format", help="How to print findings.")] = Format.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write findings to a file.", show_default=False)
    ] = None,
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="layout.toml or pyproject.toml; else the nearest."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="FILE", help="Leave out what this file lists.")
    ] = None,
    write_baseline: Annotated[
        str | None, typer.Option("--write-baseline", metavar="FILE", help="List all findings in a file.")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Draw the sections of the ELF or map.", show_default=False)
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="RULE", help="Explain a rule; `all` lists them.")
    ] = None,
    cpp: Cpp = "",
    include: Include = None,
    define: Define = None,
) -> None:
    """Find layout defects in a linker script, its link map and the linked kernel.

    Exits with 1 when there is a warning or an error, with 2 when an input cannot be used.
    """
    if explain is not None:
        _explain(explain)
        return
    from domainbuilder.errors import ExitCode

    with _input_errors():
        from linker.session import Preprocessing, Request, lint_files, render

        how = Preprocessing(cpp, tuple(include or ()), tuple(define or ()))
        request = Request(tuple(scripts or ()), link_map, elf, config, how)
        report = lint_files(request)
        if svg is not None:
            _draw(request, svg)
        if write_baseline is not None and report.usable:
            from linker.fingerprint import write_baseline as write

            typer.echo(f"{write(write_baseline, [report])} findings written to {write_baseline}", err=True)
            return
        if baseline is not None:
            from linker.fingerprint import apply_baseline, read_baseline

            report = apply_baseline(report, read_baseline(baseline))
        color = output is None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        _write(render(report, output_format.value, request, color=color), output)
    if not report.usable:
        raise typer.Exit(ExitCode.UNUSABLE_INPUT)
    if report.failed:
        raise typer.Exit(ExitCode.CHECK_FAILED)


def diff(
    old: Annotated[str, typer.Argument(metavar="OLD.elf", help="The linked kernel before.")],
    new: Annotated[str, typer.Argument(metavar="NEW.elf", help="The linked kernel after.")],
    output_format: Annotated[DiffFormat, typer.Option("--format", help="Text or JSON.")] = DiffFormat.text,
) -> None:
    """Show what moved, grew or lost alignment between two linked kernels.

    Exits with 1 when something lost its alignment.
    """
    from domainbuilder.errors import ExitCode

    with _input_errors():
        from linker.diff import as_json, compare, render
        from linker.elffile import read_elf

        changes = compare(read_elf(old), read_elf(new))
    _write(as_json(changes) if output_format is DiffFormat.json else render(changes), None)
    if any(change.lost for change in changes):
        raise typer.Exit(ExitCode.CHECK_FAILED)


def format_script(
    scripts: Annotated[list[Path], typer.Argument(metavar="SCRIPT...", help="Linker scripts, not .lds.S.")],
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 1 if needed.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", "-i", help="Write the files back.")] = False,
) -> None:
    """Print linker scripts in one style, comments kept."""
    from domainbuilder.errors import BuildError, ExitCode, Where

    changed = False
    with _input_errors():
        from linker.parser import parse
        from linker.printer import print_script
        from linker.source import read_script

        for path in scripts:
            source = read_script(str(path))
            tree = parse(source.text)
            if tree.problems:
                problem = tree.problems[0]
                place = source.locate(*problem.span)
                raise BuildError(problem.message, where=Where(f"{place.file}:{place.line}:{place.column}"))
            text = print_script(tree, source.text)
            if text != source.text:
                changed = True
                if check:
                    typer.echo(f"would reformat {path}", err=True)
                elif in_place:
                    _write(text, path)
            if not check and not in_place:
                sys.stdout.write(text)
    if check and changed:
        raise typer.Exit(ExitCode.CHECK_FAILED)
