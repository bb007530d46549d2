"""What `launch` writes about a run beside its console: which files, and what goes into each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from domainbuilder.errors import BuildError
from domainbuilder.launch.options import check_limit

if TYPE_CHECKING:
    from domainbuilder.launch.running import RunningDomain
    from hvcore.backends.net_frame import Frame
    from hvcore.host import Host


class Observing(NamedTuple):
    """The options that ask for files: each None where nothing does."""

    trace: Path | None = None
    trace_format: str | None = None
    trace_filter: str = ""
    profile: Path | None = None
    profile_us: int = 1000
    coverage: Path | None = None
    report: Path | None = None
    pcap: Path | None = None
    screenshot: Path | None = None
    screenshot_at: float | None = None

    @property
    def outputs(self) -> list[Path]:
        """The files that are to be written."""
        files = self.trace, self.profile, self.coverage, self.report, self.pcap, self.screenshot
        return [path for path in files if path is not None]

    def check(self) -> None:
        """Raise BuildError for what cannot be, before anything runs."""
        if self.trace is not None:
            from domainbuilder.trace.filter import parse_filter
            from domainbuilder.trace.formats import format_of

            format_of(self.trace, self.trace_format)
            parse_filter(self.trace_filter)
        elif self.trace_format or self.trace_filter:
            raise BuildError("--trace-format and --trace-filter go with --trace FILE")
        if self.profile is not None:
            from domainbuilder.profile.stacks import encoder_of

            encoder_of(self.profile)
        if self.coverage is not None:
            from domainbuilder.profile.coverage import coverage_encoder_of

            coverage_encoder_of(self.coverage)
        if self.screenshot_at is not None:
            check_limit(self.screenshot_at)
            if self.screenshot is None:
                raise BuildError("--screenshot-at goes with --screenshot FILE")
        if not 1 <= self.profile_us <= 10**9:
            raise BuildError("a profile looks once a microsecond, or less often", found=str(self.profile_us))


NOTHING = Observing()


@contextmanager
def observed(dom: RunningDomain, wanted: Observing, reason: Callable[[], str]) -> Iterator[None]:
    """Write what is wanted about what the domain does in the block; `reason` says at its end why it came."""
    with ExitStack() as stack:
        if wanted.trace is not None:
            from domainbuilder.launch.tracing import traced

            stack.enter_context(
                traced(
                    dom,
                    wanted.trace,
                    trace_format=wanted.trace_format,
                    wanted=wanted.trace_filter,
                    reason=reason,
                )
            )
        if wanted.profile is not None:
            from domainbuilder.launch.profiling import profiled

            stack.enter_context(profiled(dom, wanted.profile, wanted.profile_us * 1000))
        if wanted.coverage is not None:
            from domainbuilder.launch.covering import covered

            stack.enter_context(covered(dom, wanted.coverage))
        if wanted.report is not None:
            from domainbuilder.launch.html_report import reported

            stack.enter_context(reported(dom, wanted.report, reason))
        if wanted.pcap is not None:
            stack.enter_context(captured(dom.machine.host, wanted.pcap))
        if wanted.screenshot is not None:
            from domainbuilder.launch.display import photographed

            stack.enter_context(photographed(dom.machine, wanted.screenshot, wanted.screenshot_at))
        yield


@contextmanager
def captured(host: Host, path: Path) -> Iterator[None]:
    """Write what passes the host's switches; the file is whole when the block ends."""
    from hvcore.boot_image import WALLCLOCK_NS
    from hvcore.debug.pcapng import PcapngWriter

    failed: list[OSError] = []
    with path.open("wb") as file:
        began = next((one.domain.wallclock_ns for one in host.machines.values()), WALLCLOCK_NS)
        writer = PcapngWriter(file, began)

        def tap(when: int, port: str, frame: Frame) -> None:
            """An error waits for the end of the run: a guest's frame is half sent here."""
            if not failed:
                try:
                    writer.frame(when, port, frame)
                except OSError as error:
                    failed.append(error)

        switches = list(host.switches.values())
        for switch in switches:
            switch.taps.append(tap)
        try:
            yield
        finally:
            for switch in switches:
                switch.taps.remove(tap)
    if failed:
        raise failed[0]
