"""What domain 0 has a guest do or have: end, SysRq, NMI, so much memory, so many vCPUs, devices.

A guest does it in its own time, if at all. Source: libxl__domain_pvcontrol(), libxl_send_sysrq(),
libxl__set_vcpuonline_xenstore() and libxl_set_memory_target() in tools/libs/light/libxl_domain.c and
libxl_mem.c of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainbuilder.launch.options import disks_of
from hvcore.backends.disk import Disk, disk_dev_number
from hvcore.common.vcpu_op import send_nmi
from hvcore.public.xen import PAGE_SHIFT
from hvcore.wiring import MAX_PAGES_SLACK

if TYPE_CHECKING:
    from hvcore.backends.vif import Vif
    from hvcore.machine import Machine

_REASONS = ("poweroff", "reboot", "halt")
_KIB_PER_MIB = 1024


class GuestControl:
    """A domain that stands, and can be told something. All raise ValueError for what no guest can be told."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._store = machine.xenstore
        self._devices = machine.devices

    def shutdown(self, reason: str) -> None:
        """control/shutdown."""
        if reason not in _REASONS:
            raise ValueError(f"a guest is asked for one of {', '.join(_REASONS)}, and not for {reason!r}")
        self._store.write("control/shutdown", reason)

    def sysrq(self, key: str) -> None:
        """control/sysrq."""
        if len(key) != 1 or not (key.isascii() and key.isalnum()):
            raise ValueError(f"a SysRq key is a letter or a digit, and not {key!r}")
        self._store.write("control/sysrq", key)

    def set_memory_target(self, kib: int) -> None:
        """memory/target."""
        most = int(self._store.read("memory/static-max") or 0)
        if not 0 < kib <= most:
            found, end = f"{kib / _KIB_PER_MIB:g} MB", most // _KIB_PER_MIB
            raise ValueError(f"{found} are not within 1 and {end}: memory_static_max, {most} KiB")
        domain = self._machine.domain
        domain.max_pages = (kib >> PAGE_SHIFT - 10) + MAX_PAGES_SLACK  # xl has it enforced
        self._store.write("memory/target", str(kib))

    def set_vcpus(self, count: int) -> None:
        """cpu/N/availability of those that it concerns."""
        most = self._machine.domain.max_vcpus
        if not 0 < count <= most:
            raise ValueError(f"Requested {count} VCPUs, however maxcpus is {most}: not within 1 and {most}")
        for number in range(most):
            path, wanted = f"cpu/{number}/availability", "online" if number < count else "offline"
            if self._store.read(path) != wanted:
                self._store.write(path, wanted)

    def send_nmi(self, vcpu: int) -> None:
        """XEN_DOMCTL_SENDTRIGGER_NMI."""
        vcpus = self._machine.domain.vcpus
        if not 0 <= vcpu < len(vcpus):
            raise ValueError(f"there is no vCPU {vcpu}: {len(vcpus)} of them are")
        send_nmi(vcpus[vcpu])
        self._machine.clock.end_turn()

    def attach_disk(self, disk: Disk | str) -> None:
        """libxl_device_disk_add(). Raises BuildError for text that is no disk, OSError."""
        (parsed,) = disks_of([disk])
        self._store.serve()
        self._devices.attach_disk(parsed)

    def attach_vif(self, vif: Vif | str) -> int:
        """libxl_device_nic_add(); the interface's number. Raises BuildError for text that is none."""
        from domainbuilder.xl.vif import parse_vif

        parsed = parse_vif(vif) if isinstance(vif, str) else vif
        self._store.serve()
        return self._devices.attach_vif(parsed)

    def detach_disk(self, vdev: str, *, force: bool = False) -> int:
        """libxl_device_disk_safe_remove(), or libxl_device_disk_destroy() with `force`; the disk's number."""
        devid = disk_dev_number(vdev)
        if all(disk.devid != devid for disk in self._devices.disks):
            raise ValueError(f"Device {vdev} not connected")
        self._store.serve()
        self._devices.detach(f"vbd{devid}", force=force)
        return devid

    def detach_vif(self, which: str, *, force: bool = False) -> int:
        """libxl_device_nic_remove() of an interface by its number or address; its number."""
        domid = self._machine.domain.domain_id
        for vif in self._devices.vifs:
            if which.lower() in (str(vif.devid), vif.address(domid, vif.devid)):
                self._store.serve()
                self._devices.detach(f"vif{vif.devid}", force=force)
                return vif.devid
        raise ValueError(f"Unknown device {which}")
