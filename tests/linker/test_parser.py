"""Spans, places through line markers, recovery, and the numbers of the script language."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from linker import ast, cursor, input_parser, rules, section_parser
from linker.evaluate import CONSTANTS, Known, Unknown, evaluate
from linker.lexer import number_value
from linker.outline import Outline, walk
from linker.parser import parse
from linker.source import Source

SCRIPT = """ENTRY(_start)
SECTIONS {
  . = 0x1000 + 4 * (2 - 1);
  .text ALIGN(16) : AT(0x10) {
    KEEP(*(EXCLUDE_FILE(a.o *b.o) .text SORT(.text.*))) x = .; } >RAM AT>ROM :text =0x90
  PROVIDE_HIDDEN(end = . );
}
"""


def spans(node: object) -> Iterator[tuple[tuple[object, ...], ast.Span]]:
    if isinstance(node, tuple):
        span = getattr(node, "span", None)
        if isinstance(span, ast.Span) and span != ast.NOWHERE:
            yield node, span
        for part in node:
            yield from spans(part)


def test_spans_cover_exactly_what_was_written() -> None:
    script = parse(SCRIPT)
    assert script.problems == ()
    texts = {SCRIPT[span.start : span.end] for _, span in spans(script.commands)}
    assert {
        "ENTRY(_start)", ". = 0x1000 + 4 * (2 - 1)", "0x1000 + 4 * (2 - 1)", "4", "ALIGN(16)", "0x10",
        "EXCLUDE_FILE(a.o *b.o) .text", "SORT(.text.*)", "x = .", "PROVIDE_HIDDEN(end = . )",
        "KEEP(*(EXCLUDE_FILE(a.o *b.o) .text SORT(.text.*)))", "0x90",
    } <= texts  # fmt: skip
    section = Outline(script).sections[0].section
    assert SCRIPT[section.name_span.start : section.name_span.end] == ".text"
    assert SCRIPT[section.span.start : section.span.end].startswith(".text ALIGN(16)")
    assert SCRIPT[section.span.start : section.span.end].endswith("=0x90")


@pytest.mark.parametrize("op", ["=", "+=", "-=", "*=", "/=", "&=", "|=", "^=", "<<=", ">>="])
def test_every_assignment_is_read_everywhere(op: str) -> None:
    """`/=` between blanks is no name, although a name may begin with a slash."""
    script = parse(f"x {op} 2;\nSECTIONS {{ x {op} 2; .a : {{ x {op} 2; }} }}\n")
    assert script.problems == ()
    assert [assign.op for assign in Outline(script).assignments] == [op] * 3


def test_every_node_lies_inside_of_its_parent() -> None:
    for node, span in spans(parse(SCRIPT).commands):
        for _, inner in spans(tuple(node)):
            assert span.start <= inner.start <= inner.end <= span.end


def test_line_markers_lead_to_other_files(tmp_path: Path) -> None:
    header = tmp_path / "pages.lds.h"
    header.write_text("/* header */\n#define D *(.data)\nx = ;\n")
    text = f'# 1 "top.lds.S"\n# 1 "{header}" 1\n\n\nx = ;\n# 2 "top.lds.S" 2\ny = ;\n'
    source = Source("top.lds.S", text)
    places = [source.locate(*problem.span) for problem in parse(text).problems]
    assert [(place.file, place.line) for place in places] == [(str(header), 3), ("top.lds.S", 2)]
    assert places[0].text == "x = ;"


def test_recovery_reports_several_errors_and_keeps_the_rest() -> None:
    text = (
        "x = ;\nSECTIONS {\n .a : { *(.a) y = 1 z = 2; *(.b) }\n .c { *(.c) }\n .d : { *(.d) }\n}\n"
        "ENTRY(a b)\nz = 3;\n"
    )
    script = parse(text)
    lines = [text.count("\n", 0, problem.span.start) + 1 for problem in script.problems]
    assert lines == [1, 3, 4, 7]
    assert Outline(script).names == {".a", ".d"}
    assert [command.target for command in script.commands if isinstance(command, ast.Assign)] == ["z"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("10", 10), ("0x10", 16), ("$10", 16), ("10h", 16), ("010", 8), ("1K", 1024), ("0x1M", 1 << 20),
     ("101b", 5), ("17o", 15), ("9d", 9), ("1G", None), ("0x", None), ("08", None)],
)  # fmt: skip
def test_numbers(text: str, value: int | None) -> None:
    assert number_value(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("7 - 2 - 1", 4), ("1 << 4 | 1", 17), ("~0 & 0xff", 0xFF),
        ("-1", (1 << 64) - 1), ("5 > 3 ? 10 : 20", 10), ("0 ? 1 : 0 ? 2 : 3", 3), ("ALIGN(5, 4)", 8),
        ("MAX(3, 9)", 9),
        ("MIN(3, 9)", 3), ("LOG2CEIL(5)", 3), ("1 == 1 && 2 < 1", 0), ("1 || x", 1), ("0 && x", 0), ("!5", 0),
        ("17 % 5", 2), ("6 & 3 == 3", 0), ("2 ^ 3", 1),
    ],
)  # fmt: skip
def test_arithmetic_is_that_of_c(text: str, value: int) -> None:
    result = evaluate(assigned(f"v = {text};"), CONSTANTS)
    assert isinstance(result, Known)
    assert result.value == value


def test_unknown_says_why() -> None:
    value = assigned("v = 1 / (x - x) + 2;")
    assert evaluate(value, CONSTANTS) == Unknown("the value of 'x' is known only when linking")
    value = assigned("v = 1 / 0;")
    assert evaluate(value, CONSTANTS) == Unknown("it divides by zero")
    assert len(list(walk(value))) == 3


def assigned(text: str) -> ast.Expr:
    (assign,) = parse(text).commands
    assert isinstance(assign, ast.Assign)
    return assign.value


def test_depth_and_length_are_bounded() -> None:
    for text in (
        "x = " + "(" * 5000,
        "x = " + "1 + " * 5000 + "1;",
        "x = " + "MAX(1," * 500 + "1" + ")" * 500 + ";",
    ):
        (problem, *_) = parse(text).problems
        assert "nested" in problem.message or "operators" in problem.message


# What is read in one go is what is read token by token.


@pytest.fixture
def token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    never = re.compile(r"(?!)")
    for module, name in (
        (section_parser, "_PLAIN_INPUT"),
        (section_parser, "_PLAIN_ASSIGN"),
        (section_parser, "_PLAIN_HEAD"),
        (section_parser, "_PLAIN_CLOSE"),
        (section_parser, "_PLAIN_TAIL"),
        (input_parser, "_PLAIN_PATTERN"),
        (input_parser, "_ALL_FILES"),
        (cursor, "_SIMPLE"),
    ):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr(section_parser, "_MAY_BE_ASSIGNED", re.compile(""))


def real_scripts() -> list[str]:
    found = [rule.bad.script for rule in rules.load() if rule.bad.script]
    found += [rule.good.script for rule in rules.load() if rule.good.script]
    found += [path.read_text() for path in sorted((Path(__file__).parent / "data").rglob("*.ld"))]
    found += [path.read_text() for path in sorted(Path("/usr/lib").glob("*/ldscripts/*.x"))]
    return found


ODD = """SECTIONS { .a : {
*(.a .b) KEEP(*(.c)) KEEP (*(.d)) * ( .e ) *(.f,.g) *(.h /* c */ .i) KEEP( *(.j) ) x = .; y = . ;
z = ALIGN(8);
. = ALIGN(0x10) ; . = ALIGN(., 8); w=.; SORT = .; Sort = .; KEEP = .; . = .; *(SORT(.k) .l) *(.m)*(.n)
*(EXCLUDE_FILE (a.o) .o) *([a-z].p) *(.q.*?) *(.r-s) *(.t) ; , *(.u)# comment
*(.v)/* c */*(.w) KEEP(*(.x)KEEP) } .z : { } a = .; b = ALIGN(010); . = 0x10; ABS = ABSOLUTE(.); }
"""


HEADS = [
    " : {", ":{", " : ALIGN(16) {", " : ALIGN ( 0x10 ) {", " : ALIGN(4K) {", " : ALIGN(010) {",
    " : /* c */ {", " 8 : {", " (NOLOAD) : {", " : ALIGN(x) {", " : ALIGN(16h) {", ": # c\n {",
    " : ALIGN(16) AT(8) {",
]  # fmt: skip
TAILS = [
    "} > R", "} >R ", "}", "} >R AT> S", "} AT>S", "} > R AT : { }", "} AT : { }", "} >R :p",
    "} > R, .b : {}", "} /* c */ > R", "} > /* c */ R", "} > R /* c */ AT> S", "} > R =0x90", "}, ",
    "/* c */ } > R", "# c\n} >R", "} >R}", "} >\"R\" ", "} >R .b=1;", "} > R-1 ", "} ATTIC : { }",
    "} >R.x .b : {}",    "} >R\n.b : { } > R",
]  # fmt: skip


def test_one_go_and_token_by_token_are_one(request: pytest.FixtureRequest) -> None:
    texts = [
        *real_scripts(),
        ODD,
        *ODD.split("\\n"),
        *(f"SECTIONS {{ .a : {{ {line} }} }}" for line in ODD.split(") ")),
        *(f"SECTIONS {{ .a{head} *(.a) {tail} }}" for head in HEADS for tail in TAILS),
    ]
    fast = [parse(text) for text in texts]
    request.getfixturevalue("token_by_token")
    slow = [parse(text) for text in texts]
    # Spans included: tuples compare with everything that is in them.
    assert [one for one in zip(texts, fast, slow, strict=True) if one[1] != one[2]] == []
    assert sum(not one.problems for one in fast) > 60
