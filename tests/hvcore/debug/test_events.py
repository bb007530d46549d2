"""The event stream: all of it, in order, and the run is the one that it is with nobody listening."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from hvcore.debug import event_log
from hvcore.debug.events import (
    KINDS,
    ConsoleEvent,
    DeviceEvent,
    EmulatedEvent,
    Event,
    ExceptionEvent,
    HypercallEvent,
    IretEvent,
    PageTableStoreEvent,
    PendingEvent,
    ScheduleEvent,
    SubcallEvent,
    TrapEvent,
    UnfinishedEvent,
    UpcallEvent,
)
from hvcore.debug.taps import listen
from hvcore.machine import Machine, Stop
from hvcore.stats import Stats
from tests.domainbuilder.tiny_guest import CODE, hypercall, kernel

Kinds = tuple[type[Event], ...]
IRET = 23


def run(
    kernel: Path, kinds: Kinds | None, *, vcpus: int = 2, batched: bool = False
) -> tuple[Stats, bytes, list[Event]]:
    """A guest's run to its end, with somebody listening to these kinds, or nobody."""
    printed, seen = bytearray(), list[Event]()
    with domainbuilder.launch(kernel, 32, vcpus=vcpus, console_output=printed.extend) as dom:
        machine = dom.machine
        if kinds is None:
            assert machine.run() in (Stop.SHUTDOWN, Stop.CRASHED)
        else:
            with listen(machine, seen.append, kinds, batched=batched):
                assert machine.run() in (Stop.SHUTDOWN, Stop.CRASHED)
        return machine.stats(), bytes(printed), seen


@pytest.fixture(scope="module", params=["vcpus-32", "vcpus-64", "ptwr-64", "mmu_update-64", "grant_map-32"])
def guest(request: pytest.FixtureRequest, conformance_guest: Callable[[str], Path]) -> Path:
    return conformance_guest(request.param)


def check_counts(stats: Stats, printed: bytes, seen: list[Event]) -> None:
    """The events are all that `--stats` counts, and no more."""
    kinds = Counter(type(event) for event in seen)
    assert kinds[UpcallEvent] == stats.events_delivered
    assert kinds[PageTableStoreEvent] == stats.page_table_stores
    calls = Counter(e.number for e in seen if isinstance(e, HypercallEvent | SubcallEvent | UnfinishedEvent))
    unknown = Counter(
        {number: count for number, count in calls.items() if number in stats.unknown_hypercalls}
    )
    assert unknown == stats.unknown_hypercalls
    assert Counter(stats.hypercalls) == calls - unknown + Counter({IRET: kinds[IretEvent]})
    emulated = Counter(event.name for event in seen if isinstance(event, EmulatedEvent))
    ports = Counter(stats.emulated) - emulated  # which the compiled core answers within translated code
    assert set(ports) <= {"in", "out"}
    traps = Counter(event.vector for event in seen if isinstance(event, TrapEvent))
    assert Counter(stats.exceptions) - traps == Counter({13: ports.total()}) - Counter()
    assert b"".join(e.data for e in seen if isinstance(e, ConsoleEvent) and not e.typed) == printed
    ends = [event.end_ns if isinstance(event, HypercallEvent) else event.ns for event in seen]
    assert ends == sorted(ends)
    raised = Counter(event.target for event in seen if isinstance(event, PendingEvent))
    assert set(raised) >= {event.vcpu_id for event in seen if isinstance(event, UpcallEvent)}


def test_listening_changes_nothing_and_misses_nothing(guest: Path) -> None:
    stats, printed, _ = run(guest, None)
    heard_stats, heard_printed, seen = run(guest, KINDS)
    assert (heard_stats, heard_printed) == (stats, printed)
    check_counts(stats, printed, seen)


def test_what_lanes_write_down_is_what_python_tells(guest: Path) -> None:
    stats, printed, seen = run(guest, KINDS)
    later_stats, later_printed, later = run(guest, KINDS, batched=True)
    assert (later_stats, later_printed) == (stats, printed)
    assert later == seen


@pytest.mark.parametrize("name", ["ptwr-64", "ptwr-32"])
def test_so_it_is_with_stores_to_page_tables(conformance_guest: Callable[[str], Path], name: str) -> None:
    guest = conformance_guest(name)
    told = run(guest, KINDS)[2]
    assert any(isinstance(event, PageTableStoreEvent) for event in told)
    assert run(guest, KINDS, batched=True)[2] == told


def test_a_log_without_room_is_emptied(
    conformance_guest: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "CAPACITY", 9)  # room for one exit at a time
    guest = conformance_guest("mmu_update-64")
    assert run(guest, KINDS, batched=True)[2] == run(guest, KINDS)[2]


def test_two_share_a_log(conformance_guest: Callable[[str], Path]) -> None:
    """Each is told of what it wants from when it begins, and lanes go on for both."""
    guest = conformance_guest("mmu_update-64")
    everything = run(guest, KINDS)[2]
    first: list[Event] = []
    second: list[Event] = []
    with domainbuilder.launch(guest, 32, vcpus=2) as dom:
        machine = dom.machine
        machine.host.set_timer("look", machine.clock.now() + 50_000, machine.host.pause)
        with listen(machine, first.append, batched=True):
            machine.run()
            early = len(first)
            with listen(machine, second.append, (HypercallEvent,), batched=True):
                dom.wait()
        taken = sum(count for count, _ in machine.lanes.counts().values())
    assert first == everything
    assert second == [event for event in everything[early:] if type(event) is HypercallEvent]
    assert 0 < early < len(everything)
    assert taken > 10 or not machine.lanes.possible


def test_lanes_answer_while_their_log_is_read(conformance_guest: Callable[[str], Path]) -> None:
    with domainbuilder.launch(conformance_guest("mmu_update-64"), 32) as dom:
        if not dom.machine.lanes.possible:
            pytest.skip("there is no compiled core")
        seen: list[Event] = []
        with listen(dom.machine, seen.append, batched=True):
            dom.wait()
        taken = sum(count for count, _ in dom.machine.lanes.counts().values())
    assert taken > 10  # and the test above finds each of them among the events
    assert seen


def test_filters(conformance_guest: Callable[[str], Path]) -> None:
    guest = conformance_guest("vcpus-64")
    _, _, everything = run(guest, KINDS)
    for kind in KINDS:
        _, _, some = run(guest, (kind,), batched=kind in (HypercallEvent, UpcallEvent))
        assert some == [event for event in everything if type(event) is kind]
    assert {type(event) for event in everything} >= {HypercallEvent, ScheduleEvent, DeviceEvent}
    assert {event.vcpu_id for event in everything} == {0, 1}
    with domainbuilder.launch(guest, 32, vcpus=2) as dom:
        seen: list[Event] = []
        with listen(dom.machine, seen.append, vcpus={1}, batched=True):
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
