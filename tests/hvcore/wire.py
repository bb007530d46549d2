"""Somebody else on a switch, for tests."""

from __future__ import annotations

from hvcore.backends.net_frame import Frame
from hvcore.backends.net_switch import Port


class Wire(Port):
    """The other side of the switch: the frames that came out of it, the last `most` of them."""

    name = "wire"

    def __init__(self, most: int = 1 << 16) -> None:
        self.frames: list[Frame] = []
        self._most = most

    def frame_out(self, when: int, frame: Frame) -> None:  # noqa: ARG002
        """See Port."""
        self.frames.append(frame)
        del self.frames[: -self._most]
