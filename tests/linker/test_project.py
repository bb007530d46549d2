"""The samples, the pre-commit hooks and the GitHub Action do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from linker.diff import compare
from linker.diff import render as diff_text
from linker.discover import settings_for
from linker.elffile import Elf, read_elf
from linker.lint import Inputs
from linker.lint import run as lint
from linker.mapfile import read_map
from linker.outline import Outline
from linker.output import fill as fill_text
from linker.parser import parse
from linker.printer import print_script
from linker.regions import fill
from linker.session import Request, lint_files
from linker.settings import DEFAULTS
from linker.source import Source
from tests.linker.linking import MAIN, OTHER, assemble, link
from tests.linker.linking import run as run_tool
from tests.linker.test_cli import VECTORS
from tests.linker.test_diff import SCRIPT as DIFF_SCRIPT
from tests.linker.test_diff import SOURCE
from tests.linker.test_regions import MEMORY, SCRIPTS
from tests.needs import Tool

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "samples" / "layout"
DOCUMENT = ROOT / "docs" / "linker.md"


@pytest.mark.parametrize(
    ("name", "rule"), [("missing", "missing-pattern"), ("behind", "page-aligned-order"), ("first", None)]
)
def test_samples(name: str, rule: str | None, tool: Tool, tmp_path: Path) -> None:
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


def test_samples_are_formatted() -> None:
    for path in LAYOUT.glob("*.lds"):
        text = path.read_text()
        assert print_script(parse(text), text) == text, path.name


def test_hooks_name_commands_that_exist() -> None:
    text = (ROOT / ".pre-commit-hooks.yaml").read_text()
    entries = re.findall(r"^  entry: (.*)$", text, re.MULTILINE)
    assert [shlex.split(entry)[:2] for entry in entries] == [["domainbuilder", "lint"]] * 2
    patterns = re.findall(r"^  files: '(.*)'$", text, re.MULTILINE)
    assert re.search(patterns[0], "arch/x86/kernel/vmlinux.lds.S")
    assert not re.search(patterns[1], "arch/x86/kernel/vmlinux.lds.S")


class Action:
    """`action(SCRIPTS=...)`: the last step's shell, with a `domainbuilder` that shows its arguments."""

    def __init__(self, script: str, programs: Path, work: Path) -> None:
        self.script, self.programs, self.work = script, programs, work

    def __call__(self, *, code: int = 0, **given: str) -> list[str]:
        names = ("SCRIPTS", "MAP", "ELF", "CONFIG", "BASELINE", "SARIF", "REGIONS", "ARGUMENTS")
        environment = {name: given.get(name, "") for name in names}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", self.script],
            env={"PATH": f"{self.programs}:/usr/bin:/bin", "GITHUB_STEP_SUMMARY": "", **environment},
            cwd=self.work,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines()


@pytest.fixture
def action(tmp_path: Path) -> Action:
    script = textwrap.dedent((ROOT / "action.yml").read_text().rpartition("run: |\n")[2])
    programs = tmp_path / "bin"
    programs.mkdir()
    shim = programs / "domainbuilder"
    shim.write_text('#!/bin/sh\nfor word; do printf "<%s>" "$word"; done; echo\n')
    shim.chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    work = tmp_path / "work"
    work.mkdir()
    return Action(script, programs, work)


def test_action_runs_the_linter_with_its_inputs(action: Action) -> None:
    for name in ("a.lds", "b.lds"):
        (action.work / name).touch()
    github, sarif, regions = action(
        SCRIPTS="a.lds\nb.lds", MAP="k map", BASELINE="b.json", SARIF="out.sarif", REGIONS="fill.md",
        ARGUMENTS="-I include -D 'A=b c' -DX --ignore not-kept $(touch x)",
    )  # fmt: skip
    read = "<-I><include><-D><A=b c><-DX>"
    words = read + "<--ignore><not-kept><$(touch><x)><--map><k map><--baseline><b.json><--><a.lds><b.lds>"
    quiet = "<lint><--ignore><fragment><--ignore><version-script>"
    assert github == quiet + "<--format><github>" + words
    assert sarif == quiet + "<--format><sarif><--output><out.sarif>" + words
    table = "<lint><regions><--format><markdown><--output><fill.md>"
    assert regions == table + read + "<--map><k map><--><a.lds>"
    assert not (action.work / "x").exists()


def test_action_ends_with_the_worst_exit_code(action: Action) -> None:
    """What cannot be written fails the step, and hides no annotation."""
    shim = action.programs / "domainbuilder"
    shim.write_text('#!/bin/sh\necho "$5 $7"\ncase "$*" in *sarif*) exit 2;; *github*) exit 1;; esac\n')
    (action.work / "a.lds").touch()
    assert action(SCRIPTS="a.lds", code=1) == ["version-script github"]
    assert len(action(SCRIPTS="a.lds", SARIF="no/x.sarif", REGIONS="fill.md", code=2)) == 3


