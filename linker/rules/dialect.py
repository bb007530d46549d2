"""Rules about what only one of the linkers takes."""

from __future__ import annotations

from collections.abc import Iterator

from linker import ast
from linker.findings import OFF, Context, Example, Hit, Rule, script_place
from linker.outline import Outline

from .given import outline_of

# Tried with lld 14, construct by construct; GNU ld 2.40 takes all of them.
_COMMANDS = frozenset(
    {
        "FLOAT", "FORCE_COMMON_ALLOCATION", "FORCE_GROUP_ALLOCATION", "HLL", "INHIBIT_COMMON_ALLOCATION",
        "LD_FEATURE", "MAP", "NOCROSSREFS", "NOCROSSREFS_TO", "NOFLOAT", "STARTUP", "SYSLIB",
    }
)  # fmt: skip
_FUNCTIONS = frozenset({"BLOCK", "NEXT"})
_TYPES = frozenset({"DSECT", "READONLY", "READONLY TYPE"})


def lld_refuses(context: Context) -> Iterator[Hit]:
    """GNU ld takes it and lld stops with an error."""
    outline = outline_of(context)
    for statement in outline.script.commands:
        if isinstance(statement, ast.Command) and statement.name in _COMMANDS:
            yield _hit(f"lld does not know {statement.name}", statement.span, statement.name)
    for command in outline.sequence:
        yield from _in_sections(command)
    yield from _groups(outline)
    yield from _values(outline)
    for section, spec in outline.inputs():
        if "SORT" in spec.file.sorts:
            yield _hit("lld sorts files by SORT_BY_NAME only", spec.span, spec.file.name)
        everything = spec.file.name == "*" and any(pattern.name == "*" for pattern in spec.sections or ())
        if section.name == "/DISCARD/" and everything:
            yield _hit("lld refuses to discard .shstrtab, which '*' matches", spec.span, "*")


def _hit(message: str, span: ast.Span, name: str) -> Hit:
    return Hit(message, script_place(span, name))


def _in_sections(command: ast.SectionCommand) -> Iterator[Hit]:
    match command:
        case ast.Command() if command.name == "ENTRY":
            yield _hit("lld knows ENTRY outside of SECTIONS only", command.span, "ENTRY")
        case ast.Overlay() if command.at is None or command.nocrossrefs:
            yield _hit("lld takes an OVERLAY with AT() and without NOCROSSREFS only", command.span, "OVERLAY")
        case ast.OutputSection():
            if command.type in _TYPES:
                yield _hit(f"lld does not know the type {command.type}", command.name_span, command.name)
            if command.align_with_input:
                yield _hit("lld does not know ALIGN_WITH_INPUT", command.name_span, command.name)
            if command.constraint == "SPECIAL":
                yield _hit("lld does not know SPECIAL", command.name_span, command.name)


def _groups(outline: Outline) -> Iterator[Hit]:
    for statement in outline.script.commands:
        if isinstance(statement, ast.Sections):
            for command in statement.commands:
                if isinstance(command, ast.Group):
                    yield _hit("lld does not know GROUP inside SECTIONS", command.span, "GROUP")


def _values(outline: Outline) -> Iterator[Hit]:
    for _, call in outline.nodes(ast.Call):
        if call.function in _FUNCTIONS:
            yield _hit(f"lld does not know the function {call.function}", call.span, call.function)
    for _, number in outline.nodes(ast.Number):
        if _odd(number.text.lower()):
            yield _hit(f"lld does not know the number {number.text}", number.span, number.text)


def _odd(text: str) -> bool:
    return text.startswith("$") or (text[-1:] in {"b", "o"} and not text.startswith("0x"))


RULES = (
    Rule(
        "lld-refuses",
        OFF,
        "a script for both linkers must do without what lld refuses",
        "lld reads most of GNU ld's language and stops at the rest: NOCROSSREFS, ALIGN_WITH_INPUT, GROUP, "
        "numbers like 101b. For projects that are linked with both; off for the others.",
        "write what both know, or choose the script by the linker in the build.",
        ("S",),
        lld_refuses,
        Example(script="NOCROSSREFS(.text .init)\nSECTIONS\n{\n  .text : { *(.text*) }\n}\n"),
        Example(script="SECTIONS\n{\n  .text : { *(.text*) }\n}\n"),
    ),
)
