"""`launch --report`: a run is watched, and told on one HTML page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domainbuilder.launch.tracing import head_of, recording, tail_of
from domainbuilder.output import write_whole
from domainbuilder.trace.filter import Filter
from domainbuilder.trace.html import Page, render
from domainbuilder.trace.record import Record
from domainbuilder.trace.summary import Counting
from domainbuilder.trace.timeline import Timeline

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain


@contextmanager
def reported(
    dom: RunningDomain, path: str | os.PathLike[str], reason: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Write a page about what the domain does in the block, however that ends; `reason` says why. OSError."""
    counting, timeline = Counting(head_of(dom)), Timeline()

    def take(record: Record) -> None:
        counting.add(record)
        timeline.add(record)

    picture = _picture(dom)
    try:
        with recording(dom, take, Filter(), dom.names() if dom.has_symbols else None):
            yield
    finally:
        why = reason()
        tail = tail_of(dom, why)
        timeline.console.close(tail.end_ns)
        outcome, is_bad, ending = _ending(dom, why)
        page = Page(counting.done(tail), timeline, outcome, is_bad, picture, ending)
        write_whole(path, render(page).encode())


def _picture(dom: RunningDomain) -> str:
    """The address space that the domain starts with; "" where its plan is not known."""
    if dom.plan is None:
        return ""
    from domainbuilder.plan.findings import Survey
    from domainbuilder.plan.svg import svg

    return svg(dom.plan, Survey(None, ()))


def _ending(dom: RunningDomain, why: str) -> tuple[str, bool, str]:
    """How the run ended: in a few words, whether badly, and what is to be said of a crash or a stop."""
    outcome = dom.outcome
    if outcome is not None and outcome.report is not None:
        from domainbuilder.launch.crash_text import render_crash

        return str(outcome), True, render_crash(outcome.report)
    if outcome is None and why in ("timeout", "idle"):
        from domainbuilder.launch.stop_text import render_stop

        return why, why == "timeout", render_stop(dom.look())
    return (str(outcome) if outcome is not None else why or "it still runs"), False, ""
