"""What the linter computes of generated scripts is what GNU ld and lld do, or unknown with a reason.

A small part of what `python -m tests.linker.differential` runs by the ten thousand; LAYOUT_LINKS says how
many scripts are linked with each.
"""

from __future__ import annotations

import collections
import os
from pathlib import Path

import pytest

from linker.elffile import Elf, read_elf
from tests.linker.differential import LINKERS, compare, linker_of
from tests.linker.generated import make_pool
from tests.needs import Tool

SEEDS = range(int(os.environ.get("LAYOUT_LINKS", "80")))
# Seeds beyond those that once came out wrong.
ONCE_WRONG = {
    "gnu": (23159, 30890, 34112, 35109, 35439, 40195, 41159, 54755, 1020, 2314),
    "lld": (5462,),
    "new-lld": (149,),
}


Pool = tuple[list[Path], dict[str, Elf]]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, tool: Tool) -> Pool:
    directory = tmp_path_factory.mktemp("pool")
    objects = make_pool(directory, tool("as"))
    return objects, {str(path): read_elf(str(path)) for path in objects}


@pytest.mark.parametrize("which", LINKERS)
def test_generated_scripts(tmp_path: Path, pool: Pool, which: str) -> None:
    linker = linker_of(which)
    objects, files = pool
    linked = compared = filled = 0
    unknown: collections.Counter[str] = collections.Counter()
    for seed in (*SEEDS, *ONCE_WRONG[which]):
        outcome = compare(linker, tmp_path, seed, objects, files)
        assert outcome.differences == [], seed
        linked += outcome.linked
        compared += outcome.compared
        filled += outcome.filled
        unknown += outcome.unknown
    assert linked > 0.8 * len(SEEDS)
    assert compared > 10 * linked
    assert (filled > 0.5 * linked) is linker.usage
    assert all(unknown)
    assert sum(unknown.values()) < 0.15 * compared
