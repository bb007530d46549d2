"""A domain that runs into a file and back: `save`, `restore`.

What comes back goes on as the domain would have gone on here: the same guest time, counts, console and end.
"""

from __future__ import annotations

import os
import time
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from domainbuilder.errors import BuildError, SavedError, Where
from domainbuilder.inputs import names_socket, open_input
from domainbuilder.launch.options import Chosen, RestoreOptions
from domainbuilder.launch.running import RunningDomain
from domainbuilder.launch.start import Output, Start
from domainbuilder.launch.transcript import Transcript
from domainbuilder.output import atomic_output, write_at
from domainbuilder.saved.disks import identity, with_disks
from domainbuilder.saved.frozen import Frozen, read_frozen, write_frozen
from domainbuilder.saved.started import no_record, received, running
from domainbuilder.saved.stream_read import is_stream
from domainbuilder.saved.vifs import with_vifs
from hvcore.errors import EngineError
from hvcore.host import Host
from hvcore.machine import BOOT_TIME_NS

if TYPE_CHECKING:
    from domainbuilder.plan.domain_plan import DomainPlan
    from hvcore.machine import Machine


def freeze(dom: RunningDomain) -> Frozen:
    """The domain as it stands, as values; nothing of it changes. Raises RuntimeError where it cannot be."""
    from domainbuilder import __version__

    dom.check_can_be_saved()
    machine, plan = dom.machine, dom.plan
    try:
        state = machine.host.save()
    except EngineError as error:
        raise RuntimeError(str(error)) from error
    boot = machine.boot
    about = {
        "product": __version__,
        "kernel": Path(plan.kernel).name if plan is not None else "",
        "guest_type": machine.domain.abi.name,
        "memory_mib": boot["nr_pages"] >> 8,
        "vcpus": len(machine.domain.vcpus),
        "guest_ns": machine.clock.now() - BOOT_TIME_NS,
    }
    session: dict[str, Any] = {"console": dom.console_state(), "build": None}
    if plan is not None:
        from domainbuilder.build.build_note import build_note

        session["build"] = build_note(plan, boot["first_mfn"], boot["shared_info_mfn"])
    if machine.devices.disks:
        session["disks"] = {disk.vdev: identity(disk) for disk in machine.devices.disks}
    return Frozen(about, session, state)


def save(dom: RunningDomain, path: str | os.PathLike[str]) -> int:
    """Write the domain as it stands to `path`, whole or not at all; the file's size.

    Raises RuntimeError where it cannot be saved (see RunningDomain.save), and OSError.
    """
    return write_frozen(freeze(dom), path)


def save_stream(dom: RunningDomain, path: str | os.PathLike[str]) -> int:
    """Have the guest suspend, and write it to `path` in Xen's migration stream; the file's size.

    What it wrote to its disks is in their files then. Where that fails behind the guest's suspending, the
    guest goes on. Raises what RunningDomain.save does.
    """
    from domainbuilder.saved.stream_devices import check_devices
    from domainbuilder.saved.stream_save import saved_stream
    from domainbuilder.saved.suspend import suspend

    dom.check_can_be_saved()
    check_devices(dom.machine)
    size = 0
    with atomic_output(path) as fd:
        suspend(dom)
        try:
            check_devices(dom.machine)
            dom.machine.devices.flush_disks()
            for piece in saved_stream(dom.machine):
                size += write_at(fd, piece, size)
        except BaseException:
            dom.resume()
            raise
    return size


def restore(path: str | os.PathLike[str], **options: Unpack[RestoreOptions]) -> RunningDomain:
    """The domain that `RunningDomain.save` wrote to `path`, or `xl save` under Xen, ready to go on.

    "unix:PATH" is a socket instead, at which a domain is awaited that `RunningDomain.migrate` moves here.
    The options are those of `launch`; limits count from here. `disks` are those that the domain had: their
    files have to be what they were when it was saved, by whatever name. `vifs` are those of its interfaces
    that lead out of the host again; one that is not given has nobody at its other end. The file may come from
    anybody: its domain can do no more than a guest can. Raises SavedError where it is no saved domain, or a
    damaged one; OSError.
    """
    started, chosen, name = time.monotonic(), Chosen(**options), os.fspath(path)
    if names_socket(name):
        from domainbuilder.saved.migrate import receive

        return receive(name, started, chosen)
    if is_stream(name):
        return resume(name, started, chosen)
    return thaw(read_frozen(path), name, started, chosen)


