"""A network interface as data, what struct libxl_device_nic is to tools/libs/light/libxl_nic.c."""

from __future__ import annotations

from dataclasses import dataclass

XEN_OUI = "00:16:3e"
MTU = 1500


@dataclass(frozen=True, slots=True)
class Vif:
    """One interface: its address (empty: one of Xen's by the numbers of domain and device), its bridge.

    `rate`: bytes each `rate_usecs` that it may send at most; 0 for any number. `is_outside`: it is on no
    bridge, but leads out of the host; `tcp` and `udp` are the ports that lead in, as xl.vif.forwards() reads
    them.
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

    def address(self, domid: int, devid: int) -> str:
        """The address that the guest sees. xl draws a random one of Xen's; here the same run has the same."""
        return self.mac or f"{XEN_OUI}:{domid >> 8 & 0x7F:02x}:{domid & 0xFF:02x}:{devid & 0xFF:02x}"
