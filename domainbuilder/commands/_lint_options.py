"""The options of `domainbuilder lint` and its verbs: how each is written, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from domainbuilder.command_names import verbs_and_files


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


class RegionsFormat(StrEnum):
    """How the fill of regions is written."""

    text = "text"
    json = "json"
    markdown = "markdown"
    svg = "svg"


Scripts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SCRIPT]...",
        help="Linker scripts, .lds or .lds.S; - is standard input.",
        show_default=False,
        autocompletion=lambda incomplete: verbs_and_files("lint", incomplete),
    ),
]
Map = Annotated[str | None, typer.Option("--map", metavar="MAP", help="The link map of GNU ld or lld.")]
Elf = Annotated[str | None, typer.Option("--elf", metavar="ELF", help="The linked kernel.")]
Config = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="layout.toml or pyproject.toml; else the nearest."),
]
Library = Annotated[
    list[str] | None, typer.Option("-L", metavar="DIR", help="Where INCLUDE is looked for, as ld has it.")
]
Include = Annotated[
    list[str] | None, typer.Option("-I", metavar="DIR", help="Where the preprocessor finds includes.")
]
Define = Annotated[
    list[str] | None, typer.Option("-D", metavar="NAME[=VALUE]", help="Define for the preprocessor.")
]
Cpp = Annotated[
    str, typer.Option("--cpp", metavar="COMMAND", help="The C preprocessor; forces preprocessing.")
]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Write findings to a file.", show_default=False)
]
StdinName = Annotated[
    str, typer.Option("--stdin-filename", metavar="FILE", help="What standard input is called.")
]


Select = Annotated[
    list[str] | None, typer.Option("--select", metavar="RULE", help="Run these rules alone; also xen-*.")
]
Ignore = Annotated[list[str] | None, typer.Option("--ignore", metavar="RULE", help="Leave these rules out.")]
Fix = Annotated[bool, typer.Option("--fix", help="Show a diff of what can be mended, and mend it.")]
ShowDiff = Annotated[
    bool, typer.Option("--diff", help="Show that diff and change nothing; exit with 1 if there is one.")
]
Baseline = Annotated[
    str | None, typer.Option("--baseline", metavar="FILE", help="Leave out what this file lists.")
]
WriteBaseline = Annotated[
    str | None, typer.Option("--write-baseline", metavar="FILE", help="List all findings in a file.")
]
Svg = Annotated[
    Path | None, typer.Option("--svg", help="Draw the sections of the ELF or map.", show_default=False)
]
Lsp = Annotated[
    bool, typer.Option("--lsp", help="Serve an editor over stdin and stdout (needs the extra lsp).")
]


def _rules(incomplete: str) -> Iterator[tuple[str, str]]:
    """The rules, each with what it says, for the shell to complete."""
    from linker import rules, special

    known = [(rule.id, rule.summary) for rule in rules.load()]
    known += [(name, one.summary) for name, one in special.SPECIAL.items()]
    for name, summary in [("all", "list them"), *known]:
        if name.startswith(incomplete):
            yield name, summary


Explain = Annotated[
    str | None,
    typer.Option(
        "--explain", metavar="RULE", help="Explain a rule; `all` lists them.", autocompletion=_rules
    ),
]