def thaw(
    frozen: Frozen, name: str, started: float, options: Chosen, memory_file: int | None = None
) -> RunningDomain:
    """A domain of these values, which are of a file called `name`. Raises SavedError.

    memory_file: a file that has its machine's memory, where the values do not. Then they are this program's
    own, and the kernel's plan is worked out where somebody asks for it; else at once, to refuse a wrong one.
    """
    plan = cache(partial(_plan, frozen.session.get("build"), name))
    if memory_file is None:
        plan()
    console = _Console(frozen.session.get("console"), name)

    def machine(output: Output) -> Machine:
        host = Host.restore(state, lambda _domid, data: output(data), memory_file, plain=options.plain)
        return host.machines[1]

    if len(frozen.state.domains) != 1:
        raise SavedError(
            "a saved host of several domains", where=Where(name), found=len(frozen.state.domains), expected=1
        )
    state = with_disks(frozen.state, frozen.session, options.parsed_disks, name)
    state = with_vifs(state, options.parsed_vifs, name)
    start = Start(
        plan, machine, no_record, console.transcript, console.printed, console.used, is_trusted=False
    )
    return running(start, name, started, options)


def resume(name: str, started: float, options: Chosen) -> RunningDomain:
    """The domain of a file in Xen's migration stream, whose guest goes on as one that was restored."""
    from domainbuilder.saved.stream_read import Source, read_stream
    from domainbuilder.saved.stream_restore import Restorer

    try:
        view = memoryview(open_input(name))
    except ValueError as error:
        raise SavedError(f"cannot be read: {error}", where=Where(name)) from None
    source = Source(name, lambda size: view[source.at : source.at + size])
    restorer = Restorer(name, options.parsed_disks, options.parsed_vifs)
    read_stream(source, restorer)
    if source.at != len(view):
        raise source.fail("something follows the stream", found=len(view) - source.at, expected=0)
    return received(restorer, started, options)


def _plan(note: Any, name: str) -> DomainPlan | None:
    """The plan of the domain's kernel, worked out again."""
    if note is None:
        return None

    def fail(reason: str, *, found: object = None, expected: object = None) -> SavedError:
        return SavedError(reason, where=Where(name), found=found, expected=expected)

    if not isinstance(note, dict):
        raise fail("the build note is no map", found=type(note).__name__)
    from domainbuilder.build.build_note import read_build_note  # and all that plans a domain

    built = read_build_note(note, fail)
    try:
        return built._replace(kernel=Path(built.kernel).name).plan()
    except BuildError as error:
        raise fail(f"the build note is of no domain: {error.reason}") from None


class _Console:
    """What the domain's holder knew of its console, checked."""

    def __init__(self, saved: Any, name: str) -> None:
        numbers = ("dropped", "printed", "used")
        fits = (
            isinstance(saved, dict)
            and set(saved) == {*numbers, "text", "held"}
            and all(type(saved[key]) is int and 0 <= saved[key] < 1 << 62 for key in numbers)
            and all(type(saved[key]) is bytes for key in ("text", "held"))
            and len(saved["held"]) <= 1
        )
        if not fits:
            found = ", ".join(sorted(map(str, saved))) if isinstance(saved, dict) else type(saved).__name__
            raise SavedError("what is said of the console cannot be", where=Where(name), found=found)
        self.transcript = Transcript.restore(saved["text"], saved["held"], saved["dropped"])
        self.printed = saved["printed"]
        self.used = min(saved["used"], self.transcript.end)
