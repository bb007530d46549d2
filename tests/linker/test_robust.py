"""Generated scripts round-trip; mutated real scripts, maps and ELF files never end in a traceback or a hang.

The number of examples is the profile's: `HYPOTHESIS_PROFILE=linker-deep` runs ten thousands.
"""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linker import kinds, mapfile, rules
from linker.ast import Script, shape
from linker.cursor import PRECEDENCE
from linker.elffile import Elf
from linker.errors import LayoutInputError
from linker.fixing import fix
from linker.lint import Inputs, run
from linker.lsp.analysis import Analysis
from linker.lsp.hover import hover
from linker.mapfile import parse_map, read_map
from linker.match import matches
from linker.model import model
from linker.outline import Outline
from linker.parser import parse
from linker.printer import print_script
from linker.session import Request, format_text
from linker.source import Source
from tests.linker.elftext import build

PROFILE = settings.get_profile(os.environ.get("HYPOTHESIS_PROFILE", "linker-ci"))

# Scripts from the grammar

names = st.from_regex(r"[A-Za-z_.][A-Za-z0-9_.$]{0,8}", fullmatch=True)
odd_names = st.one_of(
    names, st.sampled_from(["KEEP", "AT", "a b", "x=y", "/DISCARD/", "1st", "ALIGN", ".text:"])
)
quoted = odd_names.map(lambda name: f'"{name}"')
numbers = st.one_of(
    st.integers(0, 1 << 64).map(str),
    st.integers(0, 1 << 64).map(hex),
    st.sampled_from(["4K", "1M", "10h", "$ff"]),
)
operators = st.sampled_from(list(PRECEDENCE))


def _calls(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(st.sampled_from(["ALIGN", "ABSOLUTE", "NEXT", "LOG2CEIL", "BLOCK"]), inner).map(
            "{0[0]}({0[1]})".format
        ),
        st.tuples(st.sampled_from(["MAX", "MIN", "ALIGN", "DATA_SEGMENT_ALIGN"]), inner, inner).map(
            "{0[0]}({0[1]}, {0[2]})".format
        ),
        st.tuples(st.sampled_from(["ADDR", "SIZEOF", "LOADADDR", "ALIGNOF", "ORIGIN", "LENGTH"]), names).map(
            "{0[0]}({0[1]})".format
        ),
        st.tuples(st.sampled_from(["DEFINED", "CONSTANT"]), names).map("{0[0]}({0[1]})".format),
    )


expressions = st.recursive(
    st.one_of(numbers, names, st.just(".")),
    lambda inner: st.one_of(
        st.tuples(inner, operators, inner).map("({0[0]} {0[1]} {0[2]})".format),
        st.tuples(inner, operators, inner).map("{0[0]} {0[1]} {0[2]}".format),
        st.tuples(st.sampled_from("-~!+"), inner).map("".join),
        st.tuples(inner, inner, inner).map("({0[0]} ? {0[1]} : {0[2]})".format),
        _calls(inner),
    ),
    max_leaves=8,
)
patterns = st.from_regex(r"[.*A-Za-z_][A-Za-z0-9_.*?+-]{0,10}", fullmatch=True).filter(
    lambda p: "/*" not in p
)
sections = st.lists(
    st.one_of(
        patterns,
        quoted,
        st.tuples(st.sampled_from(["SORT", "SORT_BY_ALIGNMENT", "SORT_NONE"]), patterns).map(
            "{0[0]}({0[1]})".format
        ),
        st.tuples(patterns, patterns).map("EXCLUDE_FILE({0[0]}) {0[1]}".format),
    ),
    min_size=1,
    max_size=4,
).map(" ".join)
inputs = st.one_of(
    st.tuples(patterns, sections).map("{0[0]}({0[1]})".format),
    st.tuples(patterns, sections).map("KEEP({0[0]}({0[1]}))".format),
)
assigns = st.tuples(
    st.one_of(names, st.just(".")), st.sampled_from(["=", "+=", "-=", "*=", "<<=", "|="]), expressions
).map("{0[0]} {0[1]} {0[2]};".format)
provides = st.tuples(st.sampled_from(["PROVIDE", "PROVIDE_HIDDEN", "HIDDEN"]), names, expressions).map(
    "{0[0]}({0[1]} = {0[2]});".format
)
comments = st.sampled_from(["", "/* note */", "/* a\n b */", "# hash\n"])
body = st.lists(
    st.one_of(
        inputs, assigns, provides, comments,
        st.tuples(st.sampled_from(["BYTE", "LONG", "QUAD"]), expressions).map("{0[0]}({0[1]})".format),
        expressions.map("ASSERT({}, \"no\");".format),
    ),
    max_size=5,
).map("\n".join)  # fmt: skip
heads = st.one_of(
    st.just(""), expressions, st.sampled_from(["(NOLOAD)", "0 (INFO)", "()", "(READONLY)", "(TYPE = 8)"])
)
options = st.one_of(
    st.just(""),
    expressions.map("AT({})".format),
    expressions.map("ALIGN({}) SUBALIGN(4) ONLY_IF_RO".format),
    st.just("ALIGN_WITH_INPUT"),
)
tails = st.sampled_from(["", ">RAM", ">RAM AT>ROM", ":text :note", ">RAM :text =0x9090", "=0", ","])
outputs = st.tuples(st.one_of(names, quoted, st.just("/DISCARD/")), heads, options, body, tails).map(
    "{0[0]} {0[1]} : {0[2]} {{ {0[3]} }} {0[4]}".format
)
commands = st.one_of(
    assigns, provides, outputs,
    st.tuples(names, body).map(
        "OVERLAY 0x10 : NOCROSSREFS AT(4) {{ {0[0]} {{ {0[1]} }} }} >RAM".format
    ),
)  # fmt: skip
scripts = st.tuples(
    st.sampled_from(["", "ENTRY(_start)", "MEMORY { RAM (rwx!x) : ORIGIN = 0, LENGTH = 4K + 1 }",
                     "PHDRS { text PT_LOAD FILEHDR PHDRS AT(4) FLAGS(5); }",
                     "INPUT(a.o AS_NEEDED(b.o -lc) c.o)",
                     "VERSION { V1 { global: a*; local: *; } V0; }", "INSERT AFTER .bss"]),
    st.lists(commands, max_size=5).map("\n".join),
).map("{0[0]}\nSECTIONS {{ {0[1]} }}\n".format)  # fmt: skip


