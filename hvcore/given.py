"""What a domain is given while it runs: bytes that are typed, and frames of a network outside of the host."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class OutsideFrame(NamedTuple):
    """An Ethernet frame for the interface `devid`, from its destination address on."""

    devid: int
    data: bytes


Given: TypeAlias = "bytes | OutsideFrame"


def size_of(given: Given) -> int:
    """Its bytes."""
    return len(given.data) if isinstance(given, OutsideFrame) else len(given)
