"""What every part of the parser shares: tokens by mode, expectations, expressions.

Precedence and functions follow binutils 2.40, ld/ldgram.y. Depth and length of expressions are bounded so
that no input can exhaust the stack of this process or of whoever walks the tree later.
"""

from __future__ import annotations

import re

from . import ast
from .ast import Span
from .lexer import BAD, END, EXPRESSION, NAME, NUMBER, PUNCT, SCRIPT, STRING, Lexer, Token, number_value

MAX_NESTING = 60
MAX_OPERATORS = 200

# A higher number binds tighter; all binary operators associate to the left.
PRECEDENCE = {
    "||": 1,
    "&&": 2,
    "|": 3,
    "^": 4,
    "&": 5,
    "==": 6,
    "!=": 6,
    "<": 7,
    ">": 7,
    "<=": 7,
    ">=": 7,
    "<<": 8,
    ">>": 8,
    "+": 9,
    "-": 9,
    "*": 10,
    "/": 10,
    "%": 10,
}

# function -> what its arguments are: e an expression, n a name, t a text.
FUNCTIONS = {
    "ABSOLUTE": "e",
    "ADDR": "n",
    "ALIGN": "e|ee",
    "ALIGNOF": "n",
    "ASSERT": "et",
    "BLOCK": "e",
    "CONSTANT": "n",
    "DATA_SEGMENT_ALIGN": "ee",
    "DATA_SEGMENT_END": "e",
    "DATA_SEGMENT_RELRO_END": "ee",
    "DEFINED": "n",
    "LENGTH": "n",
    "LOADADDR": "n",
    "LOG2CEIL": "e",
    "MAX": "ee",
    "MIN": "ee",
    "NEXT": "e",
    "ORIGIN": "n",
    "SEGMENT_START": "ne",
    "SIZEOF": "n",
}
FUNCTION_FORMS = {name: tuple(forms.split("|")) for name, forms in FUNCTIONS.items()}


# A name or a plain number with the end of the expression behind it.
_SIMPLE = re.compile(
    rf"\s*+(?:(?P<{NAME}>[A-Za-z_.][\w.]*+)|(?P<{NUMBER}>0x[0-9a-fA-F]++|[1-9][0-9]*+|0))(?=\s*+[;)])",
    re.ASCII,
)


class SyntaxFailure(Exception):
    """One statement could not be parsed; recovery happens where it is caught."""

    def __init__(self, message: str, span: Span) -> None:
        super().__init__(message)
        self.message = message
        self.span = span


def describe(token: Token) -> str:
    """Return how an error message calls the token."""
    if token.kind == END:
        return "the end of the file"
    return f'string "{token.text[:40]}"' if token.kind == STRING else f"'{token.text[:40]}'"


