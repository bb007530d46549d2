"""The work behind `domainbuilder launch`: play the script, or connect the user; then say how it went."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, BinaryIO, Literal, NamedTuple

from domainbuilder import streams
from domainbuilder.build.domain_image import DomainImage
from domainbuilder.build.image import is_image, load_image
from domainbuilder.errors import BuildError, ExitCode, KernelFormatError, SavedError, Where
from domainbuilder.inputs import names_socket
from domainbuilder.kernel.kernel_file import load_kernel
from domainbuilder.kernel.unpacked import UnpackedKernels, cache_folder
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.observing import NOTHING, Observing, observed
from domainbuilder.launch.options import FOREVER, Chosen, Options
from domainbuilder.launch.record import InputRecord, load_record, save_record
from domainbuilder.launch.script import Step
from domainbuilder.launch.session import ExpectError, Outcome
from domainbuilder.launch.terminal import FileInput, TerminalInput, raw_terminal, write_all
from domainbuilder.output import refuse_to_overwrite
from domainbuilder.plan.domain_plan import DEFAULT_MEMORY_MIB, DomainPlan, plan
from domainbuilder.plan.findings import warn
from domainbuilder.progress import Progress
from domainbuilder.streams import STDIN, STDOUT
from hvcore.public.xen import PAGE_SHIFT

if TYPE_CHECKING:
    from domainbuilder.saved.kept import Resumption
    from hvcore.backends.disk import Disk
    from hvcore.backends.vif import Vif


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The command line of `domainbuilder launch`, parsed."""

    file: str
    memory_mib: int | None = None
    ramdisk: str | None = None
    cmdline: str = ""
    vcpus: int = 1
    upper_ptwr: bool = False
    disks: tuple[Disk, ...] = ()
    vifs: tuple[Vif, ...] = ()
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
    resume_at: str | None = None
    xenstore: str | None = None


class _Result(NamedTuple):
    """How a run went: `met` of the script's expectations were met; `failure` is the first that was not."""

    outcome: Outcome
    met: int
    failure: ExpectError | None


class _ReaderGone(Exception):
    """Nobody reads the guest's output any more, and nothing else was wanted of it."""


class _Output:
    """Guest output on its way to stdout, as it is, and to the log."""

    def __init__(self, progress: Progress, *, needed: bool) -> None:
        self._progress = progress
        self._log: BinaryIO | None = None
        self._needed = needed
        self._last = b"\n"

    def log_to(self, path: Path, stack: ExitStack) -> None:
        """Write it to `path`, too, which is emptied now that the inputs are known to be good."""
        self._log = stack.enter_context(path.open("wb", buffering=0))

    def __call__(self, data: bytes) -> None:
        self._progress.heard(data)
        self._last = data[-1:]
        try:
            write_all(STDOUT, data)
        except BrokenPipeError:
            streams.silence(STDOUT)
            if self._needed:
                raise _ReaderGone from None
        except OSError as error:
            streams.silence(STDOUT)
            raise OSError(error.errno, error.strerror, "stdout") from error
        if self._log is not None:
            try:
                write_all(self._log.fileno(), data)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self._log.name) from error

    def end_line(self) -> None:
        """Begin a new line on a terminal that shows both the guest's output and our messages."""
        if self._last not in (b"\n", b"\r") and sys.stderr.isatty() and os.isatty(STDOUT):
            sys.stderr.write("\n")


_Starter = Callable[[LaunchOptions, Progress, _Output, InputRecord | None], RunningDomain]


class Ended(NamedTuple):
    """The exit code of a run, and what ended it: Outcome's reason, "" where nobody read on."""

    code: ExitCode
    reason: str


def run_launch(options: LaunchOptions) -> Ended:
    """Launch, play or connect, report. Raises BuildError for input that cannot be used."""
    if options.resume_at is None:
        return _run(options, _launched)
    return _run(options, _resumption_of(options))


def run_restore(options: LaunchOptions) -> Ended:
    """The same with a domain that was saved, which is `options.file`."""
    return _run(options, _restored)


def _asked(options: LaunchOptions) -> Options:
    """What launch() is asked for, whatever the domain comes from."""
    return Options(
        vcpus=options.vcpus,
        cap=options.cap,
        name=options.name,
        disks=options.disks,
        vifs=options.vifs,
        upper_ptwr=options.upper_ptwr,
        timeout=options.timeout,
        max_guest_seconds=options.max_guest_seconds,
        symbols=options.symbols,
        plain=options.plain or None,
        cache=options.cache,
    )


