"""What a test needs of the machine: where it is not there the test skips and says so, and fails in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """What a test needs is not there: a skip; a failure in CI, which installs every apt-packages.txt."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def find_tool(*names: str) -> str:
    """The path of the first of the programs that this machine has."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    missing(f"none of {', '.join(names)} is installed (see tests/*/apt-packages.txt)")
