"""Waiting while a guest is idle: for its console, tools, viewers and network, all at once."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar


class HasFileno(Protocol):
    """A file or socket."""

    def fileno(self) -> int:
        """Its descriptor; below 0 where it is closed."""


T_co = TypeVar("T_co", bound=HasFileno | int, covariant=True)


class Ends(NamedTuple, Generic[T_co]):
    """What is waited for: until one can be read, or one can be written."""

    readers: Sequence[T_co] = ()
    writers: Sequence[T_co] = ()


class Source(Protocol):
    """Somebody outside who may have something for the guest."""

    def ends(self) -> Ends[HasFileno | int]:
        """Where to wait for that."""


def wait_for(sources: Iterable[Source], seconds: float | None) -> None:
    """Until one of them wants something, for so many seconds; None: without end, where there is one at all.

    What is closed wants something, too: its owner finds out.
    """
    poll = select.poll()
    wanted: dict[int, int] = {}
    for source in sources:
        for ends, mask in zip(source.ends(), (select.POLLIN, select.POLLOUT), strict=True):
            for end in ends:
                fd = end if isinstance(end, int) else end.fileno()
                if fd < 0:
                    return
                wanted[fd] = wanted.get(fd, 0) | mask
    if seconds is None and not wanted:
        return
    for fd, mask in wanted.items():
        poll.register(fd, mask)
    if seconds is None:
        poll.poll()
    elif not poll.poll(int(seconds * 1000)):
        time.sleep(seconds % 0.001)  # poll() knows no less than a millisecond
