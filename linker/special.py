"""Findings that no rule makes: about the text itself, what it includes, and comments to the linter."""

from __future__ import annotations

from typing import NamedTuple

from .findings import ERROR, NOTE, WARNING

SYNTAX = "syntax"
UNUSED = "unused-suppression"
INCLUDE = "include-not-found"
FRAGMENT = "fragment"
VERSION_SCRIPT = "version-script"


class Special(NamedTuple):
    """What `lint --explain` and reports say of one."""

    severity: str
    summary: str
    text: str


SPECIAL = {
    SYNTAX: Special(
        ERROR,
        "the script cannot be read",
        "The rules are not run over a script that is not understood in full; the exit code is 2.",
    ),
    UNUSED: Special(
        WARNING,
        "a `lint: disable` comment suppresses nothing",
        "Remove it, so that the next defect of its kind is seen, or correct the rule's name. A comment about "
        "a rule that did not run, because it is off or because its inputs were not given, is left alone.",
    ),
    INCLUDE: Special(
        NOTE,
        "the file of an INCLUDE was not found",
        "INCLUDE is looked for in the directory the linter runs in, then in those of -L, then beside the "
        "script. What is in the file is not judged, and rules about what a script lacks are silent.",
    ),
    FRAGMENT: Special(
        NOTE,
        "the text is a part of a script and was judged alone",
        "It stands inside SECTIONS, MEMORY or an output section of the script that INCLUDEs it. Only what no "
        "other line can change is judged here; lint that script to have all of it judged in its place.",
    ),
    VERSION_SCRIPT: Special(
        NOTE,
        "the text is a version script",
        "It says which symbols a library shows and lays out nothing, so there is nothing to judge.",
    ),
}


def explain(name: str) -> str:
    """Return the text of `lint --explain NAME`."""
    special = SPECIAL[name]
    return f"{name} ({special.severity}): {special.summary}\n\n{special.text}\n"
