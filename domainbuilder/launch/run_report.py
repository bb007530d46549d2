"""How a run went, said to people or as JSON, and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder.errors import ExitCode
from domainbuilder.launch.script import Step
from domainbuilder.launch.session import ExpectError, Outcome

if TYPE_CHECKING:
    from domainbuilder.launch.launch_options import LaunchOptions
    from domainbuilder.launch.record import InputRecord
    from domainbuilder.launch.run_stats import Statistics
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.launch.stop_report import StopReport


class Result(NamedTuple):
    """How a run went: `met` of the script's expectations were met; `failure` is the first that was not."""

    outcome: Outcome
    met: int
    failure: ExpectError | None


def ended_alike(dom: RunningDomain, replay: InputRecord, outcome: Outcome) -> bool:
    """Whether a replayed run is the one that was recorded; what is said if not."""
    here = (outcome.reason, dom.stats().guest_ns)
    if here == (replay.reason, replay.end_ns):
        return True
    sys.stderr.write(
        f"domainbuilder: the run ended ({here[0]}, after {here[1]} ns) otherwise than it was recorded "
        f"({replay.reason}, after {replay.end_ns} ns): by another version of domainbuilder?\n"
    )
    return False


def exit_code(result: Result, expects: int) -> ExitCode:
    """The exit code of a run of which so many expectations were to be met."""
    code = result.outcome.exit_code
    if result.met < expects:
        says_more = code is ExitCode.DOMAIN_CRASHED or result.outcome.reason == "timeout"
        return code if says_more else ExitCode.CHECK_FAILED
    return ExitCode.FINE if expects and result.outcome.reason == "idle" else code


def report(
    dom: RunningDomain, options: LaunchOptions, result: Result, expects: list[Step], code: ExitCode
) -> None:
    """Say on stderr how it went, with where the domain stands if it did not end by itself; dump its core.

    Raises OSError, with all of it said, where the core cannot be written.
    """
    outcome = result.outcome
    message = _message(result, expects)
    undumped: OSError | None = None
    stopped = outcome.reason in {"timeout", "idle"} and code is not ExitCode.FINE
    stop = dom.look() if stopped else None
    if options.core is not None and (stopped or outcome.report is not None):
        try:
            size = dom.dump_core(options.core)
            message += f"; its memory is in {options.core}, {size:,} bytes"
        except OSError as error:
            undumped = error
    stats = dom.stats() if options.stats else None
    if options.json:
        from domainbuilder.reports.launch_report import launch_report

        met = [(step, i < result.met) for i, step in enumerate(expects)]
        document = launch_report(options.file, outcome, message, code, met, stats, stop)
        sys.stderr.write(document.model_dump_json(indent=2) + "\n")
    else:
        sys.stderr.writelines(_text(dom, result, message, code, stop, stats))
    if undumped is not None:
        raise undumped


def _message(result: Result, expects: list[Step]) -> str:
    if result.failure is not None:
        where = f"expectation {result.met + 1} of {len(expects)}"
        return f"{where}: {result.failure.pattern!r} did not appear: {result.outcome}"
    if result.met < len(expects):  # only --save-at SECONDS is left, and the run ended before
        return f"{result.outcome}, and was not saved: {expects[result.met].text} s of its time did not come"
    return str(result.outcome)


def _text(
    dom: RunningDomain,
    result: Result,
    message: str,
    code: ExitCode,
    stop: StopReport | None,
    stats: Statistics | None,
) -> Iterator[str]:
    if result.outcome.report is not None:
        from domainbuilder.launch.crash_text import render_crash

        yield render_crash(result.outcome.report)
    if stop is not None:
        from domainbuilder.launch.stop_text import render_stop

        yield render_stop(stop)
    elif result.failure is not None:
        yield f"{result.failure.last_lines}\n"
    yield f"domainbuilder: {message}\n"
    if code is ExitCode.DOMAIN_CRASHED and dom.machine.ro_page_fault.upper_store_was_the_end():
        yield "domainbuilder: it stored to an L2-L4 page table, which Xen refuses; --upper-ptwr lets it\n"
    if stats is not None:
        from domainbuilder.launch.run_stats import render_stats

        yield render_stats(stats)
