"""Several domains of configurations on one host, in the foreground: its switches between them, one terminal.

What each prints is told apart by its name. What is typed goes to one of them: to the first, until Ctrl-] and
another's number are typed. Each is followed as its configuration says, while the others run on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from domainbuilder import streams
from domainbuilder.errors import BuildError, ExitCode
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.kernel.unpacked import users_kernels
from domainbuilder.launch.create import action_of, asked_by, booted
from domainbuilder.launch.host import Host
from domainbuilder.launch.observing import captured
from domainbuilder.launch.session import Outcome
from domainbuilder.launch.terminal import ESCAPE, FileInput, TerminalInput, raw_terminal, write_all
from domainbuilder.launch.waiting import Ends
from domainbuilder.output import refuse_to_overwrite
from domainbuilder.plan.domain_plan import DomainPlan, plan
from domainbuilder.plan.findings import warn
from domainbuilder.streams import STDIN, STDOUT

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.xl.domain_config import DomainConfig

_PAGES_PER_MIB = 256
_EXTENT_MIB = 2  # where a domain's memory may begin
_LEAVE = b"q"


@dataclass(frozen=True, slots=True)
class TogetherOptions:
    """What else the command line says; `console_log` gets the name of each domain behind it."""

    timeout: float | None = None
    console_log: Path | None = None
    pcap: Path | None = None
    gdb: str | None = None
    gdb_waits: bool = True
    date: str | None = None
    cache: bool = True
    quiet: bool = False


class Screen:
    """Stdout, with the name of who prints before each line."""

    def __init__(self) -> None:
        self._owner = ""
        self._within = False  # a line
        self._is_terminal = os.isatty(STDOUT)

    def show(self, name: str, data: bytes) -> None:
        """`name` printed `data`: also the beginning of a line is shown at once."""
        out = bytearray()
        for line in data.splitlines(keepends=True):
            if self._owner != name:
                out += self._break()
                self._owner = name
            if not self._within:
                out += f"{name}| ".encode()
            out += line
            self._within = not line.endswith((b"\n", b"\r"))
        write_all(STDOUT, bytes(out), "stdout")

    def say(self, text: str) -> None:
        """A line of ours, on stderr."""
        if self._is_terminal and sys.stderr.isatty():
            write_all(STDOUT, self._break(), "stdout")
        sys.stderr.write(f"domainbuilder: {text}\r\n" if self._is_terminal else f"domainbuilder: {text}\n")
        sys.stderr.flush()

    def _break(self) -> bytes:
        was, self._within = self._within, False
        return (b"\r\n" if self._is_terminal else b"\n") if was else b""


class ChoosingInput(TerminalInput):
    """A terminal whose user types to one of several: Ctrl-] and its number choose one, Ctrl-] q leaves."""

    def __init__(self, fd: int, count: int) -> None:
        super().__init__(fd)
        self._count = count
        self._is_command = False
        self._rest = b""
        self.chosen: int | None = None  # and the run is to stop for it

    def ends(self) -> Ends[int]:
        """See FileInput."""
        return Ends([-1]) if self._rest else super().ends()

    def read(self) -> bytes:
        """See FileInput."""
        data, self._rest = self._rest or FileInput.read(self), b""
        if not self.open:
            self.detached = True
            return b""
        if not self._is_command:
            typed, escape, self._rest = data.partition(ESCAPE)
            self._is_command = bool(escape)
            if typed or not escape:
                return typed
            data, self._rest = self._rest, b""
        if data:
            self._command(data[:1])
            self._rest = data[1:]
        return b""

    def _command(self, key: bytes) -> None:
        self._is_command = False
        if key in (_LEAVE, ESCAPE):
            self.detached, self.open = True, False
        elif key.isdigit() and 1 <= int(key) <= self._count:
            self.chosen, self.detached = int(key) - 1, True

    def take_choice(self) -> int | None:
        """Whom the user has chosen, once."""
        chosen, self.chosen = self.chosen, None
        if chosen is not None:
            self.detached = False
        return chosen


@dataclass(slots=True)
class _Member:
    """One of the domains, which may be there for a second time."""

    config: DomainConfig
    sinks: list[Callable[[bytes], None]] = field(default_factory=list)
    dom: RunningDomain | None = None
    code: ExitCode = ExitCode.FINE

    def printed(self, data: bytes) -> None:
        for sink in self.sinks:
            sink(data)


def create_together(configs: Sequence[DomainConfig], options: TogetherOptions) -> ExitCode:
    """Run the domains until all have ended; the code of who ended worst. Raises BuildError and OSError."""
    _check(configs, options)
    streams.require_stdout()
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    screen = Screen()
    with ExitStack() as stack:
        members = [_Member(config) for config in configs]
        for member in members:
            member.sinks.append(partial(screen.show, member.config.name))
        with ExitStack() as files:
            plans = [_planned(config, files, cache=options.cache) for config in configs]
            for member, log in zip(members, _logs(configs, options), strict=False):
                member.sinks.append(_writer(stack.enter_context(log.open("wb", buffering=0))))
            host = stack.enter_context(Host(sum(map(_mib, plans, configs))))
            for member, planned in zip(members, plans, strict=True):
                _launch(host, member, planned, options)
        if options.pcap is not None:
            stack.enter_context(captured(host.host, options.pcap))
        if options.gdb is not None:
            server = stack.enter_context(host.gdb(options.gdb, waits=options.gdb_waits, say=screen.say))
            if not server.address.is_local:
                screen.say(f"anybody who reaches {server.address} can read and change the guests")
            waits = "waiting for gdb: " * options.gdb_waits
            screen.say(f"{waits}target extended-remote {server.address}")
        _Loop(host, members, options, screen, deadline).run(stack)
    return max((member.code for member in members), key=_SEVERITY.index)


# A crash is what to know first.
_SEVERITY = [ExitCode.FINE, ExitCode.CHECK_FAILED, ExitCode.TIMED_OUT, ExitCode.DOMAIN_CRASHED]


def _check(configs: Sequence[DomainConfig], options: TogetherOptions) -> None:
    if options.gdb is not None:
        from domainbuilder.launch.gdb_line import parse_address

        parse_address(options.gdb)
    elif not options.gdb_waits:
        raise BuildError("--gdb-later goes with --gdb")
    names, written = set[str](), set[str]()
    for config in configs:
        if config.name in names:
            raise BuildError("two domains have the same name", found=repr(config.name))
        names.add(config.name)
        targets = {os.path.realpath(disk.target) for disk in config.disks if disk.is_written}
        if targets & written:
            raise BuildError("two domains write to the same disk", found=", ".join(sorted(targets & written)))
        written |= targets
    inputs = [name for config in configs for name in (config.kernel, config.ramdisk)]
    inputs += [disk.target for config in configs for disk in config.disks]
    refuse_to_overwrite([options.pcap, *_logs(configs, options)], inputs)


def _logs(configs: Sequence[DomainConfig], options: TogetherOptions) -> list[Path]:
    """The file for each domain's output; none where nobody wants them."""
    log = options.console_log
    return [] if log is None else [log.with_name(f"{log.name}.{config.name}") for config in configs]


