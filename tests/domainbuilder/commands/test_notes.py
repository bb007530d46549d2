"""`domainbuilder notes` on the command line: text, JSON, exit codes, and one line for bad input."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from domainbuilder.kernel.inspection import inspect
from domainbuilder.reports.notes_report import NotesReport
from tests.domainbuilder.elfwriter import ElfWriter, legacy_kernel, xen_kernel

ROOT = Path(__file__).parents[3]
SCHEMA = json.loads((ROOT / "docs" / "notes.schema.json").read_text())


def run(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "domainbuilder", *map(str, args)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | env,
        cwd=ROOT,
    )


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(xen_kernel().build())
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "bad"
    path.write_bytes(xen_kernel(LOADER="grub").build())
    return path


def test_text_starts_with_the_verdict(kernel: Path) -> None:
    done = run("notes", kernel)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == f"{kernel}: PV 32-bit PAE"
    assert re.search(r"^  PV 64-bit +no +it is for i386$", done.stdout, re.MULTILINE)
    assert re.search(r'^  0x[0-9a-f]{8}  PT_NOTE   Xen    LOADER +8  "generic"$', done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_columns_are_aligned(kernel: Path) -> None:
    lines = run("notes", kernel).stdout.splitlines()
    table = lines[lines.index("Notes") + 1 :]
    column = table[0].index("type")
    assert {line[column - 1] for line in table} == {" "}
    assert all(line[column] != " " for line in table)


def test_check(kernel: Path, bad: Path) -> None:
    assert run("notes", "--check", kernel).returncode == 0
    done = run("notes", "--check", kernel, bad)
    assert done.returncode == 1
    assert "DBN002 refused" in done.stdout
    assert run("notes", bad).returncode == 0


def test_bad_input_is_one_line_and_the_others_are_shown(kernel: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    done = run("notes", tmp_path / "junk", kernel, tmp_path / "absent")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert re.match(
        r"domainbuilder: error: .*junk\+0x0: .*found 6a 75 6e 6b; expected 7f 45 4c 46$",
        done.stderr.splitlines()[0],
    )
    assert f"{kernel}: PV 32-bit PAE" in done.stdout


def test_no_file_is_a_usage_error() -> None:
    assert run("notes").returncode == 2


def test_json_is_as_documented(kernel: Path, bad: Path, tmp_path: Path) -> None:
    (tmp_path / "legacy").write_bytes(
        legacy_kernel("XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=0xC0000000").build()
    )
    (tmp_path / "empty").touch()
    done = run("notes", "--format", "json", kernel, bad, tmp_path / "legacy", tmp_path / "empty")
    assert done.returncode == 2
    report = json.loads(done.stdout)
    jsonschema.validate(report, SCHEMA)
    first, second, third, fourth = report["files"]
    assert first["pv"]["virt_entry"] == "0xc0100000"
    assert first["pv"]["virt_hypercall"] is None
    assert [verdict["accepted"] for verdict in first["verdicts"]] == [True, False, False, False]
    assert second["pv"] is None
    assert [finding["id"] for finding in second["findings"]] == ["DBN002", "DBN034"]
    assert third["notes_source"] == "__xen_guest"
    assert third["guest_info"][0] == {
        "key": "XEN_VER",
        "value": "xen-3.0",
        "offset": third["guest_info"][0]["offset"],
    }
    assert "zero length file" in fourth["error"]
    assert NotesReport.model_validate_json(done.stdout).model_dump_json() == json.dumps(
        report, separators=(",", ":")
    )


def test_the_schema_is_the_models() -> None:
    assert NotesReport.model_json_schema(mode="serialization") == SCHEMA


def test_fix(tmp_path: Path, kernel: Path) -> None:
    done = run("notes", "fix", kernel, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}: nothing to repair: a copy\n")
    report = json.loads(run("notes", "fix", kernel, "-o", tmp_path / "out", "--format", "json").stdout)
    assert report == {
        "schema_version": 1, "file": str(kernel), "output": str(tmp_path / "out"), "changes": [], "left": [],
    }  # fmt: skip


def test_fix_of_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(ElfWriter().load(b"x", paddr=4096).build())
    for arguments in (
        (tmp_path / "plain", "-o", tmp_path / "out"),
        (tmp_path / "absent", "-o", tmp_path / "out"),
    ):
        done = run("notes", "fix", *arguments)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert not (tmp_path / "out").exists()


def test_a_kernel_called_fix_can_be_shown(tmp_path: Path) -> None:
    (tmp_path / "fix").write_bytes(xen_kernel().build())
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "notes", "./fix"],
        capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.startswith("./fix: PV 32-bit PAE")


def test_hostile_strings_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(
        xen_kernel(
            GUEST_OS="\x1b]0;x\x07", GUEST_VERSION="\x1b[2J", LOADER="\x1b[31m", FEATURES="\x1bc"
        ).build()
    )
    done = run("notes", tmp_path / "kernel")
    assert "\x1b" not in done.stdout
    assert r"\x1b[31m" in done.stdout


def on_a_terminal(path: Path, **env: str) -> bytes:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "domainbuilder", "notes", str(path)],
        stdout=child, stderr=child, cwd=ROOT, env={**os.environ, "TERM": "xterm", "NO_COLOR": ""} | env,
    )  # fmt: skip
    os.close(child)
    seen = b""
    while select.select([parent], [], [], 30)[0]:
        try:
            piece = os.read(parent, 1 << 16)
        except OSError:  # how a pseudoterminal tells its end
            break
        if not piece:
            break
        seen += piece
    process.wait()
    os.close(parent)
    return seen


def test_colour_only_on_terminals_that_want_it(kernel: Path) -> None:
    assert b"\x1b[1;32mPV 32-bit PAE\x1b[0m" in on_a_terminal(kernel)
    assert b"\x1b" not in on_a_terminal(kernel, NO_COLOR="1")
    assert b"\x1b" not in on_a_terminal(kernel, TERM="dumb")


def test_text_output_imports_neither_pydantic_models_nor_lief(kernel: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from domainbuilder.commands.notes import notes\n"
        f"notes([Path({str(kernel)!r})])\n"
        "heavy = ('lief', 'domainbuilder.models', 'pydantic', 'unicorn')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.guest
@pytest.mark.parametrize("name", ["grub-i386-xen.bin", "gnumach-bookworm-amd64.gz", "vmlinuz-bookworm-amd64"])
def test_every_note_is_shown(name: str, guest_kernel: Callable[[str], Path]) -> None:
    path = guest_kernel(name)
    inspection = inspect(path)
    text = run("notes", path).stdout
    report = json.loads(run("notes", "--format", "json", path).stdout)
    jsonschema.validate(report, SCHEMA)
    assert [note["offset"] for note in report["files"][0]["notes"]] == [
        n.offset for n in inspection.notes.notes
    ]
    for note in inspection.notes.notes:
        assert f"  {note.offset:#010x}  {note.source}" in text
