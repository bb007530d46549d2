"""Values on their way between processes."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import pytest

from domainbuilder.clones.values import from_plain, to_plain
from domainbuilder.clones.wire import Closed, Kind, receive, send


class Colour(IntEnum):
    red = 3


@dataclass(frozen=True)
class Leaf:
    code: bytes
    colour: Colour


class Pair(NamedTuple):
    first: int
    leaf: Leaf


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    pair: tuple[int, str]
    by_number: Mapping[int, Leaf | None]
    named: Pair
    free: dict[str, object]
    missing: Leaf | None = None


def test_a_value_comes_back_as_it_was() -> None:
    leaf = Leaf(bytes(range(256)), Colour.red)
    tree = Tree((leaf, leaf), (1, "\udc80"), {7: leaf, 8: None}, Pair(5, leaf), {"a": [1]})
    again = from_plain(Tree, json.loads(json.dumps(to_plain(tree))))
    assert again == tree
    assert type(again.leaves[0].colour) is Colour


def test_frames_of_any_size_and_an_end_within_one() -> None:
    here, there = socket.socketpair()
    big = b"x" * 1_000_000

    def say() -> None:
        send(here, Kind.OUTPUT, raw=big)
        send(here, Kind.PAUSE)
        here.close()

    sender = threading.Thread(target=say)
    sender.start()
    assert receive(there) == (Kind.OUTPUT, big)
    assert receive(there) == (Kind.PAUSE, b"null")
    sender.join()
    with pytest.raises(Closed):
        receive(there)
    there.close()
    here, there = socket.socketpair()
    here.sendall(b"\x05\0\0\0\x01ab")
    here.close()
    with pytest.raises(Closed):
        receive(there)
