"""A backend whose frontend is found by the store: the states of both, the ring, the event channel, the end.

After Linux's drivers/xen/xenbus, which is what the backends of domain 0 stand on, with the nodes of
xen/include/public/io/xenbus.h. All that the frontend writes is checked, and what cannot be ends the device as
xenbus_dev_fatal does there: an error node, and the state Closing.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from hvcore.backends.device import Device
from hvcore.backends.libxl_nodes import backend_path, frontend_path
from hvcore.common.grant_map import map_for_backend, unmap_for_backend
from hvcore.public.errno import EINVAL, NAMES
from hvcore.public.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateUnknown,
)

if TYPE_CHECKING:
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain


class FrontendError(Exception):
    """The frontend asks for what it cannot have: `errno`, and what was being done."""

    def __init__(self, errno: int, what: str) -> None:
        super().__init__(errno, what)
        self.errno = errno
        self.what = what


class XenbusDevice(Device):
    """The backend of device `devid` of `guest`, in domain `backend`. Nodes are there before it is."""

    WIRING = frozenset((*Device.WIRING, "store", "home", "front", "back", "kind", "devid", "gone"))

    def __init__(self, kind: str, devid: int, guest: Domain, backend: Domain, store: Xenstored) -> None:
        super().__init__(guest)
        self.kind = kind
        self.devid = devid
        self.home = backend
        self.store = store
        self.front = frontend_path(guest.domain_id, kind, devid)
        self.back = backend_path(guest.domain_id, kind, devid)
        self.state = XenbusStateInitialising
        self.handles: list[int] = []  # of the ring's frames, mapped
        self.gone: Callable[[], None] = lambda: None  # called where it is closed, and was to go
        store.watch(self.back, f"{self.front}/state", self._frontend_changed)

    # -- nodes

    def tell(self, name: str, value: object) -> None:
        """Write a node of the backend's side."""
        self.store.write(f"{self.back}/{name}", str(value))

    def asked(self, name: str) -> str | None:
        """What the frontend has in a node of its side."""
        return self.store.read(f"{self.front}/{name}")

    def number(self, name: str, default: int | None = None) -> int:
        """A number of 32 bits that the frontend has in a node, as C reads one. Raises FrontendError."""
        return self.digits(name, default) & 0xFFFFFFFF

    def digits(self, name: str, default: int | None = None) -> int:
        """The number there, of any size. Raises FrontendError."""
        found = re.match(r"\s*\+?([0-9]{1,20})", self.asked(name) or "")
        if found is None:
            if default is None:
                raise FrontendError(EINVAL, f"reading {self.front}/{name}")
            return default
        return int(found[1])

    def switch_state(self, state: int) -> None:
        """Tell the frontend of a new state."""
        if state != self.state:
            self.state = state
            self.tell("state", state)

    def fatal(self, error: FrontendError) -> None:
        """The device cannot go on: an error node, and Closing."""
        self.tell_error(error)
        self.switch_state(XenbusStateClosing)

    def tell_error(self, error: FrontendError) -> None:
        """Write the device's error node, which the guest cannot read."""
        where = self.back.removeprefix("/local/domain/0/")
        text = f"{-error.errno} {error.what} ({NAMES.get(error.errno, error.errno)})"
        self.store.write(f"/local/domain/0/error/{where}/error", text)

    # -- the frontend's states

    def _frontend_changed(self, path: str) -> None:
        """Watches tell of what is below, too: the node alone counts."""
        if path != f"{self.front}/state":
            return
        state = self.number("state", XenbusStateUnknown)
        if state == XenbusStateInitialising:
            if self.state == XenbusStateClosed:
                self.switch_state(XenbusStateInitWait)
        elif state in (XenbusStateInitialised, XenbusStateConnected):
            self._connect_frontend()
            if state == XenbusStateConnected == self.state:
                self.frontend_connected()
        elif state == XenbusStateClosing:
            self.switch_state(XenbusStateClosing)
        elif state == XenbusStateClosed:
            self.close_ring()
            self.switch_state(XenbusStateClosed)
            if self.store.read(f"{self.back}/online") == "0":
                self.gone()
        elif state != XenbusStateInitWait or self.state != XenbusStateInitWait:
            self.fatal(FrontendError(EINVAL, f"saw state {state} at frontend"))

    def _connect_frontend(self) -> None:
        if self.state == XenbusStateConnected:
            return
        self.close_ring()
        try:
            self.connect_ring()
        except FrontendError as error:
            self.close_ring()
            self.fatal(error)
            return
        self.advertise()
        self.switch_state(XenbusStateConnected)
        self.handle_event()  # what came before there was a channel

    @abstractmethod
    def connect_ring(self) -> None:
        """Read what the frontend wrote and map its ring. Raises FrontendError."""

    def frontend_connected(self) -> None:
        """Both are in the state Connected."""

    @abstractmethod
    def answer_due(self) -> None:
        """The device's timer is due."""

    def owners(self) -> Iterator[tuple[str, object]]:
        """What keeps state of the device beside itself, by name."""
        return iter(())

    def prepare(self, saved: Container[str]) -> None:
        """Have the parts that the saved device has, before each gets its state; `saved` are their names."""

    def restored(self) -> None:
        """Every part has its state: be heard by the channel again."""
        if self.backend_port:
            self.reconnect(self.home)

    @abstractmethod
    def advertise(self) -> None:
        """Write what the frontend is to know before the state is Connected."""

    # -- the ring

    def map_frames(self, refs: list[int]) -> list[int]:
        """The frames behind the ring's grants, mapped until close_ring(). Raises FrontendError."""
        frames = []
        for ref in refs:
            handle, mfn = map_for_backend(self.home, self.guest, ref, readonly=False)
            if handle < 0:
                raise FrontendError(EINVAL, f"mapping ring-ref {ref}")
            self.handles.append(handle)
            frames.append(mfn)
        return frames

    def bind(self, port: int) -> None:
        """Take the backend's end of the channel. Raises FrontendError."""
        rc = self.connect_to(self.home, port)
        if rc:
            raise FrontendError(-rc, f"binding port {port}")

    def close_ring(self) -> None:
        """No channel and no ring any more."""
        self.disconnect()
        for handle in self.handles:
            unmap_for_backend(self.home, handle)
        self.handles.clear()

    def remove(self) -> None:
        """The device is gone."""
        self.close_ring()
        self.store.unwatch(self.back)
        self.close()

    def close(self) -> None:
        """Nothing of the domain runs any more: close what this host has open for the device."""
