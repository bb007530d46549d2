"""A domain that goes back: to a moment of the past that is kept, or to where it stood at a snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainbuilder.errors import BuildError
from domainbuilder.launch.backstage import Backstage
from domainbuilder.launch.options import Chosen
from domainbuilder.launch.snapshot import Snapshot

if TYPE_CHECKING:
    from domainbuilder.launch.past import FrameChange, Happened, Moment, Past, Write
    from hvcore.debug.events import Event


class Rewinding(Backstage):
    """What RunningDomain has of going back."""

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
        """Where the domain stands.

        Raises RuntimeError while the domain runs or somebody listens to its events, and where it was launched
        without past=True; so do all methods of the past.
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
        """Go to a moment, to `guest_ns` nanoseconds of the guest's time, to before an instruction
        (Moment.instruction), or to before the instruction that led to an event: one of the four.

        From there the domain goes on as it did, with the same input, until something else is typed. What was
        printed is not printed again. Raises LookupError where the domain was not there, or that is not kept.
        """
        past = self._kept_past()
        if event is not None:
            if (moment, guest_ns, instruction) != (None, None, None):
                raise TypeError("at() takes one of a moment, guest_ns, instruction and event")
            return past.before_event(event)
        return past.at(moment, guest_ns, instruction)

    def back(self, instructions: int = 1) -> Moment:
        """Go back by so many instructions of the vCPU that ran last.

        Raises LookupError where not so many are kept; the domain stays where it was.
        """
        return self._kept_past().back(instructions)

    def last_event(
        self, kind: type[Event], condition: str | None = None, *, before: Moment | None = None
    ) -> Happened:
        """Go to before the last event of a kind (hvcore/debug/events.py) before a moment (None: now).

        `condition` is about its fields and the registers then, numbers without a sign, as in
        "number == 1 && result >> 63"; see hvcore/debug/condition.py, whose ConditionError it raises. Raises
        LookupError where there was none.
        """
        return self._kept_past().last_event(kind, condition, before)

    def last_write(self, address: int, size: int = 8, *, before: Moment | None = None) -> Write:
        """Go to where one of `size` bytes at a virtual address was about to be written last.

        The address is one of the vCPU that ran last; stores to the same memory by another address are not
        found. What Xen writes is found where it changes something. Raises LookupError where nothing was
        written in the past that is kept, or nothing is mapped there.
        """
        return self._kept_past().last_write(address, size, before)

    def last_change(self, mfn: int, *, before: Moment | None = None) -> FrameChange:
        """Go to where a guest's act last made a machine frame what it is in use as, or was refused to.

        Xen holds a frame to a type (page table of a level, writable, ...) while it is in use as one. Raises
        LookupError where that did not change, and IndexError where the machine has no such frame.
        """
        return self._kept_past().last_change(mfn, before)

    def _kept_past(self) -> Past:
        self.check_at_rest()
        if self._past is None:
            raise RuntimeError("the domain was launched without past=True")
        return self._past

    def snapshot(self) -> Snapshot:
        """Where the domain stands, for `rewind()` in this process, which takes tenths of a millisecond.

        Raises RuntimeError while the domain runs, where it writes to a disk without a snapshot, and where it
        shares its host (see Host.snapshot); EngineError where memory is short.
        """
        self._check_alone()
        return Snapshot(self.machine.host, [self])

    def rewind(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, whatever has happened since: a crash, for one.

        The domain goes on from there as it did then, and with the same input to the same end. The seconds
        that `launch` allowed are not counted anew. Raises RuntimeError as `snapshot()` does, and for the
        snapshot of another domain.
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
