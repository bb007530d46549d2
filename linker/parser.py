"""Recursive descent over a GNU ld script; several syntax errors a run.

The grammar is binutils 2.40, ld/ldgram.y, and lld's additions. What only one of the two linkers accepts is
accepted here; where they read the same characters differently, GNU ld's reading is taken.
"""

from __future__ import annotations

from collections.abc import Callable

from . import ast
from .cursor import SyntaxFailure
from .lexer import END, INPUTLIST, NAME, PUNCT, SCRIPT, STRING, VERSION, Token
from .section_parser import SectionParser

# Commands whose arguments are names: (least, most) of them; no parentheses when (0, 0).
COMMANDS = {
    "CREATE_OBJECT_SYMBOLS": (0, 0),
    "ENTRY": (1, 1),
    "EXTERN": (1, 1000),
    "FLOAT": (0, 0),
    "FORCE_COMMON_ALLOCATION": (0, 0),
    "FORCE_GROUP_ALLOCATION": (0, 0),
    "HLL": (0, 1000),
    "INHIBIT_COMMON_ALLOCATION": (0, 0),
    "LD_FEATURE": (1, 1),
    "MAP": (1, 1),
    "NOCROSSREFS": (0, 1000),
    "NOCROSSREFS_TO": (0, 1000),
    "NOFLOAT": (0, 0),
    "OUTPUT": (1, 1),
    "OUTPUT_ARCH": (1, 1),
    "OUTPUT_FORMAT": (1, 3),
    "REGION_ALIAS": (2, 2),
    "SEARCH_DIR": (1, 1),
    "STARTUP": (1, 1),
    "SYSLIB": (0, 1000),
    "TARGET": (1, 1),
}


