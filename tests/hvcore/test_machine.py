"""The machine's run loop: why it comes back, and that two runs are one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import domainbuilder
from hvcore.machine import Machine, Stats, Stop
from tests.domainbuilder.tiny_guest import CODE, IDLE, SPIN, UD2, hypercall, kernel

REASON = CODE + 0x1000  # .bss: zero, which is a poweroff
SHUTDOWN = hypercall(29, 2, REASON)


@contextmanager
def machine(folder: Path, code: bytes) -> Iterator[Machine]:
    path = folder / "guest.elf"
    path.write_bytes(kernel(code))
    with domainbuilder.launch(path, memory_mib=16) as dom:
        yield dom.machine


def test_idle(tmp_path: Path) -> None:
    with machine(tmp_path, IDLE) as m:
        assert m.run() is Stop.IDLE
        before = m.stats().hypercalls
        assert m.run() is Stop.IDLE  # nothing has come in between
        assert m.stats().hypercalls == before
        assert before[29] >= 1


def test_shutdown_and_its_reason(tmp_path: Path) -> None:
    with machine(tmp_path, SHUTDOWN) as m:
        assert m.shutdown_reason == ""
        assert m.run() is Stop.SHUTDOWN
        assert m.shutdown_reason == "poweroff"
        assert m.stats().hypercalls == {29: 1}
        assert m.run() is Stop.SHUTDOWN  # and it stays so


def test_crash(tmp_path: Path) -> None:
    with machine(tmp_path, UD2) as m:
        assert m.run() is Stop.CRASHED
        assert m.crash is not None
        assert "vec 6" in str(m.crash)
        assert m.stats().exceptions == {6: 1}


def test_pause_before_and_during_a_run(tmp_path: Path) -> None:
    with machine(tmp_path, SPIN) as m:
        m.pause()
        assert m.run() is Stop.PAUSED
        code = m.stats().code_bytes
        assert code == 0
        due = m.clock.now() + 3_000_000
        m.clock.set_timer("test", due, m.pause)
        assert m.run() is Stop.PAUSED
        assert m.clock.now() >= due
        assert m.stats().code_bytes > code


def run_for(folder: Path, code: bytes, ns: int, parts: int) -> Stats:
    with machine(folder, code) as m:
        start = m.clock.now()
        for part in range(1, parts + 1):
            m.clock.set_timer("test", start + ns * part // parts, m.pause)
            assert m.run() is Stop.PAUSED
        return m.stats()


@pytest.mark.parametrize(
    "code",
    [
        SPIN,
        hypercall(17, 0, 0) + b"\xeb" + bytes([0x100 - 19]),  # xen_version for ever
        b"\x0f\x31\xeb\xfc",  # rdtsc for ever
    ],
)
def test_two_runs_are_one(tmp_path: Path, code: bytes) -> None:
    first = run_for(tmp_path, code, 5_000_000, 3)
    assert first == run_for(tmp_path, code, 5_000_000, 3)
    assert first.system_time_ns >= 5_000_000
    assert first.code_bytes > 0


def test_what_a_run_counts(tmp_path: Path) -> None:
    code = hypercall(17, 0, 0) * 5 + hypercall(63) * 2 + SHUTDOWN
    with machine(tmp_path, code) as m:
        assert m.run() is Stop.SHUTDOWN
        stats = m.stats()
    assert (stats.hypercalls, stats.unknown_hypercalls) == ({17: 5, 29: 1}, {63: 2})
    assert stats.exceptions == {}
    assert stats.page_table_stores == 0
    assert len(code) <= stats.code_bytes <= len(code) + 64
