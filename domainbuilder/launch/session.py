"""A guest's console as a test holds it: expect, send, read; and how a run ended.

Nothing here knows the hypervisor: `Console` is given a function that runs the guest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from domainbuilder.errors import ExitCode
from domainbuilder.launch.transcript import Search, Transcript, compile_pattern
from domainbuilder.visible import console_lines

if TYPE_CHECKING:
    from domainbuilder.launch.crash_report import CrashReport
    from domainbuilder.launch.waiting import Ends, HasFileno


class _Reason(NamedTuple):
    """What the end of a run for that reason means: to a script, to the domain, in words."""

    exit_code: ExitCode
    is_end: bool  # of the domain, too
    sentence: str


_FINE, _CRASHED, _TIMED_OUT = ExitCode.FINE, ExitCode.DOMAIN_CRASHED, ExitCode.TIMED_OUT
_REASONS = {
    "poweroff": _Reason(_FINE, True, "the guest powered off"),
    "reboot": _Reason(_FINE, True, "the guest asked for a reboot"),
    "suspend": _Reason(_FINE, True, "the guest suspended"),
    "crash": _Reason(_CRASHED, True, "the guest reported that it crashed"),
    "watchdog": _Reason(_CRASHED, True, "the guest's watchdog was not patted in time"),
    "soft_reset": _Reason(_FINE, True, "the guest asked for a soft reset"),
    "crashed": _Reason(_CRASHED, True, "the guest did what Xen destroys a domain for"),
    "idle": _Reason(
        _TIMED_OUT, False, "the guest is idle for good: it waits for input, and nothing is left to wake it"
    ),
    "timeout": _Reason(_TIMED_OUT, False, "time is up"),
    "detached": _Reason(_FINE, False, "the console was closed, and the domain with it"),
    "matched": _Reason(_FINE, False, "every expectation was met"),
    "replayed": _Reason(_FINE, False, "the record ends here"),
    "saved": _Reason(_FINE, False, "the domain was saved"),
    "moved": _Reason(_FINE, False, "the domain was moved"),
}


def _known(reason: str) -> _Reason:
    """What is known of a reason; a number that Xen has no name for counts as a crash."""
    return _REASONS.get(reason) or _Reason(_CRASHED, True, f"the guest shut down: {reason}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. `reason` is the guest's own shutdown reason ("poweroff", "reboot", "suspend", "crash",
    "watchdog", "soft_reset", or "reason N" for another number), "crashed" where Xen would have destroyed it,
    "idle" where nothing can ever wake it, "timeout", "detached" (Ctrl-]), "matched" (--until-match),
    "replayed" where a record ends before the guest does, "saved" or "moved" (--save-at).
    `detail` says more where there is more. `report` is there whenever `exit_code` is 3.
    """

    reason: str
    detail: str = ""
    report: CrashReport | None = None

    @property
    def exit_code(self) -> ExitCode:
        """What `domainbuilder launch` without expectations would exit with."""
        return _known(self.reason).exit_code

    @property
    def ended(self) -> bool:
        """Whether the domain is gone; after "idle" and "timeout" it can go on."""
        return _known(self.reason).is_end

    def __str__(self) -> str:
        sentence = _known(self.reason).sentence
        return f"{sentence}: {self.detail}" if self.detail else sentence


class ExpectError(Exception):
    """An expectation was not met. `outcome` says why the guest did not go on, `tail` what it printed last."""

    def __init__(self, pattern: str, outcome: Outcome, tail: str) -> None:
        super().__init__(pattern, outcome, tail)
        self.pattern = pattern
        self.outcome = outcome
        self.tail = tail

    @property
    def last_lines(self) -> str:
        """What the console showed last, quoted, control characters made visible."""
        return "\n".join(console_lines(self.tail))

    def __str__(self) -> str:
        return f"{self.pattern!r} did not appear: {self.outcome}\n{self.last_lines}"


class ExpectTimeout(ExpectError):
    """Time was up before the match."""


class ExpectEOF(ExpectError):
    """The guest ended, or went idle for good, before the match."""


class Input(Protocol):
    """Where a domain's console input comes from, beside `Console.send`."""

    @property
    def open(self) -> bool:
        """Whether more can come."""

    @property
    def detached(self) -> bool:
        """Whether the user has had enough."""

    @property
    def real_time(self) -> bool:
        """Whether an idle guest's time is to pass as the user's does."""

    def ends(self) -> Ends[HasFileno | int]:
        """Where to wait for it."""

    def read(self) -> bytes:
        """What has come; empty where nothing has."""


class Console:
    """The guest's console. What was matched or read is used up: the next `expect` goes on behind it."""

    def __init__(
        self,
        run: Callable[[Search, float | None], Outcome | None],
        send: Callable[[bytes], None],
        transcript: Transcript,
        used: int = 0,
    ) -> None:
        self._run = run
        self._send = send
        self._transcript = transcript
        self._used = used

    def expect(self, pattern: str | re.Pattern[str], timeout: float | None = None) -> re.Match[str]:
        """Run the guest until its output matches, and stop it right there; the match.

        In a string, ^ and $ match at every line. A pattern that can match the end of a line has to match
        within 4096 characters. `timeout` is in seconds of wall time and never reaches the guest. Raises
        ExpectTimeout when time is up, ExpectEOF when the guest ends or idles for good.
        """
        search = Search(compile_pattern(pattern), self._transcript, self._used)
        outcome = self._run(search, timeout)
        if search.match is None and outcome is not None:
            kind = ExpectTimeout if outcome.reason == "timeout" else ExpectEOF
            shown = pattern if isinstance(pattern, str) else pattern.pattern
            raise kind(shown, outcome, self._transcript.tail())
        if search.match is None:
            raise RuntimeError("the guest was stopped without a match")
        self._used = search.consumed
        return search.match

    def send(self, text: str | bytes) -> None:
        """Type `text`. The guest gets it where it stands now, whatever time that took."""
        self._send(text.encode() if isinstance(text, str) else text)

    def read(self) -> str:
        """What was printed and not yet matched or read."""
        data = self._transcript.since(self._used)
        self._used = self._transcript.end
        return data.decode("utf-8", "replace")

    def copy(
        self,
        run: Callable[[Search, float | None], Outcome | None],
        send: Callable[[bytes], None],
        transcript: Transcript,
    ) -> Console:
        """The console of a clone, whose `transcript` begins as a copy of this one's: as much is used up."""
        return Console(run, send, transcript, self._used)

    @property
    def used(self) -> int:
        """How much of the transcript was matched or read, by its offset."""
        return self._used

    def use(self, used: int) -> None:
        """Go on behind that much of what was printed."""
        self._used = used

    @property
    def transcript(self) -> str:
        """Everything the guest printed (the last 16 MiB of it)."""
        return self._transcript.text()
