"""What `lld-refuses` says is what lld 14 and the newer lld of ziglang do, construct by construct."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from linker.findings import WARNING
from linker.lint import Inputs, run
from linker.settings import DEFAULTS
from linker.source import Source
from tests.linker.differential import linker_of
from tests.linker.linking import assemble
from tests.needs import Tool

OBJECT = ".globl _start\n.text\n_start: .byte 1\n.data\n.byte 2\n"
TEXT = ".text : { *(.text*) }"
WHOLE = f"SECTIONS {{ {TEXT} .data : {{ *(.data*) }} }}"
REGION = "MEMORY { R : ORIGIN = 0, LENGTH = 1M }"
CASES = {
    **{
        name: f"{name}\n{WHOLE}"
        for name in (
            "FLOAT", "FORCE_COMMON_ALLOCATION", "FORCE_GROUP_ALLOCATION", 'LD_FEATURE("SANE_EXPR")', "MAP(x)",
            "NOCROSSREFS(.text .data)", "NOCROSSREFS_TO(.text .data)", "NOFLOAT", "SYSLIB(x)",
            "TARGET(elf64-x86-64)", "SEARCH_DIR(.)",
        )
    },
    **{
        f"x {op} 2": f"x = 1;\nx {op} 2;\nSECTIONS {{ y = 3; y {op} 2; {TEXT} }}"
        for op in ("+=", "-=", "*=", "/=", "^=", "&=", "|=", "<<=", ">>=")
    },
    **{
        f"x {op} 2 inside": f"SECTIONS {{ .text : {{ *(.text*) x = 3; x {op} 2; }} }}"
        for op in ("-=", "|=")
    },
    **{
        number: f"SECTIONS {{ x = {number}; {TEXT} }}"
        for number in (
            "101b", "17o", "9d", "10x", "$10", "0x1K", "0x1m", "10h", "0ffH", "10K", "4m", "010",
            "0x1b", "0xd",
        )
    },
    **{
        value: f"SECTIONS {{ x = {value}; {TEXT} }}"
        for value in ("BLOCK(16)", "NEXT(16)", "ALIGN(16)", "LOG2CEIL(5)", "3 % 2")
    },
    **{
        head: f"SECTIONS {{ {TEXT} .d {head} {{ *(.data*) }} }}"
        for head in (
            "(DSECT) :", "(READONLY) :", "(READONLY (TYPE=SHT_PROGBITS)) :", "(TYPE=SHT_PROGBITS) :",
            "(NOLOAD) :", "(INFO) :", "(COPY) :", "BLOCK(16) :", ": ALIGN_WITH_INPUT", ": SPECIAL",
            ": ONLY_IF_RW",
        )
    },
    **{
        head: f"SECTIONS {{ {TEXT} OVERLAY {head} {{ .o {{ *(.data*) }} }} }}"
        for head in (
            "0x1000 : AT(0x4000)", "0x1000 :", ": AT(0x4000)", ":", "0x1000 : NOCROSSREFS AT(0x4000)",
        )
    },
    **{
        f"overlay {tail}": f"{REGION} SECTIONS {{ {TEXT} >R OVERLAY 1K : {{ .o {{ *(.data*) }} }} {tail} }}"
        for tail in (">R", ">R AT>R")
    },
    **{
        spec: f"SECTIONS {{ .text : {{ {spec} }} }}"
        for spec in (
            "SORT(*)(.text*)", "SORT_BY_NAME(*)(.text*)", "SORT_NONE(*)(.text*)",
            "KEEP(SORT_BY_NAME(*)(.text*))", "KEEP(*(SORT(.text*)))", "EXCLUDE_FILE(b.o) *(.text*)",
        )
    },
    **{
        f"discard {spec}": f"SECTIONS {{ {TEXT} /DISCARD/ : {{ {spec} }} }}"
        for spec in ("*", "*(*)", "*(.s*)", "*(.shstrtab)", "*(.strtab)", "*(.comment)")
    },
    "ENTRY inside": f"SECTIONS {{ ENTRY(_start) {TEXT} }}",
    "GROUP inside": f"SECTIONS {{ GROUP 0x1000 : {{ {TEXT} .data : {{ *(.data*) }} }} }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def object_file(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return assemble(tmp_path_factory.mktemp("dialect"), "a", OBJECT, 64, tool("as"))


def refused(which: str, script: Path, object_file: Path) -> bool:
    linker = linker_of(which)
    quiet = () if linker.lld else ("--no-warn-rwx-segments",)
    words = (*linker.words, *quiet, "-T", script, "-o", script.with_suffix(".elf"), object_file)
    return bool(subprocess.run(words, capture_output=True, check=False).returncode)


@pytest.mark.parametrize("name", CASES)
def test_what_the_rule_says_is_what_the_linkers_do(name: str, object_file: Path, tmp_path: Path) -> None:
    script = tmp_path / "k.ld"
    script.write_text(CASES[name])
    assert not refused("gnu", script, object_file)
    old, new = (refused(which, script, object_file) for which in ("lld", "new-lld"))
    settings = DEFAULTS._replace(severities={"lld-refuses": WARNING})
    report = run(Inputs(Source("k.ld", CASES[name])), settings)
    assert report.usable
    said = [one.message for one in report.diagnostics if one.rule == "lld-refuses"]
    assert bool(said) is (old or new), said
    # What it says of a version holds for that one.
    assert all(old and not new for message in said if message.endswith("does"))
    assert all(new and not old for message in said if message.endswith("does not"))