@PROFILE
@given(scripts)
def test_generated_scripts_round_trip(script: str) -> None:
    tree = parse(script)
    if tree.problems:
        # A pattern may be a keyword, an operator chain too long: refused, not misread.
        assert all(problem.message for problem in tree.problems)
        return
    printed = print_script(tree, script)
    again = parse(printed)
    assert again.problems == ()
    assert shape(again) == shape(tree)
    assert print_script(again, printed) == printed
    assert [comment.text for comment in again.comments] == [comment.text for comment in tree.comments]


@PROFILE
@given(scripts)
def test_most_generated_scripts_are_understood(script: str) -> None:
    known = ("quoted", "nested", "operators", "expected", "number", "end")
    assert all(any(word in problem.message for word in known) for problem in parse(script).problems)


# Mutations


def _seeds() -> list[str]:
    out = [rule.bad.script for rule in rules.load() if rule.bad.script]
    out += [
        path.read_text(errors="replace")
        for path in sorted(Path("/usr/lib").glob("*/ldscripts/elf_x86_64.x*"))[:4]
    ]
    corpus = Path(__file__).resolve().parents[2] / ".cache" / "corpus" / "scripts" / "linux"
    if corpus.is_dir():
        out += [path.read_text() for path in sorted(corpus.iterdir())]
    return out


SEEDS = _seeds()
_TOKENS = re.compile(r"\s+|[\w.$]+|.", re.DOTALL)
SPICE = [
    "{",
    "}",
    "(",
    ")",
    ";",
    "/*",
    "*/",
    '"',
    "ALIGN(",
    "0x",
    "=",
    "\0",
    "\x80",
    "#",
    "KEEP",
    "9" * 30,
    ",",
    "$",
]


def mutate(seed: int) -> str:
    source = random.Random(seed)
    tokens = _TOKENS.findall(source.choice(SEEDS))
    start = source.randrange(max(1, len(tokens)))
    tokens = tokens[: source.randrange(400) + 1] if source.random() < 0.5 else tokens[start : start + 400]
    for _ in range(source.randrange(1, 12)):
        at = source.randrange(len(tokens) + 1)
        match source.randrange(4):
            case 0:
                tokens[at:at] = [source.choice(SPICE)]
            case 1:
                del tokens[at : at + source.randrange(1, 4)]
            case 2:
                tokens[at:at] = tokens[source.randrange(len(tokens) + 1) :][:6]
            case _:
                tokens[at : at + 1] = [source.choice(SPICE) * source.randrange(1, 40)]
    return "".join(tokens)


@PROFILE
@given(st.integers(0, 1 << 62))
def test_mutated_scripts(seed: int) -> None:
    text = mutate(seed)
    tree = parse(text)
    assert isinstance(tree, Script)
    assert len(tree.problems) <= 60
    report = run(Inputs(Source("a.lds", text)))
    assert report.usable is not bool(kinds.read(text).script.problems)
    model(Outline(tree), None, None)
    if not tree.problems:
        assert shape(parse(print_script(tree, text))) == shape(tree)


