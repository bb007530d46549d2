"""The interfaces of a domain that lead out of the host, and who is at their other ends.

A frame from outside is input: it comes where the guest stands when this host finds it, is noted with the
guest's time, and a replay gives it again without anybody outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from domainbuilder.launch.passt import Passt
from domainbuilder.launch.waiting import Ends
from domainbuilder.xl.vif import forwards
from hvcore.given import OutsideFrame

if TYPE_CHECKING:
    from hvcore.backends.net_outside import Outside as End
    from hvcore.machine import Machine

_MOST_PENDING = 1 << 20  # bytes that the guest was not given yet; more stay where they are


class Outside:
    """What is outside of `machine`: a passt for each of its interfaces that lead there, but `nobody_at` some.

    Raises BuildError where there is no passt, or it does not want.
    """

    def __init__(self, machine: Machine, nobody_at: Sequence[End] = ()) -> None:
        self._machine = machine
        self._nobody_at = list(nobody_at)
        self._links: dict[int, Passt] = {}
        self.look()

    def look(self) -> None:
        """Have somebody at each interface that leads out now, and at no other. Raises BuildError."""
        devices = self._machine.devices
        self._nobody_at = [end for end in self._nobody_at if end in devices.outsides.values()]
        for devid in [devid for devid in self._links if devid not in devices.outsides]:
            self._links.pop(devid).close()
        vifs = {vif.devid: vif for vif in devices.vifs}
        try:
            for devid, outside in devices.outsides.items():
                if devid not in self._links and outside not in self._nobody_at:
                    vif = vifs[devid]
                    link = Passt(mtu=vif.mtu, tcp=forwards(vif.tcp), udp=forwards(vif.udp))
                    self._links[devid] = link
                    outside.sink = link.send
        except BaseException:
            self.close()
            raise

    def ends(self) -> Ends[Passt]:
        """Where frames come, and where some wait to go."""
        links = self._links.values()
        return Ends([*links], [link for link in links if link.is_behind])

    def take(self) -> bool:
        """Give the guest what has come; whether something has. Raises BuildError where a passt has ended."""
        came = False
        if len(self._links) + len(self._nobody_at) != len(self._machine.devices.outsides):
            self.look()  # one was detached
        for devid, link in self._links.items():
            if self._machine.pending_input < _MOST_PENDING:
                for frame in link.receive():
                    self._machine.input(OutsideFrame(devid, frame))
                    came = True
        return came

    def close(self) -> None:
        """End what is there."""
        while self._links:
            self._links.popitem()[1].close()


class Outsides(Outside):
    """What is outside of several domains, which run together."""

    def __init__(self, all_of_them: Sequence[Outside]) -> None:
        self._all = all_of_them

    def look(self) -> None:
        """See Outside."""
        for one in self._all:
            one.look()

    def ends(self) -> Ends[Passt]:
        """See Outside."""
        readers, writers = zip(*(one.ends() for one in self._all), strict=True)
        return Ends([*chain(*readers)], [*chain(*writers)])

    def take(self) -> bool:
        """See Outside."""
        came = [one.take() for one in self._all]  # each, whoever had something
        return any(came)

    def close(self) -> None:
        """See Outside."""
        for one in self._all:
            one.close()
