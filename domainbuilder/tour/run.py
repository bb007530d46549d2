"""The work behind `domainbuilder tour`: run the kernel, collect the steps, tell them."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from domainbuilder import streams
from domainbuilder.errors import ExitCode
from domainbuilder.launch.domain import launch
from domainbuilder.plan.domain_plan import DomainPlan, plan
from domainbuilder.progress import Progress
from domainbuilder.tour.steps import Step, Tour, before, named
from domainbuilder.tour.text import linked, paged, plain, render


class TourOptions(NamedTuple):
    """The command line of `domainbuilder tour`."""

    file: str
    memory_mib: int | None
    ramdisk: str | None
    cmdline: str
    typed: bytes
    max_guest_seconds: float
    pause: bool
    as_text: bool = False


def run_tour(options: TourOptions) -> ExitCode:
    """Tell it; the exit code is fine however the guest ends, which is told. Raises BuildError, OSError."""
    streams.require_stdout()
    with Progress("running the kernel"):
        planned = plan(options.file, options.memory_mib, ramdisk=options.ramdisk, cmdline=options.cmdline)
        names, kernel = named(planned), Path(planned.kernel).name
        steps = collect(planned, options)
        del planned
    is_terminal = options.pause and sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal and not options.as_text and _has_application():
        from domainbuilder.tour.app import TourApp

        TourApp(kernel, steps, names).run()
        return ExitCode.FINE
    if is_terminal:
        paged(steps, sys.stdout, _go_on, linked)
        return ExitCode.FINE
    for number, step in enumerate(steps, 1):
        sys.stdout.write(render(number, step, linked if sys.stdout.isatty() else plain))
    return ExitCode.FINE


def _has_application() -> bool:
    """Whether textual is there (the extra `tour`), and a terminal that it can draw on."""
    return find_spec("textual") is not None and os.environ.get("TERM", "dumb") != "dumb"


def collect(planned: DomainPlan, options: TourOptions) -> list[Step]:
    """The steps of a whole run."""
    steps = list(before(planned))
    with launch(planned, max_guest_seconds=options.max_guest_seconds) as dom:
        tour = Tour(dom)
        if options.typed:
            dom.console.send(options.typed)
        with tour.watching(dom):
            outcome = dom.wait()
        tour.end(dom.stats().guest_ns, str(outcome))
        return steps + tour.steps


def _go_on() -> bool:
    sys.stdout.write("   -- Enter: the next step; q: leave -- ")
    sys.stdout.flush()
    answer = sys.stdin.readline()
    return bool(answer) and not answer.strip().lower().startswith("q")
