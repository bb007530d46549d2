"""A domain that goes back: to a moment of the past that is kept, or to where it stood at a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError
from domainbuilder.launch.options import Chosen
from domainbuilder.launch.runner import Runner
from domainbuilder.launch.snapshot import Snapshot

if TYPE_CHECKING:
    from domainbuilder.launch.past import FrameChange, Happened, Moment, Past, Write
    from hvcore.debug.events import Event


class Rewinding(Runner):
    """What RunningDomain has of going back."""

    _past: Past | None = None

    def _begin(self, options: Chosen) -> None:
        super()._begin(options)
        if not options.past:
            return
        from domainbuilder.launch.past import Past

        try:
            self.check_can_be_copied()
        except RuntimeError as error:
            raise BuildError(f"no past can be kept: {error}") from None
        self._past = Past(self.machine, self._names_at_hand, self.went_back)
        self.run_by(self._past.run)

    # -- the past, of a domain that was launched with past=True

    def moment(self) -> Moment:
        """Where the domain stands. This, and all of the past, raises RuntimeError while the domain runs,
        while somebody listens to it, and where it was launched without `past`.
        """
        return self._kept_past().moment()

    def at(
        self,
        moment: Moment | None = None,
        *,
        guest_ns: int | None = None,
        instruction: int | None = None,
        event: Event | None = None,
    ) -> Moment:
        """Be where the domain stood at a moment, at `guest_ns` of the guest's time, before an instruction
        (Moment.instruction), or before the instruction that led to an event. It goes on from there as it
        did, with the same input, until something else is typed.

        What was printed is not printed again. Raises LookupError where it was not there, or that is not kept.
        """
        past = self._kept_past()
        if event is not None:
            if (moment, guest_ns, instruction) != (None, None, None):
                raise TypeError("at() takes one of a moment, guest_ns, instruction and event")
            return past.before_event(event)
        return past.at(moment, guest_ns, instruction)

    def back(self, instructions: int = 1) -> Moment:
        """Be so many instructions of the vCPU's before. Raises LookupError where there are not so many."""
        return self._kept_past().back(instructions)

    def last_event(
        self, kind: type[Event], condition: str | None = None, *, before: Moment | None = None
    ) -> Happened:
        """Be before the last event of a kind (hvcore/debug/events.py), before a moment (None: now).

        `condition` is about its fields and the registers then, numbers without a sign, as in
        "number == 1 && result >> 63"; see hvcore/debug/condition.py, whose ConditionError it raises. Raises
        LookupError where there was none.
        """
        return self._kept_past().last_event(kind, condition, before)

    def last_write(self, address: int, size: int = 8, *, before: Moment | None = None) -> Write:
        """Be where one of `size` bytes at a virtual address was about to be written last, and by whom.

        The address is of the vCPU that ran last; who writes to its memory at another is not found. What Xen
        writes is found where it changes something. Raises LookupError where nothing was written in the past
        that is kept, or nothing is mapped there.
        """
        return self._kept_past().last_write(address, size, before)

    def last_change(self, mfn: int, *, before: Moment | None = None) -> FrameChange:
        """Be where something last made a machine frame what it is in use as, or was refused to.

        Xen holds a frame to a type (page table of a level, writable, ...) while it is in use as one. Raises
        LookupError where that did not change, and IndexError for a frame that there is none of.
        """
        return self._kept_past().last_change(mfn, before)

    def went_back(self) -> None:
        """The domain stands elsewhere in its time: it is not over there, unless it is."""
        if not self.machine.is_over:
            self._outcome = None
        self._counts.clear()
        self.rearm()

    def _kept_past(self) -> Past:
        self.check_at_rest()
        if self._past is None:
            raise RuntimeError("the domain was launched without past=True")
        return self._past

    def snapshot(self) -> Snapshot:
        """Where the domain stands, to `rewind()` to, in this process and in tenths of a millisecond.

        Raises RuntimeError while the domain runs, and where it shares its host, whose snapshot it is then;
        EngineError where memory is short.
        """
        self._check_alone()
        return Snapshot(self.machine.host, [self])

    def rewind(self, snapshot: Snapshot) -> None:
        """Be where the domain was at the snapshot, whatever happened since: it crashed, for one.

        It goes on from there as it did then, and with the same input to the same end. The time that `launch`
        allowed does not start anew. Raises RuntimeError as `snapshot()` does, and for that of another domain.
        """
        self._check_alone()
        snapshot.go_back([self])

    def _check_alone(self) -> None:
        self.check_at_rest()
        if self._shares_host:
            raise RuntimeError("the domain shares its host, which goes back as a whole: Host.snapshot()")
        if self._past is not None:
            raise RuntimeError(
                "the domain was launched with past=True, and goes back by at(): a Moment is kept"
            )

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

    # -- what all of this wants

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
