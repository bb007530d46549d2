"""The command line's frame: help, version, what becomes of errors, and what start-up imports."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import domainbuilder
from domainbuilder import cli, command_line
from domainbuilder.command_names import COMMANDS
from domainbuilder.errors import BuildError, Where
from hvcore.common.kernel import XEN_VERSION

FOLDER = Path(domainbuilder.__file__).parent / "commands"


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "domainbuilder", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_of_help_lines_is_what_the_commands_say(name: str) -> None:
    docstring = inspect.getdoc(command_line.load(name))
    assert docstring is not None
    assert docstring.splitlines()[0] == COMMANDS[name].help


def test_every_command_module_is_in_the_table() -> None:
    modules = {path.stem for path in FOLDER.glob("[!_]*.py")}
    assert modules == {command.module for command in COMMANDS.values()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_own_help(name: str) -> None:
    done = run(*name.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert COMMANDS[name].help.split(".")[0] in " ".join(done.stdout.split())
    lines = re.split(r"^  Examples?:$", done.stdout, flags=re.MULTILINE)[1:]
    assert lines or name == "cache" or name.startswith("xl ")
    for text in lines:
        check_examples(text.partition("\n\n")[0])


def check_examples(text: str) -> None:
    """The lines have 80 columns at most, and are what the commands' parsers take."""
    assert [line for line in text.splitlines() if len(line) > 80] == []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["domainbuilder"]:
            command = next(name for n in (3, 2) if (name := " ".join(words[1:n])) in COMMANDS)
            given = words[1 + len(command.split()) :]
            given = given[: given.index(">")] if ">" in given else given
            command_line.typer_command(command).make_context(command, given)


def test_help_lists_every_command_and_examples() -> None:
    done = run("--help")
    assert done.returncode == 0
    for name, command in COMMANDS.items():
        assert f"{name} " in done.stdout
        assert command.help in " ".join(done.stdout.split())
    assert "domainbuilder launch" in done.stdout


def test_help_imports_nothing_heavy() -> None:
    """What start-up costs is what it imports; the time itself is in benchmarks/."""
    code = (
        "import sys\n"
        "from domainbuilder.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert not loaded & {
        "typer",
        "unicorn",
        "lief",
        "pydantic",
        "elftools",
        "capstone",
        "rich",
        "hvcore",
        "linker",
        "lz4",
    }


def test_importing_the_package_imports_no_module_of_ours() -> None:
    code = "import sys, domainbuilder; print(*[m for m in sys.modules if m.startswith('domainbuilder.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version() -> None:
    done = run("--version")
    first, second, third = done.stdout.splitlines()
    assert (done.returncode, first) == (0, f"domainbuilder {domainbuilder.__version__}")
    unicorn, xen = importlib.metadata.version("unicorn"), f"{XEN_VERSION >> 16}.{XEN_VERSION & 0xFFFF}"
    assert second == f"Python {platform.python_version()}, Unicorn {unicorn}, after Xen {xen}"
    assert third.startswith(("core: compiled (", "core: Python"))


def test_the_version_is_the_distributions() -> None:
    text = (Path(domainbuilder.__file__).parent.parent / "pyproject.toml").read_text()
    assert f'\nversion = "{domainbuilder.__version__}"\n' in text


def test_submodules_do_not_hide_the_functions() -> None:
    import domainbuilder.build.domain_image

    assert callable(domainbuilder.build)
    with pytest.raises(AttributeError, match="frobnicate"):
        domainbuilder.frobnicate  # noqa: B018


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["--frobnicate"], ["plan"], ["plan", "--memory", "many", "x"]]
)
def test_wrong_usage_ends_with_2_and_no_traceback(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["notes", "plan", "build", "launch"])
def test_a_missing_file_is_one_line_and_2(name: str, tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "out")] if name == "build" else []
    done = run(name, str(tmp_path / "nothing here"), *output)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("domainbuilder: error: ")
    assert "nothing here" in lines[0]


