"""Sizes of memory as xl takes them."""

from __future__ import annotations

import pytest

from domainbuilder.errors import BuildError
from domainbuilder.xl.sizes import parse_mem_size_kb


@pytest.mark.parametrize(
    ("text", "kib"),
    [("128", 131072), ("128m", 131072), ("1G", 1 << 20), ("2t", 2 << 30), ("5k", 5), ("4097b", 4), ("0", 0)],
)
def test_units(text: str, kib: int) -> None:
    assert parse_mem_size_kb(text) == kib


@pytest.mark.parametrize("text", ["", "m", "-1", "1.5g", "1x", "0x10", "1 m", "9" * 30])
def test_what_is_none(text: str) -> None:
    with pytest.raises(BuildError, match="invalid memory size"):
        parse_mem_size_kb(text)
