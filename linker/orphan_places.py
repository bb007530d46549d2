"""Output sections that the script does not name, put into the script where the linker has put them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from . import ast
from .outline import Outline


class Orphan(NamedTuple):
    """An output section that the script does not name: the section before it, and how many assignments."""

    name: str
    after: str
    assigned: int = 0


def with_orphans(outline: Outline, orphans: Sequence[Orphan], common: Callable[[str], bool]) -> Outline:
    """Return the script with an output section for each orphan, where the linker put it.

    `common` tells of a section whether it holds nothing but common symbols.
    """
    if not orphans:
        return outline
    pending = list(reversed(orphans))
    state = _Place()

    def due() -> Iterable[ast.SectionCommand]:
        while pending and pending[-1].after in state.names and pending[-1].assigned <= state.assigned:
            orphan = pending.pop()
            everything = ast.InputSpec(ast.Pattern("*"), (ast.Pattern(orphan.name),), False, ())
            # An orphan goes to the memory region of the section that it follows; the .bss that ld makes for
            # nothing but common symbols goes to none.
            yield ast.OutputSection(
                orphan.name, None, "", None, None, None, False, None, "", (everything,),
                "" if common(orphan.name) else state.region, "", (), None,
            )  # fmt: skip
            state.names = (orphan.name,)

    def expand(commands: Sequence[ast.SectionCommand]) -> Iterable[ast.SectionCommand]:
        for command in commands:
            # What is PROVIDEd is printed only when it is used: an orphan comes behind it, as behind others.
            if is_plain(command) or not isinstance(command, ast.Assign):
                yield from due()
            yield command
            state.pass_by(command)
        yield from due()

    out: list[ast.TopLevel] = []
    last = max((i for i, c in enumerate(outline.script.commands) if isinstance(c, ast.Sections)), default=-1)
    for index, command in enumerate(outline.script.commands):
        if isinstance(command, ast.Sections):
            body = list(expand(command.commands))
            if index == last:
                while pending:  # behind all that is there
                    state.names, state.assigned = (pending[-1].after,), pending[-1].assigned
                    body += due()
            out.append(command._replace(commands=tuple(body)))
            continue
        out.append(command)
        if is_plain(command):
            state.assigned += 1
    return Outline(outline.script._replace(commands=tuple(out)))


def is_plain(node: object) -> bool:
    """Tell whether the statement is an assignment that linkers always print: no PROVIDE, no ASSERT."""
    return isinstance(node, ast.Assign) and not node.wrapper


class _Place:
    """Where a walk over SECTIONS is: the names of the section it has passed, and how many assignments."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ("",)
        self.region = ""
        self.assigned = 0

    def pass_by(self, command: ast.SectionCommand) -> None:
        if isinstance(command, ast.OutputSection):
            if command.name != "/DISCARD/":
                self.names, self.region = (command.name,), command.region or command.lma_region
        elif isinstance(command, ast.Overlay):
            self.names, self.region = tuple(item.name for item in command.sections), command.region
        elif is_plain(command):
            self.assigned += 1
