"""Comments in a script that switch a rule off for a line or for the whole file.

    *(.bss)         /* lint: disable=common-missing -- the loader zeroes them */
    /* lint: disable=not-kept */         (alone on its line: holds for the next line)
    /* lint: disable-file=align-to-symbol */

They are read from the file as it was written, so they work in a `.lds.S` although the preprocessor drops
comments. One that suppresses nothing is itself reported, unless its rule did not run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import NamedTuple

_COMMENT = re.compile(
    r"(?P<open>/\*|//|\#)\s*lint:\s*(?P<verb>disable-file|disable)\s*=\s*(?P<rules>[a-z0-9, *-]+?)\s*"
    r"(?:--[^\n]*|\*/[^\n]*|$)"
)


class Suppression(NamedTuple):
    """One comment: `line` is the line it holds for, 0 for the whole file; `written` where it stands."""

    rules: tuple[str, ...]
    line: int
    written: int


def read(lines: list[str]) -> list[Suppression]:
    """Return the suppressions in the lines of a file."""
    out: list[Suppression] = []
    if not any("lint:" in line for line in lines):
        return out
    following = _next_code_lines(lines)
    for index, line in enumerate(lines):
        if "lint:" not in line:
            continue
        match = _COMMENT.search(line)
        if match is None:
            continue
        rules = tuple(word.strip() for word in match["rules"].split(",") if word.strip())
        target = index + 1
        if match["verb"] == "disable-file":
            target = 0
        elif not line[: match.start()].strip() and not _after_comment(line, match.start()):
            target = following[index]
        out.append(Suppression(rules, target, index + 1))
    return out


def _after_comment(line: str, start: int) -> str:
    end = line.find("*/", start)
    return line[end + 2 :].strip() if end >= 0 else ""


def _next_code_lines(lines: list[str]) -> list[int]:
    """Return for each line the number of the next one after it that holds more than a comment."""
    out = [0] * len(lines)
    upcoming = len(lines) + 1
    for index in range(len(lines) - 1, -1, -1):
        out[index] = upcoming
        text = lines[index].lstrip()
        if text and not text.startswith(("/*", "//", "#")):
            upcoming = index + 1
    return out


class Suppressions:
    """Those of several files, and which of their rules were used."""

    def __init__(self) -> None:
        self._files: dict[str, dict[int, list[Suppression]]] = {}
        self._used: set[tuple[str, Suppression, str]] = set()

    def __bool__(self) -> bool:
        return any(self._files.values())

    def add(self, file: str, lines: list[str]) -> None:
        """Read the file's comments, once."""
        if file not in self._files:
            by_line = self._files[file] = {}
            for suppression in read(lines):
                by_line.setdefault(suppression.line, []).append(suppression)

    def suppressed(self, file: str, line: int, rule: str) -> bool:
        """Tell whether a finding is switched off, and note the comment as used."""
        hit = False
        by_line = self._files.get(file, {})
        for suppression in (*by_line.get(0, ()), *by_line.get(line, ())):
            for name in (rule, "*"):
                if name in suppression.rules:
                    self._used.add((file, suppression, name))
                    hit = True
        return hit

    def idle(self, ran: Collection[str], known: Collection[str]) -> Iterator[tuple[str, Suppression, str]]:
        """Yield file, comment and message for comments that suppress nothing or name no rule.

        `ran` are the rules that ran; what is said of other `known` rules may be right another time.
        """
        for file, by_line in self._files.items():
            for suppression in (one for several in by_line.values() for one in several):
                names = [name for name in suppression.rules if (file, suppression, name) not in self._used]
                useless = [name for name in names if name in ran or (name == "*" and ran)]
                if useless:
                    yield file, suppression, f"'{', '.join(useless)}' suppresses nothing any more"
                for name in names:
                    if name not in known and name != "*":
                        yield file, suppression, f"there is no rule '{name}'{_meant(name, known)}"


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, 1)
    return f"; is it '{near[0]}'?" if near else ""
