"""`domainbuilder cache` and `cache clear`: what is kept under the user's cache folder."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How to report."""

    text = "text"
    json = "json"


OutputFormat = Annotated[Format, typer.Option("--format", help="A table, or a JSON document.")]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Names as `cache` lists them.", show_default=False),
]
All = Annotated[bool, typer.Option("--all", help="The domains that were kept by a name, too.")]


def cache(output_format: OutputFormat = Format.text) -> None:
    """List what is kept to be found again: unpacked kernels, domains.

    Kernels that were unpacked, domains of `launch --resume-at`, and domains that `launch --keep` has named.
    What was not used for longest goes by itself when there is too much; named domains stay.

    Exit codes: 0 listed.
    """
    from domainbuilder.saved.listing import listing, render_listing

    entries = listing()
    if output_format is Format.json:
        from domainbuilder.reports.cache_report import cache_report

        sys.stdout.write(cache_report(entries).model_dump_json(indent=2) + "\n")
    else:
        sys.stdout.write(render_listing(entries))


def clear(names: Names = None, everything: All = False) -> None:
    """Remove what is kept, or what is named of it.

    Without names everything goes that comes back by itself; domains that `launch --keep` has named go by
    their names, or with --all. Who uses something of it right now goes on undisturbed.

    Exit codes: 0 removed; 2 nothing is kept by that name.

    \b
    Examples:
      domainbuilder cache clear
      domainbuilder cache clear booted
    """
    from domainbuilder.errors import BuildError
    from domainbuilder.saved.listing import listing

    entries = listing()
    if names:
        unknown = [name for name in names if not any(entry.name == name for entry in entries)]
        if unknown:
            raise BuildError("nothing is kept by that name", found=unknown[0])
        entries = [entry for entry in entries if entry.name in names]
    elif not everything:
        entries = [entry for entry in entries if entry.kind != "named"]
    for entry in entries:
        entry.kept.remove()
    freed = sum(entry.kept.size for entry in entries)
    sys.stdout.write(f"{len(entries)} removed, {freed:,} bytes\n")
