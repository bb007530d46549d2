"""The framebuffer of a domain, as its holder has it: pictures of what it shows.

    with launch("vmlinuz", memory_mib=128, cmdline="console=tty0", vfb="vnc=0") as dom:
        dom.run_for(20)
        dom.screenshot("boot.png")

Who looks changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from domainbuilder.display.pixels import Planes, planes
from domainbuilder.errors import BuildError
from domainbuilder.output import write_whole
from hvcore.machine import BOOT_TIME_NS

if TYPE_CHECKING:
    from hvcore.machine import Machine

_TIMER = "screenshot"  # among the host's


def shown(machine: Machine) -> Planes | None:
    """What the framebuffer shows, or showed last; None where there was nothing yet, or there is none."""
    screen = machine.devices.screen
    picture = screen.picture() if screen is not None else None
    return None if picture is None else planes(*picture)


def screenshot(machine: Machine) -> bytes:
    """That as a PNG file. Raises BuildError where there is nothing to see."""
    picture = shown(machine)
    if picture is None:
        has_one = machine.devices.screen is not None
        raise BuildError(
            "the guest has drawn nothing yet" if has_one else "the domain has no framebuffer (vfb)"
        )
    from domainbuilder.display.png import png

    return png(picture)


@contextmanager
def photographed(machine: Machine, path: Path, at: float | None) -> Iterator[None]:
    """Write a picture of what is shown when the block ends, or at a second of the guest's time within it.

    Raises BuildError where there was nothing to see then, or the time was not reached; OSError.
    """
    if machine.devices.screen is None:
        raise BuildError("--screenshot: the domain has no framebuffer (--vfb)")
    taken: list[bytes | BuildError] = []

    def take() -> None:
        """The guest stands, and must not be left by an error."""
        try:
            taken.append(screenshot(machine))
        except BuildError as error:
            taken.append(error)

    host = machine.host
    if at is not None:
        host.set_timer(_TIMER, BOOT_TIME_NS + int(at * 1e9), take)
    try:
        yield
    finally:
        host.timers.stop(_TIMER)
    if at is None:
        take()
    elif not taken:
        raise BuildError(f"--screenshot-at: the run ended before {at:g} s of the guest's time")
    picture = taken[0]
    if isinstance(picture, BuildError):
        raise BuildError(f"--screenshot: {picture.reason}")
    write_whole(path, picture)


def save_screenshot(machine: Machine, path: str | os.PathLike[str] | None) -> bytes:
    """A PNG of what is shown, written to `path` as well where there is one; whole or not at all."""
    picture = screenshot(machine)
    if path is not None:
        write_whole(path, picture)
    return picture
