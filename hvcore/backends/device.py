"""What every backend has: a guest, and an end of its own of an event channel in the domain that it runs in.

Source: console_create_ring() in tools/console/daemon/io.c, introduce_domain() in
tools/xenstore/xenstored_domain.c. Backends have no time of their own: domain 0 works at the time of whom it
serves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from hvcore.common.event_channel import bind_backend, bind_backend_to, evtchn_close, evtchn_send

if TYPE_CHECKING:
    from hvcore.domain import Domain


class Device(ABC):
    """One backend of `guest`. `port` is the guest's end of its channel.

    The other end, `backend_port`, is in the domain that runs the backend: domain 0 (`connect()`).
    """

    WIRING: ClassVar[frozenset[str]] = frozenset(("guest", "ring", "_backend"))

    ring: memoryview  # the frame that both sides see

    def __init__(self, guest: Domain) -> None:
        self.guest = guest
        self.port = 0
        self.backend_port = 0
        self._backend: Domain | None = None

    def connect(self, backend: Domain) -> int:
        """Take the next free port of both domains; the guest's. RuntimeError when one has none left."""
        self._backend = backend
        self.port, self.backend_port = bind_backend(self.guest, backend, self._notified)
        return self.port

    def connect_to(self, backend: Domain, port: int) -> int:
        """Bind to a port that the guest has waiting for the backend: 0 or -errno."""
        rport = bind_backend_to(self.guest, port, backend, self._notified)
        if rport < 0:
            return rport
        self._backend = backend
        self.port, self.backend_port = port, rport
        return 0

    def reconnect(self, backend: Domain) -> None:
        """Be heard again by the channel that a restored host has."""
        self._backend = backend
        backend.evtchn.consumers[self.backend_port] = self._notified

    def disconnect(self) -> None:
        """Close the backend's end, for good."""
        if self._backend is not None:
            self._backend.evtchn.consumers.pop(self.backend_port, None)
            evtchn_close(self._backend.evtchn, self.backend_port)
            self._backend, self.backend_port = None, 0

    def serve(self) -> None:
        """What is done from here on is done at the guest's time."""
        if self._backend is not None:
            self._backend.clock = self.guest.clock

    def _notified(self) -> None:
        self.serve()
        self.handle_event()

    @abstractmethod
    def handle_event(self) -> None:
        """Look at the ring: the guest notified."""

    def notify(self) -> None:
        """Tell the guest to look at the ring; lost while it has its end closed."""
        if self._backend is not None:
            evtchn_send(self._backend.evtchn, self.backend_port)
