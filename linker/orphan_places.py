"""Output sections that the script does not name, put among its statements where the linker has put them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from . import ast
from .layout_outputs import NO_REGION, Output, Step
from .layout_values import NOTHING, Contents


class Orphan(NamedTuple):
    """An output section that the script does not name: the section before it, and how many assignments."""

    name: str
    after: str
    assigned: int = 0


def is_plain(node: object) -> bool:
    """Tell whether the statement is an assignment that linkers always print: no PROVIDE, no ASSERT."""
    return isinstance(node, ast.Assign) and not node.wrapper


class _Places:
    """Where a walk over the statements is, and the orphans that are still to come."""

    def __init__(self, orphans: Sequence[Orphan], contents: Mapping[str, Contents]) -> None:
        self.pending = list(reversed(orphans))
        self.contents = contents
        self.name = self.region = self.load_region = ""
        self.assigned = 0

    def due(self) -> Iterator[Output]:
        while self.pending and self._here(self.pending[-1]):
            yield self.place(self.pending.pop())

    def _here(self, orphan: Orphan) -> bool:
        return orphan.after == self.name and orphan.assigned <= self.assigned

    def place(self, orphan: Orphan) -> Output:
        made = self.contents.get(orphan.name, NOTHING)
        everything = ast.InputSpec(ast.Pattern("*"), (ast.Pattern(orphan.name),), False, ())
        # An orphan goes to the memory regions of the section that it follows; the .bss that ld makes for
        # common symbols goes to none.
        alone = _starts_with_common(made)
        if alone:
            self.region = self.load_region = ""
        self.name = orphan.name
        node = ast.OutputSection(
            orphan.name, None, "", None, None, None, False, None, "", (everything,),
            NO_REGION if alone else self.region, self.load_region, (), None,
        )  # fmt: skip
        return Output(node, made, orphan=True)

    def pass_by(self, step: Step) -> None:
        if is_plain(step):
            self.assigned += 1
        elif isinstance(step, Output) and step.name in self.contents:
            node = step.node
            self.name, self.load_region = step.name, node.lma_region
            self.region = node.region or ("" if node.address else node.lma_region)


def _starts_with_common(contents: Contents) -> bool:
    """Tell whether ld makes the orphan section for common symbols: lang_place_orphans, COMMON."""
    return next((piece.name == "COMMON" for group in contents.by_spec for piece in group), False)


def with_orphans(
    steps: Iterable[Step], orphans: Sequence[Orphan], contents: Mapping[str, Contents]
) -> list[Step]:
    """Return the statements, with an output section for each orphan where the linker put it."""
    if not orphans:
        return list(steps)
    places = _Places(orphans, contents)
    out: list[Step] = []
    sure = 0  # up to here no orphan can be missing
    for step in steps:
        # What is PROVIDEd is printed only when it is used: an orphan comes behind it, as behind others. Of a
        # section that is not in the map it is not known where an orphan lies.
        if is_plain(step) or (isinstance(step, Output) and (step.name in contents or step.members)):
            due = list(places.due())
            out += due
            sure = len(out) if due else sure
        out.append(step)
        places.pass_by(step)
    lost = ""
    while places.pending:
        orphan = places.pending.pop()
        if orphan.after != places.name and not lost:
            lost = f"where the orphan '{orphan.name}' lies among the statements is not known"
        out.append(places.place(orphan))
    for step in out[sure:] if lost else ():
        if isinstance(step, Output):
            step.doubt = step.doubt or lost
    return out
