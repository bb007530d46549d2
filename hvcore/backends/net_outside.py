"""The outer end of a cable that leads out of the host: what comes in there is input of the run.

What comes from there is input (hvcore/given.py), which Machine.input() takes; what goes there has no effect
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvcore.backends.net_frame import ETH_HLEN, Frame, filled, segments
from hvcore.backends.net_switch import Port, Switch

if TYPE_CHECKING:
    from collections.abc import Iterable


def _nowhere(_data: bytes) -> None:
    """Nobody is there."""


class Cable(Switch):
    """A switch between two, which has nothing to learn."""

    def forward(self, source: Port, when: int, frame: Frame) -> None:
        """See Switch."""
        if len(frame.data) < ETH_HLEN:
            return
        for tap in self.taps:
            tap(when, source.name, frame)
        for port in self.ports.values():
            if port is not source:
                port.frame_out(when, frame)


class Outside(Port):
    """`sink` is given every frame of the guest's as a wire has it: segments, with their checksums."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sink: Callable[[bytes], None] = _nowhere

    def give(self, when: int, data: bytes) -> None:
        """A frame has come from outside."""
        self.frame_in(when, Frame(data))

    def frame_out(self, when: int, frame: Frame) -> None:  # noqa: ARG002 - the guest's time means nothing there
        """See Port."""
        if self.sink is not _nowhere:
            for piece in _pieces(frame):
                self.sink(piece.data)


def _pieces(frame: Frame) -> Iterable[Frame]:
    return segments(frame) if frame.gso_type else (filled(frame),)
