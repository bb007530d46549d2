"""The options of `domainbuilder launch` and its kin as one value, and which of them exclude each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from domainbuilder.errors import BuildError, Where
from domainbuilder.inputs import names_socket
from domainbuilder.launch.observing import NOTHING, Observing
from domainbuilder.launch.options import Options
from domainbuilder.launch.record import InputRecord, load_record
from domainbuilder.launch.script import Step
from domainbuilder.output import refuse_to_overwrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.session import Outcome
    from hvcore.backends.disk import Disk
    from hvcore.backends.vfb import Vfb
    from hvcore.backends.vif import Vif


class LaunchOptions(NamedTuple):
    """The command line of `domainbuilder launch`, parsed."""

    file: str
    memory_mib: int | None = None
    ramdisk: str | None = None
    cmdline: str = ""
    maxmem_mib: int | None = None
    vcpus: int = 1
    max_vcpus: int | None = None
    uuid: str | None = None
    date: str | None = None
    time_offset: int = 0
    upper_ptwr: bool = False
    disks: tuple[Disk, ...] = ()
    vifs: tuple[Vif, ...] = ()
    vfb: Vfb | None = None
    cap: int = 0
    name: str = "guest"
    steps: tuple[Step, ...] = ()
    until_match: bool = False
    timeout: float | None = None
    max_guest_seconds: float | None = None
    console_log: Path | None = None
    record: Path | None = None
    replay: Path | None = None
    plain: bool = False
    stats: bool = False
    json: bool = False
    observing: Observing = NOTHING
    symbols: str | None = None
    cache: bool = True
    save_at: str | None = None
    output: Path | None = None
    core: Path | None = None
    save_as: Literal["frozen", "xen"] = "frozen"
    gdb: str | None = None
    gdb_waits: bool = True
    gdb_comes: bool = False
    stops_at_crash: bool = False
    resume_at: str | None = None
    xenstore: str | None = None
    at_end: Callable[[RunningDomain, Outcome], None] | None = None  # is given the domain when it has ended

    @property
    def is_of_one_run(self) -> bool:
        """Whether something is asked for that a second run would do over: a script, a file, a debugger."""
        return bool(self.steps or self.save_at or self.observing.outputs or self.gdb or self.record)


def asked_of(options: LaunchOptions) -> Options:
    """What launch() is asked for, whatever the domain comes from."""
    return Options(
        maxmem_mib=options.maxmem_mib,
        vcpus=options.vcpus,
        max_vcpus=options.max_vcpus,
        uuid=options.uuid,
        date=options.date,
        time_offset=options.time_offset,
        cap=options.cap,
        name=options.name,
        disks=options.disks,
        vifs=options.vifs,
        vfb=options.vfb,
        upper_ptwr=options.upper_ptwr,
        timeout=options.timeout,
        max_guest_seconds=options.max_guest_seconds,
        symbols=options.symbols,
        plain=options.plain or None,
        cache=options.cache,
    )


def check(options: LaunchOptions) -> tuple[list[Step], InputRecord | None]:
    """What is expected, and what is replayed. Raises BuildError for what cannot be, before anything runs."""
    for step in options.steps:
        _ = step.pattern if step.kind == "expect" else step.data
    expects = [step for step in options.steps if step.kind == "expect"]
    if options.until_match and not expects:
        raise BuildError("--until-match needs an --expect")
    if options.replay is not None and len(expects) < len(options.steps):
        raise BuildError("--replay types what was recorded: it goes with no --send")
    if (options.save_at is None) != (options.output is None):
        raise BuildError("--save-at says when, and -o where to: both or neither")
    if options.save_at is not None:
        expects.append(_saved_at(options.save_at, options))
    _check_files(options)
    options.observing.check()
    _check_sockets(options)
    return expects, load_record(options.replay) if options.replay is not None else None


def _saved_at(when: str, options: LaunchOptions) -> Step:
    if options.until_match:
        raise BuildError("--until-match and --save-at are two ends of a run")
    step = Step("expect", when)
    _ = step.pattern
    return step


def _check_files(options: LaunchOptions) -> None:
    """Raise BuildError where an output is an input, or cannot be made."""
    inputs = [options.file, options.ramdisk, options.symbols, options.replay]
    inputs += [disk.target for disk in options.disks if disk.target]
    outputs = [options.record, options.output, options.core, *options.observing.outputs]
    refuse_to_overwrite([options.console_log, *outputs], inputs)
    for path in outputs:
        if path is not None and not names_socket(path) and not path.parent.is_dir():
            raise BuildError("there is no such directory", where=Where(str(path.parent)))


def _check_sockets(options: LaunchOptions) -> None:
    """Raise BuildError for what cannot be listened at, or not in such a run."""
    if options.gdb is not None:
        from domainbuilder.launch.gdb_line import parse_address

        parse_address(options.gdb)
    elif not options.gdb_waits:
        raise BuildError("--gdb-later and --stop-at go with --gdb")
    if options.xenstore is not None:
        from domainbuilder.launch.xenstore_server import socket_path

        socket_path(options.xenstore)
        if options.record is not None or options.replay is not None:
            raise BuildError("--xenstore: what tools write is no part of a record")