ELVES = [build(rule.bad.elf) for rule in rules.load() if rule.bad.elf]
MAPS = [rule.bad.map for rule in rules.load() if rule.bad.map]


@PROFILE
@given(st.integers(0, 1 << 62))
def test_mutated_elf_files(seed: int) -> None:
    source = random.Random(seed)
    data = bytearray(source.choice(ELVES))
    for _ in range(source.randrange(1, 8)):
        at = source.randrange(len(data) if source.random() < 0.3 else 512)
        kind = source.choice(["<B", "<H", "<I", "<Q"])
        top = (1 << 8 * struct.calcsize(kind)) - 1
        value = source.choice([0, 1, 4, 0x7F, 0xFF, 0xFFFF, 0x1000, top, top >> 1, source.randrange(top)])
        data[at : at + struct.calcsize(kind)] = struct.pack(kind, value & top)
    if source.random() < 0.2:
        del data[source.randrange(len(data)) :]
    with suppress(LayoutInputError):
        run(Inputs(elf=Elf("a.elf", bytes(data))))


@PROFILE
@given(st.integers(0, 1 << 62))
def test_mutated_maps(seed: int) -> None:
    source = random.Random(seed)
    text = list(source.choice(MAPS))
    for _ in range(source.randrange(1, 10)):
        at = source.randrange(len(text))
        text[at : at + source.randrange(3)] = source.choice(
            ["\n", " ", "0x", "\0", "(", "*fill*", "ffffffffffffffffff"]
        )
    with suppress(LayoutInputError):
        run(Inputs(map=parse_map("a.map", "".join(text).encode().splitlines(keepends=True))))


# No quadratic blow-up: eight times the input takes about eight times the calls, counted and not timed.

