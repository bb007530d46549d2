"""An example: how to test a kernel. `pytest samples/test_example.py` runs it; KERNEL is where yours goes.

`launch` builds the domain and returns it running; leaving the `with` block destroys it. The guest only runs
while something is awaited, so a test is the same every time.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from domainbuilder import ExpectEOF, RunningDomain, guests, launch, plan

KERNEL = guests.path("hello")
PROMPT = r"^hello> "


@pytest.fixture
def dom() -> Iterator[RunningDomain]:
    """The kernel, booted to its prompt. The timeout is a guard: what the guest sees does not depend on it."""
    with launch(KERNEL, memory_mib=32, cmdline="ticks=1", timeout=60) as dom:
        dom.console.expect(PROMPT)
        yield dom


def test_it_knows_its_command_line(dom: RunningDomain) -> None:
    dom.console.send("about\n")
    assert dom.console.expect(r'command line +"(.*)"')[1] == "ticks=1"


def test_it_powers_off(dom: RunningDomain) -> None:
    dom.console.send("halt\n")
    assert dom.wait().reason == "poweroff"


def test_its_page_tables_are_out_of_its_reach(dom: RunningDomain) -> None:
    dom.console.send("trap\n")
    dom.console.expect("writing to a page table: trap 14, error code 3")


def test_a_crash_is_explained(dom: RunningDomain) -> None:
    dom.console.send("crash\n")
    outcome = dom.wait()
    assert outcome.reason == "crash"
    assert outcome.report is not None
    assert outcome.report.registers.cr2 == 16


def test_what_is_not_said_is_noticed_at_once(dom: RunningDomain) -> None:
    """No timeout has to pass: a guest that waits for input that nobody will type can say nothing more."""
    with pytest.raises(ExpectEOF):
        dom.console.expect("no such line")


def test_it_is_the_same_run_every_time() -> None:
    def counts() -> object:
        with launch(KERNEL, timeout=60) as dom:
            dom.console.expect(PROMPT)
            return dom.stats()

    assert counts() == counts()


def test_what_it_asks_is_known_before_it_runs() -> None:
    planned = plan(KERNEL, memory_mib=64)
    assert planned.parms.virt_base == 0xC0000000
    assert planned.parms.guest_type == "xen-3.0-x86_32p"
