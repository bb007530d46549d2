"""Conformance guests by name and width: the 32-bit ones that are bundled, the others as they are built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from domainbuilder.conform.run import bundled


@pytest.fixture(scope="session")
def conformance_guest(
    samples_builder: Callable[..., ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`conformance_guest("vcpus-64")`: the path of that guest."""
    folder = tmp_path_factory.mktemp("conformance")
    with bundled() as guests:
        for guest in guests:
            (folder / guest.kernel.name).write_bytes(guest.kernel.read_bytes())

    def find(name: str) -> Path:
        path = folder / f"{name}.elf"
        if not path.exists():
            pytest.importorskip("ziglang")
            builder = samples_builder()
            builder.build(tuple(one for one in builder.conformance() if one.name == name), folder)
        return path

    return find
