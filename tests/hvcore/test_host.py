"""Several domains on one host: each runs as it would alone, and what they do to each other is as on Xen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from domainbuilder.build.domain_image import DomainImage, build
from domainbuilder.launch.registers import registers_of
from domainbuilder.plan.domain_plan import plan
from hvcore.cpu.engine import EngineContext
from hvcore.debug.periodic import Periodic
from hvcore.host import Host
from hvcore.machine import Machine, Stop
from hvcore.machine_memory import MachineMemory
from hvcore.pv.audit import audit
from hvcore.stats import Stats
from tests.domainbuilder.tiny_guest import CODE, IDLE, SPIN, UD2, hypercall, kernel, mov
from tests.hvcore.tlb_audit import errors_of

REASON = CODE + 0x1000  # .bss: zero, which is a poweroff
SHUTDOWN = hypercall(29, 2, REASON)
# Ten million rounds, and then the end.
BUSY = b"\xb9" + (10_000_000).to_bytes(4, "little") + b"\x49\x75\xfd" + SHUTDOWN
# Six million rounds with a store in each, which have to be executed: 30 ms.
LONG = b"\xb9" + (6_000_000).to_bytes(4, "little") + b"\x51\x59\x49\x75\xfb" + SHUTDOWN
MIB = 4

Place = Callable[[bytes], Machine]


@pytest.fixture
def host() -> Host:
    return Host(MachineMemory(8 * MIB * 256, domains=8))


@pytest.fixture
def place(host: Host, tmp_path: Path) -> Place:
    """`place(code)`: a domain of that code on the host."""

    def make(code: bytes) -> Machine:
        path = tmp_path / "guest.elf"
        path.write_bytes(kernel(code))
        return host.create(image_for(host, path).boot_image())

    return make


def image_for(host: Host, path: Path) -> DomainImage:
    planned = plan(path, memory_mib=MIB)
    first = host.room_for(planned.nr_pages)
    host.mem.scrub(first, planned.nr_pages)
    start = (first - host.mem.first_mfn) << 12
    ram = host.mem.ram[start : start + (planned.nr_pages << 12)]
    return build(planned, ram=ram, first_mfn=first, shared_info_mfn=host.mem.next_xenheap_mfn)


def run_all(host: Host) -> list[tuple[int, Stop]]:
    """How each domain ended, in order."""
    ends: list[tuple[int, Stop]] = []
    while True:
        machine, stop = host.run()
        if machine is None:
            return ends
        ends.append((machine.domain.domain_id, stop))


def alone(tmp_path: Path, code: bytes) -> Stats:
    host = Host(MachineMemory(8 * MIB * 256, domains=8))
    path = tmp_path / "alone.elf"
    path.write_bytes(kernel(code))
    machine = host.create(image_for(host, path).boot_image())
    run_all(host)
    host.close()
    return machine.stats()


def test_each_domain_runs_as_if_alone(host: Host, place: Place, tmp_path: Path) -> None:
    codes = {1: BUSY, 2: UD2, 3: IDLE, 4: SHUTDOWN, 5: mov("ecx", 3) + BUSY}
    machines = {domid: place(code) for domid, code in codes.items()}
    assert sorted(run_all(host)) == [
        (1, Stop.SHUTDOWN),
        (2, Stop.CRASHED),
        (4, Stop.SHUTDOWN),
        (5, Stop.SHUTDOWN),
    ]
    for domid, code in codes.items():
        assert machines[domid].stats() == alone(tmp_path, code), domid
    assert audit(machines[1].domain) == []


def test_a_domain_that_ends_leaves_its_frames_to_the_next(host: Host, place: Place) -> None:
    first = [place(SHUTDOWN) for _ in range(8)]
    with pytest.raises(MemoryError, match="no 0x400 frames"):
        host.room_for(MIB * 256)
    run_all(host)
    for machine in first[2:4]:
        host.destroy(machine)
        host.destroy(machine)  # which is gone
        assert machine.domain.domain_id not in host.domain_list
    assert audit(first[0].domain) == []
    later = [place(SHUTDOWN) for _ in range(2)]
    assert [m.domain.domain_id for m in later] == [9, 10]
    assert run_all(host) == [(9, Stop.SHUTDOWN), (10, Stop.SHUTDOWN)]
    assert later[0].stats().hypercalls == first[0].stats().hypercalls
    assert audit(first[0].domain) == []


def test_many_domains_leave_nothing(host: Host, place: Place) -> None:
    keeper = place(SPIN)
    free = [host.mem.next_xenheap_mfn]
    for _ in range(40):
        host.destroy(place(SHUTDOWN))
        free.append(host.mem.next_xenheap_mfn)
    assert len(set(free[1:])) == 1
    assert host.frames.tot_pages == {1: MIB * 256}
    assert sorted(host.domain_list) == [0, 1]
    assert audit(keeper.domain) == []


def test_a_cap_is_kept(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(kernel(BUSY))
    capped = host.create(image_for(host, path).boot_image(), cap=25)
    free = host.create(image_for(host, path).boot_image())
    start = free.clock.now()
    assert run_all(host) == [(2, Stop.SHUTDOWN), (1, Stop.SHUTDOWN)]
    slower = (capped.clock.now() - start) / (free.clock.now() - start)
    assert 3 < slower < 4.2
    assert capped.stats().code_bytes == free.stats().code_bytes


def test_no_clock_is_ahead_by_more_than_a_turn(host: Host, place: Place) -> None:
    a, b = place(SPIN), place(hypercall(17, 0, 0) + b"\xeb" + bytes([0x100 - 19]))
    for ms in range(5, 200, 13):
        host.set_timer("look", a.clock.now() + ms * 100_000, host.pause)
        assert host.run() == (None, Stop.PAUSED)
        assert abs(a.clock.now() - b.clock.now()) <= 10_100_000


def test_a_timer_that_wakes_nobody_lets_no_time_pass_for_others(
    host: Host, place: Place, tmp_path: Path
) -> None:
    idle, busy = place(IDLE), place(LONG)
    begin = idle.clock.now()
    for i in range(40):
        idle.clock.set_timer(("vif", i), begin + 700_000 * i, lambda: None)
    run_all(host)
    assert idle.clock.now() >= begin + 700_000 * 39
    assert busy.stats() == alone(tmp_path, LONG)


def test_a_timer_of_its_own_takes_no_domain_off_the_processor(host: Host, place: Place) -> None:
    one, other = place(LONG), place(LONG)
    seen: list[int] = []
    begin = one.clock.now()
    for i in range(1, 90):
        one.clock.set_timer(("vif", i), begin + 100_000 * i, lambda: seen.append(other.clock.now()))
    run_all(host)
    assert seen == [begin] * 89  # they are all of the first turn


def test_a_domain_finds_its_translations_again(
    host: Host, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of page tables while another domain runs is not dropped when its turn comes again."""
    machines = [place(LONG), place(LONG)]
    flush, load = host.engine.flush_tlb, host.engine.load_context
    flushes, loads = [0], []

    def flush_and_count() -> None:
        flushes[0] += 1
        flush()

    def load_and_look(context: EngineContext, root: int = 0) -> None:
        before = flushes[0]
        load(context, root)
        loads.append(flushes[0] - before)
        if root:
            assert errors_of(host.engine, levels=machines[0].domain.abi.pt_levels) == []

    monkeypatch.setattr(host.engine, "flush_tlb", flush_and_count)
    monkeypatch.setattr(host.engine, "load_context", load_and_look)
    run_all(host)
    assert len(loads) > 5
    assert loads[2:] == [int(not host.engine.words.spaces)] * (len(loads) - 2)
    for machine in machines:
        assert machine.stats() == alone(tmp_path, LONG)


def test_who_looks_at_two_domains_regularly_looks_at_both(host: Host, place: Place) -> None:
    machines = [place(LONG), place(LONG)]
    looks = Counter[Machine]()
    for machine in machines:
        Periodic(machine, "look", 1_000_000, partial(looks.update, [machine])).arm()
    run_all(host)
    assert all(looks[machine] > 15 for machine in machines)


def test_registers_are_those_of_the_domain_that_is_asked(host: Host, place: Place) -> None:
    """Also those of a domain that another has driven out of the engine."""
    marks = [0x11111111, 0x22222222, 0x33333333]
    machines = [place(mov("edi", mark) + SPIN) for mark in marks]
    start = machines[0].clock.now()
    for ms in (50, 61, 72):
        host.set_timer("look", start + ms * 1_000_000, host.pause)
        assert host.run() == (None, Stop.PAUSED)
        assert [registers_of(m, m.domain.vcpus[0]).general["rdi"] for m in machines] == marks
