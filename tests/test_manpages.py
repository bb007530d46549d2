"""The man pages: one a command, with all its options, and no complaint from an independent reader of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from domainbuilder.command_line import typer_command
from domainbuilder.command_names import COMMANDS
from domainbuilder.xl.config_keys import KEYS
from tests.loading import load
from tests.needs import find_tool

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def manpages() -> ModuleType:
    return load(ROOT / "scripts" / "manpages.py")


@pytest.fixture(scope="module")
def pages(manpages: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in manpages.write_pages(tmp_path_factory.mktemp("man"))}


def test_every_command_has_its_page(manpages: ModuleType, pages: dict[str, Path]) -> None:
    assert set(pages) == {
        "domainbuilder",
        "domainbuilder-xl.cfg",
        *(manpages.page_name(name) for name in COMMANDS),
    }


def test_the_page_of_configurations_has_every_key(pages: dict[str, Path]) -> None:
    page = pages["domainbuilder-xl.cfg"]
    shown = subprocess.run([find_tool("mandoc"), "-T", "ascii", page], capture_output=True, check=True).stdout
    words = set(re.findall(r"[a-z][a-z0-9_]*", re.sub(r".\x08", "", shown.decode()).replace("-\n", "-")))
    assert [name for name in KEYS if name not in words] == []


def test_mandoc_has_nothing_to_complain_of(pages: dict[str, Path]) -> None:
    done = subprocess.run(
        [find_tool("mandoc"), "-T", "lint", "-W", "warning", *pages.values()],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert complaints == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_every_option_and_argument(
    name: str, manpages: ModuleType, pages: dict[str, Path]
) -> None:
    page = pages[manpages.page_name(name)]
    shown = subprocess.run(
        [find_tool("mandoc"), "-T", "utf8", "-O", "width=200", page], capture_output=True, check=True
    ).stdout.decode()
    while "\b" in shown:  # bold and underlined characters are struck twice
        at = shown.index("\b")
        shown = shown[: at - 1] + shown[at + 1 :]
    for parameter in typer_command(name).params:
        if getattr(parameter, "hidden", False):
            assert parameter.opts[0] not in shown
            continue
        names = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]
        for one in names:
            assert one in shown
        assert " ".join((parameter.help or "").split())[:40] in " ".join(shown.split())
    for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "SEE ALSO"):
        assert f"\n{heading}\n" in shown
