"""Rules about what only one of the linkers takes."""

from __future__ import annotations

from collections.abc import Iterator

from linker import ast
from linker.findings import OFF, Context, Example, Hit, Rule, script_place
from linker.match import matches
from linker.outline import Outline

from .given import outline_of

# Tried with lld 14, 19, 20, 21 and 22, construct by construct; GNU ld 2.40 takes all of them.
NEVER = "lld does not know {}"
SINCE_19 = "lld 14 does not know {}, lld 19 does"
SINCE_21 = "lld 20 does not know {}, lld 21 does"
_COMMANDS = {
    **dict.fromkeys(
        (
            "FLOAT", "FORCE_COMMON_ALLOCATION", "FORCE_GROUP_ALLOCATION", "HLL", "INHIBIT_COMMON_ALLOCATION",
            "LD_FEATURE", "MAP", "NOFLOAT", "STARTUP", "SYSLIB",
        ),
        NEVER,
    ),
    "NOCROSSREFS": SINCE_19,
    "NOCROSSREFS_TO": SINCE_19,
}  # fmt: skip
_TYPES = {"DSECT": NEVER, "READONLY": NEVER, "READONLY TYPE": NEVER, "TYPE": SINCE_19}
_LATE = frozenset({"-=", "*=", "/=", "&=", "|=", "^=", "<<=", ">>="})
_FUNCTIONS = frozenset({"BLOCK", "NEXT"})
_SHSTRTAB = ".shstrtab"


def lld_refuses(context: Context) -> Iterator[Hit]:
    """GNU ld takes it and lld stops with an error."""
    outline = outline_of(context)
    for statement in outline.script.commands:
        if isinstance(statement, ast.Command) and statement.name in _COMMANDS:
            yield _hit(_COMMANDS[statement.name].format(statement.name), statement.span, statement.name)
        elif isinstance(statement, ast.Sections):
            for command in statement.commands:
                if isinstance(command, ast.Group):
                    yield _hit(NEVER.format("GROUP inside SECTIONS"), command.span, "GROUP")
                elif isinstance(command, ast.Overlay):
                    yield from _overlay(command)
        elif isinstance(statement, ast.Assign):
            yield from _assignment(statement)
    for command in outline.sequence:
        yield from _in_sections(command)
    yield from _values(outline)
    for section, spec in outline.inputs():
        yield from _inputs(section, spec)


def _hit(message: str, span: ast.Span, name: str) -> Hit:
    return Hit(message, script_place(span, name))


def _assignment(node: ast.Assign) -> Iterator[Hit]:
    """Yield what lld 14 takes inside of output sections alone."""
    if node.op in _LATE:
        yield _hit(SINCE_19.format(f"{node.op} outside of output sections"), node.span, node.target)


def _overlay(node: ast.Overlay) -> Iterator[Hit]:
    if node.lma_region:
        yield _hit(NEVER.format("AT> of an OVERLAY"), node.span, "OVERLAY")
    elif node.region or node.nocrossrefs:
        yield _hit(SINCE_21.format("NOCROSSREFS and regions of an OVERLAY"), node.span, "OVERLAY")
    elif node.at is None or node.address is None:
        yield _hit(SINCE_19.format("an OVERLAY without address or AT()"), node.span, "OVERLAY")


def _in_sections(command: ast.SectionCommand) -> Iterator[Hit]:
    match command:
        case ast.Command() if command.name == "ENTRY":
            yield _hit("lld knows ENTRY outside of SECTIONS only", command.span, "ENTRY")
        case ast.Assign():
            yield from _assignment(command)
        case ast.OutputSection():
            if command.type in _TYPES:
                message = _TYPES[command.type].format(f"the type {command.type}")
                yield _hit(message, command.name_span, command.name)
            if command.align_with_input:
                yield _hit(NEVER.format("ALIGN_WITH_INPUT"), command.name_span, command.name)
            if command.constraint == "SPECIAL":
                yield _hit(NEVER.format("SPECIAL"), command.name_span, command.name)


def _values(outline: Outline) -> Iterator[Hit]:
    for _, call in outline.nodes(ast.Call):
        if call.function in _FUNCTIONS:
            yield _hit(NEVER.format(f"the function {call.function}"), call.span, call.function)
    for _, number in outline.nodes(ast.Number):
        if _odd(number.text.lower()):
            yield _hit(NEVER.format(f"the number {number.text}"), number.span, number.text)


def _odd(text: str) -> bool:
    if text.startswith("0x"):
        return text[-1:] in {"k", "m"}
    return text.startswith("$") or text[-1:] in {"b", "d", "o", "x"}


def _inputs(section: ast.OutputSection, spec: ast.InputSpec) -> Iterator[Hit]:
    name = spec.file.name
    if "SORT" in spec.file.sorts or (spec.file.sorts and spec.keep):
        yield _hit(NEVER.format("SORT of files"), spec.span, name)
    elif spec.file.sorts:
        yield _hit(f"lld 14 knows {spec.file.sorts[0]} of files, lld 19 does not", spec.span, name)
    if section.name == "/DISCARD/" and name == "*":
        pattern = next(
            (one.name for one in spec.sections or (ast.Pattern("*"),) if matches(one.name, _SHSTRTAB)), None
        )
        if pattern is not None:
            yield _hit(f"lld refuses to discard {_SHSTRTAB}, which '{pattern}' matches", spec.span, pattern)


RULES = (
    Rule(
        "lld-refuses",
        OFF,
        "a script for both linkers must do without what lld refuses",
        "lld reads most of GNU ld's language and stops at the rest: ALIGN_WITH_INPUT, GROUP, numbers like "
        "101b, and before lld 19 NOCROSSREFS. For projects that are linked with both; off for the others.",
        "write what both know, or choose the script by the linker in the build.",
        ("S",),
        lld_refuses,
        Example(script="SECTIONS\n{\n  .text : ALIGN_WITH_INPUT { *(.text*) }\n}\n"),
        Example(script="SECTIONS\n{\n  .text : { *(.text*) }\n}\n"),
    ),
)
