"""The disks, interfaces and framebuffer of a domain, and what is behind: an image, a switch, the outside.

They are there from the start, or attached and detached while the domain runs, as libxl does it. A device that
is to go is asked to: its backend's state says Closing, and the frontend closes. It goes with that, at the
frontend's time; or at once, by force. Source: libxl__initiate_device_generic_remove() and
libxl__device_destroy() in tools/libs/light/libxl_device.c of Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

from hvcore.backends.libxl_nodes import path_cleanup
from hvcore.backends.xenbus import XenbusDevice
from hvcore.public.xenbus import XenbusStateClosed, XenbusStateClosing

if TYPE_CHECKING:
    from hvcore.backends.block import BlockBackend
    from hvcore.backends.block_image import BlockImage
    from hvcore.backends.disk import Disk
    from hvcore.backends.net_outside import Outside
    from hvcore.backends.net_switch import Switch
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif
    from hvcore.backends.xenfb import VfbBackend
    from hvcore.backends.xenkbd import VkbdBackend
    from hvcore.backends.xenstored import Xenstored
    from hvcore.domain import Domain
    from hvcore.given import Key, OutsideFrame, Pointer

MOST_DISKS = 256


class Wanted(NamedTuple):
    """The devices that a new domain is to have."""

    disks: Sequence[tuple[Disk, BlockImage]] = ()
    vifs: Sequence[Vif] = ()
    vfb: Vfb | None = None


class DomainDevices:
    """What blkback, netback and QEMU serve a domain with.

    `backends` are all of them, by name ("vbd51712", "vif0"); `outsides` the ends of cables that lead out of
    the host, by the number of the interface. `screen` and `keyboard` are the framebuffer's. `switches` are
    the host's. `changes` counts how often devices were attached or detached.
    """

    def __init__(self, domain: Domain, dom0: Domain, store: Xenstored, switches: dict[str, Switch]) -> None:
        self.disks: tuple[Disk, ...] = ()
        self.vifs: tuple[Vif, ...] = ()
        self.backends: dict[str, XenbusDevice] = {}
        self.outsides: dict[int, Outside] = {}
        self.vfb: Vfb | None = None
        self.screen: VfbBackend | None = None
        self.keyboard: VkbdBackend | None = None
        self.changes = 0
        self._domain, self._dom0, self._store, self._switches = domain, dom0, store, switches

    def add(self, wanted: Wanted) -> None:
        """Serve these, whose images the backends close. Raises ValueError as add_vifs()."""
        self.add_disks(wanted.disks)
        self.add_vifs(wanted.vifs)
        self._add_vfb(wanted.vfb)

    def add_disks(self, disks: Sequence[tuple[Disk, BlockImage]]) -> None:
        """Serve these, whose images the backends close."""
        if not disks:
            return
        from hvcore.backends.block import BlockBackend  # most domains have none

        self.disks += tuple(disk for disk, _ in disks)
        for disk, image in disks:
            self._add(BlockBackend(self._domain, self._dom0, self._store, disk, image))

    def add_vifs(self, vifs: Sequence[Vif]) -> None:
        """Serve these, which are numbered in their order where they have no number of their own.

        Raises ValueError where two have the same.
        """
        if not vifs:
            return
        from hvcore.backends.net import NetBackend
        from hvcore.backends.net_switch import bridge_of
        from hvcore.backends.vif import numbered

        there, self.vifs = len(self.vifs), numbered((*self.vifs, *vifs))
        for vif in self.vifs[there:]:
            switch = self._cable(vif.devid) if vif.is_outside else bridge_of(self._switches, vif.bridge)
            self._add(NetBackend(self._domain, self._dom0, self._store, vif, vif.devid, switch))

    def _add_vfb(self, vfb: Vfb | None) -> None:
        """Serve a framebuffer, with its keyboard and pointer, for as long as the domain is there."""
        if vfb is None:
            return
        from hvcore.backends.xenfb import VfbBackend
        from hvcore.backends.xenkbd import VkbdBackend

        self.vfb = vfb
        self.screen = VfbBackend(self._domain, self._dom0, self._store, vfb)
        self.keyboard = VkbdBackend(self._domain, self._dom0, self._store, self.screen)
        self.backends |= {_name(device): device for device in (self.screen, self.keyboard)}

    def _add(self, backend: XenbusDevice) -> None:
        name = _name(backend)
        backend.gone = partial(self._unplug, name)
        self.backends[name] = backend

    def _cable(self, devid: int) -> Switch:
        """A cable that leads out of the host."""
        from hvcore.backends.net_outside import Cable, Outside

        name = f"outside{self._domain.domain_id}.{devid}"
        self.outsides[devid] = Outside(name)
        cable = self._switches[name] = Cable()
        cable.plug(self.outsides[devid])
        return cable

    # -- while the domain runs

    def attach_disk(self, disk: Disk) -> None:
        """`xl block-attach`. Raises ValueError where the domain has one of that number; OSError."""
        if disk.devid in [one.devid for one in self.disks]:
            raise ValueError(f"there is a disk {disk.vdev} already")
        if len(self.disks) >= MOST_DISKS:
            raise ValueError(f"a domain has at most {MOST_DISKS} disks")
        from hvcore.backends.images import open_image

        self.add_disks([(disk, open_image(disk))])
        self.changes += 1

    def attach_vif(self, vif: Vif) -> int:
        """`xl network-attach`; the interface's number. Raises ValueError where there is one of its number."""
        from hvcore.backends.vif import MOST_VIFS

        if len(self.vifs) >= MOST_VIFS:
            raise ValueError(f"a domain has at most {MOST_VIFS} interfaces")
        self.add_vifs([vif])
        self.changes += 1
        return self.vifs[-1].devid

    def detach(self, name: str, *, force: bool = False) -> None:
        """Ask the guest to let go of a device, which then goes; or take it away, with `force`.

        Raises ValueError where there is no such device.
        """
        backend = self.backends.get(name)
        if backend is None:
            raise ValueError(f"there is no device {name}")
        self.changes += 1
        backend.tell("online", 0)
        if force:
            path_cleanup(self._store, backend.front)
            backend.close_ring()
            backend.switch_state(XenbusStateClosed)
        elif backend.state != XenbusStateClosed:
            backend.tell("state", XenbusStateClosing)
        if backend.state == XenbusStateClosed and name in self.backends:
            self._unplug(name)

    def _unplug(self, name: str) -> None:
        """The frontend has let go of the disk or interface."""
        backend = self.backends.pop(name)
        backend.remove()
        kind, devid = backend.kind, backend.devid
        if kind == "vbd":
            self.disks = tuple(disk for disk in self.disks if disk.devid != devid)
        else:
            self.vifs = tuple(vif for vif in self.vifs if vif.devid != devid)
            outside = self.outsides.pop(devid, None)
            if outside is not None:
                self._switches.pop(outside.name, None)
        libxl = f"/libxl/{self._domain.domain_id}/device/{kind}/{devid}"
        for path in (backend.front, libxl, backend.back):
            path_cleanup(self._store, path)

    # -- disks that change hands

    def flush_disks(self) -> None:
        """What was written is in the disks' files. Raises OSError."""
        for backend in self._block_backends():
            backend.image.flush()

    def close_disks(self) -> None:
        """Let go of the disks' files, which another process is to have."""
        for backend in self._block_backends():
            backend.image.close()

    def reopen_disks(self) -> None:
        """Go on with the disks that were closed. Raises OSError."""
        from hvcore.backends.images import open_images

        backends = self._block_backends()
        for backend, (_, image) in zip(backends, open_images([b.disk for b in backends]), strict=True):
            backend.image = image

    def disk_use(self) -> dict[str, tuple[int, int, int, int]]:
        """What requests took this host, by disk and kind: see DiskUse."""
        return {
            f"{backend.disk.vdev} {kind}": row
            for backend in self._block_backends()
            for kind, row in sorted(backend.use.rows.items())
        }

    def _block_backends(self) -> list[BlockBackend]:
        return [cast("BlockBackend", backend) for backend in self.backends.values() if backend.kind == "vbd"]

    # -- what comes from outside, and the end

    def frame_in(self, when: int, given: OutsideFrame) -> None:
        """A frame came from outside, for an interface that may be gone."""
        outside = self.outsides.get(given.devid)
        if outside is not None:
            outside.give(when, given.data)

    def give(self, given: Key | Pointer) -> None:
        """Somebody has used the keyboard or the pointer, which the domain may not have."""
        if self.keyboard is not None:
            self.keyboard.give(given)

    @property
    def pending_input(self) -> int:
        """Bytes of that, which the guest has made no room for yet."""
        return self.keyboard.pending_bytes if self.keyboard is not None else 0

    def remove(self) -> None:
        """The domain goes: its backends are closed, and let go of what they have mapped."""
        for backend in self.backends.values():
            backend.remove()
        for outside in self.outsides.values():
            self._switches.pop(outside.name, None)


def _name(backend: XenbusDevice) -> str:
    return f"{backend.kind}{backend.devid}"
