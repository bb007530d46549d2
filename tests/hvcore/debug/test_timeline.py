"""Going back: each state of the past is the one that it was, whatever was done to get there."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from domainbuilder.launch.domain import launch
from hvcore.cpu.processor import RIP
from hvcore.debug.debugger import Debugger
from hvcore.debug.registers import RegisterFile
from hvcore.debug.timeline import Timeline
from hvcore.debug.view import GuestView
from hvcore.machine import BOOT_TIME_NS, Machine
from hvcore.stats import Stats
from tests.domainbuilder.tiny_guest import CODE, hypercall, kernel, mov

DATA = CODE + 0x1800
SHUTDOWN = hypercall(29, 2, CODE + 0x1000)
STORES = b"".join(
    b"\xc6\x05" + DATA.to_bytes(4, "little") + bytes((value,)) for value in (1, 2, 3)
)  # mov byte [], n
State = tuple[int, bytes, str, Stats]


@contextmanager
def timeline(
    kernel_file: Path, memory_mib: int = 32
) -> Iterator[tuple[Machine, Debugger, Timeline, bytearray]]:
    printed = bytearray()
    with (
        launch(kernel_file, memory_mib, cmdline="ticks=9", console_output=printed.extend) as dom,
        Debugger(dom.machine) as debugger,
    ):
        line = Timeline(debugger)
        yield dom.machine, debugger, line, printed
        line.close()


def state(m: Machine, d: Debugger) -> State:
    return d.position, m.engine.save_state(), hashlib.sha256(m.mem.view).hexdigest(), m.stats()


def tiny(folder: Path, code: bytes) -> Path:
    path = folder / "guest.elf"
    path.write_bytes(kernel(code))
    return path


def test_steps_back_are_the_steps_forward(sample_guest: Callable[[str], Path]) -> None:
    """Through hypercalls, an exception, and the guest's own handlers, with what was typed typed again."""
    typed = ((2_000_000, b"trap\n"), (31_000_000, b"about\n"))
    with timeline(sample_guest("hello")) as (m, d, line, printed):
        for at, data in typed:
            m.host.set_timer(at, BOOT_TIME_NS + at, partial(m.input, data))
        chance, seen = random.Random(3), list[State]()
        for at in sorted(chance.randrange(40_000_000) for _ in range(8)):
            d.run_until(ns=BOOT_TIME_NS + at)
            for _ in range(4):
                d.step()
                seen.append(state(m, d))
        d.run_until(ns=BOOT_TIME_NS + 50_000_000)
        end, text = state(m, d), bytes(printed)
        for place in chance.sample(range(len(seen)), 8):
            line.go_to(seen[place][0])
            assert state(m, d) == seen[place]
            if place and place % 4:
                line.step_back()
                assert state(m, d) == seen[place - 1]
        d.run_until(ns=BOOT_TIME_NS + 50_000_000)
        assert state(m, d) == end
        assert bytes(printed) == text


def test_back_to_who_wrote_this(tmp_path: Path) -> None:
    with timeline(tiny(tmp_path, mov("ecx", 5) + STORES + mov("ecx", 6) + SHUTDOWN), 16) as (m, d, line, _):
        assert d.go().reason == "shutdown"
        point = d.watch(DATA, 1)
        for value in (2, 1, 0):
            stopped = line.continue_back()
            assert (stopped.reason, stopped.point) == ("watchpoint", point)
            assert m.engine.q[RIP] == CODE + 5 + 7 * value
            assert GuestView(m).read(DATA, 1) == bytes((value,))
        assert line.continue_back().reason == "begin"
        assert d.position == line.begin
        d.delete(point)
        assert d.go().reason == "shutdown"


def test_back_to_a_breakpoint_whose_condition_held(tmp_path: Path) -> None:
    loop = mov("ecx", 50) + b"\x40\x49\x75\xfc"
    with timeline(tiny(tmp_path, loop + SHUTDOWN), 16) as (m, d, line, _):
        d.go()
        point = d.break_at(CODE + 5, "ecx % 10 == 0")
        found = []
        while line.continue_back().reason == "breakpoint":
            found.append(RegisterFile(m, m.domain.current).read("ecx"))
        assert found == [10, 20, 30, 40, 50]
        assert point.hits == 0
        d.delete(point)
        assert d.go().reason == "shutdown"


def test_from_a_crash_back(tmp_path: Path) -> None:
    with timeline(tiny(tmp_path, mov("eax", 7) + mov("ebx", 8) + b"\x0f\x0b"), 16) as (m, d, line, _):
        assert d.go().reason == "crashed"
        assert line.step_back().rip == CODE + 10
        assert not m.is_over
        assert line.step_back().rip == CODE + 5
        assert RegisterFile(m, m.domain.current).read("ebx") != 8
        assert d.go().reason == "crashed"


def test_new_input_changes_what_is_ahead(sample_guest: Callable[[str], Path]) -> None:
    with timeline(sample_guest("hello")) as (m, d, line, printed):
        d.run_until(ns=BOOT_TIME_NS + 120_000_000)
        m.input(b"about\n")
        d.run_until(ns=BOOT_TIME_NS + 140_000_000)
        answer = bytes(printed[printed.index(b"about") :])
        line.go_to(BOOT_TIME_NS + 110_000_000)
        d.run_until(ns=BOOT_TIME_NS + 140_000_000)  # typed again, and not printed again
        assert printed.count(b"about") == answer.count(b"about")
        line.go_to(BOOT_TIME_NS + 110_000_000)
        m.input(b"halt\n")
        assert d.go().reason == "shutdown"


def test_marks_are_thinned_out(sample_guest: Callable[[str], Path]) -> None:
    with timeline(sample_guest("hello")) as (m, d, _, _printed):
        line = Timeline(d, budget=3 << 20)
        for ms in range(20, 2000, 20):
            d.run_until(ns=BOOT_TIME_NS + ms * 1_000_000 + 1)
            line._last_mark = (0.0, 0.0)
        assert 2 < len(line._places) < 20
        assert line.memory <= 3 << 20
        before = state(m, d)
        line.go_to(BOOT_TIME_NS + 30_000_000)
        d.run_until(ns=BOOT_TIME_NS + 1_980_000_001)
        assert state(m, d) == before
        line.close()


@pytest.mark.guest
def test_debian_goes_back(guest_kernel: Callable[[str], Path]) -> None:
    with timeline(guest_kernel("vmlinuz-bookworm-amd64"), 256) as (m, d, line, _):
        d.run_until(ns=BOOT_TIME_NS + 150_000_000)
        seen = []
        for _ in range(5):
            seen.append(state(m, d))
            d.step()
        for before in reversed(seen):
            line.step_back()
            assert state(m, d) == before
