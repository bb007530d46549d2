"""`launch --trace`: filters, files that are whole, and what is refused before anything runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import BuildError
from domainbuilder.launch.tracing import recording, traced
from domainbuilder.symbols.read import read_symbols
from domainbuilder.trace.filter import Filter, parse_filter
from domainbuilder.trace.formats import opened_trace
from domainbuilder.trace.record import CLASS_OF, CLASSES, Record
from hvcore.debug.debugger import Debugger
from hvcore.debug.registers import RegisterFile
from hvcore.debug.view import GuestView
from hvcore.machine import BOOT_TIME_NS

OURS = (sys.executable, "-m", "domainbuilder")


def run(guest: Path, wanted: Filter, *, is_live: bool = False) -> list[Record]:
    records: list[Record] = []
    with (
        domainbuilder.launch(guest, 32, vcpus=2) as dom,
        recording(dom, records.append, wanted, dom.names(), is_live=is_live),
    ):
        dom.wait()
    return records


def ours(*arguments: str | Path, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*OURS, *map(str, arguments)], capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]


def test_filters_take_parts_of_the_whole(conformance_guest: Callable[[str], Path]) -> None:
    guest = conformance_guest("vcpus-64")
    everything = run(guest, Filter())
    assert {CLASS_OF[r.kind] for r in everything} >= {
        "hypercalls",
        "events",
        "scheduling",
        "console",
        "devices",
    }
    for name in CLASSES:
        assert run(guest, parse_filter(name)) == [r for r in everything if CLASS_OF[r.kind] == name]
    one = [r for r in everything if r.vcpu == 1 and r.kind != "frames"]
    assert [r for r in run(guest, parse_filter("vcpu=1")) if r.kind != "frames"] == one
    middle = everything[len(everything) // 2].ns
    late = run(guest, parse_filter(f"time={middle / 1e9:.9f}-"))
    assert late == [r for r in everything if r.ns >= middle]
    early = run(guest, parse_filter(f"time=-{middle / 1e9:.9f}"))
    assert early == [r for r in everything if r.ns < middle]


@pytest.mark.parametrize("name", ["vcpus-64", "mmu_update-32", "ptwr-64"])
def test_records_of_lanes_are_those_that_are_told_live(
    conformance_guest: Callable[[str], Path], name: str
) -> None:
    guest = conformance_guest(name)
    live = run(guest, Filter(), is_live=True)
    assert run(guest, Filter()) == live
    wanted = Filter(classes=frozenset({"hypercalls", "pagetables"}), vcpus=frozenset({0}))
    assert run(guest, wanted) == run(guest, wanted, is_live=True)
    numbers = {r.number for r in live if r.kind == "hypercall"}
    assert len(numbers) > 1


def test_a_filter_by_function(debug_hello: Path) -> None:
    """The callers of hypercalls are found behind the stubs of the hypercall page."""
    records = run(debug_hello, parse_filter("hypercalls,symbol=*"))
    named = [r for r in records if r.kind == "hypercall"]
    assert named[-1].detail == "SCHEDOP_block"
    assert {r.symbol.partition("+")[0] for r in named} == {"hypercall"}  # which all of hello goes through
    assert run(debug_hello, parse_filter("hypercalls,symbol=hyp?rcall")) == named
    assert run(debug_hello, parse_filter("hypercalls,symbol=main")) == []
    plain = [r for r in run(debug_hello, parse_filter("hypercalls")) if r.kind == "hypercall"]
    assert [r._replace(symbol="") for r in named] == [r._replace(symbol="") for r in plain]


def test_a_filter_by_call_chain(debug_pvkernel: Path) -> None:
    """Held to a debugger: within a function is what happens from its breakpoint to where it returns."""
    function = read_symbols(debug_pvkernel, None).lookup("paging_init")
    assert function is not None
    with domainbuilder.launch(debug_pvkernel, 32, vcpus=2) as dom, Debugger(dom.machine) as debugger:
        started = debugger.run_until(address=function.value)
        stack = RegisterFile(dom.machine, dom.machine.domain.current).read("rsp") or 0
        returns_to = int.from_bytes(GuestView(dom.machine).read(stack, 4), "little")
        ended = debugger.run_until(address=returns_to)
    first, last = (stopped.position - BOOT_TIME_NS for stopped in (started, ended))

    calls = run(debug_pvkernel, parse_filter("hypercalls"))
    within = run(debug_pvkernel, parse_filter("hypercalls,within=paging_init"))
    there = [r for r in calls if first <= r.ns < last]
    assert 3 < len(there) < len(calls) // 2
    assert [r._replace(symbol="") for r in within] == [r._replace(symbol="") for r in there]
    assert {r.symbol.partition("+")[0] for r in within} == {"hypercall"}  # which is some calls further in
    assert run(debug_pvkernel, parse_filter("hypercalls,within=paging_in?t,within=nothing")) == within
    assert run(debug_pvkernel, parse_filter("hypercalls,within=nothing")) == []
    both = run(debug_pvkernel, parse_filter("within=paging_init,symbol=hyper*"))
    assert [r for r in both if r.kind in CLASSES["hypercalls"]] == within


@pytest.mark.parametrize("text", ["nonsense", "vcpu=x", "time=5", "time=a-b", "within=", "time=1-2-3"])
def test_filters_that_cannot_be(text: str) -> None:
    with pytest.raises(BuildError, match="trace filter"):
        parse_filter(text)


@pytest.mark.parametrize("suffix", ["pftrace", "txt", "jsonl", "xentrace"])
def test_the_command(suffix: str, sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    trace = tmp_path / f"hello.{suffix}"
    arguments = ("launch", sample_guest("hello"), "--expect", "hello> ", "--send", "halt\\n", "--stats")
    done = ours(*arguments, "--trace", trace)
    assert done.returncode == 0, done.stderr
    said = ours("trace", trace)
    if suffix == "txt":
        assert said.returncode == 2
        assert said.stderr.count("\n") == 1
        assert "poweroff" in trace.read_text().splitlines()[-1]
        return
    assert said.returncode == 0, said.stderr
    counted = next(line for line in done.stderr.splitlines() if line.startswith("hypercalls"))
    told = next(line for line in said.stdout.splitlines() if line.startswith("hypercalls"))
    assert counted.split() == told.split()


def test_a_run_that_is_interrupted_leaves_a_whole_file(
    sample_guest: Callable[[str], Path], tmp_path: Path
) -> None:
    trace = tmp_path / "cut.jsonl"
    command = [*OURS, "launch", str(sample_guest("hello")), "--trace", str(trace)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while "hello>" not in (process.stdout.readline() + process.stdout.read(7)):
            pass
        assert not trace.exists()
        process.send_signal(signal.SIGINT)
        threading.Timer(60, process.kill).start()
        process.communicate()
    with opened_trace(str(trace)) as reader:
        assert list(reader)
    assert reader.tail.reason == "interrupted"


def test_a_trace_into_a_pipe_comes_as_it_happens(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command = [*OURS, "launch", str(sample_guest("hello")), "--expect", "hello> ", "--send", "halt\\n"]
    with subprocess.Popen([*command, "--trace", pipe, "--trace-format", "json"], stdout=subprocess.DEVNULL):
        lines = pipe.read_text().splitlines()
    assert "kind" in json.loads(lines[1])
    assert json.loads(lines[-1])["reason"] == "poweroff"


def test_what_is_refused(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    hello = tmp_path / "hello.txt"
    hello.write_bytes(sample_guest("hello").read_bytes())
    before = hello.read_bytes()
    for arguments, reason in (
        (("--trace", hello), "would be overwritten"),
        (("--trace", tmp_path / "trace"), "does not say its format"),
        (("--trace", tmp_path / "no" / "trace.txt"), "no such directory"),
        (("--trace", tmp_path / "a.txt", "--trace-filter", "all"), "no such part"),
        (("--trace-filter", "events"), "go with --trace"),
        (("--trace", tmp_path / "a.txt", "--console-log", tmp_path / "a.txt"), "the same file"),
    ):
        done = ours("launch", hello, *arguments, "--timeout", "60", stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert reason in done.stderr
    assert hello.read_bytes() == before


def test_a_full_disk_is_one_line(sample_guest: Callable[[str], Path]) -> None:
    arguments = ("launch", sample_guest("hello"), "--expect", "hello> ", "--until-match")
    done = ours(*arguments, "--trace", "/dev/full", "--trace-format", "text")
    assert done.returncode == 2
    assert "No space left" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_from_python(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    with domainbuilder.launch(sample_guest("hello"), 32) as dom:
        dom.console.expect("hello> ")
        with traced(dom, path, wanted="hypercalls"):
            dom.console.send("about\n")
            dom.console.expect("hello> ")
        dom.console.send("halt\n")
        dom.wait()
    with opened_trace(str(path)) as reader:
        records = list(reader)
    assert {r.kind for r in records} <= {"hypercall", "iret"}
    assert records
