"""Which texts are scripts: INCLUDE, parts of scripts, version scripts, comments that cpp does not take."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from linker import kinds
from linker.include import follow
from linker.lint import Inputs, Report, run
from linker.session import Preprocessing, Request, lint_files, load_script
from linker.source import Source
from tests.linker.linking import run as run_tool
from tests.needs import Tool

MAIN = "SECTIONS {{ INCLUDE {} .data : {{ *(.data) *(.data.page_aligned) }} }}\n"
PART = ".text : { . = ALIGN(6); *(.text) }\n"


def rules_of(report: Report) -> set[str]:
    return {diagnostic.rule for diagnostic in report.diagnostics}


Put = Callable[[str, str], str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    monkeypatch.chdir(tmp_path)

    def put(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    return put


def test_include_is_followed_and_findings_are_in_their_files(here: Put) -> None:
    here("main.ld", MAIN.format("part.ld"))
    here("lib/part.ld", PART)
    assert rules_of(lint_files(Request(("main.ld",)))) >= {"include-not-found", "page-aligned-order"}
    report = lint_files(Request(("main.ld",), how=Preprocessing(library=("lib",))))
    places = {(d.rule, d.file, d.line, d.column) for d in report.diagnostics if d.severity == "error"}
    assert places == {
        ("align-not-power-of-two", "lib/part.ld", 1, 15),
        ("page-aligned-order", "main.ld", 1, 49),
    }
    assert report.files == ("main.ld", "lib/part.ld")


def test_include_is_looked_for_where_ld_does(here: Put, tool: Tool) -> None:
    """The working directory wins over -L, for ld and for us; what is beside the script comes last."""
    here("x/main.ld", "INCLUDE part.ld\n")
    here("x/part.ld", "which = 1;\n")
    here("lib/part.ld", "which = 2;\n")
    here("empty.s", "")
    run_tool(tool("as"), "-o", "e.o", "empty.s")

    def by_ld() -> str:
        subprocess.run(
            [tool("ld.bfd", "ld"), "-e0", "-L", "lib", "-T", "x/main.ld", "-o", "a.out", "e.o"], check=True
        )
        return run_tool(tool("nm"), "a.out")

    def ours(*library: str) -> str:
        return load_script("x/main.ld", Preprocessing(library=library)).text

    assert "00000002 A which" in by_ld()
    assert "which = 2" in ours("lib")
    assert "which = 1" in ours()
    here("part.ld", "which = 3;\n")
    assert "00000003 A which" in by_ld()
    assert "which = 3" in ours("lib")


def test_include_inside_memory_and_output_sections(here: Put) -> None:
    here("regions.ld", "ROM : ORIGIN = 0, LENGTH = 4K")
    here("inputs.ld", "*(.text.hot)\n*(.text)")
    here("main.ld", "MEMORY { INCLUDE regions.ld }\nSECTIONS { .text : { INCLUDE inputs.ld } > ROM }\n")
    source = load_script("main.ld")
    script = kinds.read(source.text).script
    assert script.problems == ()
    at = source.text.index("*(.text)")
    assert source.locate(at, at + 8)[:3] == ("inputs.ld", 2, 1)
    at = source.text.index("> ROM")
    assert source.locate(at, at + 1)[:3] == ("main.ld", 2, 42)
    assert source.offset("inputs.ld", 2, 1) == source.text.index("*(.text)")
    assert source.offset("main.ld", 2, 42) == at


def test_include_ends(here: Put) -> None:
    here("self.ld", "a = 1;\nINCLUDE self.ld\n")
    report = lint_files(Request(("self.ld",)))
    assert not report.usable
    assert "10 deep" in report.diagnostics[0].message
    here("wide.ld", "INCLUDE wide2.ld\n" * 40)
    here("wide2.ld", "INCLUDE wide3.ld\n" * 40)
    here("wide3.ld", "INCLUDE empty.ld\n" * 40)
    here("empty.ld", "")
    assert not lint_files(Request(("wide.ld",))).usable


def test_commented_and_quoted_includes_are_none() -> None:
    text = '/* INCLUDE a.ld */ # INCLUDE b.ld\nx = ASSERT(1, "INCLUDE c.ld"); .INCLUDE = 1;'
    assert follow(Source("m.ld", text)).text == text
    assert "include-not-found" not in rules_of(run(Inputs(Source("m.ld", text))))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PART, "SECTIONS"),
        ("*(.text)\nKEEP(*(.init))\n", "an output section"),
        ("ROM : ORIGIN = 0, LENGTH = 4K\nRAM (rw) : org = 1K, len = 4K\n", "MEMORY"),
        ("LIBFDT_1.2 {\n\tglobal:\n\t\tfdt_next_node;\n\tlocal:\n\t\t*;\n};\n", "version script"),
        ('V1 { extern "C++" { ns::*; }; };\nV2 { a; } V1;\n', "version script"),
        ("{ just_a_list; };", "version script"),
        ("a = 1;\nSECTIONS { }\n", "script"),
        ("only words here", "script"),
        ("int main(void) { return 0; }", "script"),
        ("", "script"),
    ],
)
def test_what_a_text_is(text: str, kind: str) -> None:
    assert kinds.read(text).kind == kind


def test_a_part_alone_is_judged_by_what_no_other_line_can_change(here: Put) -> None:
    report = lint_files(Request((here("part.ld", PART.replace("(.text)", "(.text) *(.bss)")),)))
    assert report.usable
    assert rules_of(report) == {"fragment", "align-not-power-of-two"}


def test_a_part_is_judged_in_its_context_when_that_is_there(here: Put) -> None:
    here("main.ld", MAIN.format("part.ld"))
    here("part.ld", PART)
    report = lint_files(Request(("part.ld", "main.ld")))
    assert [d.rule for d in report.diagnostics if d.file == "part.ld"] == ["align-not-power-of-two"]


def test_version_script_is_recognised_and_ld_takes_it(here: Put, tool: Tool) -> None:
    text = "V1 { global: f; local: *; };\n"
    here("v.lds", text)
    here("f.s", ".globl f\nf: .byte 1\n")
    run_tool(tool("as"), "-o", "f.o", "f.s")
    run_tool(tool("ld.bfd", "ld"), "-shared", "--version-script", "v.lds", "-o", "f.so", "f.o")
    report = lint_files(Request(("v.lds",)))
    assert not report.failed
    assert rules_of(report) == {"version-script"}


HASHES = """MEMORY
{
  # make room for the loader
  rom (rx) : ORIGIN = 0x8000, LENGTH = 64K
  # if you need more space, use this instead
  # rom (rx) : ORIGIN = 0x4000, LENGTH = 80K
}
SECTIONS { .text : { *(.text) } >rom }
"""


def test_comments_that_only_look_like_directives(here: Put, tool: Tool) -> None:
    tool("cpp", "cc", "gcc")
    here("a.ld", HASHES)
    here("b.ld", "SECTIONS\n{\n  # define .vectors here\n  .text : { *(.vectors) *(.text) }\n}\n")
    for name in ("a.ld", "b.ld"):
        assert lint_files(Request((name,))).usable
    here("e.s", "")
    run_tool(tool("as"), "-o", "e.o", "e.s")
    run_tool(tool("ld.bfd", "ld"), "-e0", "-T", "a.ld", "-o", "a.out", "e.o")


def test_a_directive_that_fails_is_not_taken_for_a_comment(here: Put, tool: Tool) -> None:
    from linker.errors import LayoutInputError

    tool("cpp", "cc", "gcc")
    here("a.ld", '#include "nowhere.h"\nSECTIONS { .text : { *(.text) } }\n')
    with pytest.raises(LayoutInputError, match=r"nowhere\.h"):
        load_script("a.ld")


def test_scripts_for_cpp_without_a_directive(here: Put, tool: Tool) -> None:
    tool("cpp", "cc", "gcc")
    here("a.ld", "// SPDX\nSECTIONS { .text : { *(.text) } }\n")
    here(
        "b.ld", "MEMORY { .sram : ORIGIN = 0x1000, \\\n  LENGTH = 64K }\nSECTIONS { .t : { *(.t) } >.sram }\n"
    )
    for name in ("a.ld", "b.ld"):
        assert lint_files(Request((name,))).usable
    report = lint_files(Request((here("c.ld", "// SPDX\nSECTIONS { .text : { . = ALIGN(6); } }\n"),)))
    assert [(d.rule, d.line, d.column) for d in report.diagnostics] == [("align-not-power-of-two", 2, 26)]


def test_line_markers_and_comments_that_begin_with_a_number() -> None:
    text = "# 64 KiB for the loader\nx = 1;\n"
    source = Source("a.ld", text)
    assert source.locate(text.index("x"), text.index("x") + 1)[:2] == ("a.ld", 2)
    assert [comment.text for comment in kinds.read(text).script.comments] == ["64 KiB for the loader"]


def test_one_unusable_script_does_not_hide_the_others(here: Put) -> None:
    here("a.ld", "SECTIONS { .text : { . = ALIGN(6); } }\n")
    here("b.ld", "\0")
    here("c.ld", "SECTIONS {")
    report = lint_files(Request(("a.ld", "b.ld", "nowhere.ld", "c.ld")))
    assert not report.usable
    assert rules_of(report) == {"align-not-power-of-two", "syntax"}
    assert [error.split(":")[0] for error in report.errors] == ["b.ld+0x0", "nowhere.ld"]