def _resumption_of(options: LaunchOptions) -> Resumption:
    """What finds the domain where it stood before. Raises BuildError for what cannot be resumed."""
    assert options.resume_at is not None
    _ = Step("expect", options.resume_at, "--resume-at").pattern
    if options.record or options.replay or options.observing.outputs or options.gdb is not None:
        raise BuildError("--resume-at goes with nothing that tells of a run from its start")
    from domainbuilder.saved.kept import Resumption

    def tell(message: str) -> None:
        if not options.json:
            sys.stderr.write(f"domainbuilder: {message}\n")

    built = Options(ramdisk=options.ramdisk, cmdline=options.cmdline)
    chosen = Chosen(**_asked(options) | built)
    return Resumption(options.file, options.resume_at, options.memory_mib, chosen, tell=tell)


def _launched(
    options: LaunchOptions,
    progress: Progress,
    output: Callable[[bytes], None],
    replay: InputRecord | None,
) -> RunningDomain:
    more = Options(console_output=output, record=options.record is not None, replay=replay)
    dom = launch(_planned(options, progress), **_asked(options) | more)
    if dom.machine.domain.abi.pt_levels == 2 and not options.json:
        progress.close()
        sys.stderr.write(
            f"domainbuilder: {options.file} does not ask for PAE and gets two-level page tables, "
            "as under Xen 3; later ones do not run it\n"
        )
    return dom


def _restored(
    options: LaunchOptions, _progress: Progress, output: _Output, _replay: InputRecord | None
) -> RunningDomain:
    from domainbuilder.saved.domain import restore

    return restore(
        options.file,
        timeout=options.timeout,
        max_guest_seconds=options.max_guest_seconds,
        console_output=output,
        symbols=options.symbols,
        plain=options.plain or None,
        disks=options.disks,
    )


def _run(options: LaunchOptions, start: _Starter | Resumption) -> Ended:
    expects, replay = _check(options)
    streams.require_stdout()
    with ExitStack() as stack, suppress(_ReaderGone):
        progress = stack.enter_context(Progress("building the domain", silent=options.json))
        output = _Output(progress, needed=not options.steps)
        if callable(start):
            dom = stack.enter_context(start(options, progress, output, replay))
        else:
            dom = stack.enter_context(
                start.start(output, lambda sink: _launched(options, progress, sink, replay))
            )
        reason = "interrupted"
        if options.record is not None:
            stack.callback(lambda path: save_record(dom.input_record(reason), path), options.record)
        if options.console_log is not None:
            output.log_to(options.console_log, stack)
        stack.enter_context(observed(dom, options.observing, lambda: reason))
        if options.xenstore is not None:
            _serve_xenstore(dom, options, progress, stack)
        if options.gdb is not None:
            _wait_for_gdb(dom, options, progress, stack)
        progress.phase = "running, no output"
        missed = None if callable(start) else _reach(start, dom)
        if missed is not None:
            expects, result = [Step("expect", options.resume_at or "")], missed
        elif options.steps or options.save_at is not None:
            result = _play(dom, options, progress)
        else:
            outcome = dom.wait() if replay is not None else _connect(dom, options, progress)
            result = _Result(outcome, 0, None)
        reason = result.outcome.reason
        progress.close()
        output.end_line()
        code = _exit_code(result, len(expects))
        if replay is not None and result.outcome.ended and not _ended_alike(dom, replay, result.outcome):
            code = ExitCode.CHECK_FAILED
        _report(dom, options, result, expects, code)
        return Ended(code, reason)
    return Ended(ExitCode.FINE, "")


def _reach(resumption: Resumption, dom: RunningDomain) -> _Result | None:
    """On to where the domain is resumed; how it went, where it did not get there."""
    try:
        resumption.reach(dom)
    except ExpectError as error:
        return _Result(error.outcome, 0, error)
    return None


def _check(options: LaunchOptions) -> tuple[list[Step], InputRecord | None]:
    """What is expected, and what is replayed. Raises BuildError for what cannot be, before anything runs."""
    for step in options.steps:
        _ = step.pattern if step.kind == "expect" else step.data
    expects = [step for step in options.steps if step.kind == "expect"]
    if options.until_match and not expects:
        raise BuildError("--until-match needs an --expect")
    if options.replay is not None and len(expects) < len(options.steps):
        raise BuildError("--replay types what was recorded: it goes with no --send")
    inputs = [options.file, options.ramdisk, options.symbols, options.replay]
    if (options.save_at is None) != (options.output is None):
        raise BuildError("--save-at says when, and -o where to: both or neither")
    if options.save_at is not None:
        if options.until_match:
            raise BuildError("--until-match and --save-at are two ends of a run")
        if options.disks and (options.save_as != "frozen" or names_socket(options.output or "")):
            raise BuildError("a domain with --disk is saved in the frozen form alone, and not moved")
        expects.append(Step("expect", options.save_at))
        _ = expects[-1].pattern
    inputs += [disk.target for disk in options.disks if disk.target]
    refuse_to_overwrite(
        [options.console_log, options.record, options.output, options.core, *options.observing.outputs],
        inputs,
    )
    for path in (options.record, options.output, options.core, *options.observing.outputs):
        if path is not None and not names_socket(path) and not path.parent.is_dir():
            raise BuildError("there is no such directory", where=Where(str(path.parent)))
    options.observing.check()
    _check_sockets(options)
    return expects, load_record(options.replay) if options.replay is not None else None


