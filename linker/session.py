"""From file names to a report: what a command line, a hook or a test calls."""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from .elffile import Unpack
from .errors import LayoutInputError
from .findings import OFF, WARNING
from .lint import Inputs, Report, run, sort_key
from .settings import Settings
from .source import Source, decode_script, read_script, read_stream, read_text
from .special import SPECIAL, SYNTAX, UNUSED

STDIN = "-"


class Preprocessing(NamedTuple):
    """How scripts are read.

    `cpp` is a command ("" for the machine's own), `include` and `define` follow its -I and -D, `library` are
    the directories of -L, in which INCLUDE is looked for.
    """

    cpp: str = ""
    include: tuple[str, ...] = ()
    define: tuple[str, ...] = ()
    library: tuple[str, ...] = ()


AS_IT_IS = Preprocessing()


class Request(NamedTuple):
    """One invocation: file names as they were given, "-" is standard input, which is called `stdin_name`.

    `select` and `ignore` are names or patterns of rules; `progress` is told what is being done. `texts` are
    what files hold, by name, where that is not on the disk; `unpack` gives the ELF image of a file that has
    it packed, None of one that has not.
    """

    scripts: tuple[str, ...] = ()
    map: str | None = None
    elf: str | None = None
    config: str | None = None
    how: Preprocessing = AS_IT_IS
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    stdin_name: str = "<stdin>"
    progress: Callable[[str], None] | None = None
    texts: Mapping[str, str] = {}
    unpack: Unpack | None = None


# Reading scripts

_DIRECTIVE = re.compile(r"^[ \t]*#[ \t]*(?:include|define|undef|if|ifdef|ifndef)\b", re.MULTILINE)
_FOR_CPP_ALONE = re.compile(r"//|\\$", re.MULTILINE)
_INCLUDES = re.compile(r'^[ \t]*#[ \t]*include[ \t]*["<]', re.MULTILINE)
_OPENS = re.compile(r"^[ \t]*#[ \t]*if", re.MULTILINE)
_CLOSES = re.compile(r"^[ \t]*#[ \t]*endif\b", re.MULTILINE)


def load_script(
    path: str,
    how: Preprocessing = AS_IT_IS,
    texts: Mapping[str, str] | None = None,
) -> Source:
    """Read a script, through the C preprocessor when its name or its text says so, and what it includes.

    `texts` are what files hold where that is not on the disk. Raises LayoutInputError.
    """
    from .include import follow

    known = {os.path.realpath(name): text.replace("\r\n", "\n") for name, text in (texts or {}).items()}

    def read(name: str) -> Source:
        text = known.get(os.path.realpath(name)) if known else None
        return read_script(name) if text is None else Source(name, text)

    return follow(_one_script(path, how, known.get(os.path.realpath(path))), how.library, read)


def _one_script(path: str, how: Preprocessing, text: str | None) -> Source:
    from .preprocess import needs_preprocessing, preprocess

    def preprocessed() -> Source:
        return preprocess(path, cpp=how.cpp, include=how.include, define=how.define, text=text)

    if needs_preprocessing(path) or how.cpp:
        return preprocessed()
    raw = read_script(path) if text is None else Source(path, text)
    if _DIRECTIVE.search(raw.text):
        try:
            return preprocessed()
        except LayoutInputError:
            if _means_directives(raw.text) or not _is_script(raw):
                raise
            return raw
    if _FOR_CPP_ALONE.search(raw.text) and not _is_script(raw):
        try:
            source = preprocessed()
        except LayoutInputError:
            return raw
        return source if _is_script(source) else raw
    return raw


def _means_directives(text: str) -> bool:
    """Tell whether what looks like directives is some: ld reads `# if you need more` as a comment."""
    opened = len(_OPENS.findall(text))
    return _INCLUDES.search(text) is not None or 0 < opened == len(_CLOSES.findall(text))


def _is_script(source: Source) -> bool:
    from .kinds import read

    return not read(source.text).script.problems


def read_stdin(request: Request) -> Request:
    """Return the request with what standard input holds, under its name."""
    if STDIN not in request.scripts:
        return request
    if request.scripts.count(STDIN) > 1:
        raise LayoutInputError("standard input can be read once", found="- twice")
    if sys.stdin is None:
        raise LayoutInputError("standard input is closed", file=STDIN)
    name = request.stdin_name
    text = decode_script(name, read_stream(sys.stdin.buffer, name)).text
    scripts = tuple(name if script == STDIN else script for script in request.scripts)
    return request._replace(scripts=scripts, texts={**request.texts, name: text})


def load_inputs(script: str | None, request: Request) -> Inputs:
    """Read what was given; raises LayoutInputError."""
    source = the_map = the_elf = None
    if script is not None:
        source = load_script(script, request.how, request.texts)
    if request.map is not None:
        from .mapfile import read_map

        the_map = read_map(request.map)
    if request.elf is not None:
        from .elffile import read_elf

        the_elf = read_elf(request.elf, request.unpack)
    return Inputs(source, the_map, the_elf)


# Which rules


def _chosen(pattern: str, names: Sequence[str], option: str) -> list[str]:
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found and pattern != "all":
        near = get_close_matches(pattern, names, 1)
        raise LayoutInputError(
            f"{option}: there is no such rule", found=pattern,
            expected=f"{near[0]}, perhaps" if near else "one of `lint --explain all`",
        )  # fmt: skip
    return found or list(names)