GROWING: dict[str, Callable[[int], str]] = {
    "comments": lambda n: "/* x */ " * n,
    "stars": lambda n: "/*" + "*" * n,
    "open parentheses": lambda n: "x = " + "(" * n,
    "open braces": lambda n: "SECTIONS { " + "a : { " * n,
    "operators": lambda n: "x = " + "-" * n + "1;",
    "sum": lambda n: "x = 1" + "+1" * n + ";",
    "errors": lambda n: "= ; " * n,
    "patterns": lambda n: "SECTIONS { .a : { " + "*(.a*b*c*d) " * n + "} }",
    "sections": lambda n: (
        "SECTIONS { " + " ".join(f".s{i} : {{ *(.s{i}) x{i} = .; }}" for i in range(n)) + "}"
    ),
    "globs": lambda n: (
        "SECTIONS { "
        + " ".join(f".s{i} : {{ b{i} = .; *(.s{i} .s{i}.*) e{i} = .; }}" for i in range(n))
        + "}"
    ),
    "kept globs": lambda n: (
        "SECTIONS { .t : { " + " ".join(f"KEEP(*(.s{i}* .z*{i})) *(SORT(.d{i}.*))" for i in range(n)) + "} }"
    ),
    "regions": lambda n: (
        "MEMORY { "
        + " ".join(f"r{i} : ORIGIN = {i * 4096}, LENGTH = 4K" for i in range(n))
        + " } SECTIONS { "
        + " ".join(f".s{i} : {{ *(.s{i}) }} > r{i}" for i in range(n))
        + "}"
    ),
    "load addresses": lambda n: (
        "SECTIONS { "
        + " ".join(f".s{i} : AT(ADDR(.s{i}) - 4) {{ *(.s{i}) }} l{i} = LOADADDR(.s{i});" for i in range(n))
        + "}"
    ),
    "copied sections": lambda n: (
        "MEMORY { F (rx) : ORIGIN = 0, LENGTH = 64M R (rw) : ORIGIN = 0x20000000, LENGTH = 64M }\n"
        "SECTIONS { .text : { *(.text) } >F "
        + " ".join(
            f"s{i}_start = .; .s{i} : {{ *(.data.s{i}) }} >R AT>F s{i}_end = .; l{i} = LOADADDR(.s{i});"
            for i in range(n // 4)
        )
        + "}"
    ),
    "quotes": lambda n: '"' * n,
    "digits": lambda n: "x = " + "9" * n + ";",
    "line markers": lambda n: '# 1 "a"\nx = ;\n' * n,
    "groups": lambda n: "SECTIONS { " + "GROUP : { " * n,
    "sorts": lambda n: "SECTIONS { a : { *(" + "SORT(" * n,
    "exclusions": lambda n: "SECTIONS { a : { *(EXCLUDE_FILE(" + "x " * n,
    "suppressions": lambda n: "/* lint: disable=a */\n" * n,
}


def _calls_of(text: str) -> int:
    """Return how many functions, Python's own included, linting the text calls."""
    count = 0

    def hook(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in {"call", "c_call"}

    sys.setprofile(hook)
    try:
        run(Inputs(Source("a.lds", text)))
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("shape_of", GROWING)
def test_cost_grows_with_size_not_its_square(shape_of: str) -> None:
    small, large = (GROWING[shape_of](n) for n in (300, 2400))
    run(Inputs(Source("a.lds", small)))
    assert _calls_of(large) < 12 * _calls_of(small) + 2000


def test_hostile_globs_end() -> None:
    assert not matches("*a" * 40 + "b", "a" * 5000)
    assert matches("*a" * 40 + "*", "a" * 5000)


# Readers have an end whatever they are given


@pytest.mark.parametrize(
    "words",
    [
        ["--map", "/dev/zero"], ["--map", "/dev/urandom"], ["--elf", "/dev/zero"], ["/dev/zero"],
        ["/dev/urandom"], ["k.lds", "--config", "/dev/zero"], ["k.lds", "--baseline", "/dev/zero"],
        ["marker.lds"], ["--map", "."], ["--elf", "."], ["."], ["diff", "/dev/zero", "/dev/zero"],
        ["format", "/dev/zero"], ["regions", "/dev/zero", "--map", "/dev/zero"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_reader_has_an_end(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "k.lds").write_text("SECTIONS { .text : { *(.text) } }\n")
    (tmp_path / "marker.lds").write_text('# 1 "/dev/zero"\nSECTIONS { .text : { . = ALIGN(6); } }\n')
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == (1 if "marker.lds" in words else 2), done.stderr
    assert "Traceback" not in done.stderr


# 600 MB of addresses, so that one without a limit ends in a traceback and not in this machine.
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
from domainbuilder.cli import main
main(["lint", *sys.argv[1:]])
"""


def test_a_map_without_a_heading_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapfile, "MAX_PREAMBLE", 1 << 16)
    path = tmp_path / "k.map"
    path.write_bytes(b"y\n" * (1 << 16))
    with pytest.raises(LayoutInputError, match="before the first heading"):
        read_map(str(path))
    monkeypatch.setattr(mapfile, "MAX_MAP", 1 << 18)
    path.write_bytes(b"\nLinker script and memory map\n\n" + b"x" * (1 << 19))
    with pytest.raises(LayoutInputError, match="too large"):
        read_map(str(path))


def test_maps_and_elf_files_come_through_pipes(tmp_path: Path) -> None:
    for option, data in (("--map", MAPS[0].encode()), ("--elf", ELVES[0])):
        path = tmp_path / "input"
        path.write_bytes(data)
        words = [sys.executable, "-m", "domainbuilder", "lint", option]
        direct = subprocess.run([*words, path], capture_output=True, text=True, check=False)
        piped = subprocess.run(
            ["bash", "-c", f'"$@" <(cat {path})', "bash", *words], capture_output=True, text=True, check=False
        )
        assert piped.returncode == direct.returncode
        assert [line.partition(":")[2] for line in piped.stdout.splitlines()] == [
            line.partition(":")[2] for line in direct.stdout.splitlines()
        ]


@PROFILE
@given(st.integers(0, 1 << 62))
def test_an_editor_may_ask_anywhere(seed: int) -> None:
    text = mutate(seed)
    analysis = Analysis("/nowhere/a.lds", Request(), {"/nowhere/a.lds": text})
    source = random.Random(seed)
    lines = text.replace("\r\n", "\n").split("\n")
    for _ in range(12):
        line = source.randrange(len(lines)) + 1
        column = source.randrange(len(lines[line - 1]) + 1) + 1
        hover(analysis, "/nowhere/a.lds", line, column)
        word = analysis.word("/nowhere/a.lds", line, column)
        if word is not None:
            assert lines[line - 1][word.start : word.end] == word.text
            for span in analysis.definitions(word.text):
                place = analysis.place(span)
                assert 0 < place.line <= len(lines)
    for file, found in analysis.diagnostics().items():
        assert file == "/nowhere/a.lds"
        assert all(0 < one.line <= len(lines) for one in found)
    with suppress(LayoutInputError):
        before, after = format_text("/nowhere/a.lds", text)
        assert before == text
        assert format_text("/nowhere/a.lds", after) == (after, after)
    given = {"/nowhere/a.lds": text}
    changed, _ = fix(lambda texts: Analysis("/nowhere/a.lds", Request(), texts).report, given)
    assert len(changed) <= 1
