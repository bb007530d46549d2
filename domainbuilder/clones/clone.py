"""A clone as its holder has it: told what to do like the domain it was forked from, in a process of its own.

    with launch("vmlinuz", 128, ramdisk="ramdisk.gz") as dom:
        dom.console.expect("# ")
        with dom.fork() as one, dom.fork() as other:
            one.console.send("uname -r\\n")
            other.console.send("free\\n")
            one.console.expect("6.1")
            other.console.expect("Mem:")

A clone goes on exactly as the domain would have: the same guest time, counts and memory. Its process ends
with `close()`, with the Clone, and with the process that holds it, whatever ends that.
"""

from __future__ import annotations

import os
import socket
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from domainbuilder.clones.process import HELD, CloneLost, Process
from domainbuilder.clones.server import Server, handled_signals
from domainbuilder.clones.values import from_plain
from domainbuilder.closing import Closing
from domainbuilder.launch.options import check_limit
from domainbuilder.launch.record import InputRecord
from domainbuilder.launch.rehearsal import Script, rehearsals
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.launch.session import Outcome
from domainbuilder.launch.transcript import Search, Transcript
from domainbuilder.output import write_whole

if TYPE_CHECKING:
    from domainbuilder.launch.crash_report import CrashReport
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.session import Console
    from domainbuilder.launch.stop_report import StopReport


def fork(
    domains: Sequence[RunningDomain],
    *,
    console_output: Callable[[bytes], None] | None,
    timeout: float | None,
) -> list[Clone]:
    """One process with a copy of each of the domains, which share a host; see RunningDomain.fork()."""
    check_limit(timeout)
    with HELD.forking:
        for dom in domains:
            dom.check_at_rest()
            dom.check_can_be_copied()
        HELD.reap()
        script = rehearsals(domains[0].machine.host).begin(domains)
        server = partial(Server, domains={dom.domain_id: dom for dom in domains}, handled=handled_signals())
        here, there = socket.socketpair()
        try:
            pid = HELD.fork()
        except BaseException:
            here.close()
            there.close()
            raise
        if not pid:
            _serve(here, partial(server, there), timeout)
    there.close()
    HELD.pids.add(pid)
    process = Process(here, pid)
    return [Clone(process, dom.domain_id, dom, console_output, script) for dom in domains]


def _serve(here: socket.socket, server: Callable[[], Server], timeout: float | None) -> NoReturn:
    """In the process of the clone; whatever happens, it does not go on as a copy of its holder's."""
    try:
        here.close()
        server().serve(timeout)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


class CloneSnapshot:
    """Where a clone stood. Its process holds a copy of the memory until some while after nobody has this."""

    def __init__(
        self,
        process: Process,
        number: int,
        domain_id: int,
        transcript: tuple[bytes, bytes, int],
        used: int,
        outcome: Outcome | None,
    ) -> None:
        self.process, self.number, self.domain_id = process, number, domain_id
        self.transcript, self.used, self.outcome = transcript, used, outcome
        weakref.finalize(self, process.forgotten.append, number).atexit = False


