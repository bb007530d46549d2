"""Which symbols of a script bound what: `s = .; *(.table) e = .;` and everything written like it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from . import ast
from .outline import Outline, is_dot


class Step(NamedTuple):
    """One thing on the way through SECTIONS, and the output section it is in (None between two of them).

    `what` is an assignment, an input description, a data statement, or the output section itself, which
    stands for its beginning.
    """

    what: ast.SectionCommand | ast.Statement
    section: ast.OutputSection | None


class Bounds(NamedTuple):
    """A stretch of the layout between two symbols; `first` and `last` are positions in the steps."""

    start: ast.Assign
    stop: ast.Assign
    first: int
    last: int
    steps: tuple[Step, ...]

    @property
    def inputs(self) -> Iterator[tuple[ast.OutputSection, ast.InputSpec]]:
        """The input descriptions in between, each with its output section."""
        for step in self.steps[self.first : self.last]:
            if isinstance(step.what, ast.InputSpec) and step.section is not None:
                yield step.section, step.what

    @property
    def others(self) -> Iterator[Step]:
        """What else brings bytes in between: data statements, and moves of the location counter."""
        for step in self.steps[self.first : self.last]:
            moved = isinstance(step.what, ast.Assign) and step.what.target == "."
            if moved or isinstance(step.what, ast.Data | ast.StringData):
                yield step


@lru_cache(maxsize=2)
def steps_of(outline: Outline) -> tuple[Step, ...]:
    """Return everything inside SECTIONS in order, the bodies of output sections opened."""
    out: list[Step] = []
    for command in outline.sequence:
        if isinstance(command, ast.OutputSection):
            out.append(Step(command, command))
            out += [Step(statement, command) for statement in command.body]
        else:
            out.append(Step(command, None))
    return tuple(out)


def marks_dot(node: ast.SectionCommand | ast.Statement) -> bool:
    """Tell whether the statement gives a symbol the value of the location counter."""
    if not isinstance(node, ast.Assign) or node.target == "." or node.op != "=":
        return False
    return is_place(node.value)


def is_place(value: ast.Expr) -> bool:
    """Tell whether the value is `.`, ABSOLUTE(.) or `.` rounded up."""
    if isinstance(value, ast.Call) and value.function in {"ABSOLUTE", "ALIGN"}:
        return len(value.arguments) == 1 or is_place(value.arguments[0])
    return is_dot(value)


_WORDS = (("start", ("end", "stop", "limit")), ("begin", ("end",)), ("base", ("end", "limit")),
          ("START", ("END", "STOP", "LIMIT")), ("BEGIN", ("END",)), ("Start", ("End",)), ("Base", ("Limit",)),
          ("Begin", ("End",)), ("first", ("last",)), ("low", ("high",)))  # fmt: skip
_LEADING = re.compile(r"(_*)s(?=[a-z_0-9]|\Z)")
_TRAILING = re.compile(r"(.*?)s(_*)\Z")
_CORE = re.compile(r"_*(\w+?)_*(?:start|begin)_*\Z")


def partners(name: str) -> tuple[str, ...]:
    """Return the names that the symbol which ends what `name` starts could have, likeliest first."""
    out: list[str] = []
    for word, ends in _WORDS:
        if word in name:
            out += [name.replace(word, end) for end in ends]
    leading = _LEADING.match(name)
    if leading:
        out.append(f"{leading[1]}e{name[leading.end() :]}")
    core = _CORE.match(name)
    if core:
        out += [f"_e{core[1]}", f"__{core[1]}_end", f"_{core[1]}_end", f"__{core[1]}_end__"]
    if not out and (trailing := _TRAILING.match(name)):
        out.append(f"{trailing[1]}e{trailing[2]}")
    return tuple(candidate for candidate in out if candidate != name)


@lru_cache(maxsize=2)
def bounds_of(outline: Outline) -> tuple[Bounds, ...]:
    """Return every stretch between two symbols whose names say that they belong together."""
    steps = steps_of(outline)
    places: dict[str, list[int]] = {}
    marks: list[tuple[int, ast.Assign]] = []
    for position, step in enumerate(steps):
        what = step.what
        if isinstance(what, ast.Assign) and marks_dot(what):
            places.setdefault(what.target, []).append(position)
            marks.append((position, what))
    out: list[Bounds] = []
    for position, start in marks:
        for partner in partners(start.target):
            later = next((at for at in places.get(partner, ()) if at > position), None)
            if later is not None:
                stop = steps[later].what
                assert isinstance(stop, ast.Assign)
                out.append(Bounds(start, stop, position + 1, later, steps))
                break
    return tuple(out)
