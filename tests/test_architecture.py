"""docs/architecture.md names every module there is and none that there is not; the layering holds in CI."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("domainbuilder", "hvcore", "linker")
DOCUMENT = ROOT / "docs" / "architecture.md"


def modules() -> set[str]:
    """Every module as a path from the root; a package stands for its __init__.py."""
    found = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            found.add(name.removesuffix("__init__.py"))
    return found


def documented() -> set[str]:
    """Every `path` of the tables: a first cell that starts with a package's name."""
    rows = re.findall(r"^\| `([^`]+)` \|", DOCUMENT.read_text(), flags=re.MULTILINE)
    return {row for row in rows if row.split("/")[0] in PACKAGES}


def test_every_module_is_in_the_document() -> None:
    assert sorted(modules() - documented()) == []


def test_the_document_names_no_module_that_is_gone() -> None:
    assert sorted(documented() - modules()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


LINE = re.compile(r"^\| `([^`]+)` \| (.+) \|$", flags=re.MULTILINE)


def purpose(name: str) -> str:
    """The first line of a module's docstring; of a package, its __init__.py's."""
    path = ROOT / name
    text = (path / "__init__.py" if path.is_dir() else path).read_text()
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def test_every_module_says_itself_what_it_is_for() -> None:
    """A row is the first line of the module's docstring."""
    rows = {name: row for name, row in LINE.findall(DOCUMENT.read_text()) if name.split("/")[0] in PACKAGES}
    assert {name: row for name, row in rows.items() if row != purpose(name)} == {}
    assert [name for name, row in rows.items() if len(row.split()) < 3] == []


def test_questions_lead_to_functions_that_are_there() -> None:
    """Each `function()` of a row is defined in one of the modules that the row names."""
    section = DOCUMENT.read_text().partition("## From a question to the line")[2].partition("\n## ")[0]
    for row in section.splitlines():
        names = re.findall(r"`(\w+)\(\)`", row)
        folder, found = "", ""
        for path in re.findall(r"[\w/]+\.py", row):
            folder = path.rpartition("/")[0] or folder
            found += (ROOT / folder / path.rpartition("/")[2]).read_text()
        assert [name for name in names if f"def {name}(" not in found] == [], row
    assert "do_update_va_mapping" in section


def test_the_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (rooms,) = (contract["layers"] for contract in contracts if contract["id"] == "rooms")
    section = DOCUMENT.read_text().partition("## The rooms")[2].partition("\n## ")[0]
    shown = re.findall(r"^  (\w+(?: [|:] \w+)*)  ", section, flags=re.MULTILINE)
    assert shown[-len(rooms) :] == rooms


def test_the_index_leads_to_every_page() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert linked == pages


def test_the_guided_walks_lead_to_what_is_there() -> None:
    """Each file that CONTRIBUTING.md names, and each `function()` in a file of the same step."""
    walks = (ROOT / "CONTRIBUTING.md").read_text().partition("## Guided walks")[2]
    steps = re.split(r"^\d\. |^### ", walks, flags=re.MULTILINE)
    assert len(steps) > 30
    for step in steps:
        named = [ROOT / path for path in re.findall(r"`([\w./-]+/[\w.-]*)`", step)]
        assert [path for path in named if not path.exists()] == [], step
        text = "".join(path.read_text() for path in named if path.is_file())
        assert [name for name in re.findall(r"`(\w+)\(\)`", step) if f" {name}(" not in text] == [], step


MOST_LINES = 500


def test_a_module_is_one_subject_and_no_longer_than_that() -> None:
    folders = (*PACKAGES, "samples", "scripts", "tests", "benchmarks")
    lengths = {
        path: path.read_text().count("\n") for folder in folders for path in (ROOT / folder).rglob("*.py")
    }
    long = {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MOST_LINES}
    assert long == {}
