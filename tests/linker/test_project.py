"""The samples, the pre-commit hooks and the GitHub Action do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from linker.discover import settings_for
from linker.elffile import read_elf
from linker.lint import Inputs
from linker.lint import run as lint
from linker.parser import parse
from linker.printer import print_script
from linker.session import Request, lint_files
from linker.source import Source
from tests.linker.linking import run as run_tool

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "samples" / "layout"
DOCUMENT = ROOT / "docs" / "linker.md"


@pytest.mark.parametrize(
    ("name", "rule"), [("missing", "missing-pattern"), ("behind", "page-aligned-order"), ("first", None)]
)
def test_samples(name, rule, tool, tmp_path):
    script = LAYOUT / f"{name}.lds"
    found = {d.rule for d in lint_files(Request((str(script),))).diagnostics}
    assert found == ({rule} if rule else set())
    run_tool(tool("gcc", "cc"), "-m32", "-c", LAYOUT / "page_directory.S", "-o", tmp_path / "k.o")
    elf = tmp_path / "k.elf"
    run_tool(
        tool("ld.bfd", "ld"),
        "-m",
        "elf_i386",
        "-z",
        "max-page-size=4096",
        "-T",
        script,
        "-o",
        elf,
        tmp_path / "k.o",
    )
    report = lint(Inputs(elf=read_elf(str(elf))), settings_for(str(LAYOUT)))
    assert ("symbol-alignment" in {d.rule for d in report.diagnostics}) is (rule is not None)


def test_samples_are_formatted():
    for path in LAYOUT.glob("*.lds"):
        text = path.read_text()
        assert print_script(parse(text), text) == text, path.name


def test_hooks_name_commands_that_exist():
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    entries = re.findall(r"^  entry: (.*)$", text, re.MULTILINE)
    assert [shlex.split(entry)[:2] for entry in entries] == [["domainbuilder", "lint"]] * 2
    patterns = re.findall(r"^  files: '(.*)'$", text, re.MULTILINE)
    assert re.search(patterns[0], "arch/x86/kernel/vmlinux.lds.S")
    assert not re.search(patterns[1], "arch/x86/kernel/vmlinux.lds.S")


def test_action_runs_the_linter_with_its_inputs(tmp_path):
    """The last step's shell, run with a `domainbuilder` that only shows what it was given."""
    text = (ROOT / "action.yml").read_text()
    script = text.rpartition("run: |\n")[2]
    shim = tmp_path / "domainbuilder"
    shim.write_text('#!/bin/sh\nfor word; do printf "<%s>" "$word"; done; echo\n')
    shim.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin", "SCRIPTS": "a.lds\nb.lds $(touch x)", "MAP": "k map", "ELF": "",
        "CONFIG": "", "BASELINE": "b.json", "SARIF": "out.sarif", "ARGUMENTS": "-I include",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    sarif, github = done.stdout.splitlines()
    words = "<lint><a.lds><b.lds><$(touch><x)><-I><include><--map><k map><--baseline><b.json>"
    assert sarif == words + "<--format><sarif><--output><out.sarif>"
    assert github == words + "<--format><github>"
    assert not (tmp_path / "x").exists()


def test_document_lists_every_rule_and_setting():
    from linker import rules
    from linker.config import LayoutModel

    text = DOCUMENT.read_text()
    assert [rule.id for rule in rules.load() if f"`{rule.id}`" not in text] == []
    keys = [name.replace("_", "-") for name in LayoutModel.model_fields]
    assert [key for key in keys if key not in text] == []


def test_document_examples_are_scripts():
    blocks = re.findall(r"```ld\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert parse(block).problems == ()
        lint(Inputs(Source("doc.lds", block)))
