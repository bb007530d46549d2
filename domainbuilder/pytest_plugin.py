"""Fixtures for pytest: a domain boots once a session, and every test has a copy of it in milliseconds.

    @pytest.fixture(scope="session")
    def booted(boot_domain):
        return boot_domain("vmlinuz", 128, ramdisk="ramdisk.gz", until="# ")

    @pytest.fixture
    def linux(booted, clone_domain):
        return clone_domain(booted)

    def test_release(linux):
        linux.console.send("uname -r\\n")
        linux.console.expect(r"^6\\.1")

The report of a test that fails has the console of each of its domains, with a crash report where one crashed,
and where it stands if it still runs. Under pytest-xdist every worker boots a domain of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Protocol, Unpack

import pytest

if TYPE_CHECKING:
    from domainbuilder.build.domain_image import DomainImage
    from domainbuilder.clones.clone import Clone
    from domainbuilder.kernel.kernel_file import KernelFile
    from domainbuilder.launch.options import Options
    from domainbuilder.launch.running import RunningDomain
    from domainbuilder.plan.domain_plan import DomainPlan

    Kernel = DomainPlan | DomainImage | KernelFile | str | os.PathLike[str]

LINES, CHARACTERS = 200, 20_000  # of a console, at most, in a report


class BootDomain(Protocol):
    """What the fixture `boot_domain` is."""

    def __call__(
        self,
        kernel: Kernel,
        memory_mib: int | None = None,
        *,
        until: str | None = None,
        kept: bool = False,
        **options: Unpack[Options],
    ) -> RunningDomain:
        """`domainbuilder.launch`, and on until the console matches `until`; closed with the session."""


class CloneDomain(Protocol):
    """What the fixture `clone_domain` is."""

    def __call__(
        self,
        domain: RunningDomain | Clone,
        *,
        console_output: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
    ) -> Clone:
        """`domain.fork()`; the copy is closed with the test."""


class _Domains:
    """What a report is to tell of: domains without a copy yet, and the copies of the test that runs."""

    def __init__(self) -> None:
        self.booted: list[RunningDomain] = []
        self.clones: list[Clone] = []


_DOMAINS = pytest.StashKey[_Domains]()


def pytest_configure(config: pytest.Config) -> None:
    """Nothing has run yet."""
    config.stash[_DOMAINS] = _Domains()


@pytest.fixture(scope="session")
def boot_domain(request: pytest.FixtureRequest) -> Iterator[BootDomain]:
    """`boot_domain(kernel, memory_mib, until=REGEX, ...)`: a domain launched, and run until it printed that.

    It takes what `domainbuilder.launch` does. The domain is closed when the session ends. With kept=True it
    is that of `domainbuilder.resume_at`: the next session finds it where it stands.
    """
    domains = request.config.stash[_DOMAINS]
    with ExitStack() as stack:

        def resumed(
            kernel: Kernel, memory_mib: int | None, until: str | None, options: Options
        ) -> RunningDomain:
            from domainbuilder.saved.kept import resume_at

            if until is None or not isinstance(kernel, str | os.PathLike):
                raise ValueError("what is kept is a kernel's file that was run until something matched")
            dom = stack.enter_context(resume_at(kernel, until, memory_mib, **options))
            domains.booted.append(dom)
            return dom

        def boot(
            kernel: Kernel,
            memory_mib: int | None = None,
            *,
            until: str | None = None,
            kept: bool = False,
            **options: Unpack[Options],
        ) -> RunningDomain:
            if kept:
                return resumed(kernel, memory_mib, until, options)
            from domainbuilder.launch.domain import launch

            dom = stack.enter_context(launch(kernel, memory_mib, **options))
            domains.booted.append(dom)
            if until is not None:
                dom.console.expect(until)
            return dom

        yield boot


@pytest.fixture
def clone_domain(request: pytest.FixtureRequest) -> Iterator[CloneDomain]:
    """`clone_domain(domain)`: a copy of the domain as it stands, in a process of its own, for this test.

    It takes what `domain.fork()` does, and clones too. The copy is closed when the test ends.
    """
    domains = request.config.stash[_DOMAINS]

    def clone(
        domain: RunningDomain | Clone,
        *,
        console_output: Callable[[bytes], None] | None = None,
        timeout: float | None = None,
    ) -> Clone:
        copy = domain.fork(console_output=console_output, timeout=timeout)
        domains.booted = [dom for dom in domains.booted if dom is not domain]
        domains.clones.append(copy)
        return copy

    yield clone
    for copy in domains.clones:
        copy.close()
    domains.clones.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The report of what failed has the consoles of its domains."""
    report = yield
    if report.failed:
        domains = item.config.stash[_DOMAINS]
        there: list[RunningDomain | Clone] = [*domains.clones, *domains.booted]
        for number, dom in enumerate(there, 1):
            name = "domain" if len(there) == 1 else f"domain {number}"
            report.sections += _sections(name, dom)
    return report


def _sections(name: str, dom: RunningDomain | Clone) -> list[tuple[str, str]]:
    from domainbuilder.visible import visible

    console = "\n".join(visible(line) for line in dom.transcript.tail(LINES, CHARACTERS).splitlines())
    sections = [(f"console of the {name}", console)]
    outcome = dom.outcome
    if outcome is not None and outcome.report is not None:
        from domainbuilder.launch.crash_text import render_crash

        sections.append((f"crash of the {name}", render_crash(outcome.report)))
    elif outcome is None and not dom.closed:
        from domainbuilder.clones.process import CloneLost
        from domainbuilder.launch.stop_text import render_stop

        with suppress(CloneLost):
            sections.append((f"where the {name} stands", render_stop(dom.look())))
    return sections
