"""Each format holds what happened: read back, and by the programs that the formats are for."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.errors import BuildError
from domainbuilder.trace import protobuf
from domainbuilder.trace.formats import format_of, opened_trace, read_trace
from domainbuilder.trace.perfetto import PerfettoEncoder
from domainbuilder.trace.record import Head, Record, Tail
from domainbuilder.trace.summary import render, summarise
from domainbuilder.trace.xentrace import KINDS
from tests.domainbuilder.trace.conftest import Recorded
from tests.needs import find_tool

HERE = Path(__file__).resolve().parent


def counted(records: list[Record]) -> Counter[str]:
    """Hypercalls by name, as `--stats` counts them."""
    calls = Counter(r.name for r in records if r.kind in ("hypercall", "subcall", "unfinished"))
    return calls + Counter({"iret": sum(r.kind == "iret" for r in records)})


def expected(recorded: Recorded) -> Counter[str]:
    unknown = sum(recorded.stats.unknown_hypercalls.values())
    return Counter(recorded.stats.hypercalls) + Counter({"unknown hypercall": unknown})


def test_tracing_changes_nothing_and_counts_all(recorded: Recorded) -> None:
    assert recorded.stats == recorded.untraced
    assert counted(recorded.records) == expected(recorded)
    assert sum(r.kind == "upcall" for r in recorded.records) == recorded.stats.events_delivered
    assert sum(r.kind == "store" for r in recorded.records) == recorded.stats.page_table_stores


@pytest.mark.parametrize("suffix", ["jsonl", "pftrace"])
def test_what_is_read_back_is_what_happened(recorded: Recorded, suffix: str) -> None:
    with opened_trace(str(recorded.files[suffix])) as reader:
        again = list(reader)
    assert again == recorded.records
    assert (reader.head.vcpus, reader.tail.reason) == (2, "poweroff")
    assert reader.tail.end_ns == recorded.stats.guest_ns
    assert {n: c for n, c in reader.tail.counts.items() if n.startswith("hypercalls/")} == {
        f"hypercalls/{name}": count for name, count in recorded.stats.hypercalls.items()
    }


def test_xentrace_read_back(recorded: Recorded) -> None:
    """Of the kinds that Xen has records of, on the same vCPUs, at the same time, which never goes back."""
    with opened_trace(str(recorded.files["xentrace"])) as reader:
        again = list(reader)
    there = [r for r in recorded.records if r.kind in KINDS]
    there.sort(key=lambda r: (r.ns, r.kind == "subcall"))  # a multicall comes before its entries
    kinds = [(r.ns, "hypercall" if r.kind == "unfinished" else r.kind, r.number) for r in there]
    assert [(r.ns, r.kind, r.number) for r in again] == kinds
    traps = [(r.rip, r.name, r.args[:1]) for r in there if r.kind == "trap"]
    assert [(r.rip, r.name, r.args[:1]) for r in again if r.kind == "trap"] == traps
    assert [r.vcpu for r in again if r.kind == "trap"] == [r.vcpu for r in there if r.kind == "trap"]


def test_perfettos_own_classes(recorded: Recorded) -> None:
    pytest.importorskip("google.protobuf")
    path = recorded.files["pftrace"]
    done = subprocess.run(
        [sys.executable, HERE / "perfetto_counts.py", path], capture_output=True, text=True, check=False
    )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip("the perfetto package is not installed")
    seen = json.loads(done.stdout)
    assert seen["wrong"] == []
    states = ("running", "runnable", "blocked", "offline")
    slices = {name: count for name, count in seen["slices"].items() if name not in states}
    slices["iret"] = seen["instants"].get("iret", 0)
    assert +Counter(slices) == expected(recorded)
    assert seen["instants"].get("upcall", 0) == recorded.stats.events_delivered
    assert {"process", "vCPU 0", "vCPU 1", "console"} <= set(seen["tracks"])
    raised = [r for r in recorded.records if r.kind == "pending"]
    assert seen["flows"][0] == len(raised)
    call = next(r for r in recorded.records if r.kind == "hypercall")
    shown = seen["first"][call.name]
    assert (shown["track"], shown["result"], shown["rip"]) == (f"vCPU {call.vcpu}", call.result, call.rip)
    assert [shown[f"arg{i}"] for i in range(len(call.args))] == list(call.args)


def test_xenalyze(recorded: Recorded) -> None:
    """Debian's own tool counts the same hypercalls, by number, and the same traps."""
    tool = find_tool("xenalyze")
    command = [tool, "--cpu-hz", "2G", "--summary", str(recorded.files["xentrace"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "Error" not in done.stderr
    domain = done.stdout.partition("|-- Domain 1 --|")[2]
    assert domain
    numbers = Counter[int]()
    for number, count in re.findall(r"^ +\S+ +\[ ?(\d+)\]: +(\d+)$", domain, flags=re.MULTILINE):
        numbers[int(number)] += int(count)
    direct = [r for r in recorded.records if r.kind in ("hypercall", "unfinished", "iret")]
    assert numbers == Counter(23 if r.kind == "iret" else r.number for r in direct if r.number < 64)
    faults = sum(map(int, re.findall(r"^  page_fault +(\d+)$", domain, flags=re.MULTILINE)))
    assert faults == sum(r.kind == "trap" and r.name == "#PF" and len(r.args) > 1 for r in recorded.records)


def test_text_is_a_line_a_record(recorded: Recorded) -> None:
    lines = recorded.files["txt"].read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[-1].endswith(": poweroff")
    records = [line for line in lines[1:-1] if line[6] == "."]
    assert len(records) == len(recorded.records)
    first = next(r for r in recorded.records if r.kind == "hypercall")
    assert any(f" vcpu{first.vcpu} {first.name}(" in line for line in records)


def test_summary(recorded: Recorded) -> None:
    with opened_trace(str(recorded.files["jsonl"])) as reader:
        summary = summarise(reader.head, reader)
    by_name = Counter[str]()
    for name, count in summary.calls.items():
        by_name[name.split()[0] if name != "unknown hypercall" else name] += count
    assert by_name == expected(recorded)
    for states in summary.states.values():  # the time of a vCPU, all of it
        assert 0 < sum(states.values()) <= recorded.stats.guest_ns
    assert f"{sum(summary.calls.values()):,}" in render(summary)


# -- what may be in a trace, and what may be in a file


def test_hostile_text_does_nothing() -> None:
    from domainbuilder.trace.text import TextEncoder

    encoder = TextEncoder()
    evil = Record("print", 1, 0, text='\x1b]0;title\x07"\n\udc80')
    raw = encoder.begin(Head("\x1b[31mname")) + encoder.encode(evil) + encoder.end(Tail(2, "\x9b"))
    assert all(byte >= 0x20 or byte == 10 for byte in raw)
    assert len(raw.splitlines()) == 3


@given(st.integers(0, (1 << 64) - 1), st.integers(1, 2000))
def test_protobuf_numbers(value: int, field: int) -> None:
    assert list(protobuf.fields(protobuf.number(field, value))) == [(field, value)]
    assert list(protobuf.fields(protobuf.fixed64(field, value))) == [(field, value)]


@pytest.mark.parametrize("suffix", ["jsonl", "pftrace", "xentrace"])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_are_refused_or_read(recorded: Recorded, suffix: str, data: st.DataObject) -> None:
    raw = bytearray(recorded.files[suffix].read_bytes()[: 1 << 16])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(len(raw) // 2, len(raw))) :]
    try:
        reader = read_trace("damaged", io.BufferedReader(io.BytesIO(raw)))
        render(summarise(reader.head, reader))
    except BuildError as error:
        assert error.where is not None  # noqa: PT017


def test_what_is_no_trace(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"{}\n", b"\n\x00", b"\x0a\xff\xff\xff\xff\xff\xff"):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(BuildError), opened_trace(str(path)) as reader:
            list(reader)


def test_formats_by_name() -> None:
    names = {"a.pftrace": "perfetto", "b.TXT": "text", "c.jsonl": "json", "d.xentrace": "xentrace"}
    assert {name: format_of(name) for name in names} == names
    assert format_of("a.txt", "json") == "json"
    with pytest.raises(BuildError, match="does not say its format"):
        format_of("trace")


def test_what_the_encoder_keeps_is_bounded() -> None:
    encoder = PerfettoEncoder()
    encoder.begin(Head())
    for i in range(70_000):
        encoder.encode(Record("hypercall", i, 0, 0x1000 + i, "unknown hypercall", i, (i,), -38, i))
    assert len(encoder._arguments) <= 1 << 16
    assert len(encoder._heads) <= 1 << 14
