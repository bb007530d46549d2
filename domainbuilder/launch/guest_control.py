"""What domain 0 tells a guest by its nodes of the store: end, SysRq, so much memory, so many vCPUs.

A guest does it in its own time, if at all. Source: libxl__domain_pvcontrol(), libxl_send_sysrq(),
libxl__set_vcpuonline_xenstore() and libxl_set_memory_target() in tools/libs/light/libxl_domain.c and
libxl_mem.c of Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.machine import Machine

_REASONS = ("poweroff", "reboot", "halt")
_KIB_PER_MIB = 1024


class GuestControl:
    """A domain that stands, and can be told something. All raise ValueError for what no guest can be told."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._store = machine.xenstore

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
