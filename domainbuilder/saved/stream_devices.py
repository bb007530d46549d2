"""The devices in xl's configuration of a migration stream: told as libxl does, and read back.

What the file names opens nothing here: disks are given again by whoever restores it, and a switch of the host
is all that an interface leads to. Sources: libxl_device_disk, libxl_device_nic and libxl_device_vfb of
tools/libs/light/libxl_types.idl, their JSON as gentypes.py makes it, of Xen 4.17. `domainbuilder` beside them
says how the disks' files were, which libxl passes over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from domainbuilder.errors import SavedError
from domainbuilder.saved.disks import identity
from hvcore.backends.block import BlockBackend
from hvcore.backends.block_image import Layer
from hvcore.backends.disk import Disk
from hvcore.backends.domain_devices import MOST_DISKS
from hvcore.backends.vfb import VNC_LISTEN, Vfb
from hvcore.backends.vif import MOST_VIFS, MTU, Vif

if TYPE_CHECKING:
    from hvcore.machine import Machine

_DEFBOOL = {"True": True, "False": False}  # and "<default>"
_FORMATS = ("raw", "qcow2", "empty")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_BRIDGE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_MOST_NAME = 4096
_RATE_USECS = 50000


def check_devices(machine: Machine) -> None:
    """Raise SavedError where a device has what Xen's stream has no place for."""
    for backend in machine.devices.backends.values():
        if isinstance(backend, BlockBackend) and isinstance(backend.image, Layer) and backend.image.blocks:
            name = backend.disk.vdev
            raise SavedError(
                f"what the guest wrote to memory instead of disk {name} (--snapshot) has no place in Xen's "
                "stream: the frozen form has it"
            )
    if machine.devices.outsides:
        raise SavedError("an interface leads out of this host, and its connections cannot be moved")


# --- to libxl's JSON: what is a default is left out ---------------------------------------------------------


def device_config(machine: Machine, *, with_identity: bool) -> dict[str, Any]:
    """What of libxl's configuration is about devices; with the identities of the disks' files, or without.

    Raises OSError for a disk that cannot be read.
    """
    devices = machine.devices
    config: dict[str, Any] = {}
    if devices.disks:
        config["disks"] = [_disk_json(disk) for disk in devices.disks]
    if devices.vifs:
        config["nics"] = [_nic_json(vif, machine.domain.domain_id) for vif in devices.vifs]
    if devices.vfb is not None:
        config |= {"vfbs": [_vfb_json(devices.vfb)], "vkbs": [{"devid": 0, "backend_type": "qemu"}]}
    if devices.disks and with_identity:
        config["domainbuilder"] = {"disks": {disk.vdev: identity(disk) for disk in devices.disks}}
    return config


def _disk_json(disk: Disk) -> dict[str, Any]:
    flags = ("removable", "readwrite", "is_cdrom")
    return {
        **({"pdev_path": disk.target} if disk.target else {}),
        "vdev": disk.vdev,
        "format": disk.format,
        **{name: 1 for name in flags if getattr(disk, name)},
        **({"direct_io_safe": True} if disk.direct_io_safe else {}),
        "discard_enable": str(disk.discard),
        "trusted": str(disk.trusted),
    }


def _nic_json(vif: Vif, domid: int) -> dict[str, Any]:
    rate = {"rate_bytes_per_interval": vif.rate, "rate_interval_usecs": vif.rate_usecs}
    return {
        "devid": vif.devid,
        "mac": vif.address(domid, vif.devid),
        "bridge": vif.bridge,
        "mtu": vif.mtu,
        "script": vif.script,
        **({"ip": vif.ip} if vif.ip else {}),
        "nictype": "vif",
        **(rate if vif.rate else {}),
        "trusted": str(vif.trusted),
    }


def _vfb_json(vfb: Vfb) -> dict[str, Any]:
    return {
        "devid": 0,
        "vnc": {
            "enable": str(vfb.vnc),
            "listen": vfb.vnclisten,
            **({"passwd": vfb.vncpasswd} if vfb.vncpasswd else {}),
            "display": vfb.vncdisplay,
            "findunused": str(vfb.vncunused),
        },
        "sdl": {"enable": "False", "opengl": "False"},
        **({"keymap": vfb.keymap} if vfb.keymap else {}),
    }


# --- and back, from anybody ---------------------------------------------------------------------------------


