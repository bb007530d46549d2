"""A parsed script, arranged for rules: the sequence of things in SECTIONS and what can be folded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, TypeAlias, TypeVar

from . import ast
from .evaluate import MASK, Constants, Known, SectionFacts, Unknown, Value, evaluate
from .match import is_glob, literal_head, matches

AnyStatement: TypeAlias = ast.TopLevel | ast.SectionCommand | ast.Statement
_Node = TypeVar("_Node", ast.Binary, ast.Call, ast.Number, ast.Symbol)


class Placed(NamedTuple):
    """An output section and its position in the sequence of commands inside SECTIONS."""

    section: ast.OutputSection
    position: int
    overlay: bool


class Outline:
    """One script. Everything is computed when first asked for."""

    def __init__(self, script: ast.Script) -> None:
        self.script = script

    @cached_property
    def sequence(self) -> tuple[ast.SectionCommand, ...]:
        """What stands inside all SECTIONS, groups opened, in order."""
        out: list[ast.SectionCommand] = []
        for command in self.script.commands:
            if isinstance(command, ast.Sections):
                out.extend(_flatten(command.commands))
        return tuple(out)

    @cached_property
    def sections(self) -> tuple[Placed, ...]:
        """All output sections in order, those of overlays among them."""
        out: list[Placed] = []
        for position, command in enumerate(self.sequence):
            if isinstance(command, ast.OutputSection):
                out.append(Placed(command, position, False))
            elif isinstance(command, ast.Overlay):
                for member in command.sections:
                    out.append(Placed(_from_overlay(command, member), position, True))
        return tuple(out)

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all output sections."""
        return frozenset(placed.section.name for placed in self.sections)

    @cached_property
    def kept_sections(self) -> tuple[Placed, ...]:
        """All output sections but /DISCARD/."""
        return tuple(placed for placed in self.sections if placed.section.name != "/DISCARD/")

    def inputs(self) -> Sequence[tuple[ast.OutputSection, ast.InputSpec]]:
        """Return each input description with its output section."""
        return self._inputs

    @cached_property
    def _inputs(self) -> tuple[tuple[ast.OutputSection, ast.InputSpec], ...]:
        return tuple(
            (placed.section, statement)
            for placed in self.sections
            for statement in placed.section.body
            if isinstance(statement, ast.InputSpec)
        )

    @cached_property
    def patterns(self) -> tuple[str, ...]:
        """Every section pattern of the script."""
        return tuple(
            [pattern.name for _, spec in self.inputs() for pattern in spec.sections or () if pattern.name]
        )

    @cached_property
    def words(self) -> str:
        """All section patterns in one text, a line each."""
        return "\n".join(self.patterns)

    @cached_property
    def _literal_patterns(self) -> frozenset[str]:
        return frozenset(self.patterns)

    def catches(self, name: str) -> bool:
        """Tell whether some pattern of the script matches a section of this name."""
        if name in self._literal_patterns:
            return True
        heads = self._globs
        return any(
            matches(pattern, name)
            for length in range(len(name) + 1)
            for pattern in heads.get(name[:length], ())
        )

    @cached_property
    def _globs(self) -> dict[str, list[str]]:
        """The patterns with wildcards, by what stands before the first one."""
        out: dict[str, list[str]] = {}
        for pattern in self._literal_patterns:
            if is_glob(pattern):
                out.setdefault(literal_head(pattern), []).append(pattern)
        return out

    @cached_property
    def assignments(self) -> tuple[ast.Assign, ...]:
        """Every assignment anywhere in the script."""
        return tuple(statement for statement in self.statements() if isinstance(statement, ast.Assign))

    def statements(self) -> Sequence[AnyStatement]:
        """Return each statement of every level."""
        return self._statements

    @cached_property
    def _statements(self) -> tuple[AnyStatement, ...]:
        bodies = (statement for placed in self.sections for statement in placed.section.body)
        return (*self.script.commands, *self.sequence, *bodies)

    def nodes(self, kind: type[_Node]) -> list[tuple[AnyStatement, _Node]]:
        """Return each expression of a kind, wherever it stands, with the statement it stands in."""
        return self._nodes.get(kind, [])  # type: ignore[return-value]

    @cached_property
    def _nodes(self) -> dict[type, list[tuple[AnyStatement, ast.Expr]]]:
        out: dict[type, list[tuple[AnyStatement, ast.Expr]]] = {}
        for statement in self._statements:
            for top in expressions(statement):
                for part in walk(top):
                    out.setdefault(type(part), []).append((statement, part))
        return out

    @cached_property
    def regions(self) -> dict[str, tuple[int | None, int | None]]:
        """Origin and length of each memory region, aliases resolved, None for what cannot be folded."""
        out: dict[str, tuple[int | None, int | None]] = {}
        for command in self.script.commands:
            if isinstance(command, ast.Memory):
                for region in command.regions:
                    if isinstance(region, ast.Region):
                        out[region.name] = (self.fold(region.origin), self.fold(region.length))
        for command in self.script.commands:
            if isinstance(command, ast.Command) and command.name == "REGION_ALIAS":
                alias, target = command.arguments
                if target in out:
                    out[alias] = out[target]
        return out

    @cached_property
    def symbols(self) -> dict[str, int]:
        """Symbols that are given numbers outside of SECTIONS."""
        scope = _Numbers({})
        for command in self.script.commands:
            if isinstance(command, ast.Assign) and command.op == "=" and command.target != ".":
                value = evaluate(command.value, scope)
                if isinstance(value, Known):
                    scope.values[command.target] = value.value
        return scope.values

    def fold(self, node: ast.Expr | None) -> int | None:
        """Return the value of an expression of numbers and of symbols that are numbers, else None."""
        if node is None:
            return None
        if isinstance(node, ast.Number):
            return node.value & MASK
        value = evaluate(node, _Numbers(self.symbols))
        return value.value if isinstance(value, Known) else None

    @cached_property
    def entry(self) -> str:
        """The symbol of ENTRY, or nothing."""
        for statement in self.statements():
            if isinstance(statement, ast.Command) and statement.name == "ENTRY":
                return statement.arguments[0]
        return ""

    @cached_property
    def inserts(self) -> tuple[ast.Insert, ...]:
        """The INSERT commands: with one, the script adds to another and is not complete."""
        return tuple(command for command in self.script.commands if isinstance(command, ast.Insert))


