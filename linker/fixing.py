"""What --fix makes of scripts: edits of findings, made in memory, linted again, shown as a diff."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from difflib import unified_diff
from typing import NamedTuple

from .lint import Report
from .locate import Diagnostic, FileEdit
from .source import read_text

# Edits that touch each other are made one after the other; scripts need two or three rounds.
MAX_ROUNDS = 20


class Fixed(NamedTuple):
    """A file before and after."""

    file: str
    before: str
    after: str


Lint = Callable[[Mapping[str, str]], Report]
_Key = tuple[str, str, str]


def fix(lint: Lint, given: Mapping[str, str] | None = None) -> tuple[list[Fixed], Report]:
    """Return the files that change, and the report of what is left.

    `lint` is called with texts by file name that replace what is on the disk; `given` are those from the
    start (standard input). Nothing is written. A fix after which a script could not be read, or the finding
    is still there, is not made.
    """
    before: dict[str, str] = dict(given or {})
    texts = dict(before)
    refused: set[_Key] = set()
    report = lint(texts)
    most: int | None = None
    for _ in range(MAX_ROUNDS):
        chosen = _chosen(report, refused)[:most]
        if not chosen:
            break
        trial = dict(texts)
        for file in {edit.place.file for one in chosen for edit in one.fix}:
            if file not in texts:
                before[file] = texts[file] = trial[file] = read_text(file)
            edits = {edit for one in chosen for edit in one.fix if edit.place.file == file}
            trial[file] = _edited(texts[file], edits)
        outcome = lint(trial)
        useless = _still_there(chosen, report, outcome)
        if useless or (report.usable and not outcome.usable):
            # One of them is wrong: from here on one a round.
            refused |= useless if outcome.usable else {_key(one) for one in chosen if most}
            most = 1
            continue
        texts, report = trial, outcome
    changed = [Fixed(file, before[file], texts[file]) for file in texts if texts[file] != before[file]]
    return changed, _without(report, refused)


def _key(one: Diagnostic) -> _Key:
    return one.rule, one.file, one.message


def _still_there(chosen: Iterable[Diagnostic], before: Report, after: Report) -> set[_Key]:
    """Return the findings of which there are more than there should be when all the fixes had worked."""
    left = Counter(map(_key, before.diagnostics))
    left.subtract(map(_key, chosen))
    found = Counter(map(_key, after.diagnostics))
    return {key for key in map(_key, chosen) if found[key] > left[key]}


def _without(report: Report, refused: set[_Key]) -> Report:
    """Return the report with the fixes taken away that do not work."""
    diagnostics = tuple(one._replace(fix=()) if _key(one) in refused else one for one in report.diagnostics)
    return report._replace(diagnostics=diagnostics)


def fixable(report: Report) -> list[Diagnostic]:
    """Return the findings that bring a fix for the script or for what it includes."""
    files = set(report.files)
    return [
        one for one in report.diagnostics if one.fix and all(edit.place.file in files for edit in one.fix)
    ]


def _chosen(report: Report, refused: set[_Key]) -> list[Diagnostic]:
    """Return the findings whose fixes do not touch each other; of two that do, the first."""
    chosen: list[Diagnostic] = []
    taken: set[FileEdit] = set()
    for one in fixable(report):
        new = [edit for edit in one.fix if edit not in taken]
        if _key(one) not in refused and not any(_touch(edit, other) for edit in new for other in taken):
            chosen.append(one)
            taken.update(new)
    return chosen


def _touch(one: FileEdit, other: FileEdit) -> bool:
    a, b = one.place, other.place
    if a.file != b.file:
        return False
    first, last = (a.line, a.column), (a.end_line, a.end_column)
    return first <= (b.end_line, b.end_column) and (b.line, b.column) <= last


def _edited(text: str, edits: Iterable[FileEdit]) -> str:
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    newline = "\r\n" if "\r\n" in text else "\n"
    out: list[str] = []
    position = 0
    for place, new, _ in sorted(edits):
        out.append(text[position : starts[place.line - 1] + place.column - 1])
        out.append(new.replace("\n", newline))
        position = starts[place.end_line - 1] + place.end_column - 1
    return "".join((*out, text[position:]))


def diff(changed: Iterable[Fixed]) -> str:
    """Return the changes as a unified diff that patch(1) takes."""
    out: list[str] = []
    for file, before, after in changed:
        name = os.path.relpath(file) if os.path.isabs(file) else file  # noqa: PTH117
        for line in unified_diff(_lines(before), _lines(after), f"a/{name}", f"b/{name}"):
            out.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(out)


def _lines(text: str) -> list[str]:
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]
