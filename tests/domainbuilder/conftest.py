"""Fixtures of the builder's tests."""

from __future__ import annotations

import pytest

from .libxenguest import BUILT, Reference, read_reference


@pytest.fixture(params=BUILT)
def reference(request: pytest.FixtureRequest) -> Reference:
    """Each kernel that libxenguest has built a domain of."""
    return read_reference(request.param)
