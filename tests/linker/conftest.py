"""Tools of the linker's tests: real linkers, and the scripts of Debian packages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# elftext and fetch_corpus are imported by these tests and by nothing else.


settings.register_profile(
    "linker-ci", max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "linker-deep", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def missing(what: str) -> None:
    """Fail in CI, where everything in apt-packages.txt is installed; skip elsewhere."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def find_tool(*names: str) -> str:
    """Return the first of the programs that this machine has."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    missing(f"none of {', '.join(names)} is installed (see tests/linker/apt-packages.txt)")
    raise AssertionError


@pytest.fixture(scope="session")
def tool():
    """`tool("ld.lld", "ld.lld-14")`: the path of the first that exists."""
    return find_tool
