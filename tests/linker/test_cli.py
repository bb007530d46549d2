"""The command line: exit codes, formats, preprocessing, configuration, suppressions, baseline, diff."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder import cli
from tests.linker.elftext import build
from tests.needs import Tool

BAD = "SECTIONS\n{\n  .data : { *(.data) *(.data.page_aligned) }\n}\n"
GOOD = "SECTIONS\n{\n  .data : ALIGN(4096) { *(.data.page_aligned) . = ALIGN(4096); *(.data) }\n}\n"
ELF = "elf32 entry=0x1000\nload 0x1000 0x3000 rx\nsection .text 0x1000 0x100 ax align=16\n"


Command = Callable[..., tuple[int, str, str]]
Put = Callable[[str, str | bytes], str]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """`command("lint", ...)` -> (exit code, stdout, stderr), in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        out = capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return code, out.out, out.err

    return run


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


def test_clean_script_exits_0(command: Command, put: Put) -> None:
    assert command("lint", put("k.lds", GOOD)) == (0, "no findings\n", "")


def test_finding_exits_1_with_line_and_caret(command: Command, put: Put) -> None:
    code, out, err = command("lint", put("k.lds", BAD))
    assert (code, err) == (1, "")
    assert "k.lds:3:24: error: '.data.page_aligned' comes after '.data'" in out
    assert "  3 |   .data : { *(.data) *(.data.page_aligned) }\n" in out