class Clone(Closing):
    """A domain in a process of its own. A context manager; leaving it ends the clone.

    Methods raise CloneLost where that process has ended by itself; beside that they raise what those of
    RunningDomain do.
    """

    def __init__(
        self,
        process: Process,
        domain_id: int,
        of: RunningDomain | Clone,
        console_output: Callable[[bytes], None] | None,
        script: Script | None = None,
    ) -> None:
        self._process = process
        self._script = script or Script()
        self._transcript = of.transcript.copy()
        self._sink = console_output
        self._outcome = of.outcome
        self._stats: Statistics | None = None  # the last, where it is closed
        self.domain_id = domain_id
        self.console: Console = of.console.copy(self._run_until, self._send, self._transcript)
        process.clones[domain_id] = self

    @property
    def pid(self) -> int:
        """The clone's process."""
        return self._process.pid

    @property
    def transcript(self) -> Transcript:
        """What was printed, before the fork and behind it."""
        return self._transcript

    @property
    def closed(self) -> bool:
        """Whether the clone is gone."""
        return self._stats is not None or self._process.gone

    @property
    def outcome(self) -> Outcome | None:
        """How the clone ended; None while it has not."""
        return self._outcome

    def close(self) -> None:
        """End the clone. What was printed, `stats()` and `outcome` stay."""
        if self.closed:
            return
        with suppress(CloneLost):
            self._stats = from_plain(Statistics, self._ask("close"))
        self._process.clones.pop(self.domain_id, None)
        if not self._process.clones:
            self._process.end()

    def wait(self, timeout: float | None = None) -> Outcome:
        """Run until the guest ends, is idle for good, or time is up; as RunningDomain.wait()."""
        outcome = self._run_until(None, timeout)
        assert outcome is not None
        return outcome

    def stats(self) -> Statistics:
        """The counts so far, from the first domain's start."""
        return self._stats or from_plain(Statistics, self._ask("stats"))

    def look(self) -> StopReport:
        """Where every vCPU stands; as RunningDomain.look()."""
        from domainbuilder.launch.stop_report import StopReport

        return from_plain(StopReport, self._ask("look"))

    def memory_sha256(self) -> str:
        """The digest of the guest's memory; as RunningDomain.memory_sha256()."""
        return str(self._ask("digest"))

    def screenshot(self, path: str | os.PathLike[str] | None = None) -> bytes:
        """What the framebuffer shows, as PNG; as RunningDomain.screenshot()."""
        picture: bytes = self._ask("screenshot").encode("latin-1")
        if path is not None:
            write_whole(path, picture)
        return picture

    def input_record(self, reason: str = "interrupted") -> InputRecord:
        """What was typed so far, before the fork and behind it; as RunningDomain.input_record()."""
        return from_plain(InputRecord, self._ask("record", reason=reason))

    def fork(
        self, *, console_output: Callable[[bytes], None] | None = None, timeout: float | None = None
    ) -> Clone:
        """A copy of the clone as it stands, which may live longer; as RunningDomain.fork()."""
        check_limit(timeout)
        here, there = socket.socketpair()
        try:
            with there:
                pid = self._ask("fork", there, domids=[self.domain_id], timeout=timeout)
        except BaseException:
            here.close()
            raise
        return Clone(Process(here, pid), self.domain_id, self, console_output)

    def snapshot(self) -> CloneSnapshot:
        """Where the clone stands, to `rewind()` to, in its own process; as RunningDomain.snapshot()."""
        process = self._process
        forgotten = process.forgotten[:]
        del process.forgotten[: len(forgotten)]
        process.snapshots += 1
        self._ask("snapshot", number=process.snapshots, forgotten=forgotten)
        return CloneSnapshot(
            process,
            process.snapshots,
            self.domain_id,
            self._transcript.save(),
            self.console.used,
            self._outcome,
        )

    def rewind(self, snapshot: CloneSnapshot) -> None:
        """Be where the clone was at the snapshot, whatever happened since; as RunningDomain.rewind()."""
        if snapshot.process is not self._process or snapshot.domain_id != self.domain_id:
            raise RuntimeError("the snapshot is of another clone")
        self._script = Script()  # what it was asked first is told by itself no more
        self._ask("rewind", number=snapshot.number)
        self._transcript.be(snapshot.transcript)
        self.console.use(snapshot.used)
        self._outcome = snapshot.outcome

    def printed(self, data: bytes, *, tell: bool) -> None:
        """The clone has printed `data`."""
        self._transcript.append(data)
        if tell and self._sink is not None:
            self._sink(data)

    def _ask(self, name: str, passed: socket.socket | None = None, **arguments: Any) -> Any:
        if self._stats is not None:
            raise RuntimeError("the domain was closed")
        return self._process.ask(name, self.domain_id, passed, **arguments)

    def _send(self, data: bytes) -> None:
        self._ask("send", text=data.decode("latin-1"))
        self._script.note(self._process.spent, self.domain_id, "send", data)

    def _run_until(self, search: Search | None, timeout: float | None) -> Outcome | None:
        """As RunningDomain.run_until(): what is searched for is searched for there."""
        if self._outcome is not None and (search is None or search.more()):
            return None if search is not None else self._outcome
        wanted = None if search is None else [search.pattern.pattern, search.pattern.flags, search.offset]
        how, *rest = self._ask("run", search=wanted, timeout=timeout)
        self._script.note(self._process.spent, self.domain_id, "run", wanted)
        if how == "found":
            assert search is not None
            search.found(*rest)
            return None
        reason, detail, report = rest
        outcome = Outcome(reason, detail, _crash_report(report))
        if outcome.ended:
            self._outcome = outcome
        return outcome


def _crash_report(plain: Any) -> CrashReport | None:
    if plain is None:
        return None
    from domainbuilder.launch.crash_report import CrashReport

    return from_plain(CrashReport, plain)
