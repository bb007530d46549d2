"""A network interface as data, what struct libxl_device_nic is to tools/libs/light/libxl_nic.c."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

XEN_OUI = "00:16:3e"
MTU = 1500
MOST_VIFS = 64


@dataclass(frozen=True, slots=True)
class Vif:
    """One interface: its address (empty: one of Xen's by the numbers of domain and device), its bridge.

    `rate`: bytes each `rate_usecs` that it may send at most; 0 for any number. `is_outside`: it is on no
    bridge, but leads out of the host; `tcp` and `udp` are the ports that lead in, as xl.vif.forwards() reads
    them. `devid`: its number; -1 for the first that is free.
    """

    mac: str = ""
    bridge: str = "xenbr0"
    script: str = "vif-bridge"
    ip: str = ""
    rate: int = 0
    rate_usecs: int = 50000
    mtu: int = MTU
    trusted: bool = True
    is_outside: bool = False
    tcp: str = ""
    udp: str = ""
    devid: int = -1

    def address(self, domid: int, devid: int) -> str:
        """The address that the guest sees. xl draws a random one of Xen's; here the same run has the same."""
        return self.mac or f"{XEN_OUI}:{domid >> 8 & 0x7F:02x}:{domid & 0xFF:02x}:{devid & 0xFF:02x}"


def numbered(vifs: Sequence[Vif]) -> tuple[Vif, ...]:
    """The interfaces of a domain, each with its number. Raises ValueError where two want the same."""
    wanted = [vif.devid for vif in vifs if vif.devid >= 0]
    if len(set(wanted)) < len(wanted):
        twice = next(devid for devid in wanted if wanted.count(devid) > 1)
        raise ValueError(f"two interfaces have the number {twice}")
    free = iter(devid for devid in range(MOST_VIFS + len(vifs)) if devid not in wanted)
    return tuple(vif if vif.devid >= 0 else replace(vif, devid=next(free)) for vif in vifs)
