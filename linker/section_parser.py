"""The part of the grammar inside SECTIONS: output sections, overlays, and the statements in them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from . import ast
from .ast import Span
from .cursor import SyntaxFailure
from .input_parser import InputParser
from .lexer import ASSIGN_OPS, END, EXPRESSION, NAME, PUNCT, SCRIPT, STRING, WILD, Token

SECTION_TYPES = frozenset({"NOLOAD", "DSECT", "COPY", "INFO", "OVERLAY", "READONLY", "TYPE"})
CONSTRAINTS = frozenset({"ONLY_IF_RO", "ONLY_IF_RW", "SPECIAL"})
DATA = frozenset({*ast.DATA_SIZES, "FILL"})
WRAPPERS = frozenset({"PROVIDE", "PROVIDE_HIDDEN", "HIDDEN"})
MAX_GROUPS = 20
MAX_PROBLEMS = 20

# What stands behind the name that an assignment begins with: an operator, or a comment before it.
_MAY_BE_ASSIGNED = re.compile(r"\s*+(?:[-+*/&|^<>]*+=|/\*|\#)")

# `*(.a .b*)` and `KEEP(*(.c))`; `symbol = . ;` and `. = ALIGN(8);`: three of four statements of real scripts.
_PLAIN_INPUT = re.compile(
    r"\s*+(?:(KEEP)\s*+\(\s*+|)(\*)\s*+\(\s*+((?:[\w.$*?-]++\s++)*+[\w.$*?-]++)\s*+\)(?(1)\s*+\))", re.ASCII
)
_WORD = re.compile(r"\S+")
_PLAIN_ASSIGN = re.compile(
    r"\s*+((?=\w*[a-z])[A-Za-z_][\w.]*+|\.)\s++=\s*+(?:(\.)|(ALIGN)\(([1-9][0-9]*+|0x[0-9a-fA-F]++)(\)))\s*+;",
    re.ASCII,
)
# What is around the body of most output sections: `: {` or `: ALIGN(16) {`, `}`, and a region or nothing.
_PLAIN_HEAD = re.compile(
    r"\s*+:\s*+(?:ALIGN\s*+\(\s*+([1-9][0-9]*+|0x[0-9a-fA-F]++)\s*+\)\s*+|)(\{)", re.ASCII
)
_PLAIN_CLOSE = re.compile(r"\s*+(\})", re.ASCII)
_PLAIN_TAIL = re.compile(r"(?:\s*+>\s*+([A-Za-z_]\w*+)(?=\s)|)(?=\s*+[._A-Za-z}])(?!\s*+AT\b)", re.ASCII)


class SectionParser(InputParser):
    """Parses what stands inside SECTIONS."""

    def __init__(self, text: str, most: int = MAX_PROBLEMS) -> None:
        """`most` is after how many problems the rest is left unread."""
        super().__init__(text)
        self._groups = 0
        self._most = most

    def recover(self, failure: SyntaxFailure, start: int) -> None:
        """Record the failure and skip to a place where a statement can begin.

        Skips whole `{...}` groups, stops after a `;` and before the `}` that ends the enclosing block.
        """
        self.problems.append(ast.SyntaxProblem(failure.message, failure.span))
        self._nesting = 0
        if self.position < failure.span.start or self.position <= start:
            self.seek(max(failure.span.start, self.position))
        depth = 0
        while True:
            token = self.peek(WILD)
            if token.kind == END or (token.text == "}" and depth == 0 and token.start > start):
                return
            self.next(WILD)
            if token.text == "{":
                depth += 1
            elif token.text == "}":
                depth -= 1
                if depth <= 0:
                    return
            elif token.text == ";" and depth == 0:
                return

    # Statements that may stand anywhere

    def statement_anywhere(self, mode: int) -> ast.Assign | ast.Assert | ast.Command | None:
        """Parse an assignment, an ASSERT or an ENTRY; None when the next token begins something else."""
        token = self.peek(mode)
        if token.text == "ASSERT":
            return self._assert(mode)
        if token.text in WRAPPERS:
            return self._wrapped(mode)
        if token.text == "ENTRY" and mode == SCRIPT:
            keyword = self.next(mode)
            self.expect("(")
            name = self.expect_name("a symbol")
            self.expect(")")
            return ast.Command("ENTRY", (name.text,), self.span_from(keyword.start))
        if not self.looks_at(_MAY_BE_ASSIGNED, token.end):
            return None
        position = self.position
        name = self.next(mode)
        operator = self.peek(mode)
        if operator.kind == PUNCT and operator.text in ASSIGN_OPS:
            return self._assigned(name, mode)
        self.seek(position)
        return None

    def assignment(self, mode: int) -> ast.Assign:
        """Parse `name op expression ;`."""
        return self._assigned(self.expect_name("a symbol", mode), mode)

    def _assigned(self, name: Token, mode: int) -> ast.Assign:
        operator = self.peek(mode)
        if operator.kind != PUNCT or operator.text not in ASSIGN_OPS:
            raise self.fail("an assignment operator", operator)
        self.next(mode)
        value = self.expression()
        span = self.span_from(name.start)
        self._separator()
        return ast.Assign(name.text, operator.text, value, "", span, Span(name.start, name.end))

    def _separator(self) -> None:
        token = self.peek(EXPRESSION)
        if token.kind == PUNCT and token.text in {";", ","}:
            self.next(EXPRESSION)
            return
        raise self.fail("';' after the assignment", token)

    def _wrapped(self, mode: int) -> ast.Assign:
        keyword = self.next(mode)
        self.expect("(", mode)
        name = self.expect_name("a symbol", EXPRESSION)
        self.expect("=", EXPRESSION)
        value = self.expression()
        self.expect(")", EXPRESSION)
        span = self.span_from(keyword.start)
        self._optional_separator()
        return ast.Assign(name.text, "=", value, keyword.text, span, Span(name.start, name.end))

    def _assert(self, mode: int) -> ast.Assert:
        keyword = self.next(mode)
        self.expect("(", EXPRESSION)
        condition = self.expression()
        self.expect(",", EXPRESSION)
        message = self.expect_name("a message", EXPRESSION)
        self.expect(")", EXPRESSION)
        span = self.span_from(keyword.start)
        self._optional_separator()
        return ast.Assert(condition, message.text, span)

    def _optional_separator(self) -> None:
        token = self.peek(EXPRESSION)
        if token.kind == PUNCT and token.text in {";", ","}:
            self.next(EXPRESSION)

    def include(self, keyword: Token) -> ast.Include:
        """Parse the file name of an INCLUDE."""
        name = self.expect_name("a file name", SCRIPT)
        return ast.Include(name.text, self.span_from(keyword.start))

    # Inside SECTIONS

    def section_commands(self, *, fragment: bool = False) -> tuple[ast.SectionCommand, ...]:
        """Parse up to and with the closing brace of SECTIONS, a fragment up to the end of the text."""
        commands: list[ast.SectionCommand] = []
        while True:
            token = self.peek()
            if token.kind == END:
                if fragment:
                    return tuple(commands)
                self.problems.append(ast.SyntaxProblem("SECTIONS has no end", Span(token.start, token.end)))
                return tuple(commands)
            if not fragment and self.accept("}"):
                return tuple(commands)
            if self.accept(";"):
                continue
            if len(self.problems) >= self._most:
                self.seek(len(self.text))
                return tuple(commands)
            try:
                commands.append(self._section_command())
            except SyntaxFailure as failure:
                self.recover(failure, token.start)

    def _section_command(self) -> ast.SectionCommand:
        plain = self._plain_assign()
        if plain is not None:
            return plain
        token = self.peek()
        if token.kind == NAME:
            if token.text == "INCLUDE":
                return self.include(self.next())
            if token.text == "OVERLAY":
                return self._overlay()
            if token.text == "GROUP":
                return self._group()
            if token.text == "CLASS":
                return self._class()
            common = self.statement_anywhere(SCRIPT)
            if common is not None:
                return common
        if token.kind in {NAME, STRING}:
            return self._output_section()
        raise self.fail("an output section, an assignment or '}'", token)

    def sections_fragment(self) -> ast.Sections:
        """Parse a text that stands inside SECTIONS where it is included."""
        commands = self.section_commands(fragment=True)
        return ast.Sections("SECTIONS", commands, self.span_from(0))

    def body_fragment(self) -> ast.Sections:
        """Parse a text that stands inside an output section where it is included."""
        body = self._body(fragment=True)
        span = self.span_from(0)
        section = ast.OutputSection(
            "", None, "", None, None, None, False, None, "", body, "", "", (), None, span
        )
        return ast.Sections("SECTIONS", (section,), span)

    def _group(self) -> ast.Group:
        keyword = self.next()
        self._groups += 1
        if self._groups > MAX_GROUPS:
            raise self.fail(f"at most {MAX_GROUPS} groups", keyword)
        address, _, _ = self._address_and_type()
        self.expect("{")
        body = self.section_commands()
        return ast.Group(address, body, self.span_from(keyword.start))

    def _class(self) -> ast.SectionClass:
        keyword = self.next()
        self.expect("(")
        name = self.expect_name("the name of a section class")
        self.expect(")")
        self.expect("{")
        body = self._body()
        return ast.SectionClass(name.text, body, self.span_from(keyword.start))

    def _address_and_type(self) -> tuple[ast.Expr | None, str, ast.Expr | None]:
        """Parse `[address] [(type)] :`, with svr3's BIND(address) as well."""
        address: ast.Expr | None = None
        if self.accept("BIND", EXPRESSION):
            self.expect("(", EXPRESSION)
            address = self.expression()
            self.expect(")", EXPRESSION)
            if self.accept("BLOCK", EXPRESSION):
                self.expect("(", EXPRESSION)
                self.expression()
                self.expect(")", EXPRESSION)
        kind, value = self._type()
        if not kind and address is None and not self._at(":"):
            address = self.expression()
            kind, value = self._type()
        self.expect(":", EXPRESSION)
        return address, kind, value

    def _at(self, text: str) -> bool:
        token = self.peek(EXPRESSION)
        return token.kind == PUNCT and token.text == text

    def _type(self) -> tuple[str, ast.Expr | None]:
        """Parse `(NOLOAD)`, `(TYPE = value)`, `()`; leaves anything else in parentheses alone."""
        if not self._at("("):
            return "", None
        position = self.position
        self.next(EXPRESSION)
        token = self.next(EXPRESSION)
        if token.kind == PUNCT and token.text == ")":
            return "", None
        if token.kind != NAME or token.text not in SECTION_TYPES:
            self.seek(position)
            return "", None
        kind, value = token.text, None
        if kind == "READONLY" and self.accept("(", EXPRESSION):
            kind = "READONLY TYPE"
            if not self.accept("TYPE", EXPRESSION):
                raise self.fail("TYPE", self.peek(EXPRESSION))
        if kind.endswith("TYPE"):
            self.expect("=", EXPRESSION)
            value = self.expression()
            if kind == "READONLY TYPE":
                self.expect(")", EXPRESSION)
        self.expect(")", EXPRESSION)
        return kind, value

    def _parenthesised(self) -> ast.Expr:
        self.expect("(", EXPRESSION)
        value = self.expression()
        self.expect(")", EXPRESSION)
        return value

    def _output_section(self) -> ast.OutputSection:
        name = self.next()
        head = self.step(_PLAIN_HEAD)
        if head is not None:
            text = head[1]
            align = ast.Number(int(text, 0), text, Span(*head.span(1))) if text else None
            return self._behind_head(name, (None, "", None), {"ALIGN": align})
        address, kind, value = self._address_and_type()
        options: dict[str, ast.Expr | None] = {"AT": None, "ALIGN": None, "SUBALIGN": None}
        with_input = False
        constraint = ""
        while not self._at("{"):
            token = self.next(EXPRESSION)
            if token.kind == NAME and token.text in options:
                options[token.text] = self._parenthesised()
            elif token.kind == NAME and token.text == "ALIGN_WITH_INPUT":
                with_input = True
            elif token.kind == NAME and token.text in CONSTRAINTS:
                constraint = token.text
            else:
                raise self.fail("AT, ALIGN, SUBALIGN, a constraint or '{'", token)
        self.next(EXPRESSION)
        return self._behind_head(name, (address, kind, value), options, constraint, with_input=with_input)

    def _behind_head(
        self,
        name: Token,
        head: tuple[ast.Expr | None, str, ast.Expr | None],
        options: Mapping[str, ast.Expr | None],
        constraint: str = "",
        *,
        with_input: bool = False,
    ) -> ast.OutputSection:
        """Parse the body of an output section and what follows; `head` is address, type and its value."""
        body = self._body()
        tail = self.step(_PLAIN_TAIL)
        phdrs: tuple[str, ...] = ()
        fill = None
        region, lma_region = (tail[1] or "", "") if tail is not None else self._regions()
        if tail is None:
            phdrs, fill = self._phdrs_and_fill()
        span = self.span_from(name.start)
        if tail is None:
            self.accept(",")
        address, kind, value = head
        return ast.OutputSection(
            name.text, address, kind, value, options.get("AT"), options.get("ALIGN"), with_input,
            options.get("SUBALIGN"), constraint, body, region, lma_region, phdrs, fill, span,
            Span(name.start, name.end),
        )  # fmt: skip

    def _regions(self) -> tuple[str, str]:
        region = lma_region = ""
        if self.accept(">"):
            region = self.expect_name("a memory region").text
        position = self.position
        if self.accept("AT"):
            if self.accept(">"):
                lma_region = self.expect_name("a memory region").text
            else:
                self.seek(position)
        return region, lma_region

    def _phdrs_and_fill(self) -> tuple[tuple[str, ...], ast.Expr | None]:
        phdrs: list[str] = []
        while self.accept(":"):
            phdrs.append(self.expect_name("a program header").text)
        return tuple(phdrs), self.expression() if self.accept("=") else None

    def _overlay(self) -> ast.Overlay:
        keyword = self.next()
        address = None if self._at(":") else self.expression()
        self.expect(":", EXPRESSION)
        nocrossrefs = self.accept("NOCROSSREFS", EXPRESSION)
        at = self._parenthesised() if self.accept("AT", EXPRESSION) else None
        subalign = self._parenthesised() if self.accept("SUBALIGN", EXPRESSION) else None
        self.expect("{", EXPRESSION)
        sections: list[ast.OverlaySection] = []
        while not self.accept("}"):
            name = self.expect_name("a section of the overlay or '}'")
            self.expect("{")
            body = self._body()
            phdrs, fill = self._phdrs_and_fill()
            sections.append(
                ast.OverlaySection(
                    name.text, body, phdrs, fill, self.span_from(name.start), Span(name.start, name.end)
                )
            )
            self.accept(",")
        region, lma_region = self._regions()
        phdrs, fill = self._phdrs_and_fill()
        span = self.span_from(keyword.start)
        self.accept(",")
        return ast.Overlay(
            address, nocrossrefs, at, subalign, tuple(sections), region, lma_region, phdrs, fill, span
        )

    # Inside an output section

    def _body(self, *, fragment: bool = False) -> tuple[ast.Statement, ...]:
        statements: list[ast.Statement] = []
        while True:
            plain = self._plain_statement()
            if plain is not None:
                statements.append(plain)
                continue
            if not fragment and self.step(_PLAIN_CLOSE) is not None:
                return tuple(statements)
            token = self.peek(WILD)
            if token.kind == END:
                if fragment:
                    return tuple(statements)
                raise self.fail("'}' after the contents of an output section", token)
            if token.kind == PUNCT:
                if token.text == "}" and not fragment:
                    self.next(WILD)  # behind a comment
                    return tuple(statements)
                if token.text in {";", ","}:
                    self.next(WILD)
                    continue
            try:
                statements.append(self._statement(token))
            except SyntaxFailure as failure:
                if len(self.problems) >= self._most:
                    raise
                self.recover(failure, token.start)

    def _plain_statement(self) -> ast.Statement | None:
        """Read one of the plainest statements in one go; what is read is what _statement() would read."""
        match = _PLAIN_INPUT.match(self.text, self.position)
        if match is None:
            return self._plain_assign()
        words = match.start(3)
        # A list first: a generator costs a fifth of the parsing.
        sections = tuple(
            [
                ast.Pattern(word[0], (), (), Span(words + word.start(), words + word.end()))
                for word in _WORD.finditer(match[3])
            ]
        )
        end = match.end()
        self.seek(end)
        self.last_end = end
        kept = match[1] is not None
        file = ast.Pattern("*", (), (), Span(*match.span(2)))
        return ast.InputSpec(file, sections, kept, (), Span(match.start(1 if kept else 2), end))

    def _plain_assign(self) -> ast.Assign | None:
        match = _PLAIN_ASSIGN.match(self.text, self.position)
        if match is None:
            return None
        if match[2] is not None:
            value: ast.Expr = ast.Symbol(".", Span(*match.span(2)))
        else:
            number = ast.Number(int(match[4], 0), match[4], Span(*match.span(4)))
            value = ast.Call("ALIGN", (number,), Span(match.start(3), match.end(5)))
        name = Span(*match.span(1))
        self.seek(match.end())
        self.last_end = match.end()
        return ast.Assign(match[1], "=", value, "", Span(name.start, value.span.end), name)

    def _statement(self, token: Token) -> ast.Statement:
        if token.kind == NAME:
            if token.text in DATA:
                keyword = self.next(WILD)
                value = self._parenthesised()
                return ast.Data(keyword.text, value, self.span_from(keyword.start))
            if token.text == "INCLUDE":
                return self.include(self.next(WILD))
            if token.text in {"CONSTRUCTORS", "CREATE_OBJECT_SYMBOLS", "LINKER_VERSION"}:
                keyword = self.next(WILD)
                return ast.Command(keyword.text, (), self.span_from(keyword.start))
            if token.text == "ASCIZ":
                keyword = self.next(WILD)
                text = self.expect_name("a string", WILD)
                return ast.StringData(text.text, self.span_from(keyword.start))
            if token.text == "CLASS":
                return self._class_use()
            common = self.statement_anywhere(WILD)
            if common is not None:
                return common
        elif token.kind == STRING:
            common = self.statement_anywhere(WILD)
            if common is not None:
                return common
        elif token.text != "[":
            raise self.fail("a statement or '}'", token)
        return self.input_description()

    def _class_use(self) -> ast.Command:
        keyword = self.next(WILD)
        self.expect("(", WILD)
        name = self.expect_name("the name of a section class", WILD)
        self.expect(")", WILD)
        return ast.Command("CLASS", (name.text,), self.span_from(keyword.start))
