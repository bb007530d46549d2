"""The machine's run loop: why it comes back, and that two runs are one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import domainbuilder
from hvcore.clock import NS_PER_EXIT
from hvcore.cpu.loops import Loop, counting_loop
from hvcore.machine import BOOT_TIME_NS, Machine, Stop
from hvcore.stats import Stats
from tests.domainbuilder.tiny_guest import CODE, IDLE, SPIN, UD2, hypercall, kernel, mov

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
        m.host.pause()
        assert m.run() is Stop.PAUSED
        code = m.stats().code_bytes
        assert code == 0
        due = m.clock.now() + 3_000_000
        m.host.set_timer("test", due, m.host.pause)
        assert m.run() is Stop.PAUSED
        assert m.clock.now() >= due
        assert m.stats().code_bytes > code


def run_for(folder: Path, code: bytes, ns: int, parts: int) -> Stats:
    with machine(folder, code) as m:
        start = m.clock.now()
        for part in range(1, parts + 1):
            m.host.set_timer("test", start + ns * part // parts, m.host.pause)
            assert m.run() is Stop.PAUSED
        return m.stats()


def test_a_block_that_stores_into_itself_is_paid_once_however_often_it_is_stopped(tmp_path: Path) -> None:
    store = b"\xc6\x05" + (CODE + 12).to_bytes(4, "little") + b"\x90\x90"  # mov byte [next], 0x90
    code = mov("ecx", 300) + store + b"\x49\x75\xf5" + SHUTDOWN
    results = []
    for gap in (0, 7, 3):
        with machine(tmp_path, code) as m:

            def again(m: Machine = m, gap: int = gap) -> None:
                m.host.set_timer("test", m.clock.now() + gap, again)

            if gap:
                again()
            assert m.run() is Stop.SHUTDOWN
            results.append((m.stats(), m.engine.q[:16].tolist()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    "code",
    [
        SPIN,
        hypercall(17, 0, 0) + b"\xeb" + bytes([0x100 - 19]),  # xen_version for ever
        b"\x0f\x31\xeb\xfc",  # rdtsc for ever
    ],
)
def test_a_run_in_parts_is_the_run(tmp_path: Path, code: bytes) -> None:
    whole = run_for(tmp_path, code, 5_000_000, 1)
    assert whole == run_for(tmp_path, code, 5_000_000, 3) == run_for(tmp_path, code, 5_000_000, 777)
    assert whole.system_time_ns >= 5_000_000
    assert whole.code_bytes > 0


def test_what_a_run_counts(tmp_path: Path) -> None:
    code = hypercall(17, 0, 0) * 5 + hypercall(63) * 2 + SHUTDOWN
    with machine(tmp_path, code) as m:
        assert m.run() is Stop.SHUTDOWN
        stats = m.stats()
    assert (stats.hypercalls, stats.unknown_hypercalls) == ({17: 5, 29: 1}, {63: 2})
    assert stats.exceptions == {}
    assert stats.page_table_stores == 0
    assert stats.code_bytes == len(code)
    assert stats.system_time_ns == BOOT_TIME_NS + len(code) + 8 * NS_PER_EXIT


COUNT = mov("ecx", 30_000_000) + b"\x49\x75\xfd"  # dec ecx; jne
WAIT = b"\x80\x3d" + (CODE + 0x1800).to_bytes(4, "little") + b"\x00\x74\xf7"  # cmp byte [...], 0; je


def test_a_loop_that_counts_is_left_out_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Loop] = []

    def look(*arguments: Any) -> Loop | None:
        loop = counting_loop(*arguments)
        if loop is not None:
            found.append(loop)
        return loop

    monkeypatch.setattr("hvcore.rounds.counting_loop", look)
    stats = []
    for skip in (False, True):
        with machine(tmp_path, COUNT + SHUTDOWN) as m:
            m.skip_loops = skip
            assert m.run() is Stop.SHUTDOWN
            assert bool(found) == skip
            stats.append(m.stats())
    slow, fast = stats
    assert max(loop.rounds for loop in found) > 25_000_000
    assert fast == slow


def test_a_loop_that_waits_goes_on_when_its_time_has_come(tmp_path: Path) -> None:
    with machine(tmp_path, WAIT + SHUTDOWN) as m:
        at = m.domain.mm.walk(m.domain.vcpus[0].cr3_mfn, CODE + 0x1000, False)
        ram = m.mem.view[at : at + 0x1000]
        due = m.clock.now() + 3600 * 10**9

        def answer() -> None:
            ram[0x800] = 1

        m.clock.set_timer("test", due, answer)
        assert m.run() is Stop.SHUTDOWN
        assert 0 <= m.clock.now() - due < 1_000_000
        assert m.stats().code_bytes > 3500 * 10**9


def test_machines_in_threads_are_as_they_are_alone(tmp_path: Path) -> None:
    """What the engine tells the library is told for each engine apart."""
    store = b"\xff\x05" + (CODE + 0x1800).to_bytes(4, "little")  # inc dword [...]
    patch = b"\xc6\x05" + (CODE + 12).to_bytes(4, "little") + b"\x90\x90"  # mov byte [next], 0x90; nop
    codes = [
        mov("ecx", 300_000) + store + b"\x49\x75\xf7" + SHUTDOWN,  # dec ecx; jne
        hypercall(17, 0, 0) * 50 + SHUTDOWN,
        mov("ecx", 20_000) + patch + b"\x49\x75\xf5" + SHUTDOWN,
    ]

    def run(folder: Path, code: bytes, stats: dict[bytes, Stats]) -> None:
        with machine(folder, code) as m:
            assert m.run() is Stop.SHUTDOWN
            stats[code] = m.stats()

    alone: dict[bytes, Stats] = {}
    together: dict[bytes, Stats] = {}
    for code in codes:
        run(tmp_path, code, alone)
    threads = []
    for i, code in enumerate(codes):
        (tmp_path / str(i)).mkdir()
        threads.append(threading.Thread(target=run, args=(tmp_path / str(i), code, together)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
