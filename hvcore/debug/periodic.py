"""Something done at regular times of a domain's own clock by whoever holds the host, unseen by the guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hvcore.machine import Machine


class Periodic:
    """`action` is called at the first block of code at or behind each multiple of `period_ns`.

    While the domain is idle there is nothing to look at: who passes that time calls `idle`, then `arm`.
    `before_idle` is whether to look once more then.
    """

    def __init__(
        self,
        machine: Machine,
        name: str,
        period_ns: int,
        action: Callable[[], None],
        *,
        before_idle: bool = False,
    ) -> None:
        self._machine = machine
        self._before_idle = before_idle
        self._key = "periodic", name, machine.domain.domain_id
        self._period_ns = period_ns
        self._action = action

    def arm(self) -> None:
        """The next time is the next multiple."""
        host = self._machine.host
        now = max(self._machine.clock.now(), host.now())  # a domain that waits may be far behind the others
        due = (now // self._period_ns + 1) * self._period_ns
        host.set_timer(self._key, due, self._due)

    def idle(self) -> None:
        """The domain is idle from now on, until this is armed again."""
        if self._before_idle:
            self._action()
        self.stop()

    def stop(self) -> None:
        """There is no next time."""
        self._machine.host.timers.stop(self._key)

    def _due(self) -> None:
        self._action()
        self.arm()