class Cursor(Lexer):
    """Reads tokens and expressions."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[ast.SyntaxProblem] = []
        self._nesting = 0
        self._operators = 0

    def accept(self, text: str, mode: int = SCRIPT) -> bool:
        """Step past the punctuation or keyword when it is next."""
        token = self.peek(mode)
        if token.text == text and (token.kind in {PUNCT, NAME}):
            self.next(mode)
            return True
        return False

    def fail(self, expected: str, token: Token) -> SyntaxFailure:
        """Return the failure of having met `token` where something else belongs."""
        return SyntaxFailure(
            f"expected {expected}, found {describe(token)}", Span(token.start, max(token.end, token.start))
        )

    def expect(self, text: str, mode: int = SCRIPT) -> Token:
        """Step past the punctuation or raise."""
        token = self.peek(mode)
        if token.kind != PUNCT or token.text != text:
            raise self.fail(f"'{text}'", token)
        return self.next(mode)

    def expect_name(self, what: str, mode: int = SCRIPT) -> Token:
        """Step past a name, bare or quoted, or raise."""
        token = self.peek(mode)
        if token.kind not in {NAME, STRING}:
            raise self.fail(what, token)
        return self.next(mode)

    def span_from(self, start: int) -> Span:
        """Return the span from `start` to the end of the last token."""
        return Span(start, max(start, self.last_end))

    # Expressions

    def expression(self) -> ast.Expr:
        """Parse a complete expression."""
        outermost = self._nesting == 0
        if outermost:
            self._operators = 0
        return self._conditional()

    def _simple(self) -> ast.Expr | None:
        """Read an expression that is one name or number, as most are."""
        match = self.step(_SIMPLE)
        if match is None:
            return None
        if match.lastgroup == NAME:
            return ast.Symbol(match[NAME], Span(*match.span(NAME)))
        text = match[NUMBER]
        return ast.Number(int(text, 0), text, Span(*match.span(NUMBER)))

    def _conditional(self) -> ast.Expr:
        simple = self._simple()
        if simple is not None:
            return simple
        self._nesting += 1
        token = self.peek(EXPRESSION)
        if self._nesting > MAX_NESTING:
            self._nesting = 0
            raise SyntaxFailure("the expression is nested too deeply", Span(token.start, token.end))
        try:
            test = self._binary(1)
            if not self.accept("?", EXPRESSION):
                return test
            then = self._conditional()
            self.expect(":", EXPRESSION)
            other = self._conditional()
            return ast.Conditional(test, then, other, self.span_from(token.start))
        finally:
            self._nesting = max(0, self._nesting - 1)

    def _binary(self, lowest: int) -> ast.Expr:
        start = self.peek(EXPRESSION).start
        left = self._unary()
        while True:
            token = self.peek(EXPRESSION)
            level = PRECEDENCE.get(token.text, 0) if token.kind == PUNCT else 0
            if level < lowest or level == 0:
                return left
            self._count(token)
            self.next(EXPRESSION)
            right = self._binary(level + 1)
            left = ast.Binary(token.text, left, right, self.span_from(start))

    def _count(self, token: Token) -> None:
        self._operators += 1
        if self._operators > MAX_OPERATORS:
            raise SyntaxFailure(
                f"the expression has more than {MAX_OPERATORS} operators", Span(token.start, token.end)
            )

    def _unary(self) -> ast.Expr:
        operators: list[Token] = []
        while True:
            token = self.peek(EXPRESSION)
            if token.kind != PUNCT or token.text not in {"-", "~", "!", "+"}:
                break
            self._count(token)
            operators.append(self.next(EXPRESSION))
        expression = self._primary()
        for operator in reversed(operators):
            expression = ast.Unary(operator.text, expression, self.span_from(operator.start))
        return expression

    def _primary(self) -> ast.Expr:
        token = self.peek(EXPRESSION)
        if token.kind == PUNCT and token.text == "(":
            self.next(EXPRESSION)
            inner = self._conditional()
            self.expect(")", EXPRESSION)
            return inner
        if token.kind not in {NAME, NUMBER, STRING}:
            raise self.fail("an expression", token)
        self.next(EXPRESSION)
        span = Span(token.start, token.end)
        if token.kind == NUMBER:
            value = number_value(token.text)
            if value is None:
                raise SyntaxFailure(f"'{token.text[:40]}' is no number", span)
            return ast.Number(value, token.text, span)
        if token.kind == NAME and token.text in FUNCTION_FORMS:
            after = self.peek(EXPRESSION)
            if after.kind == PUNCT and after.text == "(":
                return self._call(token)
        return ast.Symbol(token.text, span)

    def _call(self, function: Token) -> ast.Expr:
        forms = FUNCTION_FORMS[function.text]
        self.next(EXPRESSION)
        arguments: list[ast.Expr] = []
        while True:
            position = len(arguments)
            kind = next((form[position] for form in forms if position < len(form)), "")
            if not kind:
                raise self.fail(f"')' after the arguments of {function.text}", self.peek(EXPRESSION))
            arguments.append(self._argument(kind, function.text))
            if not self.accept(",", EXPRESSION):
                break
        if len(arguments) not in {len(form) for form in forms}:
            raise self.fail(f"another argument of {function.text}", self.peek(EXPRESSION))
        self.expect(")", EXPRESSION)
        return ast.Call(function.text, tuple(arguments), self.span_from(function.start))

    def _argument(self, kind: str, function: str) -> ast.Expr:
        if kind == "e":
            return self._conditional()
        mode = EXPRESSION if function in {"DEFINED", "CONSTANT"} else SCRIPT
        token = self.peek(mode)
        # A name that swallowed the comma or bracket after it, as ld's own scanner would, ends before it.
        name = self.expect_name("a name", mode if token.kind != BAD else EXPRESSION)
        text, end = name.text, name.end
        if kind == "n" and name.kind == NAME and "," in text:
            text = text.split(",", 1)[0]
            end = name.start + len(text)
            self.seek(end)
            self.last_end = end
        span = Span(name.start, end)
        return ast.Text(text, span) if kind == "t" else ast.Symbol(text, span)
