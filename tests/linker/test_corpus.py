"""Scripts no one here wrote: parsed without an error, printed and parsed again, every finding known.

They are those inside Debian packages and Linux's own (fetch_corpus.py), and what the machine's linkers print
as their built-in scripts.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from linker.ast import shape
from linker.lint import Inputs
from linker.lint import run as lint
from linker.parser import parse
from linker.printer import print_script
from linker.session import load_script
from linker.source import Source
from tests.linker import fetch_corpus
from tests.linker.linking import run as run_tool
from tests.needs import Tool

# Every warning and error on the corpus, each a true defect; docs/linker.md says why. Notes are left out.
KNOWN = {
    ("lma-not-charged", "binutils-m68hc1x"): 8,
    ("lma-not-charged", "gcc-arm-none-eabi"): 4,
    ("lma-not-charged", "qbs-examples"): 2,
    ("load-address-odd", "gcc-arm-none-eabi"): 1,
    ("init-array-unsorted", "openocd"): 3,
    ("not-kept", "openocd"): 1,
    ("range-end-unaligned", "openocd"): 2,
    ("not-kept", "brickos"): 1,
    ("not-kept", "gcc-arm-none-eabi"): 1,
    ("not-kept", "qbs-examples"): 2,
    ("pattern-variants", "linux"): 1,
    ("region-overlap", "binutils-m68hc1x"): 4,
    ("shadowed-pattern", "gnu-efi"): 4,
}


@pytest.fixture(scope="module")
def corpus() -> Path:
    scripts = fetch_corpus.CACHE / "scripts"
    if any(not (scripts / name).is_dir() for name in (*fetch_corpus.PACKAGES, "linux")):
        if os.environ.get("CI") != "true":
            pytest.skip("no corpus: run tests/linker/fetch_corpus.py")
        fetch_corpus.fetch()
    return scripts


@pytest.fixture(scope="module")
def texts(corpus: Path) -> dict[str, Path]:
    """Each text once, with a path it has: cross linkers' scripts repeat each other by the hundred."""
    out: dict[str, Path] = {}
    for path in sorted(corpus.rglob("*")):
        if path.is_file():
            out.setdefault(load_script(str(path)).text, path)
    return out


def check_round_trip(text: str, name: str) -> None:
    tree = parse(text)
    assert tree.problems == (), name
    assert tree.commands, name
    again = parse(print_script(tree, text))
    assert shape(again) == shape(tree), name
    assert len(again.comments) == len(tree.comments), name


def test_every_script_round_trips(texts: dict[str, Path]) -> None:
    assert len(texts) > 800
    for text, path in texts.items():
        check_round_trip(text, str(path))


def test_every_finding_is_known(corpus: Path, texts: dict[str, Path]) -> None:
    found: Counter[tuple[str, str]] = Counter()
    for text, path in texts.items():
        report = lint(Inputs(Source(str(path), text)))
        assert report.usable, path
        package = path.relative_to(corpus).parts[0]
        found.update((d.rule, package) for d in report.diagnostics if d.severity != "note")
    assert found == KNOWN


def test_linux_script_is_the_one_that_was_measured(corpus: Path) -> None:
    text = (corpus / "linux" / "arch_x86_kernel_vmlinux.lds").read_text()
    assert text.count("\n") > 120
    outline_names = set(re.findall(r"^\s*(\.\S+) ", text, re.MULTILINE))
    assert {".text", ".bss"} <= outline_names
    report = lint(Inputs(Source("vmlinux.lds", text)))
    assert not report.failed


def emulations() -> list[tuple[str, str]]:
    """The emulations of every linker on this machine, as (program, emulation)."""
    out = []
    for directory in os.environ.get("PATH", "").split(":"):
        for program in sorted(Path(directory).glob("*ld.bfd")) if Path(directory).is_dir() else ():
            said = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout
            _, _, tail = said.partition("Supported emulations:")
            out += [(str(program), name) for name in tail.split()]
    return sorted(set(out))


