"""From file names to a report: what a command line, a hook or a test calls."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .errors import LayoutInputError
from .lint import Inputs, Report, run
from .settings import Settings
from .source import Source, read_script

_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(?:include|define|undef|if|ifdef|ifndef)\b", re.MULTILINE)


class Preprocessing(NamedTuple):
    """How scripts are preprocessed: a command ("" for the machine's own), -I directories, -D definitions."""

    cpp: str = ""
    include: tuple[str, ...] = ()
    define: tuple[str, ...] = ()


def load_script(path: str, how: Preprocessing = Preprocessing()) -> Source:  # noqa: B008 (immutable)
    """Read a script, through the C preprocessor when its name or its text says so."""
    from .preprocess import needs_preprocessing, preprocess

    if not needs_preprocessing(path) and not how.cpp:
        source = read_script(path)
        if not _DIRECTIVE.search(source.text):
            return source
    return preprocess(path, cpp=how.cpp, include=how.include, define=how.define)


def load_inputs(script: str | None, link_map: str | None, elf: str | None, how: Preprocessing) -> Inputs:
    """Read what was given; raises LayoutInputError."""
    source = load_script(script, how) if script is not None else None
    the_map = the_elf = None
    if link_map is not None:
        from .mapfile import read_map

        the_map = read_map(link_map)
    if elf is not None:
        from .elffile import read_elf

        the_elf = read_elf(elf)
    return Inputs(source, the_map, the_elf)


class Request(NamedTuple):
    """One invocation: file names as they were given."""

    scripts: tuple[str, ...] = ()
    map: str | None = None
    elf: str | None = None
    config: str | None = None
    how: Preprocessing = Preprocessing()


def lint_files(request: Request) -> Report:
    """Lint every script, with the map and the ELF when there is one script at most."""
    from .discover import settings_for

    if not request.scripts and request.map is None and request.elf is None:
        raise LayoutInputError("nothing to look at", expected="a script, --map or --elf")
    if len(request.scripts) > 1 and (request.map is not None or request.elf is not None):
        raise LayoutInputError(
            "a map or an ELF belongs to one script", found=f"{len(request.scripts)} scripts", expected="one"
        )
    reports = []
    for script in request.scripts or (None,):
        anchor = script or request.map or request.elf or "."
        settings = settings_for(os.path.dirname(anchor) or ".", request.config)  # noqa: PTH120
        reports.append(_lint(script, request, settings))
    if len(reports) == 1:
        return reports[0]
    return Report(
        tuple(diagnostic for report in reports for diagnostic in report.diagnostics),
        sum(report.suppressed for report in reports),
        all(report.usable for report in reports),
    )


def _lint(script: str | None, request: Request, settings: Settings) -> Report:
    return run(load_inputs(script, request.map, request.elf, request.how), settings)


def _junit(report: Report, request: Request) -> str:
    from . import rules
    from .output import junit

    given = ["S"] * bool(request.scripts) + ["M"] * (request.map is not None) + ["E"] * bool(request.elf)
    return junit.render(report, [rule.id for rule in rules.load(given)])


def _text(report: Report, color: bool) -> str:
    from .output import text

    return text.render(report, color=color)


def _json(report: Report) -> str:
    from .output import models

    return models.render(report)


def _sarif(report: Report) -> str:
    from .output import sarif

    return sarif.render(report)


def _github(report: Report) -> str:
    from .output import github

    return github.render(report)


_PLAIN: dict[str, Callable[[Report], str]] = {"json": _json, "sarif": _sarif, "github": _github}
FORMATS: Sequence[str] = ("text", "json", "sarif", "github", "junit")


def render(report: Report, output_format: str, request: Request, *, color: bool = False) -> str:
    """Return the report in one of FORMATS."""
    if output_format == "text":
        return _text(report, color)
    if output_format == "junit":
        return _junit(report, request)
    return _PLAIN[output_format](report)
