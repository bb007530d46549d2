"""Texts that are no whole scripts: a part of one that is INCLUDEd, or a version script."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import ast
from .parser import ScriptParser

WHOLE = "script"
VERSION_SCRIPT = "version script"


class Text(NamedTuple):
    """What was read and what it is: `kind` is WHOLE, VERSION_SCRIPT, or where a fragment belongs."""

    kind: str
    script: ast.Script


# What a rule may say about a fragment without the rest: only what no other line can change.
FRAGMENT_RULES = frozenset(
    {
        "align-not-power-of-two",
        "align-to-symbol",
        "align-with-input",
        "glued-division",
        "page-aligned-order",
        "page-aligned-tail",
        "suspicious-name",
    }
)

_Reading = Callable[[ScriptParser], tuple[ast.TopLevel, ...]]
_PARTS: tuple[tuple[str, _Reading], ...] = (
    (VERSION_SCRIPT, lambda parser: (parser.version_nodes(),)),
    ("SECTIONS", lambda parser: (parser.sections_fragment(),)),
    ("an output section", lambda parser: (parser.body_fragment(),)),
    ("MEMORY", lambda parser: (parser.memory_fragment(),)),
)


def read(text: str) -> Text:
    """Return the script in the text, or the part of one that it is.

    A text that is nothing of the kind comes back as a whole script with its problems.
    """
    whole = ScriptParser(text).script()
    if not whole.problems:
        return Text(WHOLE, whole)
    for kind, reading in _PARTS:
        parser = ScriptParser(text, most=1)
        script = parser.part(reading)
        if not script.problems and _says_something(script):
            return Text(kind, script)
    return Text(WHOLE, whole)


def _says_something(script: ast.Script) -> bool:
    """Tell whether there is more than names: any words are file names to an output section."""
    for command in script.commands:
        if not isinstance(command, ast.Sections):
            return not isinstance(command, ast.Memory) or bool(command.regions)
        for section in command.commands:
            if not isinstance(section, ast.OutputSection) or section.name:
                return True
            for statement in section.body:
                if not isinstance(statement, ast.InputSpec) or statement.sections is not None:
                    return True
    return False