def test_action_takes_globs_and_blanks(action: Action) -> None:
    for name in ("one two.lds", "sub/deep/k.lds", "sub/x.ld", "-odd.lds", "$(touch x).lds", "b[1].lds"):
        path = action.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def scripts(text: str) -> list[str]:
        (line,) = action(SCRIPTS=text)
        return re.findall("<(.*?)>", line.partition("<-->")[2])

    assert scripts("one two.lds") == ["one two.lds"]
    assert scripts("  sub/deep/k.lds  \n\n") == ["sub/deep/k.lds"]
    assert scripts("sub/x.ld sub/deep/k.lds") == ["sub/x.ld", "sub/deep/k.lds"]
    assert scripts("sub/**/*.ld*") == ["sub/deep/k.lds", "sub/x.ld"]
    assert scripts("one *.lds") == ["one two.lds"]
    assert scripts("b[1].lds") == ["b[1].lds"]
    assert sorted(scripts("*.lds")) == sorted(["-odd.lds", "$(touch x).lds", "b[1].lds", "one two.lds"])
    assert not (action.work / "x").exists()
    assert action(SCRIPTS="nowhere*.lds", code=2) == ["::error::no file matches 'nowhere*.lds'"]


def test_hooks_leave_version_scripts_and_parts_alone(tmp_path: Path) -> None:
    """What the hooks run, on texts that are no whole scripts: nothing fails and nothing changes."""
    texts = {
        "version.lds": "V1 {  global: a;  local: *; };\n", "part.ld": ".text :  { *(.text) }\n",
        "regions.ld": "ROM : ORIGIN = 0,  LENGTH = 4K\n", "inputs.ld": "KEEP(*(.init))   *(.text)\n",
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text()
    for entry in re.findall(r"^  entry: (.*)$", hooks, re.MULTILINE):
        words = [sys.executable, "-m", *shlex.split(entry), *texts]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


def test_document_lists_every_rule_and_setting() -> None:
    from linker import rules
    from linker.config import LayoutModel

    text = DOCUMENT.read_text()
    assert [rule.id for rule in rules.load() if f"`{rule.id}`" not in text] == []
    keys = [name.replace("_", "-") for name in LayoutModel.model_fields]
    assert [key for key in keys if key not in text] == []


def test_every_rule_is_in_a_chapter() -> None:
    from linker import rules

    text = (DOCUMENT.parent / "linker-rules.md").read_text()
    ids = {rule.id for rule in rules.load()}
    named = set(re.findall(r"`([a-z]+(?:-[a-z0-9]+)+)`", text))
    assert ids - named == set()
    assert named - ids == set()


def test_the_chapters_scripts_are_clean() -> None:
    text = (DOCUMENT.parent / "linker-rules.md").read_text()
    blocks = re.findall(r"```ld\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert lint(Inputs(Source("doc.lds", block))).diagnostics == ()


def test_document_examples_are_scripts() -> None:
    blocks = re.findall(r"```ld\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert parse(block).problems == ()
        lint(Inputs(Source("doc.lds", block)))


def test_documented_runs(tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs that the document shows are those of today."""
    text = DOCUMENT.read_text()
    objects = [
        assemble(tmp_path, name, source, 64, tool("as")) for name, source in (("a", MAIN), ("b", OTHER))
    ]
    lds, link_map, elf, _ = link(
        tool("ld.bfd", "ld"),
        tmp_path,
        "firmware",
        MEMORY + SCRIPTS["aligned"],
        objects,
        64,
        "--no-warn-rwx-segments",
    )
    outline = Outline(parse(lds.read_text()))
    shown = fill_text.render(fill(outline, read_map(str(link_map)), read_elf(str(elf)), DEFAULTS))
    assert (
        f"$ domainbuilder lint regions firmware.lds --map firmware.map --elf firmware.elf\n{shown}```" in text
    )

    def linked(name: str, grow: int) -> Elf:
        kernel = assemble(tmp_path, name, SOURCE.format(grow=grow, where="data", more=""), 64, tool("as"))
        script = DIFF_SCRIPT.format("", 0x1000)
        linker = tool("ld.bfd", "ld")
        return read_elf(
            str(link(linker, tmp_path, name, script, [kernel], 64, "--no-warn-rwx-segments", "-e0")[2])
        )

    changes = compare(linked("old", 16), linked("new", 48))
    assert f"$ domainbuilder lint diff old.elf new.elf\n{diff_text(changes)}```" in text
    monkeypatch.chdir(tmp_path)
    Path("kernel.lds").write_text(VECTORS)
    words = [sys.executable, "-m", "domainbuilder", "lint", "--fix", "kernel.lds"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert f"$ domainbuilder lint --fix kernel.lds\n{done.stdout}```" in text
