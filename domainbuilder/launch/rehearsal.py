"""Rehearsals: a parent does once what its clones are asked first, and undoes it: its code is translated then.

Most of what a clone of a booted kernel costs is the translation of guest code that had not run before: each
would translate the same again. So a process that is asked for a second clone from one place does itself what
the first was asked, and goes back (hvcore/marks.py): what was translated stays, and the next clones have it.
No guest can tell, as none can tell a stop. It is done again at the 16th clone, the 128th and so on, with what
the last was asked, so that it costs a small part of what it saves; what the process has written by then is
moved to huge pages, which makes a fork a tenth cheaper.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from domainbuilder.errors import BuildError
from domainbuilder.launch.huge_pages import use_huge_pages
from domainbuilder.launch.snapshot import Snapshot
from domainbuilder.launch.transcript import Search
from hvcore.errors import EngineError

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.host import Host

Act = tuple[int, str, tuple[Any, ...]]  # the domain, "send" or "run", and what of it

_MOST_SECONDS = 0.5  # of a processor's time, for a clone's first acts: what takes longer is not done twice
_PATIENCE = 2.0  # seconds of wall time for one of them, done again: on a busy machine it is done in part
_MOST_ACTS = 64
_FIRST, _FACTOR = 2, 8  # the clones before which there is a rehearsal


class Script:
    """What one clone was asked, from its beginning for as long as that took no time to speak of."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self._left = _MOST_SECONDS

    def note(self, seconds: float, domid: int, what: str, *arguments: Any) -> None:
        """The clone has done this, to its end, in so much of its processor's time."""
        self._left -= seconds
        if self._left > 0 and len(self.acts) < _MOST_ACTS:
            self.acts.append((domid, what, arguments))
        else:
            self._left = 0


class Rehearsals:
    """The clones of one host that were made where it stands, and what is done before the next is."""

    def __init__(self) -> None:
        self._at: list[int] = []
        self._newest = Script()
        self._begin_anew([])

    def _begin_anew(self, at: list[int]) -> None:
        self._at, self._clones, self._next = at, 0, _FIRST
        self._known: list[Act] = []
        self._done: list[Act] = []
        self._newest = Script()

    def begin(self, domains: Sequence[RunningDomain]) -> Script:
        """Before a fork: have it, and what the clone does, cost less; where its acts are to be noted.

        The first clone of a place pays for nothing. Raises what a signal handler raises meanwhile.
        """
        host = domains[0].machine.host
        here = [m.clock.now() for m in host.machines.values()]
        if here != self._at:
            self._begin_anew(here)
        self._clones += 1
        self._known = self._newest.acts or self._known
        if self._clones >= _FIRST:
            self._prepare(host, domains)
        self._newest = Script()
        return self._newest

    def _prepare(self, host: Host, domains: Sequence[RunningDomain]) -> None:
        acts = self._known
        is_due = self._clones >= self._next and acts and all(dom.is_unobserved for dom in domains)
        if is_due:
            self._next = self._clones * _FACTOR
        if is_due and acts != self._done:
            self._done = acts.copy()
            rehearse(host, domains, self._done)
            if self._clones > _FIRST:
                use_huge_pages()
        elif self._clones != _FIRST:
            return
        host.pages.settle()


def rehearse(host: Host, domains: Sequence[RunningDomain], acts: Sequence[Act]) -> None:
    """Do all that, and be where all was before."""
    try:
        here = Snapshot(host, domains)
    except EngineError:  # memory is short
        return
    by_number = {dom.domain_id: dom for dom in domains}
    try:
        for domid, what, arguments in acts:
            _DO[what](by_number[domid], *arguments)
    except (BuildError, EngineError):  # which the clone has met, too
        pass
    finally:
        here.go_back(domains)


def _send(dom: RunningDomain, data: bytes) -> None:
    dom.send(data)


def _run(dom: RunningDomain, wanted: Sequence[Any] | None) -> None:
    search = None
    if wanted is not None:
        pattern, flags, offset = wanted
        search = Search(re.compile(pattern, flags), dom.transcript, offset)
    with dom.alone():
        dom.run_until(search, _PATIENCE)


_DO: dict[str, Callable[..., None]] = {"send": _send, "run": _run}
_OF_HOSTS: weakref.WeakKeyDictionary[Host, Rehearsals] = weakref.WeakKeyDictionary()


def rehearsals(host: Host) -> Rehearsals:
    """Those of a host, for as long as that is there."""
    return _OF_HOSTS.setdefault(host, Rehearsals())
