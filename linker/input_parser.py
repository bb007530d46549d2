"""The part of the grammar that takes input sections: files, patterns of names, sorts, KEEP."""

from __future__ import annotations

import re

from . import ast
from .ast import Span
from .cursor import Cursor
from .lexer import NAME, PUNCT, WILD

SORTS = frozenset(
    {
        "SORT",
        "SORT_BY_NAME",
        "SORT_BY_ALIGNMENT",
        "SORT_BY_INIT_PRIORITY",
        "SORT_NONE",
        "REVERSE",
    }
)
FILE_SORTS = frozenset({"SORT", "SORT_BY_NAME", "SORT_NONE"})
# A section pattern that is a plain word; one with a bracket or a comment behind it may be a sort.
_PLAIN_PATTERN = re.compile(r"\s*+([\w.$*?-]++)(?![/\\~+:\[\],=^!])(?!\s*+[(/\#])", re.ASCII)

_ALL_FILES = re.compile(r"\s*+(\*)\s*+(\()")


class InputParser(Cursor):
    """Parses an input section description, as `KEEP(*(.text .text.*))`."""

    def input_description(self) -> ast.InputSpec | ast.Command:
        """Parse a file and its sections, with all that can stand around them."""
        start = self.peek(WILD).start
        keep = self._keyword("KEEP")
        if keep:
            self.expect("(", WILD)
        flags = self._flags()
        file, sections = self._file_and_sections()
        if keep:
            self.expect(")", WILD)
        if file.name == "CONSTRUCTORS" and file.sorts:
            return ast.Command("SORT(CONSTRUCTORS)", (), file.span)
        return ast.InputSpec(file, sections, keep, flags, self.span_from(start))

    def _keyword(self, word: str) -> bool:
        """Accept the keyword, which is one only when a parenthesis follows."""
        token = self.peek(WILD)
        if token.kind != NAME or token.text != word:
            return False
        position = self.position
        self.next(WILD)
        if self.peek(WILD).text == "(":
            return True
        self.seek(position)
        return False

    def _flags(self) -> tuple[str, ...]:
        if not self._keyword("INPUT_SECTION_FLAGS"):
            return ()
        self.expect("(", WILD)
        flags = [self.expect_name("a section flag", WILD).text]
        while self.accept("&", WILD):
            flags.append(self.expect_name("a section flag", WILD).text)
        self.expect(")", WILD)
        return tuple(flags)

    def _file_and_sections(self) -> tuple[ast.Pattern, tuple[ast.Pattern, ...] | None]:
        all_files = self.step(_ALL_FILES)
        if all_files is not None:
            return ast.Pattern("*", (), (), Span(*all_files.span(1))), self._patterns(")")
        token = self.peek(WILD)
        if token.kind == PUNCT and token.text == "[":
            self.next(WILD)
            return ast.Pattern("*"), self._patterns("]")
        file = self._pattern(())
        if file.name == "CONSTRUCTORS" and file.sorts:
            return file, None
        if not FILE_SORTS.issuperset(file.sorts):
            # lld reads the keyword as the name of a file, GNU ld refuses it: neither sorts.
            raise self.fail("SORT_BY_NAME or SORT_NONE around a file name", token)
        if not self.accept("(", WILD):
            if file.sorts:
                raise self.fail("'(' and section names after the sorted file", self.peek(WILD))
            return file, None
        return file, self._patterns(")")

    def _patterns(self, closing: str) -> tuple[ast.Pattern, ...]:
        """Parse section patterns; an EXCLUDE_FILE before a list holds for the one pattern after it."""
        patterns: list[ast.Pattern] = []
        while True:
            match = self.step(_PLAIN_PATTERN)
            if match is not None:
                patterns.append(ast.Pattern(match[1], (), (), Span(*match.span(1))))
            elif self.accept(closing, WILD):
                return tuple(patterns)
            elif not self.accept(",", WILD):
                patterns.append(self._pattern(()))

    def _pattern(self, sorts: tuple[str, ...]) -> ast.Pattern:
        start = self.peek(WILD).start
        excludes: list[str] = []
        closings = 0
        while True:
            word = self.peek(WILD)
            if word.kind == NAME and word.text in SORTS and self._keyword(word.text):
                if excludes and not closings:
                    raise self.fail("a name after EXCLUDE_FILE, which stands inside of a sort", word)
                if closings >= 4:
                    raise self.fail("at most four sorts", word)
                self.expect("(", WILD)
                sorts = (*sorts, word.text)
                closings += 1
            elif self._keyword("EXCLUDE_FILE"):
                self.expect("(", WILD)
                while not self.accept(")", WILD):
                    excludes.append(self.expect_name("a file or ')'", WILD).text)
            else:
                break
        name = self.expect_name("a pattern", WILD)
        for _ in range(closings):
            self.expect(")", WILD)
        return ast.Pattern(name.text, sorts, tuple(excludes), self.span_from(start))
