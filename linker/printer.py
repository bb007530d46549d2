"""Prints a syntax tree as a script again: the formatter, and what round-trip tests compare.

Comments are kept: each goes before the first statement that starts after it, or at the end of the line of the
statement it followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import ast
from .cursor import FUNCTION_FORMS, PRECEDENCE
from .input_parser import SORTS
from .section_parser import CONSTRAINTS, DATA, SECTION_TYPES, WRAPPERS

INDENT = "\t"

_SCRIPT_NAME = re.compile(r"[A-Za-z_/.\\$~][\w/.\\$~\-+:\[\]=]*\Z", re.ASCII)
_WILD_NAME = re.compile(r"[\w/.\\$~\-+:\[\],=?*^!]+\Z", re.ASCII)
_SYMBOL_NAME = re.compile(r"(?:/DISCARD/|[A-Za-z_.\\][\w/.\\$~]*)\Z", re.ASCII)
_INPUT_NAME = re.compile(r"[\w/.\\$~\-+:\[\]=*?]+\Z", re.ASCII)
_WILD_PUNCT = frozenset({"=", "+=", "-=", "*=", "/=", "^=", ",", ":", "[", "]"})
_BODY_WORDS = (
    DATA
    | SORTS
    | WRAPPERS
    | {
        "ASCIZ",
        "ASSERT",
        "CLASS",
        "CONSTRUCTORS",
        "CREATE_OBJECT_SYMBOLS",
        "EXCLUDE_FILE",
        "INCLUDE",
        "INPUT_SECTION_FLAGS",
        "KEEP",
        "LINKER_VERSION",
    }
)
_UNARY_LEVEL = 11
_CONDITIONAL_LEVEL = 0


def _script_name(name: str) -> str:
    return name if _SCRIPT_NAME.match(name) and "/*" not in name else f'"{name}"'


def _wild_name(name: str) -> str:
    plain = _WILD_NAME.match(name) and name not in _WILD_PUNCT and not name.startswith("/*")
    return name if plain and not name.startswith("[") and name not in _BODY_WORDS else f'"{name}"'


def _symbol_name(name: str) -> str:
    return name if _SYMBOL_NAME.match(name) and "/*" not in name else f'"{name}"'


def expression(node: ast.Expr, level: int = _CONDITIONAL_LEVEL) -> str:
    """Return the source of an expression, with the parentheses that `level` around it asks for."""
    match node:
        case ast.Number():
            return node.text
        case ast.Symbol():
            return _symbol_name(node.name)
        case ast.Text():
            return f'"{node.value}"'
        case ast.Unary():
            return node.op + expression(node.operand, _UNARY_LEVEL)
        case ast.Call():
            return _call(node)
        case ast.Conditional():
            text = " ".join(
                (expression(node.test, 1), "?", expression(node.then), ":", expression(node.other))
            )
            return f"({text})" if level > _CONDITIONAL_LEVEL else text
        case ast.Binary():
            own = PRECEDENCE[node.op]
            text = f"{expression(node.left, own)} {node.op} {expression(node.right, own + 1)}"
            return f"({text})" if level > own else text


def _call(node: ast.Call) -> str:
    kinds = FUNCTION_FORMS[node.function][-1]
    parts = []
    for kind, argument in zip(kinds, node.arguments, strict=False):
        if kind == "n" and isinstance(argument, ast.Symbol):
            in_expression = node.function in {"DEFINED", "CONSTANT"}
            parts.append(_symbol_name(argument.name) if in_expression else _script_name(argument.name))
        else:
            parts.append(expression(argument))
    return f"{node.function}({', '.join(parts)})"


def _pattern(pattern: ast.Pattern) -> str:
    text = _wild_name(pattern.name)
    if pattern.excludes:
        text = f"EXCLUDE_FILE({' '.join(map(_wild_name, pattern.excludes))}) {text}"
    for sort in reversed(pattern.sorts):
        text = f"{sort}({text})"
    return text


def input_spec(spec: ast.InputSpec) -> str:
    """Return the source of an input section description."""
    text = _pattern(spec.file)
    if spec.sections is not None:
        text += f"({' '.join(map(_pattern, spec.sections))})"
    if spec.flags:
        text = f"INPUT_SECTION_FLAGS({' & '.join(map(_wild_name, spec.flags))}) {text}"
    return f"KEEP({text})" if spec.keep else text


def _target(name: str, *, in_body: bool) -> str:
    words = _BODY_WORDS if in_body else _TOP_WORDS
    plain = _SCRIPT_NAME.match(name) and "=" not in name and ":" not in name and name not in words
    return name if plain and "/*" not in name else f'"{name}"'


_TOP_WORDS = WRAPPERS | {"ASSERT", "CLASS", "ENTRY", "GROUP", "INCLUDE", "OVERLAY"}


def _assign(node: ast.Assign, *, in_body: bool) -> str:
    if node.wrapper:
        return f"{node.wrapper}({_symbol_name(node.target)} = {expression(node.value)});"
    return f"{_target(node.target, in_body=in_body)} {node.op} {expression(node.value)};"


class Printer:
    """Writes the lines of one script."""

    def __init__(self, comments: Iterable[ast.Comment] = (), text: str = "") -> None:
        self.lines: list[str] = []
        self._comments = list(comments)
        self._next_comment = 0
        self._text = text
        self._depth = 0
        self._last_end = 0

    def _emit(self, text: str) -> None:
        self.lines.append(INDENT * self._depth + text if text else "")

    def _flush(self, before: int) -> None:
        """Write the comments that stand before the offset `before`."""
        while self._next_comment < len(self._comments):
            comment = self._comments[self._next_comment]
            if comment.span.start >= before:
                return
            self._next_comment += 1
            body = f"/* {comment.text.replace('*/', '* /')} */"
            trailing = bool(self.lines) and "\n" not in self._text[self._last_end : comment.span.start]
            if trailing and self._last_end and "\n" not in comment.text:
                self.lines[-1] += " " + body
            else:
                self._emit(body)

    def _statement(self, text: str, span: ast.Span) -> None:
        self._flush(span.start)
        self._emit(text)
        self._last_end = span.end

    def _open(self, text: str, start: int) -> None:
        self._flush(start)
        self._emit(text)
        self._depth += 1
        self._last_end = 0

    def _close(self, text: str, end: int) -> None:
        self._flush(end)
        self._depth -= 1
        self._emit(text)
        self._last_end = end

    def finish(self) -> str:
        """Return everything written, with the comments that are left."""
        self._flush(1 << 62)
        return "\n".join(self.lines) + "\n" if self.lines else ""

    def command(self, node: ast.TopLevel) -> None:
        """Write a command of the top level."""
        match node:
            case ast.Sections():
                self._open(f"{node.keyword}", node.span.start)
                self._depth -= 1
                self._emit("{")
                self._depth += 1
                for command in node.commands:
                    self.section_command(command)
                self._close("}", node.span.end)
            case ast.Memory():
                self._open("MEMORY {", node.span.start)
                for region in node.regions:
                    self._region(region)
                self._close("}", node.span.end)
            case ast.Phdrs():
                self._open("PHDRS {", node.span.start)
                for header in node.headers:
                    self._phdr(header)
                self._close("}", node.span.end)
            case ast.Version():
                self._version(node)
            case ast.Inputs():
                self._statement(_inputs(node), node.span)
            case ast.Insert():
                self._statement(f"INSERT {node.where} {_script_name(node.section)}", node.span)
            case _:
                self._simple(node, in_body=False)

    def _simple(self, node: ast.Assign | ast.Assert | ast.Command | ast.Include, *, in_body: bool) -> None:
        match node:
            case ast.Assign():
                text = _assign(node, in_body=in_body)
            case ast.Assert():
                text = f'ASSERT({expression(node.condition)}, "{node.message}");'
            case ast.Include():
                text = f"INCLUDE {_script_name(node.file)}"
            case ast.Command():
                text = _command(node)
        self._statement(text, node.span)

    def _region(self, node: ast.Region | ast.Include) -> None:
        if isinstance(node, ast.Include):
            self._statement(f"INCLUDE {_script_name(node.file)}", node.span)
            return
        attributes = f" ({node.attributes})" if node.attributes else ""
        plain = node.name != "INCLUDE" and ":" not in node.name
        name = _script_name(node.name) if plain else f'"{node.name}"'
        self._statement(
            f"{name}{attributes} : ORIGIN = {expression(node.origin)}, LENGTH = {expression(node.length)}",
            node.span,
        )

    def _phdr(self, node: ast.Phdr) -> None:
        parts = [_script_name(node.name), expression(node.type)]
        parts += ["FILEHDR"] if node.filehdr else []
        parts += ["PHDRS"] if node.phdrs else []
        parts += [f"AT({expression(node.at)})"] if node.at is not None else []
        parts += [f"FLAGS({expression(node.flags)})"] if node.flags is not None else []
        self._statement(" ".join(parts) + ";", node.span)

    def _version(self, node: ast.Version) -> None:
        self._open("VERSION {", node.span.start)
        for version in node.nodes:
            self._emit(f"{version.tag} {{" if version.tag else "{")
            for item in version.items:
                self._emit(INDENT + (item if item.endswith((":", "{")) else item + ";"))
            self._emit(" ".join(("}", *version.depends)) + ";")
        self._close("}", node.span.end)

    def section_command(self, node: ast.SectionCommand) -> None:
        """Write one command inside SECTIONS."""
        match node:
            case ast.OutputSection():
                self._output_section(node)
            case ast.Overlay():
                self._overlay(node)
            case ast.Group():
                address = f" {expression(node.address)}" if node.address is not None else ""
                self._open(f"GROUP{address} : {{", node.span.start)
                for command in node.body:
                    self.section_command(command)
                self._close("}", node.span.end)
            case ast.SectionClass():
                self._open(f"CLASS({_script_name(node.name)}) {{", node.span.start)
                self._body(node.body)
                self._close("}", node.span.end)
            case _:
                self._simple(node, in_body=False)

    def _output_section(self, node: ast.OutputSection) -> None:
        self._open(_section_head(node) + " {", node.span.start)
        self._body(node.body)
        tail = f" >{_script_name(node.region)}" if node.region else ""
        tail += f" AT>{_script_name(node.lma_region)}" if node.lma_region else ""
        self._close("}" + tail + _section_tail(node.phdrs, node.fill), node.span.end)

    def _overlay(self, node: ast.Overlay) -> None:
        head = "OVERLAY" + (f" {expression(node.address)}" if node.address is not None else "") + " :"
        head += " NOCROSSREFS" if node.nocrossrefs else ""
        head += f" AT({expression(node.at)})" if node.at is not None else ""
        head += f" SUBALIGN({expression(node.subalign)})" if node.subalign is not None else ""
        self._open(head + " {", node.span.start)
        for section in node.sections:
            self._open(_section_name(section.name) + " {", section.span.start)
            self._body(section.body)
            self._close("}" + _section_tail(section.phdrs, section.fill), section.span.end)
        tail = f" >{_script_name(node.region)}" if node.region else ""
        tail += f" AT>{_script_name(node.lma_region)}" if node.lma_region else ""
        self._close("}" + tail + _section_tail(node.phdrs, node.fill), node.span.end)

    def _body(self, body: tuple[ast.Statement, ...]) -> None:
        for statement in body:
            match statement:
                case ast.InputSpec():
                    self._statement(input_spec(statement), statement.span)
                case ast.Data():
                    separator = "" if statement.kind == "FILL" else ";"
                    value = expression(statement.value)
                    self._statement(f"{statement.kind}({value}){separator}", statement.span)
                case ast.StringData():
                    self._statement(f'ASCIZ "{statement.value}"', statement.span)
                case _:
                    self._simple(statement, in_body=True)


def _section_name(name: str) -> str:
    plain = _SCRIPT_NAME.match(name) and name not in _TOP_WORDS and "/*" not in name
    return name if plain else f'"{name}"'


def _section_head(node: ast.OutputSection) -> str:
    parts = [_section_name(node.name)]
    if node.address is not None:
        text = expression(node.address)
        # An address that begins with a bracket and a type's name would be read as a type.
        parts.append(f"({text})" if text.startswith("(") or text in SECTION_TYPES else text)
    if node.type:
        value = expression(node.type_value) if node.type_value is not None else ""
        kind = {"TYPE": f"TYPE = {value}", "READONLY TYPE": f"READONLY (TYPE = {value})"}
        parts.append(f"({kind.get(node.type, node.type)})")
    parts.append(":")
    parts += [f"AT({expression(node.at)})"] if node.at is not None else []
    parts += [f"ALIGN({expression(node.align)})"] if node.align is not None else []
    parts += ["ALIGN_WITH_INPUT"] if node.align_with_input else []
    parts += [f"SUBALIGN({expression(node.subalign)})"] if node.subalign is not None else []
    parts += [node.constraint] if node.constraint in CONSTRAINTS else []
    return " ".join(parts)


def _section_tail(phdrs: tuple[str, ...], fill: ast.Expr | None) -> str:
    tail = "".join(f" :{_script_name(name)}" for name in phdrs)
    return tail + (f" ={expression(fill)}" if fill is not None else "")


def _command(node: ast.Command) -> str:
    if node.name == "SORT(CONSTRUCTORS)" or not node.arguments:
        bare = node.name in {"HLL", "SYSLIB", "NOCROSSREFS", "NOCROSSREFS_TO"}
        return f"{node.name}()" if bare else node.name
    names = (_script_name(argument) for argument in node.arguments)
    return f"{node.name}({', '.join(names)})"


def _inputs(node: ast.Inputs) -> str:
    parts: list[str] = []
    needed = False
    for file in node.files:
        name = file.name if _INPUT_NAME.match(file.name) and file.name != "AS_NEEDED" else f'"{file.name}"'
        if file.as_needed and not needed:
            name = "AS_NEEDED(" + name
        if needed and not file.as_needed:
            parts[-1] += ")"
        needed = file.as_needed
        parts.append(name)
    return f"{node.kind}({' '.join(parts)}{')' if needed else ''})"


def print_script(script: ast.Script, text: str = "") -> str:
    """Return the script formatted. `text` is the source it was parsed from; it places the comments."""
    printer = Printer(script.comments, text)
    for command in script.commands:
        printer.command(command)
    return printer.finish()
