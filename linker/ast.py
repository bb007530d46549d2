"""The syntax tree of a GNU ld script: immutable values, each with the span of source it came from.

Named tuples and not dataclasses: a frozen dataclass costs 0.7 ms to define and these are forty, which is
half of the time that linting a whole kernel script may take.
The grammar is the one of the ld manual, chapter "Linker Scripts" (binutils 2.40, ld/ldgram.y), with what
lld adds (`OVERWRITE_SECTIONS`, `CLASS`, `^=`).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class Span(NamedTuple):
    """Half-open range of character offsets into the text that was parsed."""

    start: int
    end: int


NOWHERE = Span(0, 0)


class Number(NamedTuple):
    """An integer; `text` keeps the base and the K or M suffix it was written with."""

    value: int
    text: str
    span: Span = NOWHERE


class Symbol(NamedTuple):
    """A symbol, the location counter `.`, or the name of a section or region as an argument."""

    name: str
    span: Span = NOWHERE


class Text(NamedTuple):
    """The message of an ASSERT used as an expression."""

    value: str
    span: Span = NOWHERE


class Unary(NamedTuple):
    """`-x`, `~x`, `!x`, `+x`."""

    op: str
    operand: Expr
    span: Span = NOWHERE


class Binary(NamedTuple):
    """A C-like binary operation."""

    op: str
    left: Expr
    right: Expr
    span: Span = NOWHERE


class Conditional(NamedTuple):
    """`test ? then : other`."""

    test: Expr
    then: Expr
    other: Expr
    span: Span = NOWHERE


class Call(NamedTuple):
    """A builtin function of the script language, such as `ALIGN(. , 4096)`."""

    function: str
    arguments: tuple[Expr, ...]
    span: Span = NOWHERE


Expr: TypeAlias = Number | Symbol | Text | Unary | Binary | Conditional | Call


class Assign(NamedTuple):
    """`target op value`, or the same inside PROVIDE, PROVIDE_HIDDEN or HIDDEN (`wrapper`)."""

    target: str
    op: str
    value: Expr
    wrapper: str
    span: Span = NOWHERE
    target_span: Span = NOWHERE


class Assert(NamedTuple):
    """`ASSERT(condition, message)` as a statement."""

    condition: Expr
    message: str
    span: Span = NOWHERE


class Command(NamedTuple):
    """A command with a list of names: ENTRY, OUTPUT_FORMAT, EXTERN, NOCROSSREFS, STARTUP, ..."""

    name: str
    arguments: tuple[str, ...]
    span: Span = NOWHERE


class InputFile(NamedTuple):
    """One file of an INPUT or GROUP command."""

    name: str
    as_needed: bool


class Inputs(NamedTuple):
    """`INPUT(...)` or `GROUP(...)`."""

    kind: str
    files: tuple[InputFile, ...]
    span: Span = NOWHERE


class Include(NamedTuple):
    """`INCLUDE file`."""

    file: str
    span: Span = NOWHERE


class Insert(NamedTuple):
    """`INSERT AFTER section` or `INSERT BEFORE section`."""

    where: str
    section: str
    span: Span = NOWHERE


class Region(NamedTuple):
    """One line of MEMORY: sizes in bytes."""

    name: str
    attributes: str
    origin: Expr
    length: Expr
    span: Span = NOWHERE


class Memory(NamedTuple):
    """`MEMORY { ... }`."""

    regions: tuple[Region | Include, ...]
    span: Span = NOWHERE


class Phdr(NamedTuple):
    """One program header of PHDRS."""

    name: str
    type: Expr
    filehdr: bool
    phdrs: bool
    at: Expr | None
    flags: Expr | None
    span: Span = NOWHERE


class Phdrs(NamedTuple):
    """`PHDRS { ... }`."""

    headers: tuple[Phdr, ...]
    span: Span = NOWHERE


class VersionNode(NamedTuple):
    """One node of a VERSION command; `items` are patterns and the labels `global:` and `local:`."""

    tag: str
    items: tuple[str, ...]
    depends: tuple[str, ...]


class Version(NamedTuple):
    """`VERSION { ... }`."""

    nodes: tuple[VersionNode, ...]
    span: Span = NOWHERE


class Pattern(NamedTuple):
    """A name pattern with the sorts around it, outermost first, and the files it does not apply to."""

    name: str
    sorts: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    span: Span = NOWHERE


class InputSpec(NamedTuple):
    """An input section description such as `KEEP(*(SORT(.ctors.*) .ctors))`.

    `sections` is None for a bare file name, which takes all its sections; `archive:file` stays one name.
    """

    file: Pattern
    sections: tuple[Pattern, ...] | None
    keep: bool
    flags: tuple[str, ...]
    span: Span = NOWHERE


class Data(NamedTuple):
    """`BYTE(x)`, `SHORT(x)`, `LONG(x)`, `QUAD(x)`, `SQUAD(x)`, `FILL(x)`."""

    kind: str
    value: Expr
    span: Span = NOWHERE


# Bytes that each data statement puts down; FILL puts down none.
DATA_SIZES = {"BYTE": 1, "SHORT": 2, "LONG": 4, "QUAD": 8, "SQUAD": 8}


class StringData(NamedTuple):
    """`ASCIZ "text"` (ld 2.41)."""

    value: str
    span: Span = NOWHERE


class OutputSection(NamedTuple):
    """`name address (type) : AT(lma) ALIGN(a) SUBALIGN(s) constraint { body } >region AT>lma :phdr =fill`."""

    name: str
    address: Expr | None
    type: str
    type_value: Expr | None
    at: Expr | None
    align: Expr | None
    align_with_input: bool
    subalign: Expr | None
    constraint: str
    body: tuple[Statement, ...]
    region: str
    lma_region: str
    phdrs: tuple[str, ...]
    fill: Expr | None
    span: Span = NOWHERE
    name_span: Span = NOWHERE


class OverlaySection(NamedTuple):
    """One section of an OVERLAY."""

    name: str
    body: tuple[Statement, ...]
    phdrs: tuple[str, ...]
    fill: Expr | None
    span: Span = NOWHERE
    name_span: Span = NOWHERE


class Overlay(NamedTuple):
    """`OVERLAY address : NOCROSSREFS AT(lma) { ... } >region :phdr =fill`."""

    address: Expr | None
    nocrossrefs: bool
    at: Expr | None
    subalign: Expr | None
    sections: tuple[OverlaySection, ...]
    region: str
    lma_region: str
    phdrs: tuple[str, ...]
    fill: Expr | None
    span: Span = NOWHERE


class Group(NamedTuple):
    """`GROUP address : { sections }`, which ld keeps for svr3 scripts."""

    address: Expr | None
    body: tuple[SectionCommand, ...]
    span: Span = NOWHERE


class SectionClass(NamedTuple):
    """lld's `CLASS(name) { input descriptions }`."""

    name: str
    body: tuple[Statement, ...]
    span: Span = NOWHERE


