"""The process that runs cases for one thread of work: `python -m domainbuilder.fleet FD`.

It is told cases over its socket, and the contents that they name, once; what it was given it keeps in a
folder of its own, with the domains that were run to their `until`. It ends with its socket.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from domainbuilder.clones.values import from_plain, to_plain
from domainbuilder.clones.wire import Closed, Kind, receive, send
from domainbuilder.fleet.values import Case, Result, Step

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.session import Outcome

_LINES = 40  # of the console of what did not pass


class WorkerLost(Exception):
    """The process that ran a case has ended before the case did."""


class Worker:
    """A process that runs cases, from the side of who tells it which. One case at a time."""

    def __init__(self) -> None:
        here, there = socket.socketpair()
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "domainbuilder.fleet", str(there.fileno())],
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is for who has the results
            )
        self._sock = here
        self._given: set[str] = set()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def closed(self) -> bool:
        """Whether it is gone, as far as that is known here."""
        return self._sock.fileno() < 0

    def run(self, case: Case, contents: Mapping[str, bytes]) -> Result:
        """Run a case, whose inputs are `contents` by their digests. Raises WorkerLost."""
        try:
            for digest in case.inputs:
                if digest not in self._given:
                    send(self._sock, Kind.OUTPUT, raw=contents[digest])
                    self._given.add(digest)
            send(self._sock, Kind.REQUEST, to_plain(case))
            _kind, data = receive(self._sock)
        except Closed:
            self.close()
            raise WorkerLost(f"its process ended with status {self._process.returncode}") from None
        return from_plain(Result, json.loads(data))

    def close(self) -> None:
        """End the process."""
        self._sock.close()
        self._process.kill()
        self._process.wait()


def main(descriptor: int) -> None:
    """Serve the socket until it is closed at the other end."""
    with socket.socket(fileno=descriptor) as sock, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        while True:
            try:
                kind, data = receive(sock)
                if kind is Kind.OUTPUT:
                    (folder / hashlib.sha256(data).hexdigest()).write_bytes(data)
                else:
                    send(sock, Kind.ANSWER, to_plain(run_case(from_plain(Case, json.loads(data)), folder)))
            except Closed:
                return


def run_case(case: Case, folder: Path) -> Result:
    """Run a case, whose inputs are files in `folder`, named by their digests."""
    from domainbuilder.errors import BuildError

    started = time.perf_counter()
    try:
        with _launched(case, folder) as dom:
            result = _play(case, dom)
    except (BuildError, OSError, MemoryError) as error:
        result = _failed(case, "error", " ".join(str(error).split()) or type(error).__name__)
    wall = time.perf_counter() - started
    return replace(result, wall_seconds=wall)


def _launched(case: Case, folder: Path) -> RunningDomain:
    from domainbuilder.launch.domain import launch
    from domainbuilder.launch.options import Options
    from domainbuilder.launch.session import ExpectError
    from domainbuilder.saved.kept import KeptDomains, resume_at

    kernel, configuration = case.kernel, case.configuration
    options = Options(
        ramdisk=folder / kernel.ramdisk if kernel.ramdisk is not None else None,
        cmdline=_with_seed(kernel.cmdline, case),
        vcpus=configuration.vcpus,
        upper_ptwr=configuration.upper_ptwr,
        plain=configuration.plain or None,
        timeout=case.timeout,
        max_guest_seconds=case.max_guest_seconds,
    )
    path, memory = folder / kernel.kernel, configuration.memory_mib
    if kernel.until is None:
        return launch(path, memory, **options)
    try:
        return resume_at(path, kernel.until, memory, kept=KeptDomains(folder / "domains"), **options)
    except ExpectError:  # which the script will find out, too: it is the one to tell of it
        return launch(path, memory, **options)


def _with_seed(text: str, case: Case) -> str:
    return text.replace("{seed}", str(case.seed))


def _play(case: Case, dom: RunningDomain) -> Result:
    """The script's steps, and on to the guest's end where it is to have one."""
    from domainbuilder.launch.session import ExpectError

    chance = random.Random(case.seed)
    until = (Step("expect", case.kernel.until),) if case.kernel.until and not dom.console.used else ()
    for step in (*until, *case.script.steps):
        try:
            outcome = _STEPS[step.kind](dom, _with_seed(step.text, case), case.script.jitter, chance)
        except ExpectError as error:
            return _result(case, dom, f"{error.pattern!r} did not appear", error.outcome)
        if outcome is not None:
            return _result(case, dom, f"the guest ended before {step.kind} {step.text!r}", outcome)
    if case.script.end == "match":
        return _result(case, dom, "", None)
    outcome = dom.wait()
    if case.script.end == "any":
        return replace(_result(case, dom, "", outcome), detail=outcome.detail)
    wrong = "" if outcome.reason == case.script.end else f"{case.script.end} was to be the end"
    return _result(case, dom, wrong, outcome)


def _expect(dom: RunningDomain, text: str, _jitter: float, _chance: random.Random) -> Outcome | None:
    dom.console.expect(text)
    return None


def _send(dom: RunningDomain, text: str, jitter: float, chance: random.Random) -> Outcome | None:
    outcome = dom.run_for(jitter * chance.random() + 1e-9) if jitter else None
    if outcome is None or not outcome.ended:
        dom.console.send(text)
        return None
    return outcome


def _run_for(dom: RunningDomain, text: str, _jitter: float, _chance: random.Random) -> Outcome | None:
    outcome = dom.run_for(float(text))
    return outcome if outcome is not None and (outcome.ended or outcome.reason == "timeout") else None


_STEPS: dict[str, Callable[[RunningDomain, str, float, random.Random], Outcome | None]] = {
    "expect": _expect, "send": _send, "run": _run_for,
}  # fmt: skip


def _result(case: Case, dom: RunningDomain, wrong: str, outcome: Outcome | None) -> Result:
    stats = dom.stats()
    console = dom.transcript.text() if case.script.keeps_console else ""
    if wrong:
        from domainbuilder.visible import visible

        lines = dom.transcript.tail(_LINES, 8000).splitlines()
        console = console or "".join(f"{visible(line)}\n" for line in lines)
        if outcome is not None and outcome.report is not None:
            from domainbuilder.launch.crash_text import render_crash

            console += render_crash(outcome.report)
    detail = f"{wrong}: {outcome}" if wrong and outcome is not None else wrong
    return Result(
        case.name,
        case.group,
        not wrong,
        "matched" if outcome is None else outcome.reason,
        detail,
        console,
        stats.guest_ns,
        stats.code_bytes,
        sum(stats.hypercalls.values()) + sum(stats.unknown_hypercalls.values()),
        stats.console_bytes,
    )


def _failed(case: Case, outcome: str, detail: str) -> Result:
    return Result(case.name, case.group, passed=False, outcome=outcome, detail=detail)
