"""The syntax of xl.cfg: what Debian's libxlutil reads is read the same, and what it refuses is refused."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from domainbuilder.xl.config_syntax import ConfigError, Source, Value, parse
from tests.domainbuilder.xl.libxlutil import Libxlutil

NAMES = {"a", "b", "c.d", "x_1", "disk", "memory"}


@pytest.fixture(scope="module")
def libxlutil() -> Libxlutil:
    return Libxlutil()


def _plain(value: Value) -> Any:
    return [_plain(item) for item in value.items] if value.word is None else value.word


def ours(text: str) -> dict[str, Any] | None:
    try:
        settings = parse([Source("configuration", text)], {})
    except ConfigError:
        return None
    return {name: _plain(settings[name].value) for name in NAMES & settings.keys()}


TEXTS = (
    "",
    "\n\n# only a comment\n",
    "a=1",
    "a = 'one'\nb = \"two\"\n",
    "a='x' ; b='y'\n",
    "a=['1', '2',\n  '3', # a comment\n]\n",
    "a=[]\nb=[ ]\n",
    "a=[['x','y'],['z']]\n",
    "a='1'\na='2'\n",
    "a='1'\na+='2'\n",
    "a=['1']\na+=['2']\n",
    "a+=['2']\n",
    "a='1'\na+=['2']\n",
    "a=0x1f\nb=07\n",
    "a='it\\'s'\nb=\"\\t\\\\\"\n",
    "a='\\x41'\n",
    "a='\\101b'\n",
    "a='\\1'\n",
    "a='\\q'\n",
    "a='open\n",
    "a=True\n",
    "A=1\n",
    "a=-1\n",
    "a=1.5\n",
    "a=(1)\n",
    "a:1\n",
    "a=1 b=2\n",
    "a=\n",
    "=1\n",
    "a=['1' '2']\n",
    "a=['1',,'2']\n",
    "a=[,]\n",
    "a=['1'\n",
    "a=['1'\n\n, \n'2']\n",
    "a=1 # behind\nb=2\n",
    "a=1 # at the end",
    "a='\u00e9'\n",
    "c.d=1\nx_1=2\n",
    "disk=['phy:/dev/vg/a,xvda,w',]\nmemory=512\n",
    "a=1\r\nb=2\r\n",
    "a=\t1\t\n",
    "a\n=1\n",
    ";;;\na=1;\n",
)


@pytest.mark.parametrize("text", TEXTS)
def test_as_libxlutil(text: str, libxlutil: Libxlutil) -> None:
    assert ours(text) == libxlutil.read(text, NAMES)


ANY = (
    *("a", "b", "=", "+=", "'x'", '"y"', "[", "]", ",", "\n", ";"),
    *("#c\n", " ", "1", "0x2f", "'\\n'", "'", "\\", "-", "A"),
)


def _made_up(randomly: random.Random) -> str:
    """Settings as the grammar has them, of which some are then damaged in a place or two."""

    def value(depth: int) -> list[str]:
        if depth == 0 or randomly.random() < 0.6:
            return [randomly.choice(("'x'", '"y"', "7", "0xf", "'a\\tb'", "''"))]
        pieces = ["["]
        for _ in range(randomly.randrange(4)):
            pieces += [*value(depth - 1), randomly.choice((",", ",\n", " , "))]
        return [*(pieces[:-1] if len(pieces) > 1 and randomly.random() < 0.7 else pieces), "]"]

    pieces = []
    for _ in range(randomly.randrange(4)):
        name, sign = randomly.choice(("a", "b", "c.d")), randomly.choice(("=", " = ", "+="))
        pieces += [name, sign, *value(2), randomly.choice(("\n", ";", " # c\n"))]
    for _ in range(randomly.choice((0, 0, 1, 2))):
        at = randomly.randrange(len(pieces) + 1)
        pieces[at : at + randomly.randrange(2)] = [randomly.choice(ANY)] * randomly.randrange(2)
    return "".join(pieces)


def test_made_up_texts_as_libxlutil(libxlutil: Libxlutil) -> None:
    randomly = random.Random(4)
    read = 0
    for _ in range(tries := int(os.environ.get("CONFIGURATIONS", "3000"))):
        text = _made_up(randomly)
        theirs = libxlutil.read(text, NAMES)
        read += theirs is not None
        assert ours(text) == theirs, text
    assert 0.3 * tries < read < 0.9 * tries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=1\nb = True\n", r"x.cfg:2:5: a character that no configuration has; found 'True'"),
        ("b = true\n", r"x.cfg:1:5: config parsing error; found 'true'; expected .*; yes and no are 1 and 0"),
        ("a=['1' '2']", r"x.cfg:1:8: config parsing error; found \"'2'\"; expected a comma"),
        ("a=1\n\nb=['1',\n", r"x.cfg:4:1: .*found the end of the file"),
        ("a='1'\na+=['2']", r"x.cfg:2:1: a: can't add \[list\] to \"string\" or vice versa"),
        ("a='b\n", r"x.cfg:1:3: the string has no end on its line"),
        ("a=1 # x", r"x.cfg:1:5: the comment at the end of the file has no newline"),
        ("a=" + "[" * 40, "nested too deeply"),
        ("a='x\0y'", r"x.cfg:1:5: a NUL, which no text has"),
    ],
)
def test_errors_name_line_column_and_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([Source("x.cfg", text)], {})


def test_later_texts_go_before_earlier_ones() -> None:
    texts = {"x.cfg": "a='1'\nb='1'\n", "argument 1": "a='2'", "argument 2": "b+='3'"}
    found = parse([Source(name, text) for name, text in texts.items()], {})
    assert {name: setting.value.word for name, setting in found.items()} == {"a": "2", "b": "13"}
    assert found["a"].place == "argument 1:1"