class Sections(NamedTuple):
    """`SECTIONS { ... }`, or lld's `OVERWRITE_SECTIONS { ... }` (`keyword` tells)."""

    keyword: str
    commands: tuple[SectionCommand, ...]
    span: Span = NOWHERE


Statement: TypeAlias = Assign | Assert | Command | Include | InputSpec | Data | StringData
SectionCommand: TypeAlias = (
    Assign | Assert | Command | Include | OutputSection | Overlay | Group | SectionClass
)
TopLevel: TypeAlias = (
    Assign | Assert | Command | Inputs | Include | Insert | Memory | Phdrs | Version | Sections
)


class Comment(NamedTuple):
    """A comment, its text without the delimiters."""

    text: str
    span: Span


class SyntaxProblem(NamedTuple):
    """One syntax error."""

    message: str
    span: Span


class Script(NamedTuple):
    """A parsed script: what could be read, the comments, and what could not be read."""

    commands: tuple[TopLevel, ...]
    comments: tuple[Comment, ...]
    problems: tuple[SyntaxProblem, ...]


def shape(node: object) -> object:
    """Return the tree without spans, comments and problems: two scripts are the same when shapes are."""
    if isinstance(node, Script):
        return tuple(shape(command) for command in node.commands)
    if isinstance(node, Span):
        return None
    if isinstance(node, tuple):
        parts = tuple(shape(part) for part in node if not isinstance(part, Span))
        return (type(node).__name__, parts) if hasattr(node, "_fields") else parts
    return node