@pytest.mark.parametrize(
    "command", [["notes"], ["plan"], ["trace"], ["lint"], ["lint", "format"], ["restore"]]
)
def test_a_files_name_does_nothing_to_the_terminal(command: list[str], tmp_path: Path) -> None:
    """Its control characters are shown, and the byte that is no UTF-8, as what they are."""
    name = os.fsencode(tmp_path) + b"/esc\x1b[31m\xff"
    Path(os.fsdecode(name)).write_bytes(b"nothing")
    done = run(*command, os.fsdecode(name))
    assert done.returncode == 2
    assert "\x1b" not in done.stdout + done.stderr
    assert r"esc\x1b[31m\xff" in done.stderr or "esc\N{REPLACEMENT CHARACTER}[31m" in done.stdout
    assert len(done.stderr.splitlines()) <= 1


def raising(error: BaseException) -> object:
    def command() -> None:
        """Raise what a command may raise."""
        raise error

    return command


def main_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    monkeypatch.setattr(command_line, "load", lambda name: raising(error))
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["notes"])
    assert isinstance(exit_info.value.code, int)
    return exit_info.value.code


def test_errors_in_the_input_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = BuildError("no\nloader", where=Where("kernel", 0x10), found=3, expected="5")
    assert main_with(monkeypatch, error) == 2
    assert capsys.readouterr().err == "domainbuilder: error: kernel+0x10: no loader; found 0x3; expected 5\n"


def test_errors_of_files_name_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_with(monkeypatch, PermissionError(13, "Permission denied", "secret")) == 2
    assert capsys.readouterr().err == "domainbuilder: error: secret: Permission denied\n"


def test_an_interrupt_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main_with(monkeypatch, KeyboardInterrupt()) == 130


def test_bugs_show_as_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "load", lambda name: raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["notes"])


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"'{sys.executable}' -m domainbuilder --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in {"0", "1"}
    assert done.stderr == ""


COMPLETIONS = {
    "domainbuilder ": {"notes", "plan", "build", "launch", "conform", "lint", "initramfs", "pygrub"},
    "domainbuilder la": {"launch"},
    "domainbuilder launch --exp": {"--expect"},
    "domainbuilder plan --format ": {"text", "json", "svg"},
    "domainbuilder notes f": {"fix", "file"},
    "domainbuilder lint d": {"diff", "dir/"},
    "domainbuilder lint --explain page-aligned-o": {"page-aligned-order"},
    "domainbuilder conform call": {"callbacks"},
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion(line: str, tmp_path: Path) -> None:
    """As bash asks for it; where nothing is offered bash, zsh and fish offer files."""
    (tmp_path / "file").touch()
    (tmp_path / "dir").mkdir()
    words = line.split(" ")
    asked = {
        "_DOMAINBUILDER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = run(cwd=tmp_path, env=os.environ | asked | {"PYTHONPATH": str(FOLDER.parent.parent)})
    assert COMPLETIONS[line] <= set(done.stdout.split()), done.stderr
    if words[-1]:
        assert all(word.startswith(words[-1]) for word in done.stdout.split())


def test_files_are_completed_by_the_shell(tmp_path: Path) -> None:
    (tmp_path / "kernel.elf").touch()
    line = "domainbuilder launch ker"
    asked = {"_DOMAINBUILDER_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": "2"}
    done = run(cwd=tmp_path, env=os.environ | asked | {"PYTHONPATH": str(FOLDER.parent.parent)})
    assert done.stdout.split() == []
    assert "-o default" in run("--show-completion", "bash").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_offered(shell: str) -> None:
    done = run("--show-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "_DOMAINBUILDER_COMPLETE" in done.stdout


def test_no_shell_is_no_failed_check() -> None:
    assert run("--show-completion", "cmd.exe").returncode == 2
    done = run("--show-completion", env={"PYTHONPATH": str(FOLDER.parent.parent), "SHELL": "/bin/none"})
    assert done.returncode in (0, 2)
