"""An example: a test of a guest, as one writes it for a kernel of one's own.

    pytest samples/test_example.py

`launch` builds the domain and returns it running; leaving the `with` block destroys it. The guest only runs
while something is awaited, so a test is the same every time.
"""

from __future__ import annotations

import domainbuilder
from domainbuilder import guests


def test_hello_answers_and_powers_off() -> None:
    kernel = guests.path("hello")
    with domainbuilder.launch(kernel, memory_mib=64, cmdline="ticks=2", timeout=60) as dom:
        dom.console.expect(r"memory +64 MiB")
        dom.console.expect("tick 2, ")
        dom.console.expect("hello> ")
        dom.console.send("trap\n")
        dom.console.expect("writing to a page table: trap 14, error code 3")
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"


def test_a_crash_is_a_result() -> None:
    with domainbuilder.launch(guests.path("hello"), timeout=60) as dom:
        dom.console.expect("hello> ")
        dom.console.send("crash\n")
        dom.console.expect("unexpected trap 14")
        assert dom.wait().reason == "crash"


def test_what_a_kernel_asks_is_known_before_it_runs() -> None:
    plan = domainbuilder.plan(guests.path("hello"), memory_mib=64)
    assert plan.parms.virt_base == 0xC0000000
    assert plan.parms.guest_type == "xen-3.0-x86_32p"
