"""Every file that --fix makes links and is clean: pairs, rules' examples, scripts with many defects."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from linker import rules
from linker.elffile import read_elf
from linker.findings import Rule
from linker.fixing import Fixed, diff, fix, fixable
from linker.lint import Diagnostic, Report
from linker.locate import FileEdit
from linker.session import Request, lint_files
from linker.source import FilePlace
from tests.linker.linking import MAIN, OTHER, assemble, link, run
from tests.linker.test_pairs import HARM, MECHANICAL, PAIRS
from tests.needs import Tool


def mended(path: Path) -> Report:
    """Fix a script on the disk; return what is left to say of it."""
    request = Request((str(path),))
    changed, report = fix(lambda texts: lint_files(request._replace(texts=texts)))
    for one in changed:
        Path(one.file).write_text(one.after)
    again = lint_files(request)
    assert again == report
    assert fixable(again) == []
    return again


# What is left to a person: whether the image should be charged to the region is a question of its own.
LEFT = {"05-data-lma-odd": {"lma-not-charged"}}


@pytest.mark.parametrize("name", MECHANICAL)
def test_a_mended_pair_links_is_clean_and_harmless(name: str, tool: Tool, tmp_path: Path) -> None:
    script = tmp_path / f"{name}.ld"
    script.write_text((PAIRS / f"{name}.bad.ld").read_text())
    assert {d.rule for d in mended(script).diagnostics} == LEFT.get(name, set())
    run(tool("as"), "--64", "-o", tmp_path / "x.o", PAIRS / f"{name}.s")
    options = ["--gc-sections"] if name.startswith("01-") else []
    for linker in (tool("ld.bfd", "ld"), tool("ld.lld", "ld.lld-14")):
        run(
            linker, "-m", "elf_x86_64", "-z", "max-page-size=0x1000", *options, "-T", script,
            tmp_path / "x.o", "-o", tmp_path / "x.elf",
        )  # fmt: skip
        assert not HARM[name](read_elf(str(tmp_path / "x.elf")))


@pytest.fixture
def objects(tool: Tool, tmp_path: Path) -> list[Path]:
    return [assemble(tmp_path, name, text, 64, tool("as")) for name, text in (("a", MAIN), ("b", OTHER))]


# What lies in the ROM before a section that is copied by words, and where its end is aligned.
COPIED = """MEMORY {{ ROM (rx) : ORIGIN = 0, LENGTH = 64K RAM (rw) : ORIGIN = 0x200000, LENGTH = 8K }}
SECTIONS
{{
  .text : {{ *(.text*) . = ALIGN(4); }} >ROM
  .first : {{ {0} }} >RAM AT>ROM
  {1}
  .copy : {{ _sdata = .; *(.data .data.*) _edata = .; }} >RAM AT>ROM
  _from = LOADADDR(.copy);
}}
"""


@pytest.mark.parametrize(
    "between", ["", ".hole (NOLOAD) : { *(.noinit) } >RAM AT>ROM", ".zeros : { *(.bss) } >RAM AT>ROM"]
)
@pytest.mark.parametrize(
    ("body", "aligned"),
    [
        ("s = .; *(.rodata.str) e = .;", "s = .; *(.rodata.str) . = ALIGN(4); e = .;"),
        ("*(.rodata.str) BYTE(1)", "*(.rodata.str) BYTE(1) . = ALIGN(4);"),
        ("*(.rodata.str) . += 1;", "*(.rodata.str) . += 1; . = ALIGN(4);"),
    ],
)
def test_the_end_is_aligned_of_what_has_bytes_in_the_rom(
    body: str, aligned: str, between: str, tool: Tool, tmp_path: Path, objects: list[Path]
) -> None:
    script = tmp_path / "k.lds"
    script.write_text(COPIED.format(body, between))
    found = lint_files(Request((str(script),))).diagnostics
    assert [(one.rule, one.name) for one in found if one.rule == "load-address-odd"] == [
        ("load-address-odd", ".copy")
    ]
    mended(script)
    assert script.read_text() == COPIED.format(aligned, between)
    _, _, elf, _ = link(
        tool("ld.bfd", "ld"), tmp_path, "k", script.read_text(), objects, 64, "--no-warn-rwx-segments",
        "--orphan-handling=place",
    )  # fmt: skip
    assert read_elf(str(elf)).find({"_from"})["_from"].address % 4 == 0


FIXING = [
    rule
    for rule in rules.load("S")
    if rule.bad.script and not (rule.bad.map or rule.bad.elf or rule.bad.config)
]


@pytest.mark.parametrize("rule", FIXING, ids=lambda rule: rule.id)
def test_a_mended_example_links(rule: Rule, tool: Tool, tmp_path: Path, objects: list[Path]) -> None:
    script = tmp_path / "k.lds"
    script.write_text(rule.bad.script)
    before = lint_files(Request((str(script),)))
    report = mended(script)
    if not fixable(before):
        assert script.read_text() == rule.bad.script
        return
    assert rule.id not in {d.rule for d in report.diagnostics} or not any(
        d.fix for d in before.diagnostics if d.rule == rule.id
    )
    link(
        tool("ld.bfd", "ld"), tmp_path, "k", script.read_text(), objects, 64, "--no-warn-rwx-segments", "-e0"
    )


# What goes wrong in real scripts, to be put together at random.
REGIONS = """MEMORY
{
  FLASH (rx) : ORIGIN = 0x08000000, LENGTH = 256K
  RAM (rwx) : ORIGIN = 0x20000000, LENGTH = 128K
}"""
TEXTS = (
    ".text : { *(.text .text.*) *(.rodata .rodata.*) *(.table) } >FLASH",
    ".text : { *(.vectors) *(.text*) *(.rodata*) *(.table) _etext = .; } >FLASH",
    ".text : { *(.text) *(.text.hot)\n *(.rodata*) ts = .; *(.table) te = .; } >FLASH\n _eronly = .;",
)
TABLES = (
    "",
    ".init_array : { s = .; *(.init_array .init_array.*) *(.ctors) e = .; } >FLASH",
    ".app : { ts2 = .; *(.app_table) te2 = .; } >FLASH",
    ".isr : { *(.isr_vector) } >FLASH",
)
DATAS = (
    ".data : { _sdata = .; *(.data .data.*) *(.extra) _edata = .; } >RAM\n _sidata = LOADADDR(.data);",
    """.data : AT(LOADADDR(.text) + SIZEOF(.text)) { _sdata = .; *(.data*) *(.extra) _edata = .; } >RAM
    _sidata = LOADADDR(.data);""",
    """.data : ALIGN(4096) {
      _sdata = .; *(.data.page_aligned) . = ALIGN(8); *(.data .extra) _edata = .;
    } >RAM AT>FLASH""",
)
ZEROS = (
    ".bss : { __bss_start__ = .; *(.bss) *(COMMON) *(.noinit) __bss_end__ = .; } >RAM",
    ".bss : { __bss_start__ = .; *(.bss .bss.*) *(COMMON) *(.noinit) __bss_end__ = .; } >RAM",
    "__bss_start = .;\n .bss : { *(.bss .bss.*) *(COMMON) *(.noinit) } >RAM\n __bss_end = .;",
)


@pytest.mark.parametrize("seed", range(30))
def test_scripts_with_many_defects(seed: int, tool: Tool, tmp_path: Path, objects: list[Path]) -> None:
    pick = random.Random(seed).choice
    body = "\n".join(partial(pick)(kinds) for kinds in (TEXTS, TABLES, TABLES, DATAS, ZEROS))
    text = f"{REGIONS}\nENTRY(_start)\nSECTIONS\n{{\n{body}\n}}\n"
    script = tmp_path / "k.lds"
    script.write_text(text)
    had = {d.rule for d in lint_files(Request((str(script),))).diagnostics if d.fix}
    report = mended(script)
    assert not had & {d.rule for d in report.diagnostics if d.severity != "note"}
    assert (script.read_text() != text) is bool(had)
    link(
        tool("ld.bfd", "ld"), tmp_path, "k", script.read_text(), objects, 64, "--no-warn-rwx-segments",
        "--orphan-handling=place",
    )  # fmt: skip


def edit(line: int, column: int, text: str, end: int | None = None) -> FileEdit:
    return FileEdit(FilePlace("k.lds", line, column, line, end or column), text, "mend")


def report(*fixes: tuple[FileEdit, ...], usable: bool = True) -> Report:
    found = tuple(Diagnostic("r", "warning", one[0].text, "k.lds", 1, 1, fix=one) for one in fixes)
    return Report(found, 0, usable, ("k.lds",))


def test_a_fix_that_breaks_the_script_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three fixes the second makes a text that cannot be read: the others are made all the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.lds").write_text("abc\n")
    fixes = {"A": (edit(1, 1, "A", 2),), "!": (edit(1, 2, "!", 3),), "C": (edit(1, 3, "C", 4),)}

    def lint(texts: Mapping[str, str]) -> Report:
        text = texts.get("k.lds", "abc\n")
        return report(*(fix for mark, fix in fixes.items() if mark not in text), usable="!" not in text)

    changed, left = fix(lint)
    assert changed == [Fixed("k.lds", "abc\n", "AbC\n")]
    assert [(one.message, one.fix) for one in left.diagnostics] == [("!", ())]


def test_the_diff_tells_of_a_missing_line_end() -> None:
    text = diff([Fixed("k.lds", "a\nb", "a\nc\n")])
    assert text == "--- a/k.lds\n+++ b/k.lds\n@@ -1,2 +1,2 @@\n a\n-b\n\\ No newline at end of file\n+c\n"


def test_a_fix_that_does_not_end_its_finding_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "k.lds").write_text("abc\n")

    def lint(texts: Mapping[str, str]) -> Report:
        text = texts.get("k.lds", "abc\n")
        found = [Diagnostic("stays", "warning", "m", "k.lds", fix=(edit(1, 1, "x"),))]
        if "C" not in text:
            found.append(Diagnostic("goes", "warning", "m", "k.lds", fix=(edit(1, 3, "C", 4),)))
        return Report(tuple(found), 0, True, ("k.lds",))

    changed, left = fix(lint)
    assert changed == [Fixed("k.lds", "abc\n", "abC\n")]
    assert [(one.rule, one.fix) for one in left.diagnostics] == [("stays", ())]
