"""Breakpoints, watchpoints, steps and more: what they find, and that no guest sees them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.launch.domain import launch
from hvcore.cpu.processor import RIP
from hvcore.debug.condition import ConditionError
from hvcore.debug.debugger import LOAD, STORE, Debugger, Stopped
from hvcore.debug.events import HypercallEvent
from hvcore.debug.registers import RegisterFile
from hvcore.debug.view import GuestView
from hvcore.host import Host
from hvcore.machine import BOOT_TIME_NS, Machine, Stop
from tests.domainbuilder.tiny_guest import CODE, hypercall, kernel, mov
from tests.hvcore.stops import Result, Subject, examples, look, result_of, run

DATA = CODE + 0x1800
SHUTDOWN = hypercall(29, 2, CODE + 0x1000)
STORE_DATA = b"\xc7\x05" + DATA.to_bytes(4, "little") + (7).to_bytes(4, "little")  # mov dword [DATA], 7
LOAD_DATA = b"\xa1" + DATA.to_bytes(4, "little")  # mov eax, [DATA]
COUNT = mov("ecx", 10) + b"\x40\x49\x75\xfc"  # inc eax; dec ecx; jnz
LOOP = CODE + 5


@contextmanager
def debugged(folder: Path, code: bytes, *, plain: bool = False) -> Iterator[tuple[Machine, Debugger]]:
    path = folder / "guest.elf"
    path.write_bytes(kernel(code))
    with domainbuilder.launch(path, memory_mib=16, plain=plain) as dom, Debugger(dom.machine) as debugger:
        yield dom.machine, debugger


def read(m: Machine, name: str) -> int:
    value = RegisterFile(m, m.domain.current).read(name)
    assert value is not None
    return value


@pytest.mark.parametrize("plain", [False, True])
def test_a_breakpoint_with_a_condition(tmp_path: Path, plain: bool) -> None:
    with debugged(tmp_path, COUNT + SHUTDOWN, plain=plain) as (m, d):
        point = d.break_at(LOOP, "ecx == 4")
        stopped = d.go()
        assert stopped == Stopped("breakpoint", 0, LOOP, point)
        assert (point.hits, read(m, "ecx")) == (7, 4)
        assert d.go().reason == "shutdown"
        assert point.hits == 10


def test_hits_that_do_not_count(tmp_path: Path) -> None:
    with debugged(tmp_path, COUNT + SHUTDOWN) as (_, d):
        d.break_at(LOOP, ignore=6)
        assert [d.go().reason for _ in range(5)] == ["breakpoint"] * 4 + ["shutdown"]
        other = d.break_at(LOOP, vcpu=1)
        assert other.hits == 0


def test_a_condition_without_a_value_is_told(tmp_path: Path) -> None:
    with debugged(tmp_path, COUNT + SHUTDOWN) as (_, d):
        point = d.break_at(LOOP, "u32(0x20) == 1")
        assert d.go().point is point
        assert point.error == "no memory is mapped at 0x20"
        with pytest.raises(ConditionError):
            d.break_at(LOOP, "1 +")


@pytest.mark.parametrize("plain", [False, True])
def test_steps_go_through_branches_and_hypercalls(tmp_path: Path, plain: bool) -> None:
    code = mov("ecx", 2) + b"\x40\x49\x75\xfc" + hypercall(17, 0, 0) + SHUTDOWN
    with debugged(tmp_path, code, plain=plain) as (m, d):
        seen = [d.step().rip - CODE for _ in range(8)]
        assert seen == [5, 6, 7, 5, 6, 7, 9, 14]
        while m.engine.q[RIP] != CODE + 9 + len(hypercall(17, 0, 0)):
            assert d.step().reason == "step"
        assert read(m, "eax") == 0x40011  # XENVER_version
        assert d.go().reason == "shutdown"


@pytest.mark.parametrize(
    ("accesses", "found"),
    [(STORE, [(len(STORE_DATA), True)]), (LOAD, [(len(STORE_DATA) + 5, False)])],
)
def test_watchpoints_stop_behind_the_instruction(
    tmp_path: Path, accesses: int, found: list[tuple[int, bool]]
) -> None:
    with debugged(tmp_path, STORE_DATA + LOAD_DATA + SHUTDOWN) as (m, d):
        point = d.watch(DATA + 2, 1, accesses)
        seen = []
        while (stopped := d.go()).reason == "watchpoint":
            assert stopped.point is point
            assert stopped.access is not None
            assert (stopped.access.address, stopped.access.size) == (DATA, 4)
            seen.append((stopped.rip - CODE, stopped.access.is_store))
        assert stopped.reason == "shutdown"
        assert seen == found
        assert GuestView(m).read(DATA, 4) == bytes((7, 0, 0, 0))


def test_a_watchpoint_with_a_condition(tmp_path: Path) -> None:
    code = mov("ecx", 10) + b"\x89\x0d" + DATA.to_bytes(4, "little") + b"\x49\x75\xf7" + SHUTDOWN
    with debugged(tmp_path, code) as (m, d):
        point = d.watch(DATA, 4, condition=f"u32({DATA}) == 3")
        assert d.go().point is point
        assert read(m, "ecx") == 3
        assert d.go().reason == "shutdown"


def test_running_until(tmp_path: Path) -> None:
    with debugged(tmp_path, COUNT + hypercall(17, 0, 0) + SHUTDOWN) as (m, d):
        assert d.run_until(instructions=4).rip == CODE + 5
        assert read(m, "ecx") == 9
        assert d.run_until(address=LOOP + 1, condition="ecx == 5").rip == LOOP + 1
        later = m.clock.now() + 9
        assert d.run_until(ns=later).reason == "time"
        assert m.clock.now() >= later
        assert not m.engine.words.paid
        stopped = d.run_until(event=HypercallEvent, condition="number == 17 && result > 0")
        assert isinstance(stopped.event, HypercallEvent)
        assert stopped.event.number == 17
        assert not d.points
        assert d.go().reason == "shutdown"


def test_registers_are_written(tmp_path: Path) -> None:
    with debugged(tmp_path, COUNT + SHUTDOWN) as (m, d):
        d.break_at(LOOP)
        d.go()
        assert RegisterFile(m, m.domain.current).write("ecx", 1)
        assert d.go().reason == "shutdown"
        assert not RegisterFile(m, m.domain.current).write("cr3", 1)


def test_a_host_saved_inside_a_block_goes_on_there(tmp_path: Path) -> None:
    path = tmp_path / "guest.elf"
    path.write_bytes(kernel(COUNT + SHUTDOWN))
    ends = []
    for way in ("whole", "stopped", "restored"):
        with domainbuilder.launch(path, memory_mib=16) as dom:
            m, host = dom.machine, dom.machine.host
            if way != "whole":
                with Debugger(m) as debugger:
                    debugger.run_until(address=LOOP + 1, condition="ecx == 5")
                assert m.engine.words.paid == 3
            if way == "restored":
                host = Host.restore(host.save())
                m = host.machines[1]
            m.run()
            ends.append((m.stats(), m.engine.save_state()))
            if way == "restored":
                host.close()
    assert ends[0] == ends[1] == ends[2]


# --- nobody sees it -----------------------------------------------------------------------------------------


def addresses_of(subject: Subject, count: int) -> list[int]:
    """Where the guest's instructions are, of some that it executes."""
    with (
        launch(subject.kernel, subject.memory_mib, cmdline=subject.cmdline) as dom,
        Debugger(dom.machine) as d,
    ):
        seen = set()
        for _ in range(count):
            seen.add(d.step().rip)
            d.run_until(instructions=37)
        return sorted(seen)


