"""The work behind `domainbuilder launch`: start it, play the script or connect the user, report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder import streams
from domainbuilder.errors import BuildError, ExitCode, SavedError, Where
from domainbuilder.inputs import names_socket
from domainbuilder.launch.guest_output import GuestOutput, ReaderGone
from domainbuilder.launch.launch_options import LaunchOptions, asked_of, check
from domainbuilder.launch.observing import NOTHING, observed
from domainbuilder.launch.options import FOREVER, Chosen, Options
from domainbuilder.launch.record import InputRecord, save_record
from domainbuilder.launch.run_report import Result, ended_alike, exit_code, report
from domainbuilder.launch.running import RunningDomain
from domainbuilder.launch.script import Step
from domainbuilder.launch.session import ExpectError, Outcome
from domainbuilder.launch.terminal import FileInput, TerminalInput, raw_terminal
from domainbuilder.progress import Progress
from domainbuilder.streams import STDIN

if TYPE_CHECKING:
    from domainbuilder.saved.kept import Resumption


_Starter = Callable[[LaunchOptions, Progress, GuestOutput, InputRecord | None], RunningDomain]


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
    chosen = Chosen(**asked_of(options) | built)
    return Resumption(options.file, options.resume_at, options.memory_mib, chosen, tell=tell)


def _launched(
    options: LaunchOptions,
    progress: Progress,
    output: Callable[[bytes], None],
    replay: InputRecord | None,
) -> RunningDomain:
    from domainbuilder.launch.from_kernel import launched  # what is restored or resumed needs no builder

    return launched(options, progress, output, replay)


def _restored(
    options: LaunchOptions, _progress: Progress, output: GuestOutput, _replay: InputRecord | None
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
        vifs=options.vifs,
    )


def _run(options: LaunchOptions, start: _Starter | Resumption) -> Ended:
    expects, replay = check(options)
    streams.require_stdout()
    with ExitStack() as stack, suppress(ReaderGone):
        progress = stack.enter_context(Progress("building the domain", silent=options.json))
        output = GuestOutput(progress, needed=not options.steps)
        if callable(start):
            begun = start(options, progress, output, replay)
        else:
            begun = start.start(output, lambda sink: _launched(options, progress, sink, replay))
        dom = stack.enter_context(begun)
        reason = "interrupted"
        if options.record is not None:
            stack.callback(lambda path: save_record(dom.input_record(reason), path), options.record)
        if options.console_log is not None:
            output.log_to(options.console_log, stack)
        stack.enter_context(observed(dom, options.observing, lambda: reason))
        _open_to_others(dom, options, progress, stack)
        progress.phase = "running, no output"
        missed = None if callable(start) else _reach(start, dom)
        if missed is not None:
            expects, result = [Step("expect", options.resume_at or "")], missed
        elif options.steps or options.save_at is not None:
            result = _play(dom, options, progress)
        elif replay is not None:
            result = Result(dom.wait(), 0, None)
        else:
            result = Result(_connect(dom, options, progress), 0, None)
        reason = result.outcome.reason
        progress.close()
        output.end_line()
        code = exit_code(result, len(expects))
        if replay is not None and result.outcome.ended and not ended_alike(dom, replay, result.outcome):
            code = ExitCode.CHECK_FAILED
        report(dom, options, result, expects, code)
        if options.at_end is not None and result.outcome.ended:
            options.at_end(dom, result.outcome)
        return Ended(code, reason)
    return Ended(ExitCode.FINE, "")


def _reach(resumption: Resumption, dom: RunningDomain) -> Result | None:
    """On to where the domain is resumed; how it went, where it did not get there."""
    try:
        resumption.reach(dom)
    except ExpectError as error:
        return Result(error.outcome, 0, error)
    return None


def _open_to_others(dom: RunningDomain, options: LaunchOptions, progress: Progress, stack: ExitStack) -> None:
    """Let in, while `stack` lasts, whoever may look at the domain or drive it, and say where they come in."""

    def say(text: str) -> None:
        if not options.json:
            progress.close()
            sys.stderr.write(f"domainbuilder: {text}\n")
            sys.stderr.flush()

    if options.xenstore is not None:
        from domainbuilder.launch.xenstore_server import socket_path

        server = stack.enter_context(dom.serve_xenstore(socket_path(options.xenstore)))
        say(f"the store: XENSTORED_PATH={quote(server.path)} xenstore-ls")
    if dom.vnc_address:
        say(f"the framebuffer: vncviewer {dom.vnc_address}")
        if not dom.vnc_is_local:
            say(f"anybody who reaches {dom.vnc_address} sees the guest and types")
    if options.gdb is not None:
        _wait_for_gdb(dom, options, options.gdb, say, stack)


def _wait_for_gdb(
    dom: RunningDomain, options: LaunchOptions, where: str, say: Callable[[str], None], stack: ExitStack
) -> None:
    """Listen for GDB at `where` for as long as `stack` lasts."""
    from domainbuilder.launch.gdb_line import parse_address
    from domainbuilder.launch.gdb_server import GdbServer

    address = parse_address(where)
    # A record or a trace is of one run from begin to end: gdb must not take that back.
    alone = options.record is None and options.replay is None and options.observing == NOTHING
    alone = alone and options.xenstore is None
    alone = alone and not options.plain and not any(disk.is_written for disk in dom.machine.devices.disks)
    server = stack.enter_context(
        GdbServer(
            dom,
            address=address,
            waits=options.gdb_waits,
            goes_back=alone,
            stops_at_crash=options.stops_at_crash,
            say=say,
        )
    )
    if not address.is_local:
        say(f"anybody who reaches {server.address} can read and change the guest, and end it")
    if options.stops_at_crash:
        say(f"gdb can come at any time, and is waited for at a crash: target remote {server.address}")
    elif not options.gdb_comes:
        say(f"{'waiting for gdb: ' if options.gdb_waits else ''}target remote {server.address}")


def _play(dom: RunningDomain, options: LaunchOptions, progress: Progress) -> Result:
    """The steps in order, and then on until the guest ends, or until it is to be saved."""
    met = 0
    for step in options.steps:
        if step.kind == "send":
            dom.console.send(step.data)
            continue
        try:
            dom.console.expect(step.pattern)
        except ExpectError as error:
            return Result(error.outcome, met, error)
        met += 1
    if options.save_at is not None:
        return _save(dom, options, met, progress)
    return Result(Outcome("matched") if options.until_match else dom.wait(), met, None)


def _save(dom: RunningDomain, options: LaunchOptions, met: int, progress: Progress) -> Result:
    """On until the domain is to be saved, and into its file."""
    assert options.save_at is not None
    assert options.output is not None
    seconds = _seconds(options.save_at)
    if seconds is not None:
        outcome = dom.run_for(seconds)
        if outcome is not None:
            return Result(outcome, met, None)
    else:
        try:
            dom.console.expect(Step("expect", options.save_at).pattern)
        except ExpectError as error:
            return Result(error.outcome, met, error)
    progress.phase = "saving"
    try:
        if names_socket(options.output):
            return Result(Outcome("moved", str(dom.migrate(str(options.output)))), met + 1, None)
        size = dom.save(options.output, options.save_as)
    except SavedError as error:
        raise SavedError(error.reason, where=Where(options.file), found=error.found) from error
    return Result(Outcome("saved", f"{options.output}, {size:,} bytes"), met + 1, None)


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
