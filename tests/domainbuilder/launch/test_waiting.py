"""Waiting for several at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from domainbuilder.launch.waiting import Ends, HasFileno, wait_for

LONG = 60.0  # seconds, which no test waits


class Pair:
    """A source that is one end of a pair of sockets."""

    def __init__(self, *, writes: bool = False) -> None:
        self.near, self.far = socket.socketpair()
        self.writes = writes

    def ends(self) -> Ends[HasFileno | int]:
        return Ends([self.near], [self.near] if self.writes else [])


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    pairs = [Pair(), Pair()]
    yield pairs
    for pair in pairs:
        pair.near.close()
        pair.far.close()


def test_any_of_them_ends_it(pairs: list[Pair]) -> None:
    for pair in pairs:
        pair.far.send(b"x")
        wait_for(pairs, LONG)
        wait_for(pairs, None)
        assert pair.near.recv(1) == b"x"
    wait_for(pairs, 0.0)  # and nothing holds it up
    wait_for(pairs, 0.0015)


def test_room_ends_it_where_something_waits_to_go(pairs: list[Pair]) -> None:
    pairs[0].writes = True
    wait_for(pairs, LONG)


def test_what_is_closed_ends_it(pairs: list[Pair]) -> None:
    pairs[1].far.close()
    wait_for(pairs, LONG)
    pairs[1].near.close()
    wait_for(pairs, LONG)
    reader, writer = os.pipe()
    os.close(writer)
    os.close(reader)

    class Gone:
        def ends(self) -> Ends[HasFileno | int]:
            return Ends([reader])

    wait_for([Gone()], LONG)


def test_nobody_is_not_waited_for_without_end() -> None:
    wait_for([], None)