def test_built_in_scripts_of_the_linkers_here(tool: Tool) -> None:
    tool("ld.bfd", "ld")
    pairs = emulations()
    assert len(pairs) >= 3
    for program, emulation in pairs:
        for option in ((), ("-r",), ("-shared",), ("-pie",), ("-n",), ("-N",)):
            words = [program, "-m", emulation, *option, "--verbose"]
            said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
            parts = said.split("==================================================")
            if len(parts) < 3:
                continue
            check_round_trip(parts[1], f"{program} {emulation} {option}")
            report = lint(Inputs(Source(emulation, parts[1])))
            assert [d for d in report.diagnostics if d.severity != "note"] == []


def test_ld_and_parser_agree_on_what_is_a_script(tool: Tool, tmp_path: Path) -> None:
    """GNU ld as the judge: what it accepts is accepted, what it calls a syntax error is one."""
    linker = tool("ld.bfd", "ld")
    cases = {
        "x = 1 + 2 * (3 - 4) / 5;": True,
        "x = 1": False,
        "SECTIONS { .a : { *(.a) } :text =0x90 .b : { } }": True,
        "SECTIONS { .a { *(.a) } }": False,
        "SECTIONS { .a : { *(.a } }": False,
        "SECTIONS { .a : { KEEP(*(SORT_BY_NAME(SORT_BY_ALIGNMENT(.a*)))) } }": True,
        "SECTIONS { .text: : { *(.text) } }": True,
        "SECTIONS { .text: { *(.text) } }": False,
        "SECTIONS { .a 0x10 (NOLOAD) : AT(4) ALIGN(8) SUBALIGN(4) { BYTE(1) } }": True,
        "SECTIONS { a=1; }": False,
        "SECTIONS { a = 1; . += 4; }": True,
        "SECTIONS { .a : { a = 1 *(.a) } }": False,
        "ASSERT(1 == 1, \"fine\")": True,
        "MEMORY { a (rx) : ORIGIN = 0, LENGTH = 1K b : org = 4, len = 1M }": True,
        "PHDRS { a PT_LOAD FLAGS(5) }": False,
        "SECTIONS { OVERLAY 0x10 : { .a { *(.a) } .b { *(.b) } } }": True,
        "ENTRY(_start) SECTIONS { } INSERT AFTER .text;": True,
        "NOCROSSREFS(.a .b) EXTERN(a b) OUTPUT_ARCH(i386)": True,
        "SECTIONS { .a : { LONG(1) QUAD(2) FILL(0x90) . = . + 4; } = 0x1234 }": True,
        "SECTIONS { .a : { *(.a) } >": False,
        "VERSION { V1 { global: a; local: *; }; }": True,
        "SECTIONS { . = ; }": False,
        "SECTIONS { .a : { SORT(*)(.a) } }": True,
        "SECTIONS { .a : { SORT_BY_INIT_PRIORITY(*)(.a) } }": False,
        "SECTIONS { .a : { KEEP(SORT_BY_ALIGNMENT(*)(.a)) } }": False,
        "SECTIONS { .a : { SORT_NONE(*)(.a) } }": True,
        "SECTIONS { .a : { SORT_BY_NAME(a.o) } }": False,
        "SECTIONS { .a : { *(EXCLUDE_FILE(a.o) SORT(.a)) } }": False,
        "SECTIONS { .a : { *(SORT(EXCLUDE_FILE(a.o) .a)) } }": True,
        "A = 2G;": False,
        "A = 10K;": True,
    }  # fmt: skip
    script = tmp_path / "t.lds"
    empty = tmp_path / "e.s"
    empty.write_text("")
    run_tool(tool("as"), "-o", tmp_path / "e.o", empty)
    for text, accepted in cases.items():
        script.write_text(text)
        said = subprocess.run(
            [linker, "-r" if "MEMORY" in text else "-e0", "-T", script, "-o", "/dev/null", tmp_path / "e.o"],
            capture_output=True, text=True, check=False,
        ).stderr  # fmt: skip
        assert ("syntax error" not in said) is accepted, (text, said)
        assert (parse(text).problems == ()) is accepted, text
