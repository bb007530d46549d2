"""dom.fork(): copies of a running domain, each in a process of its own."""

from __future__ import annotations

import gc
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import pytest

import domainbuilder
from domainbuilder.clones.clone import Clone
from domainbuilder.clones.process import CloneLost
from domainbuilder.errors import BuildError
from domainbuilder.launch.domain import ExpectTimeout, RunningDomain, launch
from domainbuilder.launch.host import Host
from tests.domainbuilder.tiny_guest import SPIN, UD2, kernel

PROMPT = r"^hello> "


@pytest.fixture(scope="module")
def booted(sample_guest: Callable[[str], Path]) -> Iterator[RunningDomain]:
    """The sample guest at its prompt, for copies alone."""
    with launch(sample_guest("hello"), memory_mib=16, cmdline="ticks=1", timeout=60) as dom:
        dom.console.expect(PROMPT)
        yield dom


@pytest.fixture
def spinning(tmp_path: Path) -> Iterator[RunningDomain]:
    path = tmp_path / "spin.elf"
    path.write_bytes(kernel(SPIN))
    with launch(path) as dom:
        yield dom


def alive(pid: int) -> bool:
    """Whether the process runs: neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(*pids: int) -> None:
    for _ in range(3000):
        if not any(map(alive, pids)):
            return
        time.sleep(0.01)
    pytest.fail(f"still there: {[pid for pid in pids if alive(pid)]}")


def test_a_clone_goes_on_as_the_domain_does(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), memory_mib=16, timeout=60) as dom:
        dom.console.expect(PROMPT)
        with dom.fork() as clone, dom.fork() as other:
            assert clone.stats() == dom.stats()
            assert clone.look() == dom.look()
            assert clone.memory_sha256() == dom.memory_sha256()
            other.console.send("memory\n")  # changes nothing for the others
            other.console.expect(PROMPT)
            for each in (dom, clone):
                each.console.send("about\n")
                assert each.console.expect(r"memory +(\d+) MiB")[1] == "16"
                each.console.expect(PROMPT)
            assert clone.console.transcript == dom.console.transcript
            assert clone.stats() == dom.stats()
            assert clone.look() == dom.look()
            assert clone.memory_sha256() == dom.memory_sha256()
            assert other.memory_sha256() != dom.memory_sha256()
            for each in (dom, clone):
                each.console.send("halt\n")
            assert clone.wait() == dom.wait() == clone.outcome
            assert clone.stats() == dom.stats()
            assert clone.console.read() == dom.console.read() == "halt\nbye\n"


def test_what_was_matched_is_used_up_in_the_clone_too(booted: RunningDomain) -> None:
    with booted.fork() as clone:
        assert clone.console.read() == ""
        assert "Hello from a paravirtual guest." in clone.console.transcript
        clone.console.send("about\n")
        match = clone.console.expect(re.compile(r'COMMAND LINE +"(?P<text>.*)"', re.IGNORECASE))
        assert match["text"] == "ticks=1"
        assert clone.console.read() == "\n"


def test_clones_of_clones_live_longer_than_those(booted: RunningDomain) -> None:
    first = booted.fork()
    first.console.send("ab")
    second = first.fork()
    third = second.fork()
    pids = first.pid, second.pid, third.pid
    second.close()
    first.close()
    third.console.send("out\n")
    third.console.expect("command line")
    third.close()
    wait_for_end(*pids)


def test_output_is_handed_on_as_it_comes(booted: RunningDomain) -> None:
    pieces: list[bytes] = []
    with booted.fork(console_output=pieces.append) as clone:
        clone.console.send("about\n")
        clone.console.expect("command line")
        assert b"command line" in b"".join(pieces)
        assert clone.console.transcript.endswith(b"".join(pieces).decode().replace("\r\n", "\n"))


def test_what_is_raised_by_who_takes_the_output_ends_the_run(booted: RunningDomain) -> None:
    def take(data: bytes) -> None:
        if b"command" in data:
            raise ValueError("enough")

    with booted.fork(console_output=take) as clone:
        clone.console.send("about\n")
        with pytest.raises(ValueError, match="enough"):
            clone.wait()
        clone.console.expect("command line")
        clone.console.expect(PROMPT)  # it goes on


def test_many_at_a_time_from_several_threads(booted: RunningDomain) -> None:
    def answer(clone: Clone) -> str:
        clone.console.send("about\n")
        return clone.console.expect(r'command line +"(.*)"')[1]

    clones = [booted.fork() for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(answer, clones)) == ["ticks=1"] * 6
    for clone in clones:
        clone.close()


def test_one_after_the_other_they_leave_nothing(booted: RunningDomain) -> None:
    def count() -> tuple[int, int]:
        children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        return len(os.listdir("/proc/self/fd")), len(children)  # noqa: PTH208

    for _ in range(3):  # with the second of a place the holder keeps its memory in a file
        with booted.fork() as clone:
            clone.console.send("x")
    before, threads = count(), threading.active_count()
    for _ in range(int(os.environ.get("CLONES", "20"))):
        with booted.fork() as clone:
            clone.console.send("x")
    assert count() == before
    assert threading.active_count() <= threads


def test_a_crash_and_its_report(tmp_path: Path) -> None:
    path = tmp_path / "dies.elf"
    path.write_bytes(kernel(UD2))
    with launch(path, timeout=60) as dom, dom.fork() as clone:
        outcome = clone.wait()
        assert outcome == dom.wait()
        assert outcome.reason == "crashed"
        assert outcome.report is not None
        assert clone.wait() is clone.outcome


def test_its_time_is_up_by_itself(spinning: RunningDomain) -> None:
    with spinning.fork() as clone:
        with pytest.raises(ExpectTimeout, match="wall time ran out"):
            clone.console.expect("never", timeout=0.05)
        assert clone.wait(timeout=0.01).reason == "timeout"
    with spinning.fork(timeout=0.05) as clone:
        assert clone.wait().reason == "timeout"
    with pytest.raises(BuildError, match="above 0"):
        spinning.fork(timeout=-1)


def test_a_signal_in_the_holder_ends_the_run_and_no_more(spinning: RunningDomain) -> None:
    class Alarm(Exception):
        pass

    def handle(_number: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with spinning.fork() as clone:
            for _ in range(2):
                at = clone.stats().code_bytes
                timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
                timer.start()
                with pytest.raises(Alarm):
                    clone.wait()
                timer.join()
                assert clone.stats().code_bytes > at
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_clone_that_is_killed_is_told_of(booted: RunningDomain) -> None:
    clone = booted.fork()
    os.kill(clone.pid, signal.SIGKILL)
    with pytest.raises(CloneLost, match=f"{clone.pid}, has ended by SIGKILL"):
        clone.console.expect("x")
    assert clone.closed
    with pytest.raises(RuntimeError, match="closed"):
        clone.console.send("x")
    clone.close()


def test_a_closed_clone_keeps_what_it_was(booted: RunningDomain) -> None:
    with booted.fork() as clone:
        clone.console.send("halt\n")
        clone.wait()
        stats = clone.stats()
    assert clone.closed
    assert not alive(clone.pid)
    assert clone.stats() == stats
    assert clone.outcome is not None
    assert clone.console.transcript.endswith("bye\n")
    assert clone.wait() is clone.outcome
    for act in (clone.look, clone.fork, lambda: clone.console.send("x")):
        with pytest.raises(RuntimeError, match="closed"):
            act()


def test_what_is_let_go_of_ends(booted: RunningDomain) -> None:
    clone = booted.fork()
    pid = clone.pid
    del clone
    gc.collect()
    wait_for_end(pid)


HOLDER = """
import sys
import domainbuilder
sys.stdout.write("said once ")
with domainbuilder.launch({hello!r}, 16) as dom, domainbuilder.launch({spin!r}) as spin:
    dom.console.expect("^hello> ")
    idle, running, slow = dom.fork(), spin.fork(), dom.fork()
    ofclone = idle.fork()
    import threading
    def wait(what):
        try:
            what()
        except Exception:
            pass
    threading.Thread(target=wait, args=(running.wait,), daemon=True).start()
    pattern = "(a|a?)+" * 12 + "b"
    slow.console.send("a" * 60)
    threading.Thread(target=wait, args=(lambda: slow.console.expect(pattern),), daemon=True).start()
    print(idle.pid, running.pid, slow.pid, ofclone.pid, flush=True)
    {end}
