"""Where running domains stand, to go back to within their process: for loops that are too tight for a fork.

dom.console.expect("# ")
here = dom.snapshot()
for command in commands:
    dom.console.send(command)
    dom.console.expect("# ")
    dom.rewind(here)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from hvcore.host import Host


class Kept(Protocol):
    """What a snapshot wants of a domain's holder, which is RunningDomain."""

    def check_at_rest(self) -> None:
        """Raise RuntimeError where it is not there, or runs."""

    def check_can_be_copied(self) -> None:
        """Raise RuntimeError where what it does to a disk would stay done."""

    def keep(self) -> Callable[[], None]:
        """What gives it back what it knows now."""


class Snapshot:
    """All domains of a host as they stood. It holds a copy of their memory until nobody holds it."""

    def __init__(self, host: Host, domains: Sequence[Kept]) -> None:
        for dom in domains:
            dom.check_at_rest()
            dom.check_can_be_copied()
        self._host = host
        self._domains = list(domains)
        self._given_back = [dom.keep() for dom in domains]
        self._device_changes = _device_changes(host)
        self._mark = host.mark()

    def go_back(self, domains: Sequence[Kept]) -> None:
        """Bring these back, which have to be those of the snapshot. Raises RuntimeError."""
        if list(domains) != self._domains:
            raise RuntimeError("the snapshot is of other domains")
        if _device_changes(self._host) != self._device_changes:
            raise RuntimeError("devices were attached or detached since the snapshot")
        for dom in domains:
            dom.check_at_rest()
        self._host.rewind(self._mark)
        for give_back in self._given_back:
            give_back()


def _device_changes(host: Host) -> list[int]:
    return [machine.devices.changes for machine in host.machines.values()]
