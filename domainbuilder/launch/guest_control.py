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

    def set_memory_target(self, mib: int) -> None:
        """memory/target, in KiB there."""
        most = int(self._store.read("memory/static-max") or 0)
        if not 0 < mib * _KIB_PER_MIB <= most:
            raise ValueError(f"{mib} MB are not within 1 and {most // _KIB_PER_MIB}, memory/static-max")
        self._store.write("memory/target", str(mib * _KIB_PER_MIB))

    def set_vcpus(self, count: int) -> None:
        """cpu/N/availability of those that it concerns."""
        most = self._machine.domain.max_vcpus
        if not 0 < count <= most:
            raise ValueError(f"{count} vCPUs are not within 1 and {most}, which the domain was made with")
        for number in range(most):
            path, wanted = f"cpu/{number}/availability", "online" if number < count else "offline"
            if self._store.read(path) != wanted:
                self._store.write(path, wanted)