def test_several_syntax_errors_exit_2(command: Command, put: Put) -> None:
    text = "SECTIONS\n{\n  .a : { *(.a }\n  .b : { *(.b) }\n  x = ;\n  .c { }\n}\n"
    code, out, _ = command("lint", put("k.lds", text))
    assert code == 2
    assert [line.split(":")[1] for line in out.splitlines() if "[syntax]" in line] == ["3", "5", "6"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("k.elf", b"", "this is no ELF file"),
        ("k.elf", b"\x7fELF\x02\x01", "cut short"),
        ("k.map", b"hello\n", "this is no link map"),
        ("k.lds", b"\x7fELF\0\0", "this is no linker script"),
        ("layout.toml", b"page-size = 'x'", "page-size"),
        ("layout.toml", b"[rules]\nno-such-rule = 'off'", "unknown rule"),
        ("layout.toml", b"= = =", "no TOML"),
        ("base.json", b"[]", "baseline"),
    ],
)
def test_unusable_input_is_one_line_and_exit_2(
    command: Command, put: Put, name: str, content: str | bytes, says: str
) -> None:
    path = put(name, content)
    put("fine.lds", GOOD)
    words = {
        "elf": ["--elf", path], "map": ["--map", path], "lds": [path],
        "toml": ["fine.lds", "--config", path], "json": ["fine.lds", "--baseline", path],
    }[name.rpartition(".")[2]]  # fmt: skip
    code, out, err = command("lint", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert name in err
    assert err.count("\n") == 1


def test_nothing_to_look_at_exits_2(command: Command) -> None:
    assert command("lint")[0] == 2
    assert command("lint", "none.lds")[0] == 2


def test_preprocessed_script_leads_back_to_the_source(command: Command, put: Put, tool: Tool) -> None:
    tool("cpp", "cc", "gcc", "clang")
    put("include/pages.h", "#define PAGE 6\n#define DATA *(.data) *(.data.page_aligned)\n")
    script = (
        '#include "pages.h"\nSECTIONS\n{\n#ifdef WANTED\n  .data : { DATA }\n#endif\n'
        "  .text : { . = ALIGN(PAGE); }\n}\n"
    )
    put("vmlinux.lds.S", script)
    code, out, _ = command("lint", "vmlinux.lds.S", "-I", "include", "-D", "WANTED")
    assert code == 1
    assert "vmlinux.lds.S:5:" in out
    assert "vmlinux.lds.S:7:17: error: ALIGN(0x6)" in out
    assert "  7 |   .text : { . = ALIGN(PAGE); }\n" in out
    assert command("lint", "vmlinux.lds.S", "-I", "include")[1].count("page-aligned-order") == 0


def test_no_preprocessor_is_said(command: Command, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("k.lds.S", GOOD)
    assert "is not on this machine" in command("lint", "k.lds.S", "--cpp", "no-such-cpp")[2]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CPP", raising=False)
    code, _, err = command("lint", "k.lds.S")
    assert code == 2
    assert "needs a C preprocessor" in err


def test_preprocessor_errors_are_shown(command: Command, put: Put, tool: Tool) -> None:
    tool("cpp", "cc", "gcc", "clang")
    code, _, err = command("lint", put("k.lds.S", '#include "nowhere.h"\n'))
    assert code == 2
    assert "nowhere.h" in err


def test_suppressions_and_those_that_no_longer_suppress(command: Command, put: Put) -> None:
    on_line = BAD.replace(
        "page_aligned) }", "page_aligned) } /* lint: disable=page-aligned-order -- known */"
    )
    code, out, _ = command("lint", put("a.lds", on_line))
    assert (code, out) == (0, "1 suppressed\n")
    before = BAD.replace("  .data", "  /* lint: disable=page-aligned-order */\n  .data")
    assert command("lint", put("b.lds", before))[0] == 0
    stale = GOOD.replace("  .data", "  /* lint: disable=page-aligned-order */\n  .data")
    code, out, _ = command("lint", put("c.lds", stale))
    assert code == 1
    assert "c.lds:3:3: warning: 'page-aligned-order' suppresses nothing any more [unused-suppression]" in out


def test_configuration_is_found_and_obeyed(command: Command, put: Put) -> None:
    put("layout.toml", '[rules]\npage-aligned-order = "note"\n')
    assert command("lint", put("sub/k.lds", BAD))[0] == 0
    put("sub/pyproject.toml", '[tool.domainbuilder.layout.rules]\npage-aligned-order = "off"\n')
    code, out, _ = command("lint", "sub/k.lds", "--format", "json")
    assert code == 0
    assert "page-aligned-order" not in {finding["rule"] for finding in json.loads(out)["findings"]}
    put(
        "strict.toml", 'expected-inputs = [".data.page_aligned"]\n[[section]]\nname = ".text"\nmax-size = 4\n'
    )
    elf = put("k.elf", build(ELF))
    script = put("n.lds", "SECTIONS { .text : { *(.text) } }")
    code, out, _ = command("lint", script, "--elf", elf, "--config", "strict.toml")
    assert code == 1
    assert "[missing-pattern]" in out
    assert "[size-budget]" in out


def test_baseline_lets_an_old_script_in(command: Command, put: Put) -> None:
    put("k.lds", BAD)
    assert command("lint", "k.lds", "--write-baseline", "base.json")[0] == 0
    assert command("lint", "k.lds", "--baseline", "base.json")[0] == 0
    put("k.lds", BAD.replace("*(.data) ", "*(.data) . = ALIGN(6); "))
    assert command("lint", "k.lds", "--baseline", "base.json")[0] == 1


@pytest.mark.parametrize("name", ["json", "sarif", "github", "junit"])
def test_formats_and_output_file(command: Command, put: Put, name: str) -> None:
    put("k.lds", BAD)
    code, out, _ = command("lint", "k.lds", "--format", name)
    assert code == 1
    assert "page-aligned-order" in out
    assert command("lint", "k.lds", "--format", name, "-o", "report")[1] == ""


def test_colors_only_on_terminals(command: Command, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    put("k.lds", BAD)
    assert "\033[" not in command("lint", "k.lds")[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = command("lint", "k.lds")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in command("lint", "k.lds")[1]
    assert "\033[" in colored or os.environ.get("NO_COLOR")


def test_explain(command: Command) -> None:
    code, out, _ = command("lint", "--explain", "page-aligned-order")
    assert code == 0
    assert "To fix it:" in out
    assert len(command("lint", "--explain", "all")[1].splitlines()) > 30
    assert command("lint", "--explain", "no-such-rule")[0] == 2


def test_diff_tells_what_moved_grew_and_lost_alignment(command: Command, put: Put) -> None:
    old = ELF + "section .data 0x2000 0x100 aw align=4096\nsymbol table 0x2000\n"
    new = ELF + "section .data 0x2010 0x180 aw align=16\nsection .more 0x3000 8 a\nsymbol table 0x2010\n"
    code, out, _ = command("lint", "diff", put("old.elf", build(old)), put("new.elf", build(new)))
    assert code == 1
    assert out.splitlines() == [
        "moved    .data: 0x2000 -> 0x2010  LOST ALIGNMENT",
        "grew     .data: 256 -> 384 bytes (+128)",
        "aligned  .data: 4096 -> 16  LOST ALIGNMENT",
        "added    .more: 8 bytes",
        "symbol   table: 0x2000 -> 0x2010  LOST ALIGNMENT",
    ]
    assert command("lint", "diff", "old.elf", "old.elf") == (0, "the layouts are the same\n", "")
    changes = json.loads(command("lint", "diff", "new.elf", "old.elf", "--format", "json")[1])["changes"]
    assert {change["kind"] for change in changes} >= {"moved", "size", "removed"}


def test_drawing(command: Command, put: Put) -> None:
    put("k.elf", build(ELF))
    assert command("lint", "--elf", "k.elf", "--svg", "k.svg")[0] == 0
    assert command("lint", put("k.lds", GOOD), "--svg", "k.svg")[0] == 2


def test_format_keeps_comments_and_meaning(command: Command, put: Put) -> None:
    put("k.lds", "SECTIONS { /* first */ .a : { *(.a) /* tail */ } x = 1 ; }")
    code, out, _ = command("lint", "format", "k.lds")
    assert code == 0
    assert out == "SECTIONS\n{\n\t/* first */\n\t.a : {\n\t\t*(.a) /* tail */\n\t}\n\tx = 1;\n}\n"
    assert command("lint", "format", "--check", "k.lds")[0] == 1
    assert command("lint", "format", "--in-place", "k.lds")[0] == 0
    assert command("lint", "format", "--check", "k.lds")[0] == 0
    assert command("lint", "format", put("bad.lds", "SECTIONS {"))[0] == 2
    code, _, err = command("lint", put("worse.lds.S", BAD), "--cpp", "'unfinished")
    assert (code, err.count("\n")) == (2, 1)


def test_select_and_ignore(command: Command, put: Put) -> None:
    put("k.lds", BAD.replace("*(.data) ", "*(.data) . = ALIGN(6); *(.bss) _end = .; "))
    both = {"align-not-power-of-two", "page-aligned-order"}

    def found(*words: str) -> tuple[int, set[str]]:
        code, out, _ = command("lint", "k.lds", "--format", "json", *words)
        return code, {finding["rule"] for finding in json.loads(out)["findings"]}

    assert found()[1] >= both
    assert found("--select", "align-*", "--select", "common-missing")[1] == {
        "align-not-power-of-two",
        "common-missing",
    }
    assert found("--ignore", "align-*", "--ignore", "page-aligned-order") == (0, found()[1] - both)
    put("layout.toml", '[rules]\nalign-not-power-of-two = "off"\n')
    assert found("--select", "align-not-power-of-two") == (1, {"align-not-power-of-two"})
    code, _, err = command("lint", "k.lds", "--select", "align-not-power-of-tow")
    assert code == 2
    assert "align-not-power-of-two, perhaps" in err


VECTORS = "SECTIONS\n{\n  .text : {\n    *(.vectors) /* first */\n    *(.text)\n  }\n}\n"


def test_fix_is_shown_as_a_diff_and_made(command: Command, put: Put, tool: Tool, tmp_path: Path) -> None:
    patch = tool("patch")
    put("k.lds", VECTORS)
    (tmp_path / "k.lds").chmod(0o640)
    code, out, _ = command("lint", "k.lds", "--diff")
    assert code == 1
    assert "-    *(.vectors) /* first */\n+    KEEP(*(.vectors)) /* first */\n" in out
    assert (tmp_path / "k.lds").read_text() == VECTORS
    shutil.copy(tmp_path / "k.lds", tmp_path / "other.lds")
    subprocess.run([patch, "-p1"], input=out, text=True, check=True, capture_output=True)
    by_patch = (tmp_path / "k.lds").read_text()
    put("k.lds", VECTORS)
    code, out, err = command("lint", "k.lds", "--fix")
    assert (code, err) == (0, "fixed k.lds\n")
    assert out.endswith("no findings\n")
    assert (tmp_path / "k.lds").read_text() == by_patch == VECTORS.replace("*(.vectors)", "KEEP(*(.vectors))")
    assert (tmp_path / "k.lds").stat().st_mode & 0o777 == 0o640
    assert command("lint", "k.lds", "--fix") == (0, "no findings\n", "")


def test_fix_keeps_line_ends_and_leaves_what_is_suppressed_or_not_selected(
    command: Command, put: Put, tmp_path: Path
) -> None:
    put("k.lds", VECTORS.replace("\n", "\r\n"))
    assert command("lint", "k.lds", "--fix", "--ignore", "not-kept")[0] == 0
    assert b"KEEP" not in (tmp_path / "k.lds").read_bytes()
    assert command("lint", "k.lds", "--fix")[0] == 0
    assert (tmp_path / "k.lds").read_bytes().count(b"\r\n") == 7
    put("k.lds", VECTORS.replace("/* first */", "/* lint: disable=not-kept */"))
    assert command("lint", "k.lds", "--fix")[0] == 0
    assert b"KEEP" not in (tmp_path / "k.lds").read_bytes()


def test_fix_reaches_what_is_included_and_not_what_macros_made(
    command: Command, put: Put, tmp_path: Path, tool: Tool
) -> None:
    tool("cpp", "cc", "gcc", "clang")
    put("part.ld", "*(.vectors)\n")
    put("k.lds.S", "#define V *(.isr_vector)\nSECTIONS\n{\n .a : { V }\n .b : { INCLUDE part.ld }\n}\n")
    assert command("lint", "k.lds.S", "--fix")[0] == 1
    assert (tmp_path / "part.ld").read_text() == "KEEP(*(.vectors))\n"
    assert "KEEP" not in (tmp_path / "k.lds.S").read_text()


def test_standard_input(command: Command, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    given(BAD)
    code, out, _ = command("lint", "-")
    assert code == 1
    assert out.startswith("<stdin>:3:24: error:")
    put("sub/layout.toml", '[rules]\npage-aligned-order = "off"\n')
    given(BAD)
    assert command("lint", "-", "--stdin-filename", "sub/k.lds")[0] == 0
    given(VECTORS)
    code, out, err = command("lint", "-", "--fix")
    assert (code, out) == (0, VECTORS.replace("*(.vectors)", "KEEP(*(.vectors))"))
    assert err == "no findings\n"
    given("x = 1 ;")
    assert command("lint", "format", "-") == (0, "x = 1;\n", "")


def test_no_output_destroys_an_input(command: Command, put: Put, tmp_path: Path) -> None:
    put("k.lds", BAD)
    put("k.elf", build(ELF))
    (tmp_path / "link.lds").symlink_to("k.lds")
    (tmp_path / "hard.lds").hardlink_to(tmp_path / "k.lds")
    for words in (
        ["k.lds", "-o", "k.lds"], ["k.lds", "-o", "./link.lds"], ["link.lds", "-o", "hard.lds"],
        ["k.lds", "--write-baseline", "k.lds"], ["--elf", "k.elf", "--svg", "k.elf"],
        ["--elf", "k.elf", "-o", "k.elf"], ["--elf", "k.elf", "--svg", "one", "-o", "one"],
    ):  # fmt: skip
        code, out, err = command("lint", *words)
        assert (code, out) == (2, ""), words
        assert "would be overwritten" in err or "same file" in err
    put("part.ld", "a = 1;")
    put("main.lds", "INCLUDE part.ld\n")
    assert command("lint", "main.lds", "-o", "part.ld")[0] == 2
    assert (tmp_path / "k.lds").read_text() == BAD
    assert (tmp_path / "k.elf").read_bytes() == build(ELF)
    assert (tmp_path / "part.ld").read_text() == "a = 1;"
    assert command("lint", "k.lds", "-o", "/dev/null")[0] == 1


def test_one_unusable_script_of_several(command: Command, put: Put) -> None:
    put("a.lds", BAD)
    code, out, err = command("lint", "a.lds", "nowhere.lds")
    assert code == 2
    assert "a.lds:3:24: error:" in out
    assert err == "domainbuilder: error: nowhere.lds: cannot be read: No such file or directory\n"
    assert json.loads(command("lint", "a.lds", "nowhere.lds", "--format", "json")[1])["errors"]


def test_suppressions_of_rules_that_did_not_run_or_do_not_exist(command: Command, put: Put) -> None:
    text = GOOD.replace("  .data", "  /* lint: disable=NAME */\n  .data")
    put("off/layout.toml", '[rules]\npage-aligned-order = "off"\n')
    assert command("lint", put("off/k.lds", text.replace("NAME", "page-aligned-order"))) == (
        0,
        "no findings\n",
        "",
    )
    assert command("lint", put("k.lds", text.replace("NAME", "lma-overlap")))[0] == 0
    assert (
        command("lint", put("k.lds", text.replace("NAME", "page-aligned-order")), "--ignore", "page-*")[0]
        == 0
    )
    code, out, _ = command("lint", put("k.lds", text.replace("NAME", "page-aligned-oder")))
    assert code == 1
    assert "there is no rule 'page-aligned-oder'; is it 'page-aligned-order'? [unused-suppression]" in out


def test_findings_of_the_elf_are_placed_in_the_script(command: Command, put: Put) -> None:
    put("layout.toml", '[[section]]\nname = ".bss"\nmax-size = 4\n')
    put("k.lds", "SECTIONS\n{\n  .text : { *(.text) }\n  .bss : { *(.bss) *(COMMON) }\n}\n")
    put("k.elf", build(ELF + "section .bss 0x2000 0x100 aw nobits\n"))
    code, out, _ = command("lint", "k.lds", "--elf", "k.elf")
    assert code == 1
    assert "k.lds:4:3: error: .bss is 256 bytes, 252 over its budget of 4 [size-budget]" in out
    assert "    = seen in k.elf at 0x2000\n" in out
    put(
        "k.lds",
        "SECTIONS { .text : { *(.text) } .bss : { *(.bss) *(COMMON) } } /* lint: disable=size-budget */\n",
    )
    assert "1 suppressed" in command("lint", "k.lds", "--elf", "k.elf")[1]


def test_format_leaves_alone_what_is_no_whole_script(
    command: Command, put: Put, tool: Tool, tmp_path: Path
) -> None:
    tool("cpp", "gcc", "clang")
    texts = {
        "version.lds": "V1 {  global: a;  };\n",
        "part.ld": ".text :  { *(.text) }\n",
        "cpp.ld": "#ifdef A\nSECTIONS {  }\n#endif\n",
        "slashes.ld": "// SPDX\nSECTIONS {  }\n",
        "k.lds.S": "SECTIONS {  }\n",
    }
    for name, text in texts.items():
        put(name, text)
    assert command("lint", "format", "--in-place", *texts)[0] == 0
    assert {name: (tmp_path / name).read_text() for name in texts} == texts
    assert command("lint", "format", "--check", *texts)[0] == 0


def test_format_goes_on_behind_a_script_it_cannot_read(command: Command, put: Put, tmp_path: Path) -> None:
    put("bad.lds", "SECTIONS {")
    put("good.lds", "x  = 1;\n")
    code, _, err = command("lint", "format", "-i", "bad.lds", "good.lds")
    assert code == 2
    assert err.count("\n") == 1
    assert (tmp_path / "good.lds").read_text() == "x = 1;\n"


def test_regions(command: Command, put: Put) -> None:
    put("layout.toml", '[[region]]\nname = "RAM"\nbudget = 128\n')
    put("k.lds", "MEMORY { RAM : ORIGIN = 0x1000, LENGTH = 16K }\nSECTIONS { .text : { *(.text) } >RAM }\n")
    put("k.elf", build(ELF))
    code, out, _ = command("lint", "regions", "k.lds", "--elf", "k.elf")
    assert code == 1
    assert "RAM     0x1000  16 KiB  256 B" in out
    assert "128 B over budget" in out
    assert (
        "k.lds:1:10: error: RAM uses 256 bytes, 128 over its budget of 128 [region-budget]"
        in (command("lint", "k.lds", "--elf", "k.elf")[1])
    )
    for name in ("json", "markdown", "svg"):
        assert "RAM" in command("lint", "regions", "k.lds", "--elf", "k.elf", "--format", name)[1]
    assert command("lint", "regions", "k.lds")[0] == 2
    assert command("lint", "regions", "k.lds", "--elf", "k.elf", "-o", "k.elf")[0] == 2


def test_junit_has_the_rules_that_ran(command: Command, put: Put) -> None:
    put("k.lds", BAD)
    out = command("lint", "k.lds", "--select", "page-aligned-*", "--format", "junit")[1]
    assert 'name="page-aligned-tail"' in out
    assert "dot-backwards" not in out


def test_format_keeps_line_ends_and_refuses_what_it_cannot_keep(
    command: Command, put: Put, tmp_path: Path
) -> None:
    put("k.lds", "x  = 1;\r\ny = 2;\r\n")
    assert command("lint", "format", "-i", "k.lds")[0] == 0
    assert (tmp_path / "k.lds").read_bytes() == b"x = 1;\r\ny = 2;\r\n"
    assert command("lint", "format", "--check", "k.lds")[0] == 0
    put("latin.lds", b"/* \xe9 */ x  = 1;\n")
    code, _, err = command("lint", "format", "-i", "latin.lds")
    assert code == 2
    assert "latin.lds+0x3: this is no UTF-8 text" in err
    assert (tmp_path / "latin.lds").read_bytes() == b"/* \xe9 */ x  = 1;\n"