def debugged_run(subject: Subject, seed: int, addresses: list[int]) -> tuple[Result, int]:
    """The guest with a debugger that does what a seed says, and how often it stopped."""
    chance, output, stops = random.Random(seed), bytearray(), 0
    with launch(
        subject.kernel, subject.memory_mib, vcpus=subject.vcpus, cmdline=subject.cmdline,
        console_output=output.extend,
    ) as dom:  # fmt: skip
        m, end = dom.machine, BOOT_TIME_NS + subject.limit_ns
        for at, data in subject.typed:
            m.host.set_timer(at, BOOT_TIME_NS + at, partial(m.input, data))
        with Debugger(m) as d:
            reason = ""
            while reason not in ("shutdown", "crashed") and m.clock.now() < end and stops < 300:
                stops += 1
                look(m)
                act = chance.random()
                if act < 0.3:
                    reason = d.step(chance.randrange(subject.vcpus)).reason
                elif act < 0.4:
                    reason = d.run_until(instructions=chance.randrange(1, 300), ns=end).reason
                elif act < 0.45 and m.engine.can_watch and not m.engine.words.nr_watches:
                    start, size = read(m, "rsp") + chance.randrange(-64, 64), chance.choice((1, 8, 64))
                    d.watch(start, size, LOAD | STORE)
                elif act < 0.5 and d.points:
                    d.delete(chance.choice(list(d.points.values())))
                elif act < 0.6:
                    d.break_at(chance.choice(addresses), chance.choice(("", "hits % 5 == 0", "rax & 1")))
                else:
                    later = m.clock.now() + int(chance.expovariate(1 / 200_000))
                    reason = d.run_until(ns=min(end, later)).reason
            for point in list(d.points.values()):
                d.delete(point)
            if reason not in ("shutdown", "crashed"):
                d.run_until(ns=end)
        return result_of(m, m.run() if m.is_over else whole_stop(m), output), stops


def whole_stop(m: Machine) -> Stop:
    m.host.pause()
    return m.run()


def check(subject: Subject, few: int) -> None:
    whole, addresses = run(subject), addresses_of(subject, 60)
    for seed in range(examples(few)):
        found, stops = debugged_run(subject, seed, addresses)
        assert found == whole, f"seed {seed}"
        assert stops > 20


def test_hello_sees_nothing(sample_guest: Callable[[str], Path]) -> None:
    typed = ((3_000_000, b"about\n"), (50_000_000, b"trap\n"), (400_000_000, b"halt\n"))
    check(Subject(sample_guest("hello"), 2 * 10**9, cmdline="ticks=3", typed=typed), 3)


def test_pvkernel_sees_nothing(pvkernel: Path) -> None:
    check(Subject(pvkernel, 10**10, memory_mib=64), 3)


def test_grub_sees_nothing(guest_kernel: Callable[[str], Path]) -> None:
    check(Subject(guest_kernel("grub-x86_64-xen.bin"), 30_000_000, memory_mib=64), 2)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with debugged(tmp_path, COUNT + SHUTDOWN) as (m, d):
        d.break_at(LOOP)
        d.watch(DATA, 4)
        d.go()
        d.close()
        assert m.watcher is None
        assert m.engine.words.nr_watches == 0
        assert not m.engine.hooks_instructions