"""


@pytest.mark.parametrize("end", ["import time; time.sleep(100)", "import os; os.abort()", "sys.exit()"])
def test_they_end_with_their_holder(tmp_path: Path, sample_guest: Callable[[str], Path], end: str) -> None:
    spin = tmp_path / "spin.elf"
    spin.write_bytes(kernel(SPIN))
    code = HOLDER.format(hello=str(sample_guest("hello")), spin=str(spin), end=end)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        words = holder.stdout.readline().split()
        assert words[:2] == ["said", "once"]
        time.sleep(0.2)
        holder.kill()
        assert holder.stdout.read() == ""
    wait_for_end(*map(int, words[2:]))


def test_its_process_has_no_share_in_the_pipes_of_its_holder(booted: RunningDomain) -> None:
    read_end, write_end = os.pipe()
    with booted.fork() as clone, booted.fork():
        os.close(write_end)
        assert select.select([read_end], [], [], 30)[0]
        assert os.read(read_end, 1) == b""  # nobody else holds the other end
        clone.console.send("about\n")
        clone.console.expect("command line")
    os.close(read_end)


def test_a_clone_has_nothing_of_those_before_it(booted: RunningDomain) -> None:
    def faults(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])

    def sockets(pid: int) -> list[str]:
        return [
            target for fd in Path(f"/proc/{pid}/fd").iterdir() if "socket" in (target := str(fd.readlink()))
        ]

    clones, needed = [], []
    for _ in range(150):
        clone = booted.fork()
        clone.console.send("about\n")
        clone.console.expect("command line")
        clones.append(clone)
        needed.append(faults(clone.pid))
    of_clone = clone.fork()
    of_clone.stats()
    assert [len(sockets(one.pid)) for one in (clones[0], clone, of_clone)] == [1, 1, 1]
    middle = len(needed) // 2
    assert median(needed[middle:]) < median(needed[20:middle]) + 12
    for one in [*clones, of_clone]:
        one.close()


def test_a_fork_of_the_holder_has_no_share_in_its_clones(booted: RunningDomain) -> None:
    clone = booted.fork()
    pid = os.fork()
    if not pid:
        try:
            clone.console.send("x")
        except RuntimeError:
            time.sleep(60)
        os._exit(1)
    try:
        clone.console.send("about\n")
        clone.console.expect("command line")
        there = clone.pid
        del clone
        gc.collect()
        wait_for_end(there)
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_holder_who_ignores_its_children(booted: RunningDomain) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with booted.fork() as clone:
            clone.console.send("halt\n")
            assert clone.wait().reason == "poweroff"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_not_while_it_runs(sample_guest: Callable[[str], Path]) -> None:
    refused: list[str] = []

    def take(_data: bytes) -> None:
        try:
            dom.fork()
        except RuntimeError as error:
            refused.append(str(error))

    with launch(sample_guest("hello"), memory_mib=16, timeout=60, console_output=take) as dom:
        dom.console.expect(PROMPT)
    assert set(refused) == {"the domain is running"}
    with pytest.raises(RuntimeError, match="closed"):
        dom.fork()


def test_a_host_is_copied_with_all_its_domains(sample_guest: Callable[[str], Path]) -> None:
    with Host(memory_mib=64) as host:
        with pytest.raises(RuntimeError, match="no domain"):
            host.fork()
        doms = [host.launch(sample_guest("hello"), 16, cmdline=f"ticks={n}", timeout=60) for n in (1, 2)]
        doms[0].console.expect(PROMPT)
        with host.fork() as copy, doms[1].fork() as alone:
            for dom, clone in zip(doms, copy.domains, strict=True):
                assert clone.domain_id == dom.domain_id
                assert clone.stats() == dom.stats()
            for each in (doms[1], copy.domains[1], alone):
                each.console.expect("tick 2")
                each.console.expect(PROMPT)
            assert copy.domains[1].stats() == doms[1].stats() == alone.stats()
            assert copy.domains[0].stats() == doms[0].stats()
            copy.domains[0].close()
            copy.domains[1].console.send("halt\n")
            assert copy.domains[1].wait().reason == "poweroff"


def test_recorded_input_goes_on_in_the_clone(sample_guest: Callable[[str], Path]) -> None:
    hello = sample_guest("hello")
    with launch(hello, memory_mib=16, timeout=60, record=True) as dom:
        dom.console.expect(PROMPT)
        dom.console.send("about\n")
        dom.console.expect(PROMPT)
        with dom.fork() as clone:
            clone.console.send("halt\n")
            clone.wait()
            record, stats = clone.input_record(), clone.stats()
    assert len(record.typed) == 2
    with domainbuilder.launch(hello, memory_mib=16, timeout=60, replay=record) as again:
        assert again.wait().reason == "poweroff"
        assert again.stats() == stats


def test_a_clone_goes_back_within_its_process(booted: RunningDomain) -> None:
    with booted.fork() as clone, booted.fork() as other:
        first, digest = clone.snapshot(), clone.memory_sha256()
        before = clone.stats(), clone.console.transcript
        clone.console.send("about\n")
        clone.console.expect("command line")
        clone.console.expect(PROMPT)
        second, later = clone.snapshot(), clone.console.transcript
        for _ in range(3):
            clone.rewind(first)
            assert (clone.stats(), clone.console.transcript) == before
            assert clone.memory_sha256() == digest
            clone.console.send("crash\n")
            assert clone.wait().reason == "crash"
            assert clone.outcome is not None
        clone.rewind(second)
        assert clone.outcome is None
        assert (clone.console.transcript, clone.console.read()) == (later, "")
        clone.console.send("help\n")
        assert "power off" in clone.console.expect(PROMPT).string
        with pytest.raises(RuntimeError, match="of another clone"):
            other.rewind(first)
        with clone.fork() as copy, pytest.raises(RuntimeError, match="of another clone"):
            copy.rewind(first)
        del first
        gc.collect()
        third = clone.snapshot()  # with which the clone is told to forget the first
        clone.rewind(third)


def test_snapshots_of_different_futures(booted: RunningDomain) -> None:
    """What was printed on the way to one is not in the transcript of the other."""
    with booted.fork() as clone:
        start = clone.snapshot()
        futures = []
        for text in ("about\n", "help\n"):
            clone.rewind(start)
            clone.console.send(text)
            clone.console.expect(PROMPT)
            futures.append((clone.snapshot(), clone.console.transcript))
        for snapshot, transcript in futures:
            clone.rewind(snapshot)
            assert clone.console.transcript == transcript