def _check_sockets(options: LaunchOptions) -> None:
    """Raise BuildError for what cannot be listened at, or not in such a run."""
    if options.gdb is not None:
        from domainbuilder.launch.gdb_server import parse_address

        parse_address(options.gdb)
    elif not options.gdb_waits:
        raise BuildError("--gdb-later goes with --gdb")
    if options.xenstore is not None:
        from domainbuilder.launch.xenstore_server import socket_path

        socket_path(options.xenstore)
        if options.record is not None or options.replay is not None:
            raise BuildError("--xenstore: what tools write is no part of a record")


def _serve_xenstore(dom: RunningDomain, options: LaunchOptions, progress: Progress, stack: ExitStack) -> None:
    """Listen for xenstore's tools for as long as `stack` lasts, and say where."""
    from domainbuilder.launch.xenstore_server import socket_path

    assert options.xenstore is not None
    server = stack.enter_context(dom.serve_xenstore(socket_path(options.xenstore)))
    if not options.json:
        progress.close()
        sys.stderr.write(f"domainbuilder: the store: XENSTORED_PATH={quote(server.path)} xenstore-ls\n")
        sys.stderr.flush()


def _wait_for_gdb(dom: RunningDomain, options: LaunchOptions, progress: Progress, stack: ExitStack) -> None:
    """Listen for GDB for as long as `stack` lasts, and say where."""
    from domainbuilder.launch.gdb_server import GdbServer, parse_address

    def say(text: str) -> None:
        if not options.json:
            progress.close()
            sys.stderr.write(f"domainbuilder: {text}\n")
            sys.stderr.flush()

    assert options.gdb is not None
    address = parse_address(options.gdb)
    # What a run is recorded or traced as is the run as it went, once.
    alone = options.record is None and options.replay is None and options.observing == NOTHING
    alone = alone and options.xenstore is None
    alone = alone and not options.plain and not any(disk.is_written for disk in dom.machine.devices.disks)
    server = stack.enter_context(GdbServer(dom, address, waits=options.gdb_waits, goes_back=alone, say=say))
    if not address.is_local:
        say(f"anybody who reaches {server.address} can read and change the guest, and end it")
    say(f"{'waiting for gdb: ' if options.gdb_waits else ''}target remote {server.address}")


def _ended_alike(dom: RunningDomain, replay: InputRecord, outcome: Outcome) -> bool:
    """Whether a replayed run is the one that was recorded; what is said if not."""
    here = (outcome.reason, dom.stats().guest_ns)
    if here == (replay.reason, replay.end_ns):
        return True
    sys.stderr.write(
        f"domainbuilder: the run ended ({here[0]}, after {here[1]} ns) otherwise than it was recorded "
        f"({replay.reason}, after {replay.end_ns} ns): by another version of domainbuilder?\n"
    )
    return False


def _planned(options: LaunchOptions, progress: Progress) -> DomainPlan | DomainImage:
    """The plan of a kernel, with what is to be said of it said; or the domain that was built before."""
    if is_image(options.file):
        if (options.memory_mib, options.ramdisk, options.cmdline) != (None, None, ""):
            raise BuildError("a built domain has its memory, ramdisk and command line already")
        return load_image(options.file)
    try:
        kernel = load_kernel(options.file, kept=UnpackedKernels(cache_folder()) if options.cache else None)
    except KernelFormatError as error:
        from domainbuilder.saved.frozen import is_frozen

        if is_frozen(options.file):
            message = "a saved domain, which `domainbuilder restore` goes on with"
            raise BuildError(message, where=Where(options.file)) from error
        raise
    planned = plan(kernel, options.memory_mib, ramdisk=options.ramdisk, cmdline=options.cmdline)
    progress.heard(b"\n")
    mib = planned.nr_pages >> 20 - PAGE_SHIFT
    if options.memory_mib is None and mib != DEFAULT_MEMORY_MIB and not options.json:
        print(f"domainbuilder: {options.file} gets {mib} MB of memory; -m MB says otherwise", file=sys.stderr)
    if not options.json:
        warn(planned)
    return planned


