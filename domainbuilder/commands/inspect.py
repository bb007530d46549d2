"""`domainbuilder inspect`: what is in a dump of a domain that ran."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from domainbuilder.commands._run_options import Format, SymbolsFile

File = Annotated[
    str, typer.Argument(metavar="CORE", help="A dump of `launch --core`, or of xl.", show_default=False)
]


OutputFormat = Annotated[Format, typer.Option("--format", help="Text, or one JSON document with all of it.")]


def inspect(core: File, symbols: SymbolsFile = None, output_format: OutputFormat = Format.text) -> None:
    """Show a dump of a PV domain: registers, backtraces, mappings.

    Each vCPU with its code and stack, what is mapped for it, xenstore, and the console.

    Reads what `launch --core FILE` and `xl dump-core` of Xen write. Names come from --symbols: vmlinux (with
    debug information lines and call-frame information, too) or System.map.

    Exit codes: 0 shown; 2 unusable input.

    \b
    Examples:
      domainbuilder launch vmlinuz --timeout 60 --core linux.core
      domainbuilder inspect linux.core
    """
    from domainbuilder.saved.core_file import CoreFile
    from domainbuilder.symbols.read import read_symbols

    names = read_symbols(symbols) if symbols is not None else None
    if output_format is Format.json:
        from domainbuilder.reports.core_report import core_json as render
    else:
        from domainbuilder.saved.core_text import render_core as render
    sys.stdout.write(render(CoreFile(core), names))