class _Fields:
    """The fields of one device's JSON object, each of its type. Raises SavedError."""

    def __init__(self, plain: object, what: str) -> None:
        self.what = what
        if not isinstance(plain, dict):
            raise SavedError(f"{what} is no object", found=type(plain).__name__)
        self._plain = plain

    def value(self, name: str, default: object) -> object:
        """Whatever it is."""
        return self._plain.get(name, default)

    def number(self, name: str, default: int, most: int) -> int:
        """An integer from 0 to `most`."""
        value = self._plain.get(name, default)
        if type(value) is not int or not 0 <= value <= most:
            raise self.wrong(name, value, f"0 to {most}")
        return value

    def text(self, name: str, default: str, form: re.Pattern[str] | None = None) -> str:
        """Text that can be shown, and of a form."""
        value = self._plain.get(name, default)
        fits = isinstance(value, str) and len(value) <= _MOST_NAME and value.isprintable()
        if not fits or (form is not None and value != default and not form.fullmatch(value)):
            raise self.wrong(name, value, "such a name")
        return str(value)

    def flag(self, name: str, *, default: bool) -> bool:
        """A libxl_defbool."""
        value = self._plain.get(name, "<default>")
        if not isinstance(value, str) or value not in ("<default>", *_DEFBOOL):
            raise self.wrong(name, value, "True, False")
        return _DEFBOOL.get(value, default)

    def wrong(self, name: str, found: object, expected: str) -> SavedError:
        """An error that says which field."""
        return SavedError(f"{name} of {self.what} cannot be", found=repr(found)[:80], expected=expected)


def disks_in(config: Mapping[str, Any]) -> list[Disk]:
    """The disks of libxl's configuration. Raises SavedError."""
    disks = [_disk(_Fields(plain, f"disk {i}")) for i, plain in enumerate(_list(config, "disks", MOST_DISKS))]
    if len({disk.devid for disk in disks}) < len(disks):
        raise SavedError("two disks have the same vdev", found=", ".join(disk.vdev for disk in disks))
    return disks


def _disk(fields: _Fields) -> Disk:
    form = fields.text("format", "unknown")
    if form not in _FORMATS:
        raise fields.wrong("format", form, ", ".join(_FORMATS))
    disk = Disk(
        vdev=fields.text("vdev", ""),
        target=fields.text("pdev_path", ""),
        format=form,
        readwrite=bool(fields.number("readwrite", 0, 1)),
        is_cdrom=bool(fields.number("is_cdrom", 0, 1)),
        removable=bool(fields.number("removable", 0, 1)),
        discard=fields.flag("discard_enable", default=True),
        trusted=fields.flag("trusted", default=True),
    )
    if disk.devid < 0:
        raise fields.wrong("vdev", disk.vdev, "the name of a disk")
    return disk


def vifs_in(config: Mapping[str, Any]) -> list[Vif]:
    """The interfaces of libxl's configuration, each on a bridge of this host's. Raises SavedError."""
    vifs = [
        _vif(_Fields(plain, f"interface {i}")) for i, plain in enumerate(_list(config, "nics", MOST_VIFS))
    ]
    if len({vif.devid for vif in vifs}) < len(vifs):
        raise SavedError("two interfaces have the same number", found=str([vif.devid for vif in vifs]))
    return vifs


def _vif(fields: _Fields) -> Vif:
    return Vif(
        devid=fields.number("devid", 0, MOST_VIFS - 1),
        mac=fields.text("mac", "", _MAC),
        bridge=fields.text("bridge", "xenbr0", _BRIDGE),
        ip=fields.text("ip", ""),
        mtu=fields.number("mtu", MTU, 65535) or MTU,
        rate=fields.number("rate_bytes_per_interval", 0, (1 << 63) - 1),
        rate_usecs=fields.number("rate_interval_usecs", _RATE_USECS, (1 << 32) - 1) or _RATE_USECS,
        trusted=fields.flag("trusted", default=True),
    )


def vfb_in(config: Mapping[str, Any]) -> Vfb | None:
    """The framebuffer of libxl's configuration. Raises SavedError."""
    found = _list(config, "vfbs", 1)
    if not found:
        return None
    fields = _Fields(found[0], "the framebuffer")
    vnc = _Fields(fields.value("vnc", {}), "the framebuffer's vnc")
    return Vfb(
        vnc=vnc.flag("enable", default=True),
        vnclisten=vnc.text("listen", VNC_LISTEN),
        vncpasswd=vnc.text("passwd", ""),
        vncdisplay=vnc.number("display", 0, 65535),
        vncunused=vnc.flag("findunused", default=True),
        keymap=fields.text("keymap", ""),
    )


def _list(config: Mapping[str, Any], name: str, most: int) -> list[Any]:
    value = config.get(name, [])
    if not isinstance(value, list) or len(value) > most:
        raise SavedError(f"{name} of xl's configuration cannot be", expected=f"a list of at most {most}")
    return value


def identities_in(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How the disks' files were; None where nobody says: xl does not."""
    ours = config.get("domainbuilder")
    found = ours.get("disks") if isinstance(ours, dict) else None
    return found if isinstance(found, dict) else None
