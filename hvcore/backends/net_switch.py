"""A bridge of domain 0: frames go from port to port, by the addresses that it has learned.

After Linux's net/bridge, without its spanning tree: a frame to an address that was seen at a port goes there,
any other to all ports but its own. All of it is a function of the frames and their times, which are those of
the guests that send them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from hvcore.backends.net_frame import ETH_HLEN, Frame

MAX_ADDRESSES = 1024
AGEING_NS = 300 * 10**9
_ADDRESS = 6
_LINK_LOCAL = bytes.fromhex("0180c20000")  # 01:80:c2:00:00:0x is never forwarded
Tap = Callable[[int, str, Frame], None]


class Port(ABC):
    """What is plugged into a switch, under a name of its own; `learned` are the addresses behind it.

    `frame_out()` is for whoever plugs something in to write; `frame_in()` is for it to call.
    """

    name: str
    learned: dict[bytes, int]  # and when each was seen last, in guest time
    switch: Switch | None = None

    @abstractmethod
    def frame_out(self, when: int, frame: Frame) -> None:
        """The switch has a frame for this port, there at `when` in guest time. It may be dropped."""

    def frame_in(self, when: int, frame: Frame) -> None:
        """Give a frame to the switch, which has it at `when` in guest time."""
        if self.switch is not None:
            self.switch.forward(self, when, frame)


class Switch:
    """One bridge. `taps` see every frame that comes in: when, at which port, what.

    It keeps no state itself: what was learned is its ports', which are saved with whom they serve.
    """

    def __init__(self) -> None:
        self.ports: dict[str, Port] = {}
        self.taps: list[Tap] = []

    def plug(self, port: Port) -> None:
        """Connect a port. Raises ValueError where one of that name is."""
        if port.name in self.ports:
            raise ValueError(f"a switch has two ports {port.name}")
        self.ports[port.name] = port
        port.switch, port.learned = self, {}

    def unplug(self, port: Port) -> None:
        """Disconnect a port, and forget what was learned of it."""
        self.ports.pop(port.name, None)
        port.switch = None
        port.learned.clear()

    def forward(self, source: Port, when: int, frame: Frame) -> None:
        """Take a frame that came in at `source`."""
        if len(frame.data) < ETH_HLEN:
            return
        for tap in self.taps:
            tap(when, source.name, frame)
        to, sender = frame.data[:_ADDRESS], frame.data[_ADDRESS : 2 * _ADDRESS]
        if not sender[0] & 1:
            self._learn(sender, source, when)
        if to[:5] == _LINK_LOCAL and to[5] < 16:
            return
        ports = list(self.ports.values())
        for port in ports:
            if when - port.learned.get(to, when - AGEING_NS - 1) <= AGEING_NS:
                if port is not source:
                    port.frame_out(when, frame)
                return
        for port in ports:
            if port is not source:
                port.frame_out(when, frame)

    def _learn(self, address: bytes, source: Port, when: int) -> None:
        """The address is behind that port, and no other; where the table is full, the old have to go."""
        ports = self.ports.values()
        if address not in source.learned:
            for port in ports:
                port.learned.pop(address, None)
            if sum(len(port.learned) for port in ports) >= MAX_ADDRESSES:
                for port in ports:
                    for old in [a for a, seen in port.learned.items() if when - seen > AGEING_NS]:
                        del port.learned[old]
                if sum(len(port.learned) for port in ports) >= MAX_ADDRESSES:
                    return
        source.learned[address] = when


def bridge_of(switches: dict[str, Switch], name: str) -> Switch:
    """The bridge of that name, which is made where there is none."""
    return switches.setdefault(name, Switch())
