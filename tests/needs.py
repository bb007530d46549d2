"""What a test needs of the machine: where it is not there the test skips and says so, and fails in CI."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn, Protocol

import pytest

_OTHER = "not on this processor"


def missing(what: str) -> NoReturn:
    """What a test needs is not there: a skip; a failure in CI, which installs every apt-packages.txt."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def other_processor(what: str) -> NoReturn:
    """What a test is about is not this machine's processor, and cannot be installed: a skip, even in CI."""
    pytest.skip(f"{_OTHER}: {what}")


def may_skip(reason: str) -> bool:
    """Whether a test may skip for that reason in CI."""
    return _OTHER in reason


class Tool(Protocol):
    """`find_tool`, as the fixture `tool` hands it on."""

    def __call__(self, *names: str) -> str: ...


def find_tool(*names: str) -> str:
    """The path of the first of the programs that this machine has."""
    for name in names:
        path = shutil.which(name)
        if path:
            return path
    missing(f"none of {', '.join(names)} is installed (see tests/*/apt-packages.txt)")
