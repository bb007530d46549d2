"""What every backend has: a frame of the guest's with a ring in it, and its own end of an event channel.

Source: console_create_ring() in tools/console/daemon/io.c, introduce_domain() in
tools/xenstore/xenstored_domain.c.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from hvcore.common.event_channel import bind_backend, evtchn_close, evtchn_send

if TYPE_CHECKING:
    from hvcore.domain import Domain


class Device(ABC):
    """One backend of one guest. `ring` is the frame that both sides see, `port` the guest's end.

    The other end, `backend_port`, is in the domain that runs the backend: domain 0 (`connect()`).
    """

    __slots__ = ("_backend", "backend_port", "port", "ring")

    def __init__(self, ring: memoryview) -> None:
        self.ring = ring
        self.port = 0
        self.backend_port = 0
        self._backend: Domain | None = None

    def connect(self, guest: Domain, backend: Domain) -> int:
        """Take the next free port of both domains; the guest's. RuntimeError when one has none left."""
        self._backend = backend
        self.port, self.backend_port = bind_backend(guest, backend, self.handle_event)
        return self.port

    def disconnect(self) -> None:
        """Close the backend's end, for good."""
        if self._backend is not None:
            self._backend.evtchn.consumers.pop(self.backend_port, None)
            evtchn_close(self._backend.evtchn, self.backend_port)
            self._backend = None

    @abstractmethod
    def handle_event(self) -> None:
        """Look at the ring: the guest notified."""

    def notify(self) -> None:
        """Tell the guest to look at the ring; lost while it has its end closed."""
        if self._backend is not None:
            evtchn_send(self._backend.evtchn, self.backend_port)