class _Numbers(Constants):
    """The scope of numbers and of symbols with known numbers."""

    def __init__(self, values: dict[str, int]) -> None:
        self.values = values

    def symbol(self, name: str) -> Value:
        value = self.values.get(name)
        return Known(value, number=True) if value is not None else super().symbol(name)

    def section(self, name: str) -> SectionFacts | Unknown:
        return super().section(name)


def _flatten(commands: tuple[ast.SectionCommand, ...]) -> Iterator[ast.SectionCommand]:
    for command in commands:
        if isinstance(command, ast.Group):
            yield from _flatten(command.body)
        else:
            yield command


def _from_overlay(overlay: ast.Overlay, member: ast.OverlaySection) -> ast.OutputSection:
    return ast.OutputSection(
        member.name, overlay.address, "", None, overlay.at, None, False, overlay.subalign, "", member.body,
        overlay.region, overlay.lma_region, member.phdrs, member.fill, member.span, member.name_span,
    )  # fmt: skip


def walk(node: ast.Expr) -> Iterator[ast.Expr]:
    """Yield an expression and all parts of it."""
    if isinstance(node, ast.Symbol | ast.Number):
        yield node
        return
    stack: list[ast.Expr] = [node]
    while stack:
        current = stack.pop()
        yield current
        match current:
            case ast.Unary():
                stack.append(current.operand)
            case ast.Binary():
                stack += (current.right, current.left)
            case ast.Conditional():
                stack += (current.other, current.then, current.test)
            case ast.Call():
                stack += reversed(current.arguments)


def expressions(statement: ast.TopLevel | ast.SectionCommand | ast.Statement) -> Iterator[ast.Expr]:
    """Yield the expressions that stand directly in a statement."""
    match statement:
        case ast.InputSpec():
            return
        case ast.Assign() | ast.Data():
            yield statement.value
        case ast.Assert():
            yield statement.condition
        case ast.OutputSection():
            heads = (statement.address, statement.at, statement.align, statement.subalign, statement.fill)
            yield from (head for head in heads if head is not None)
        case ast.Overlay():
            parts = (statement.address, statement.at, statement.subalign, statement.fill)
            yield from (part for part in parts if part is not None)


def inputs_of(section: ast.OutputSection | ast.OverlaySection) -> list[ast.InputSpec]:
    """Return the input descriptions of one output section."""
    return [statement for statement in section.body if isinstance(statement, ast.InputSpec)]


def patterns_of(section: ast.OutputSection) -> list[ast.Pattern]:
    """Return the section patterns of one output section."""
    return [pattern for spec in inputs_of(section) for pattern in spec.sections or ()]


def is_at_zero(section: ast.OutputSection) -> bool:
    """Tell whether the section stands at 0, as in scripts for links that stay relocatable."""
    return isinstance(section.address, ast.Number) and section.address.value == 0


def is_dot(node: ast.Expr) -> bool:
    """Tell whether the expression is the location counter."""
    return isinstance(node, ast.Symbol) and node.name == "."


def dot_alignment(statement: ast.SectionCommand | ast.Statement, outline: Outline) -> int | None:
    """Return n of `. = ALIGN(n)` or of `. = ALIGN(., n)`; 0 when n cannot be folded; None for others."""
    if not isinstance(statement, ast.Assign) or statement.target != "." or statement.op != "=":
        return None
    largest: int | None = None
    for part in walk(statement.value):
        if isinstance(part, ast.Call) and part.function in {"ALIGN", "BLOCK"}:
            value = outline.fold(part.arguments[-1])
            largest = max(largest or 0, value or 0)
        elif isinstance(part, ast.Call) and part.function.startswith("DATA_SEGMENT"):
            largest = largest or 0
    return largest