class ScriptParser(SectionParser):
    """Parses whole scripts; one instance parses one text."""

    def script(self) -> ast.Script:
        """Parse everything up to the end of the text."""
        commands: list[ast.TopLevel] = []
        while self.peek().kind != END and len(self.problems) < self._most:
            if self.accept(";"):
                continue
            start = self.peek().start
            try:
                commands.append(self._command())
            except SyntaxFailure as failure:
                self.recover(failure, start)
        return self._finished(tuple(commands))

    def part(self, reading: Callable[[ScriptParser], tuple[ast.TopLevel, ...]]) -> ast.Script:
        """Parse everything up to the end of the text as the part of a script that `reading` reads."""
        commands: tuple[ast.TopLevel, ...] = ()
        try:
            commands = reading(self)
            if self.peek().kind != END and not self.problems:
                raise self.fail("the end of the file", self.peek())
        except SyntaxFailure as failure:
            self.problems.append(ast.SyntaxProblem(failure.message, failure.span))
        return self._finished(commands)

    def _finished(self, commands: tuple[ast.TopLevel, ...]) -> ast.Script:
        if self.unterminated is not None:
            self.problems.append(ast.SyntaxProblem("the comment has no end", self.unterminated))
        return ast.Script(commands, tuple(self.comments), tuple(self.problems))

    def _command(self) -> ast.TopLevel:
        token = self.peek()
        if token.kind == NAME:
            handler = self._handlers().get(token.text)
            if handler is not None:
                return handler(self.next())
            if token.text in COMMANDS:
                return self.simple_command()
            common = self.statement_anywhere(SCRIPT)
            if common is not None:
                return common
        elif token.kind == STRING:
            return self.assignment(SCRIPT)
        raise self.fail("a command or an assignment", token)

    def _handlers(self) -> dict[str, Callable[[Token], ast.TopLevel]]:
        return {
            "GROUP": self._inputs,
            "INCLUDE": self.include,
            "INPUT": self._inputs,
            "INSERT": self._insert,
            "MEMORY": self._memory,
            "OVERWRITE_SECTIONS": self._sections,
            "PHDRS": self._phdrs,
            "SECTIONS": self._sections,
            "VERSION": self._version,
        }

    def simple_command(self) -> ast.Command:
        """Parse one of COMMANDS."""
        keyword = self.next()
        least, most = COMMANDS[keyword.text]
        arguments: list[str] = []
        if most:
            self.expect("(")
            while not self.accept(")"):
                token = self.expect_name("a name or ')'")
                # ld's scanner lets commas into names here; written without spaces they still separate.
                parts = [token.text] if token.kind == STRING else token.text.split(",")
                arguments.extend(part for part in parts if part)
                self.accept(",")
            if not least <= len(arguments) <= most:
                # The command is complete, so what follows can be read: no recovery.
                message = f"{keyword.text} takes {_amount(least, most)}, found {len(arguments)}"
                self.problems.append(ast.SyntaxProblem(message, self.span_from(keyword.start)))
        return ast.Command(keyword.text, tuple(arguments), self.span_from(keyword.start))

    def _inputs(self, keyword: Token) -> ast.Inputs:
        files: list[ast.InputFile] = []
        self.expect("(", INPUTLIST)
        needed = False
        while True:
            self.accept(",", INPUTLIST)
            if self.accept(")", INPUTLIST):
                if not needed:
                    return ast.Inputs(keyword.text, tuple(files), self.span_from(keyword.start))
                needed = False
                continue
            token = self.expect_name("a file or ')'", INPUTLIST)
            if token.kind == NAME and token.text == "AS_NEEDED" and not needed:
                self.expect("(", INPUTLIST)
                needed = True
                continue
            files.append(ast.InputFile(token.text, needed))

    def _insert(self, keyword: Token) -> ast.Insert:
        where = self.expect_name("AFTER or BEFORE")
        if where.text not in {"AFTER", "BEFORE"}:
            raise self.fail("AFTER or BEFORE", where)
        section = self.expect_name("the name of an output section")
        return ast.Insert(where.text, section.text, self.span_from(keyword.start))

    def _memory(self, keyword: Token) -> ast.Memory:
        self.expect("{")
        return self._regions_until("}", keyword.start)

    def memory_fragment(self) -> ast.Memory:
        """Parse a text that stands inside MEMORY where it is included."""
        return self._regions_until("", 0)

    def _regions_until(self, closing: str, start: int) -> ast.Memory:
        regions: list[ast.Region | ast.Include] = []
        while not (self.accept(closing) if closing else self.peek().kind == END):
            if self.accept(",") or self.accept(";"):
                continue
            token = self.expect_name("the name of a memory region or '}'")
            if token.text == "INCLUDE" and token.kind == NAME:
                regions.append(self.include(token))
                continue
            regions.append(self._region(token))
        return ast.Memory(tuple(regions), self.span_from(start))

    def _region(self, name: Token) -> ast.Region:
        text = name.text
        attributes = ""
        if name.kind == NAME and text.endswith(":"):
            text = text[:-1]
        else:
            if self.accept("("):
                while not self.accept(")"):
                    token = self.next()
                    if token.kind != NAME and token.text != "!":
                        raise self.fail("the attributes of a region", token)
                    attributes += token.text
            self.expect(":")
        origin = self._region_value(("ORIGIN", "org", "o"))
        self.accept(",")
        length = self._region_value(("LENGTH", "len", "l"))
        return ast.Region(text, attributes, origin, length, self.span_from(name.start))

    def _region_value(self, keywords: tuple[str, ...]) -> ast.Expr:
        token = self.expect_name(keywords[0])
        # `ORIGIN=0x0` without spaces is one name to ld's scanner in some versions and three in others.
        word = token.text.split("=", 1)[0]
        if word not in keywords:
            raise self.fail(keywords[0], token)
        if word != token.text:
            self.seek(token.start + len(word))
        self.expect("=")
        return self.expression()

    def _phdrs(self, keyword: Token) -> ast.Phdrs:
        headers: list[ast.Phdr] = []
        self.expect("{")
        while not self.accept("}"):
            headers.append(self._phdr(self.expect_name("the name of a program header or '}'")))
        return ast.Phdrs(tuple(headers), self.span_from(keyword.start))

    def _phdr(self, name: Token) -> ast.Phdr:
        kind = self.expression()
        filehdr = phdrs = False
        at: ast.Expr | None = None
        flags: ast.Expr | None = None
        while not self.accept(";"):
            token = self.expect_name("FILEHDR, PHDRS, AT, FLAGS or ';'")
            if token.text == "FILEHDR":
                filehdr = True
            elif token.text == "PHDRS":
                phdrs = True
            elif token.text in {"AT", "FLAGS"}:
                self.expect("(")
                value = self.expression()
                self.expect(")")
                at, flags = (value, flags) if token.text == "AT" else (at, value)
            else:
                raise self.fail("FILEHDR, PHDRS, AT, FLAGS or ';'", token)
        return ast.Phdr(name.text, kind, filehdr, phdrs, at, flags, self.span_from(name.start))

    def _sections(self, keyword: Token) -> ast.Sections:
        self.expect("{")
        commands = self.section_commands()
        return ast.Sections(keyword.text, commands, self.span_from(keyword.start))

    def _version(self, keyword: Token) -> ast.Version:
        self.expect("{", VERSION)
        nodes: list[ast.VersionNode] = []
        while not self.accept("}", VERSION):
            nodes.append(self._version_node())
        return ast.Version(tuple(nodes), self.span_from(keyword.start))

    def version_nodes(self) -> ast.Version:
        """Parse a version script, which is what VERSION has in braces."""
        nodes: list[ast.VersionNode] = []
        while self.peek(VERSION).kind != END:
            nodes.append(self._version_node())
        return ast.Version(tuple(nodes), self.span_from(0))

    def _version_node(self) -> ast.VersionNode:
        tag = self.next(VERSION).text if self.peek(VERSION).kind == NAME else ""
        self.expect("{", VERSION)
        items = self._version_items()
        depends: list[str] = []
        while not self.accept(";", VERSION):
            depends.append(self.expect_name("a version or ';'", VERSION).text)
        return ast.VersionNode(tag, items, tuple(depends))

    def _version_items(self) -> tuple[str, ...]:
        items: list[str] = []
        nested = False
        while True:
            token = self.next(VERSION)
            if token.kind == PUNCT and token.text == "}":
                if not nested:
                    return tuple(items)
                nested = False
                items.append("}")
            elif token.kind == NAME and token.text == "extern" and not nested:
                language = self.expect_name("a language", VERSION)
                self.expect("{", VERSION)
                nested = True
                items.append(f'extern "{language.text}" {{')
            elif token.kind in {NAME, STRING}:
                text = f'"{token.text}"' if token.kind == STRING else token.text
                items.append(text + ":" if self.accept(":", VERSION) else text)
            elif token.kind != PUNCT or token.text not in {";", ","}:
                raise self.fail("a symbol or '}'", token)


def _amount(least: int, most: int) -> str:
    if least == most:
        return f"{least} argument{'s' if least != 1 else ''}"
    return f"{least} to {most} arguments" if most < 1000 else f"at least {least} argument"


def parse(text: str) -> ast.Script:
    """Parse the text of a script. Syntax errors are in the result's `problems`; nothing is raised."""
    return ScriptParser(text).script()
