"""Tools of the linker's tests: real linkers, and the scripts of Debian packages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.needs import Tool, find_tool

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# elftext and fetch_corpus are imported by these tests and by nothing else.


settings.register_profile(
    "linker-ci", max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "linker-deep", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.fixture(scope="session")
def tool() -> Tool:
    """`tool("ld.lld", "ld.lld-14")`: the path of the first that exists."""
    return find_tool
