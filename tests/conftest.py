"""Fixtures shared by every test: the real kernels, and the bundled sample guests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder import guests

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("DOMAINBUILDER_CACHE") or ROOT / ".cache")


@pytest.fixture(scope="session")
def guest_kernel() -> Callable[[str], Path]:
    """`guest_kernel(name)`: the path of a file that `make guests` fetched (names: scripts/guests.py).

    Without it the test fails in CI and skips elsewhere.
    """

    def find(name: str) -> Path:
        path = CACHE / "guests" / name
        if not path.exists():
            message = f"{name} is not in {path.parent}: run `make guests`"
            if os.environ.get("CI") == "true":
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find


@pytest.fixture(scope="session")
def sample_guest() -> Callable[[str], Path]:
    """`sample_guest(name)`: the path of a sample guest that comes with the package."""
    return guests.path
