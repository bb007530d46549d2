"""docs/python.md: its examples run, and its tables have every public name and the arguments it takes."""

from __future__ import annotations

import contextlib
import inspect
import re
from pathlib import Path
from types import FunctionType

import pytest

import domainbuilder
from domainbuilder.launch.backstage import Backstage
from domainbuilder.launch.rewinding import Rewinding
from domainbuilder.launch.runner import Runner

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
OWNERS = {
    "domainbuilder": domainbuilder,
    "dom": domainbuilder.RunningDomain,
    "console": domainbuilder.Console,
    "host": domainbuilder.Host,
}
CALLS = re.findall(rf"`({'|'.join(OWNERS)})\.(\w+)(\([^`]*\))?`", PAGE)


def test_its_examples_run(tmp_path: Path) -> None:
    """One after the other, as a reader would type them."""
    names: dict[str, object] = {}
    with contextlib.chdir(tmp_path):
        for body in BLOCKS:
            exec(compile(body, "docs/python.md", "exec"), names)
    assert (tmp_path / "hello.core").exists()


def test_it_shows_the_arguments_that_there_are() -> None:
    for owner, name, shown in CALLS:
        if shown:
            assert shown == f"({', '.join(arguments(getattr(OWNERS[owner], name)))})", name


def arguments(function: FunctionType) -> list[str]:
    """As they are written, without `self`: the options of a launch are `**options`, and help() has each."""
    code = function.__code__
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    options = ["**options"] if code.co_flags & inspect.CO_VARKEYWORDS else []
    return [*(name for name in named if name != "self"), *options]


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("", set(domainbuilder.__all__) - {"__version__"}),
        ("dom.", public(domainbuilder.RunningDomain) | public(Rewinding)),
        ("console.", {"expect", "send", "read", "transcript"}),
        ("host.", public(domainbuilder.Host)),
    ],
)
def test_it_has_every_public_name(written: str, names: set[str]) -> None:
    assert {name for name in names if not re.search(rf"\b{written}{name}\b", PAGE)} == set()


def test_what_stands_beside_it_is_there() -> None:
    section = PAGE.partition("## Beside it\n")[2].partition("\n## ")[0]
    named = re.findall(r"^\| `([\w.]+)` \|", section, flags=re.MULTILINE)
    assert len(named) > 4
    for package, _, name in (one.rpartition(".") for one in named):
        exec(f"from {package} import {name}", {})


def test_a_clone_has_what_the_page_says() -> None:
    said = re.search(r"A `Clone` has of these (.*?); `pid`", PAGE, flags=re.DOTALL)
    assert said
    there = public(domainbuilder.Clone) | {"console", "domain_id"}
    assert set(re.findall(r"`(\w+)`", said[1])) == there - {"pid", "printed"}


def test_what_is_backstage_stays_there() -> None:
    """A domain's holder and the rest of the package use different methods, in different classes."""
    behind = public(Backstage) | public(Runner)
    assert {name for owner, name, _ in CALLS if owner == "dom"} & behind <= {"plan"}
