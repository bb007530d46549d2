"""The disks and interfaces of a domain, and what is behind each: an image, a switch, or the outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hvcore.backends.xenbus import XenbusDevice

if TYPE_CHECKING:
    from hvcore.backends.block_image import BlockImage
    from hvcore.backends.disk import Disk
    from hvcore.backends.net_outside import Outside
    from hvcore.backends.net_switch import Switch
    from hvcore.backends.vif import Vif
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain
    from hvcore.given import OutsideFrame


class DomainDevices:
    """What blkback and netback serve a domain with.

    `backends` are all of them, by name ("vbd51712", "vif0"); `outsides` the ends of cables that lead out of
    the host, by the number of the interface. `switches` are the host's.
    """

    def __init__(self, domain: Domain, dom0: Domain, store: Xenstored, switches: dict[str, Switch]) -> None:
        self.disks: tuple[Disk, ...] = ()
        self.vifs: tuple[Vif, ...] = ()
        self.backends: dict[str, XenbusDevice] = {}
        self.outsides: dict[int, Outside] = {}
        self._domain, self._dom0, self._store, self._switches = domain, dom0, store, switches

    def add_disks(self, disks: Sequence[tuple[Disk, BlockImage]]) -> None:
        """Serve these, whose images the backends close."""
        if not disks:
            return
        from hvcore.backends.block import VBD, BlockBackend  # most domains have none

        self.disks += tuple(disk for disk, _ in disks)
        for disk, image in disks:
            backend = BlockBackend(self._domain, self._dom0, self._store, disk, image)
            self.backends[f"{VBD}{disk.devid}"] = backend

    def add_vifs(self, vifs: Sequence[Vif]) -> None:
        """Serve these, which are numbered in their order."""
        if not vifs:
            return
        from hvcore.backends.net import VIF, NetBackend
        from hvcore.backends.net_switch import bridge_of

        first, self.vifs = len(self.vifs), (*self.vifs, *vifs)
        for devid, vif in enumerate(vifs, first):
            switch = self._cable(devid) if vif.is_outside else bridge_of(self._switches, vif.bridge)
            backend = NetBackend(self._domain, self._dom0, self._store, vif, devid, switch)
            self.backends[f"{VIF}{devid}"] = backend

    def _cable(self, devid: int) -> Switch:
        """A cable that leads out of the host."""
        from hvcore.backends.net_outside import Cable, Outside

        name = f"outside{self._domain.domain_id}.{devid}"
        self.outsides[devid] = Outside(name)
        cable = self._switches[name] = Cable()
        cable.plug(self.outsides[devid])
        return cable

    def frame_in(self, when: int, given: OutsideFrame) -> None:
        """A frame came from outside, for an interface that may be gone."""
        outside = self.outsides.get(given.devid)
        if outside is not None:
            outside.give(when, given.data)

    def remove(self) -> None:
        """The domain goes: its backends are closed, and let go of what they have mapped."""
        for backend in self.backends.values():
            backend.remove()
        for outside in self.outsides.values():
            self._switches.pop(outside.name, None)