def _play(dom: RunningDomain, options: LaunchOptions, progress: Progress) -> _Result:
    """The steps in order, and then on until the guest ends, or until it is to be saved."""
    met = 0
    for step in options.steps:
        if step.kind == "send":
            dom.console.send(step.data)
            continue
        try:
            dom.console.expect(step.pattern)
        except ExpectError as error:
            return _Result(error.outcome, met, error)
        met += 1
    if options.save_at is not None:
        return _save(dom, options, met, progress)
    return _Result(Outcome("matched") if options.until_match else dom.wait(), met, None)


def _save(dom: RunningDomain, options: LaunchOptions, met: int, progress: Progress) -> _Result:
    """On until the domain is to be saved, and into its file."""
    assert options.save_at is not None
    assert options.output is not None
    seconds = _seconds(options.save_at)
    if seconds is not None:
        outcome = dom.run_for(seconds)
        if outcome is not None:
            return _Result(outcome, met, None)
    else:
        try:
            dom.console.expect(Step("expect", options.save_at).pattern)
        except ExpectError as error:
            return _Result(error.outcome, met, error)
    progress.phase = "saving"
    try:
        if names_socket(options.output):
            return _Result(Outcome("moved", str(dom.migrate(str(options.output)))), met + 1, None)
        size = dom.save(options.output, options.save_as)
    except SavedError as error:
        raise SavedError(error.reason, where=Where(options.file), found=error.found) from error
    return _Result(Outcome("saved", f"{options.output}, {size:,} bytes"), met + 1, None)


def _seconds(save_at: str) -> float | None:
    """The guest's seconds that `--save-at` names; None where it is a regular expression."""
    try:
        seconds = float(save_at)
    except ValueError:
        return None
    return seconds if 0 < seconds < FOREVER else None


def _connect(dom: RunningDomain, options: LaunchOptions, progress: Progress) -> Outcome:
    """The user's terminal, or whatever stdin is, becomes the console's input."""
    if not os.isatty(STDIN):
        dom.attach(FileInput(STDIN))
        return dom.wait()
    progress.heard(b"\n")
    progress.once = True
    if not options.json:
        sys.stderr.write(
            f"domainbuilder: the console of {options.file}; Ctrl-] closes it and ends the domain\n"
        )
        sys.stderr.flush()
    dom.attach(TerminalInput(STDIN))
    with raw_terminal(STDIN, dom.interrupt):
        return dom.wait()


def _exit_code(result: _Result, expects: int) -> ExitCode:
    code = result.outcome.exit_code
    if result.met < expects:
        return (
            code
            if code is ExitCode.DOMAIN_CRASHED or result.outcome.reason == "timeout"
            else (ExitCode.CHECK_FAILED)
        )
    return ExitCode.FINE if expects and result.outcome.reason == "idle" else code


def _message(result: _Result, expects: int) -> str:
    if result.failure is None:
        return str(result.outcome)
    where = f"expectation {result.met + 1} of {expects}"
    return f"{where}: {result.failure.pattern!r} did not appear: {result.outcome}"


def _report(
    dom: RunningDomain, options: LaunchOptions, result: _Result, expects: list[Step], code: ExitCode
) -> None:
    stats = dom.stats() if options.stats else None
    message = _message(result, len(expects))
    stopped = result.outcome.reason in {"timeout", "idle"} and code is not ExitCode.FINE
    stop = dom.look() if stopped else None
    if options.core is not None and (stopped or result.outcome.report is not None):
        size = dom.dump_core(options.core)
        message += f"; its memory is in {options.core}, {size:,} bytes"
    if options.json:
        from domainbuilder.reports.launch_report import launch_report

        met = [(step, i < result.met) for i, step in enumerate(expects)]
        report = launch_report(str(options.file), result.outcome, message, code, met, stats, stop)
        sys.stderr.write(report.model_dump_json(indent=2) + "\n")
        return
    if result.outcome.report is not None:
        from domainbuilder.launch.crash_text import render_crash

        sys.stderr.write(render_crash(result.outcome.report))
    if stop is not None:
        from domainbuilder.launch.stop_text import render_stop

        sys.stderr.write(render_stop(stop))
    elif result.failure is not None:
        sys.stderr.write(f"{result.failure.last_lines}\n")
    sys.stderr.write(f"domainbuilder: {message}\n")
    if code is ExitCode.DOMAIN_CRASHED and dom.machine.ro_page_fault.upper_store_was_the_end():
        sys.stderr.write(
            "domainbuilder: it stored to an L2-L4 page table, which Xen refuses; --upper-ptwr lets it\n"
        )
    if stats is not None:
        from domainbuilder.launch.run_stats import render_stats

        sys.stderr.write(render_stats(stats))
