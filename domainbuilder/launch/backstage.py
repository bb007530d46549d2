"""What the rest of this package does with a domain that runs, and its holder does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError
from domainbuilder.launch.runner import TICK, Runner

if TYPE_CHECKING:
    from domainbuilder.launch.past import Past
    from domainbuilder.launch.session import Input
    from domainbuilder.launch.vnc_server import VncServer
    from domainbuilder.launch.xenstore_server import XenstoreServer
    from hvcore.debug.periodic import Periodic


class Backstage(Runner):
    """What servers, savers, clones and commands use of a RunningDomain. docs/python.md has the rest of it."""

    _past: Past | None = None  # Rewinding keeps it

    # -- what may be done to it now

    def check_at_rest(self) -> None:
        """Raise RuntimeError where the domain is destroyed, or running: in a callback, or another thread."""
        self._check_open()
        if self._interruptions.running:
            raise RuntimeError("the domain is running")

    def check_can_be_copied(self) -> None:
        """Raise RuntimeError where a copy would write to the same disk, or writes outlast a rewind."""
        written = [
            disk for m in self.machine.host.machines.values() for disk in m.devices.disks if disk.is_written
        ]
        if written:
            raise RuntimeError(f"{written[0].target} is written: a copy or rewind needs a snapshot of it")
        if self._outside is not None:
            raise RuntimeError(
                "an interface leads out of the host: a copy or rewind would share its connections"
            )

    def check_can_be_saved(self) -> None:
        """Raise RuntimeError where the domain cannot be saved as it stands."""
        self.check_at_rest()
        if self._outcome is not None:
            raise RuntimeError("the domain has ended")
        if self._shares_host:
            raise RuntimeError("a domain that shares its host cannot be saved alone")

    def check_nobody_repeats(self, what: str) -> None:
        """Raise BuildError where `what` happens to a run that is to be had again from its input alone."""
        if self._tape is not None or self._past is not None:
            raise BuildError(f"{what}, which is no part of a record or of the past that is kept")

    # -- who is connected to it

    def attach(self, source: Input) -> None:
        """Take console input from `source` too."""
        self._input = source

    @property
    def takes_input(self) -> bool:
        """Whether somebody may still type."""
        return self._has_input

    def serve_tools(self, server: XenstoreServer | None) -> None:
        """Have tools heard while the domain is idle, by who serves them; None: nobody does any more."""
        self._tools = server

    def serve_viewers(self, server: VncServer | None) -> None:
        """Have those who see the framebuffer heard while the domain is idle; None: nobody does any more."""
        self._viewers = server

    @contextmanager
    def watching(self, timer: Periodic) -> Iterator[None]:
        """Let `timer` look while the block lasts. Idle time passes without it."""
        self._watchers.append(timer)
        timer.arm()
        try:
            yield
        finally:
            self._watchers.remove(timer)
            timer.stop()

    def end_run(self) -> None:
        """End the run that is under way, and any other, as who closes the console does."""
        self._is_to_end = True

    # -- copies, and the way back

    @property
    def is_unobserved(self) -> bool:
        """Whether nobody would notice a run and its undoing: no debugger, listener, record or capture."""
        machine = self.machine
        return (
            not any(switch.taps for switch in machine.host.switches.values())
            and not (self._watchers or self._runner or self._tape or machine.watcher or machine.listeners)
            and machine.engine.coverage is None
            and all(key == TICK for key, _ in machine.host.timers.live())
        )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While the block lasts nobody is told what is printed, and nobody types."""
        sink, source = self._sink, self._input
        self._sink = self._input = None
        try:
            yield
        finally:
            self._sink, self._input = sink, source

    def become_clone(self, console_output: Callable[[bytes], None], timeout: float | None) -> None:
        """In the process of a clone: no input but what is sent, and limits counted from now on."""
        if self._tools is not None:
            self._tools.forsake()
        if self._viewers is not None:
            self._viewers.forsake()
        self._limits = self._limits.count_anew(timeout)
        self._input, self._sink = None, console_output
        self._interruptions.has_signals = False  # to look for handlers copies twenty pages
        for switch in self.machine.host.switches.values():
            switch.taps.clear()  # a capture is the holder's

    def keep(self) -> Callable[[], None]:
        """What gives this object back what it knows of the domain now."""
        transcript, used, counts = self._transcript.save(), self.console.used, list(self._counts)
        outcome, printed = self._outcome, self._console_bytes
        tape = self._tape
        position = tape.position() if tape is not None else (0, False)

        def give_back() -> None:
            self._transcript.be(transcript)
            self.console.use(used)
            self._counts.clear()
            self._counts.extend(counts)
            self._outcome, self._console_bytes = outcome, printed
            if tape is not None:
                tape.wind_back(position)

        return give_back

    def went_back(self) -> None:
        """The domain stands elsewhere in its time: it is not over there, unless it is."""
        if not self.machine.is_over:
            self._outcome = None
        self._counts.clear()
        self.rearm()

    def console_state(self) -> dict[str, int | bytes]:
        """What of the console is this holder's: what was printed, and how much of it was matched or read."""
        text, held, dropped = self._transcript.save()
        return {
            "text": text, "held": held, "dropped": dropped,
            "printed": self._console_bytes, "used": self.console.used,
        }  # fmt: skip
