"""--expect and --send in the order of the command line, and what --send's escapes mean."""

from __future__ import annotations

import pytest

from domainbuilder.errors import BuildError
from domainbuilder.launch.script import Step, script, unescape

VALUED = ["--expect", "--send", "--cmdline", "-m", "--memory"]


def steps(*arguments: str, expects: list[str], sends: list[str]) -> list[tuple[str, str]]:
    return [(step.kind, step.text) for step in script(arguments, expects, sends, VALUED)]


def test_the_order_is_that_of_the_command_line() -> None:
    assert steps(
        *("launch", "--send", "a", "kernel", "--expect=b", "-m", "64", "--expect", "c", "--send=d"),
        expects=["b", "c"],
        sends=["a", "d"],
    ) == [("send", "a"), ("expect", "b"), ("expect", "c"), ("send", "d")]


def test_values_that_look_like_options_are_values() -> None:
    assert steps(
        *("--cmdline", "--expect", "--expect", "--send", "--send=--expect", "--", "--send"),
        expects=["--send"],
        sends=["--expect"],
    ) == [("expect", "--send"), ("send", "--expect")]


def test_without_the_command_line_answers_follow_expectations() -> None:
    assert steps("pytest", expects=["a", "b"], sends=["c"]) == [
        ("expect", "a"),
        ("send", "c"),
        ("expect", "b"),
    ]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("halt\\n", b"halt\n"),
        ("\\t\\r\\\\n", b"\t\r\\n"),
        ("\\x1b[A\\xff", b"\x1b[A\xff"),
        ("é\\n", "é\n".encode()),
        ("", b""),
        ("caf\udce9", b"caf\xe9"),  # a byte of the command line that is no UTF-8
    ],
)
def test_escapes(text: str, data: bytes) -> None:
    assert unescape(text) == data


@pytest.mark.parametrize("text", ["\\q", "\\x1", "\\xgg", "end\\", "\\\n"])
def test_escapes_that_are_none(text: str) -> None:
    with pytest.raises(BuildError, match="escape"):
        unescape(text)


def test_a_pattern_that_is_none() -> None:
    with pytest.raises(BuildError, match=r"--expect '\('"):
        _ = Step("expect", "(").pattern
