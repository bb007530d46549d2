"""The event stream: all of it, in order, and the run is the one that it is with nobody listening."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from hvcore.debug.events import (
    KINDS,
    DeviceEvent,
    Event,
    ExceptionEvent,
    HypercallEvent,
    PageTableStoreEvent,
    ScheduleEvent,
    UpcallEvent,
    listen,
)
from hvcore.machine import Machine, Stats, Stop
from tests.domainbuilder.tiny_guest import CODE, hypercall, kernel

Kinds = tuple[type[Event], ...]
MULTICALL, IRET = 13, 23


def run(kernel: Path, kinds: Kinds | None, *, vcpus: int = 2) -> tuple[Stats, bytes, list[Event]]:
    """A guest's run to its end, with somebody listening to these kinds, or nobody."""
    printed, seen = bytearray(), list[Event]()
    with domainbuilder.launch(kernel, 32, vcpus=vcpus, console_output=printed.extend) as dom:
        machine = dom.machine
        if kinds is None:
            assert machine.run() in (Stop.SHUTDOWN, Stop.CRASHED)
        else:
            with listen(machine, seen.append, kinds):
                assert machine.run() in (Stop.SHUTDOWN, Stop.CRASHED)
        return machine.stats(), bytes(printed), seen


@pytest.fixture(scope="module", params=["vcpus-32", "vcpus-64", "ptwr-64", "mmu_update-64", "grant_map-32"])
def guest(request: pytest.FixtureRequest, conformance_guest: Callable[[str], Path]) -> Path:
    return conformance_guest(request.param)


def test_listening_changes_nothing_and_misses_nothing(guest: Path) -> None:
    stats, printed, _ = run(guest, None)
    heard_stats, heard_printed, seen = run(guest, KINDS)
    assert (heard_stats, heard_printed) == (stats, printed)
    kinds = Counter(type(event) for event in seen)
    assert kinds[UpcallEvent] == stats.events_delivered
    assert kinds[PageTableStoreEvent] == stats.page_table_stores
    calls = Counter(event.number for event in seen if isinstance(event, HypercallEvent))
    direct = {number: count for number, count in stats.hypercalls.items() if number != IRET}
    if MULTICALL in direct:  # what it calls is counted, too, and told as part of it
        assert all(count <= direct[number] for number, count in calls.items() if number in direct)
    else:
        assert {number: count for number, count in calls.items() if number in direct} == direct
    assert [event.ns for event in seen] == sorted(event.ns for event in seen)


def test_filters(conformance_guest: Callable[[str], Path]) -> None:
    guest = conformance_guest("vcpus-64")
    _, _, everything = run(guest, KINDS)
    for kind in KINDS:
        _, _, some = run(guest, (kind,))
        assert some == [event for event in everything if type(event) is kind]
    assert {type(event) for event in everything} >= {HypercallEvent, ScheduleEvent, DeviceEvent}
    assert {event.vcpu_id for event in everything} == {0, 1}
    with domainbuilder.launch(guest, 32, vcpus=2) as dom:
        seen: list[Event] = []
        with listen(dom.machine, seen.append, vcpus={1}):
            dom.wait()
    assert seen == [event for event in everything if event.vcpu_id == 1]


def test_a_hypercall_with_its_result_and_a_fault_with_its_address(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    code = hypercall(17, 99, 0) + hypercall(3, 0xDEAD000, 5, 0, 0) + b"\xa1" + (0x1234).to_bytes(4, "little")
    path.write_bytes(kernel(code))
    with domainbuilder.launch(path, 16) as dom:
        seen: list[Event] = []
        with listen(dom.machine, seen.append, (HypercallEvent, ExceptionEvent)):
            assert dom.wait().reason == "crashed"
    first, *_ = (event for event in seen if isinstance(event, HypercallEvent))
    assert (first.number, first.args[0], first.result, first.vcpu_id) == (17, 99, -38, 0)
    assert CODE < first.rip < CODE + 32
    assert not any(isinstance(event, ExceptionEvent) for event in seen)  # it had no handler


def test_after_listening_lanes_answer_again(conformance_guest: Callable[[str], Path]) -> None:
    def lanes(machine: Machine) -> int:
        return sum(taken for taken, _ in machine.lanes.counts().values())

    with domainbuilder.launch(conformance_guest("mmu_update-64"), 32) as dom:
        machine = dom.machine
        if not machine.lanes.possible:
            pytest.skip("there is no compiled core")
        machine.host.set_timer("look", machine.clock.now() + 100_000, machine.host.pause)
        with listen(machine, lambda _event: None):
            machine.run()
            assert lanes(machine) == 0
        dom.wait()
        assert lanes(machine) > 0
