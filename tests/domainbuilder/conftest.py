"""Fixtures of the builder's tests."""

from __future__ import annotations

import pytest

from tests.domainbuilder.libxenguest import BUILT, Reference, read_reference
from tests.domainbuilder.xenguest import Xenguest


@pytest.fixture(params=BUILT)
def reference(request: pytest.FixtureRequest) -> Reference:
    """Each kernel that libxenguest has built a domain of."""
    return read_reference(request.param)


@pytest.fixture(scope="session")
def xenguest(tmp_path_factory: pytest.TempPathFactory) -> Xenguest:
    """Debian's libxenguest, ready to build domains."""
    return Xenguest(tmp_path_factory.mktemp("xenguest"))
