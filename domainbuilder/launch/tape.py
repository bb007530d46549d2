"""A machine's input as it arrives, with the guest's time, and the same input given again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from domainbuilder.errors import BuildError
from domainbuilder.launch.record import MOST_TYPED, InputRecord
from hvcore.given import Given, size_of
from hvcore.machine import BOOT_TIME_NS

if TYPE_CHECKING:
    from domainbuilder.build.domain_image import DomainImage
    from hvcore.backends.disk import Disk
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif
    from hvcore.machine import Machine

_TIMER = "replay"  # among the host's
_NOT_THE_GUESTS = frozenset(("timeout", "detached", "matched", "interrupted", "replayed"))  # ends of a run
_SAME = (
    ("vcpus", "the number of vCPUs"),
    ("upper_ptwr", "whether upper_ptwr is on"),
    ("sha256", "the digest of its memory at the start (kernel, ramdisk, command line, size)"),
    ("disks", "what is on its disks at the start (--snapshot leaves them as they are)"),
    ("vifs", "its network interfaces (--vif)"),
    ("date_ns", "the date that it begins at (--date), in ns of Unix time"),
    ("time_offset", "how many seconds its clock is off (rtc_timeoffset)"),
    ("vfb", "its framebuffer (--vfb)"),
)


def subject(
    image: DomainImage,
    vcpus: int,
    *,
    upper_ptwr: bool,
    disks: Sequence[Disk] = (),
    vifs: Sequence[Vif] = (),
    vfb: Vfb | None = None,
) -> dict[str, Any]:
    """What a run is a function of, beside its input; the kernel's name is for people."""
    import hashlib  # 2.6 ms, which a start without a record need not pay

    digest = hashlib.sha256(image.ram).hexdigest()
    what: dict[str, Any] = {
        "kernel": image.plan.kernel,
        "sha256": digest,
        "vcpus": vcpus,
        "upper_ptwr": upper_ptwr,
    }
    if disks:
        what["disks"] = {disk.vdev: disk_digest(disk) for disk in disks}
    if vifs:
        what["vifs"] = [asdict(vif) for vif in vifs]
    if vfb is not None:
        what["vfb"] = asdict(vfb)
    return what


def disk_digest(disk: Disk) -> str:
    """The SHA-256 of what is on a disk now: a run is a function of that, too."""
    import hashlib

    from hvcore.backends.images import open_image

    image = open_image(replace(disk, readwrite=False, snapshot=False))
    digest, piece = hashlib.sha256(), memoryview(bytearray(1 << 20))
    try:
        for offset in range(0, image.size, len(piece)):
            part = piece[: image.size - offset]
            image.read(offset, [part])
            digest.update(part)
    finally:
        image.close()
    return digest.hexdigest()


class Tape:
    """Notes what `machine` is typed, and types what `replay` has. `fail` is told of what ends the recording.

    Raises BuildError where the record is of another domain than `domain` (subject()).
    """

    def __init__(
        self,
        machine: Machine,
        domain: dict[str, Any],
        replay: InputRecord | None,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._machine = machine
        self._domain = domain
        self._replay = replay
        self._fail = fail
        self._typed: list[tuple[int, Given]] = []
        self._size = 0
        self.is_over = False  # what was replayed, where it did not end by itself
        machine.typed = self._note
        if replay is not None:
            for name, what in _SAME:
                if replay.domain.get(name) != domain.get(name):
                    found, expected = str(domain.get(name)), str(replay.domain.get(name))
                    message = f"the record is of another domain: {what}"
                    raise BuildError(message, found=found, expected=expected)
            self._arm(replay)

    def position(self) -> tuple[int, bool]:
        """How many pieces were typed, and whether that was all."""
        return len(self._typed), self.is_over

    def wind_back(self, position: tuple[int, bool]) -> None:
        """Forget what was typed since; the machine's timers are its own matter."""
        count, self.is_over = position
        self._size -= sum(size_of(given) for _when, given in self._typed[count:])
        del self._typed[count:]

    def record(self, reason: str) -> InputRecord:
        """What was typed until now, where the run ends for `reason` (that of an Outcome)."""
        now = self._machine.clock.now() - BOOT_TIME_NS
        return InputRecord(self._domain, tuple(self._typed), now, reason)

    def _note(self, when: int, given: Given) -> None:
        self._typed.append((when - BOOT_TIME_NS, given))
        self._size += size_of(given)
        if self._size > MOST_TYPED:
            self._fail(BuildError(f"more than {MOST_TYPED >> 20} MiB of input cannot be recorded"))
        if self._replay is not None:
            self._arm(self._replay)

    def _arm(self, replay: InputRecord) -> None:
        """The next input; or the end of the record, where that was not the guest's doing."""
        machine = self._machine
        if len(self._typed) < len(replay.typed):
            when, given = replay.typed[len(self._typed)]
            machine.host.set_timer(_TIMER, when + BOOT_TIME_NS, lambda: machine.input(given))
        elif replay.reason in _NOT_THE_GUESTS:
            machine.host.set_timer(_TIMER, replay.end_ns + BOOT_TIME_NS, self._end)

    def _end(self) -> None:
        self.is_over = True
        self._machine.host.pause()
