"""A domain's input while it runs: what is typed, frames from outside of the host, keys and pointer."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class OutsideFrame(NamedTuple):
    """An Ethernet frame for the interface `devid`, from its destination address on."""

    devid: int
    data: bytes


class Key(NamedTuple):
    """A key, or a pointer's button, goes down or up: `keycode` is Linux's KEY_* or BTN_*."""

    keycode: int
    pressed: bool


class Pointer(NamedTuple):
    """The pointer is at this pixel of the framebuffer, and its wheel was turned so often towards the user."""

    x: int
    y: int
    wheel: int = 0


Given: TypeAlias = "bytes | OutsideFrame | Key | Pointer"
EVENT_BYTES = 40  # of a ring's event


def size_of(given: Given) -> int:
    """Its bytes."""
    if isinstance(given, OutsideFrame):
        return len(given.data)
    return len(given) if isinstance(given, bytes) else EVENT_BYTES