def narrowed(settings: Settings, select: Sequence[str], ignore: Sequence[str]) -> Settings:
    """Return the settings with the rules of --select alone and without those of --ignore.

    A selected rule that is off is switched on. Raises LayoutInputError for a name that no rule has.
    """
    if not select and not ignore:
        return settings
    from . import rules

    default = {rule.id: rule.severity for rule in rules.load()}
    default |= {name: special.severity for name, special in SPECIAL.items()}
    severities = dict(settings.severities)
    names = sorted(default)
    wanted = {name for pattern in select for name in _chosen(pattern, names, "--select")}
    for name in names if select else ():
        if name not in wanted:
            severities[name] = OFF
        elif severities.get(name, default[name]) == OFF:
            severities[name] = WARNING if default[name] == OFF else default[name]
    for pattern in ignore:
        severities.update(dict.fromkeys(_chosen(pattern, names, "--ignore"), OFF))
    severities.pop(SYNTAX, None)
    return settings._replace(severities=severities)


# Formatting


def format_text(name: str, text: str | None = None) -> tuple[str, str]:
    """Return a script as it is and in the one style; "-" is standard input.

    What is no whole script, or needs the C preprocessor, comes back as it is: a directive is a comment to the
    printer. `text` is what the file holds, when that is not on the disk. Raises LayoutInputError.
    """
    from . import kinds
    from .preprocess import needs_preprocessing
    from .printer import print_script

    if text is None:
        request = read_stdin(Request((name,)))
        name = request.scripts[0]
        text = request.texts[name] if request.texts else read_text(name)
    whole, text = text, text.replace("\r\n", "\n")
    source = Source(name, text)
    directives = _DIRECTIVE.search(text) is not None and _means_directives(text)
    if needs_preprocessing(name) or directives:
        return whole, whole
    part = kinds.read(text)
    if part.script.problems:
        if _FOR_CPP_ALONE.search(text) and _is_script(_one_script(name, Preprocessing(), text)):
            return whole, whole
        problem = part.script.problems[0]
        place = source.locate(*problem.span)
        raise LayoutInputError(problem.message, file=f"{place.file}:{place.line}:{place.column}")
    if part.kind != kinds.WHOLE:
        return whole, whole
    printed = print_script(part.script, text)
    return whole, printed.replace("\n", "\r\n") if "\r\n" in whole else printed


# Reports


def lint_files(request: Request) -> Report:
    """Lint every script, with the map and the ELF when there is one script at most.

    Of several scripts, one that cannot be read is an error of the report; alone it raises LayoutInputError.
    """
    if not request.scripts and request.map is None and request.elf is None:
        raise LayoutInputError("nothing to look at", expected="a script, --map or --elf")
    if len(request.scripts) > 1 and (request.map is not None or request.elf is not None):
        raise LayoutInputError(
            "a map or an ELF belongs to one script", found=f"{len(request.scripts)} scripts", expected="one"
        )
    request = read_stdin(request)
    if len(request.scripts) <= 1:
        return _lint(request.scripts[0] if request.scripts else None, request)
    reports, errors = [], []
    for script in request.scripts:
        try:
            reports.append(_lint(script, request))
        except LayoutInputError as error:
            errors.append(str(error))
    return _merged(reports, errors)


def _lint(script: str | None, request: Request) -> Report:
    from .discover import settings_for

    anchor = script or request.map or request.elf or "."
    settings = settings_for(os.path.dirname(anchor) or ".", request.config)  # noqa: PTH120
    settings = narrowed(settings, request.select, request.ignore)
    return run(load_inputs(script, request), settings, request.progress)


def _merged(reports: Sequence[Report], errors: Sequence[str]) -> Report:
    """Return one report; a file that several scripts include is judged in each and told of once."""
    included = {os.path.realpath(file) for report in reports if report.usable for file in report.files[1:]}
    whole = [report for report in reports if os.path.realpath(report.files[0]) not in included]
    seen_in = Counter(file for report in whole for file in set(report.files))
    idle: Counter[object] = Counter()
    out = {}
    for report in whole:
        for diagnostic in report.diagnostics:
            key = (*sort_key(diagnostic), diagnostic.severity)
            idle[key] += 1
            # A comment is of use when it is so in one of the scripts that include its file.
            if diagnostic.rule != UNUSED or idle[key] == seen_in[diagnostic.file]:
                out[key] = diagnostic
    return Report(
        tuple(out.values()),
        sum(report.suppressed for report in whole),
        not errors and all(report.usable for report in whole),
        tuple(file for report in whole for file in report.files),
        errors=tuple(errors),
        ran=frozenset[str]().union(*(report.ran for report in whole)),
    )


def _junit(report: Report, _color: bool) -> str:
    from . import rules
    from .output import junit

    return junit.render(report, [rule.id for rule in rules.load() if rule.id in report.ran])


def _text(report: Report, color: bool) -> str:
    from .output import text

    return text.render(report, color=color)


def _json(report: Report, _color: bool) -> str:
    from .output import models

    return models.render(report)


def _sarif(report: Report, _color: bool) -> str:
    from .output import sarif

    return sarif.render(report)


def _github(report: Report, _color: bool) -> str:
    from .output import github

    return github.render(report)


# Each loads its module when it is used: the JSON report alone takes half of a run's start-up.
_RENDERERS: dict[str, Callable[[Report, bool], str]] = {
    "text": _text,
    "json": _json,
    "sarif": _sarif,
    "github": _github,
    "junit": _junit,
}


def render(report: Report, output_format: str, *, color: bool = False) -> str:
    """Return the report in one of the formats: text, json, sarif, github or junit."""
    return _RENDERERS[output_format](report, color)
