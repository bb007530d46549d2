"""The constants of hvcore/public have the values that they have in Xen's own headers (libxen-dev 4.17)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hvcore import vcpu
from tests.hvcore.public_constants import ELSEWHERE, FAMILIES, names, ours, values
from tests.needs import find_tool, missing

WIDE = {
    "VGCF_in_syscall",
    *(name for name in ours() if name.startswith("SEGBASE_")),
}


@pytest.fixture(autouse=True)
def headers() -> None:
    find_tool("gcc")
    if not Path("/usr/include/xen/memory.h").exists():
        missing("needs libxen-dev")


@pytest.mark.parametrize("word", [4, 8])
def test_values_are_those_of_the_headers(word: int) -> None:
    mine, theirs = ours(), values(frozenset(ours()), word)
    of_all_widths = mine.keys() - ELSEWHERE.keys() - (WIDE if word == 4 else set())
    assert theirs.keys() == of_all_widths
    wrong = {
        name: (mine[name], value) for name, value in theirs.items() if (mine[name] - value) % (1 << 8 * word)
    }
    assert wrong == {}
    assert len(theirs) > 500


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_whole(family: str) -> None:
    """What a header enumerates is ours, too, unless it is told why not; and every exception is one."""
    left_out = FAMILIES[family]
    prefix = "XEN_" if "[" in family else family
    theirs = {name for name in names(8) if re.match(family, name)}
    lacking = theirs - ours().keys()
    assert theirs
    assert {name for name in lacking if not re.fullmatch(left_out, name.removeprefix(prefix))} == set()


def test_run_states() -> None:
    theirs = values(frozenset(name for name in names(8) if re.fullmatch("RUNSTATE_[a-z]+", name)), 8)
    assert theirs == {name: getattr(vcpu, name) for name in theirs}
    assert len(theirs) == 4