def _writer(file: BinaryIO) -> Callable[[bytes], None]:
    return lambda data: write_all(file.fileno(), data, file.name)


def _planned(config: DomainConfig, files: ExitStack, *, cache: bool) -> DomainPlan:
    """What the domain will be; its files are there as long as `files`."""
    kernel, ramdisk, cmdline = files.enter_context(booted(config))
    opened = load_kernel(kernel, kept=users_kernels(cache=cache))
    planned = plan(opened, config.memory, ramdisk=ramdisk, cmdline=cmdline)
    warn(planned)
    return planned


def _mib(planned: DomainPlan, config: DomainConfig) -> int:
    """How much of the host's memory a domain may come to have."""
    pages = max(planned.nr_pages, (config.maxmem or 0) * _PAGES_PER_MIB)
    step = _EXTENT_MIB * _PAGES_PER_MIB
    return -(-pages // step) * _EXTENT_MIB


def _launch(host: Host, member: _Member, planned: DomainPlan, options: TogetherOptions) -> None:
    member.dom = host.launch(
        planned,
        console_output=member.printed,
        date=options.date,
        cache=options.cache,
        **asked_by(member.config),
    )


class _Loop:
    """The domains run; who ends is followed, who is typed to may change."""

    def __init__(
        self,
        host: Host,
        members: list[_Member],
        options: TogetherOptions,
        screen: Screen,
        deadline: float | None,
    ) -> None:
        self._host, self._members, self._options = host, members, options
        self._screen, self._deadline = screen, deadline
        self._focus = 0
        self._input: FileInput = FileInput(STDIN)
        self._choosing: ChoosingInput | None = None

    def run(self, stack: ExitStack) -> None:
        """Until none is left, time is up, or the user has had enough."""
        if os.isatty(STDIN):
            self._input = self._choosing = ChoosingInput(STDIN, len(self._members))
            names = ", ".join(f"{i} {member.config.name}" for i, member in enumerate(self._members, 1))
            self._screen.say(f"Ctrl-] and a number type to that domain ({names}); Ctrl-] q ends them all")
            stack.enter_context(raw_terminal(STDIN, self._interrupt))
        while alive := [member for member in self._members if member.dom is not None]:
            driver = self._members[self._focus]
            if driver.dom is None:
                self._focus = self._members.index(alive[0])
                continue
            outcome = self._run(driver.dom, [m.dom for m in alive if m is not driver and m.dom is not None])
            if outcome is not None and not outcome.ended:
                if self._choose():
                    continue
                self._stop(alive, outcome)
                return
            for member in alive:
                if member.dom is not None and member.dom.machine.is_over:
                    self._follow(member, member.dom, member.dom.wait())

    def _interrupt(self, error: BaseException) -> None:
        dom = self._members[self._focus].dom
        if dom is not None:
            dom.interrupt(error)

    def _run(self, driver: RunningDomain, others: list[RunningDomain]) -> Outcome | None:
        driver.attach(self._input)
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.001)
        return driver.wait_with(others, left)

    def _choose(self) -> bool:
        """Whether the run ended because the user types to another domain from now on."""
        chosen = self._choosing.take_choice() if self._choosing is not None else None
        if chosen is None:
            return False
        name = self._members[chosen].config.name
        if self._members[chosen].dom is None:
            self._screen.say(f"{name} has ended")
        else:
            self._focus = chosen
            self._screen.say(f"typing to {name}")
        return True

    def _stop(self, alive: list[_Member], outcome: Outcome) -> None:
        """All end here, for one reason that is no domain's own."""
        for member in alive:
            member.code = outcome.exit_code
        self._screen.say(f"{', '.join(member.config.name for member in alive)}: {outcome}")

    def _follow(self, member: _Member, dom: RunningDomain, outcome: Outcome) -> None:
        """What the configuration says of a domain that has ended."""
        config = member.config
        self._screen.say(f"{config.name}: {outcome}")
        if outcome.report is not None:
            from domainbuilder.launch.crash_text import render_crash

            sys.stderr.write(render_crash(outcome.report))
        action = action_of(config, outcome.reason)
        if action.startswith("coredump"):
            dom.dump_core(f"{config.name}.core")
        member.code, member.dom = outcome.exit_code, None
        dom.close()
        if action.endswith("restart"):
            if not self._options.quiet:
                self._screen.say(f"{config.name} is started again: {outcome.reason}")
            with ExitStack() as files:
                planned = _planned(config, files, cache=self._options.cache)
                _launch(self._host, member, planned, self._options)
