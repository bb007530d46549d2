"""What xenstored keeps for a connection: watches, messages that wait for room, requests not yet done with.

Source: tools/xenstore/xenstored_core.h.
"""

from __future__ import annotations


class Watch:
    """A watch: the path, what is told of it is called, and whether it was named from the domain's home."""

    __slots__ = ("node", "relative", "token")

    def __init__(self, node: str, token: str, *, relative: bool) -> None:
        self.node = node
        self.token = token
        self.relative = relative

    @property
    def size(self) -> int:
        """What counts against the domain's memory."""
        return len(self.node) + len(self.token)


class Message:
    """An answer or event that waits for room; `used` of its bytes are gone, `request` is what caused it."""

    __slots__ = ("data", "expires", "is_event", "request", "used")

    def __init__(self, data: bytes, request: int, *, is_event: bool, expires: int) -> None:
        self.data = data
        self.used = 0
        self.request = request
        self.is_event = is_event
        self.expires = expires  # 0: never


class Request:
    """A request of `domid` that is outstanding: its answer has not been taken, or so many of its events."""

    __slots__ = ("domid", "events", "is_answered")

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.events = 0
        self.is_answered = False  # and the answer taken


def is_child(child: str, parent: str) -> bool:
    """Whether `child` is `parent`, or below it."""
    return parent == "/" or (child.startswith(parent) and child[len(parent) : len(parent) + 1] in ("", "/"))
