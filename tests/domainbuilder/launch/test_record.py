"""A run is a function of its domain and of what is typed when: recorded, and run again."""

from __future__ import annotations

import base64
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder.errors import BuildError
from domainbuilder.launch.domain import launch
from domainbuilder.launch.record import InputRecord, load_record, save_record
from hvcore.given import Key, OutsideFrame, Pointer

COMMAND = (sys.executable, "-m", "domainbuilder", "launch")
PROMPT = "hello> "
DOMAIN = {"kernel": "k", "sha256": "0", "vcpus": 1, "upper_ptwr": False}


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


def domainbuilder(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_recorded_run_replayed_is_the_run(hello: Path, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with launch(hello, timeout=60, record=True) as dom:
        for command in ("about\n", "trap\n", "time\n"):
            dom.console.expect(PROMPT)
            for key in command if chance.random() < 0.5 else [command]:
                dom.console.send(key)
        dom.wait()
        dom.console.send("ha")
        dom.console.send("lt\n")
        assert dom.wait().reason == "poweroff"
        stats, text, record = dom.stats(), dom.console.transcript, dom.input_record()
    assert record.reason == "poweroff"
    typed = [data for _, data in record.typed if isinstance(data, bytes)]
    assert b"".join(typed) == b"about\ntrap\ntime\nhalt\n"
    path = tmp_path / "record"
    save_record(record, path)
    assert load_record(path) == record
    with launch(hello, timeout=60, replay=load_record(path)) as dom:
        assert dom.wait().reason == "poweroff"
        assert (dom.stats(), dom.console.transcript) == (stats, text)


def test_a_replay_ends_where_the_record_does(hello: Path) -> None:
    with launch(hello, timeout=60, record=True) as dom:
        dom.console.expect("tick 1,")
        stats, text, record = dom.stats(), dom.console.transcript, dom.input_record("matched")
    with launch(hello, timeout=60, replay=record, record=True) as dom:
        outcome = dom.wait()
        assert (outcome.reason, outcome.ended) == ("replayed", False)
        assert (dom.stats(), dom.console.transcript) == (stats, text)
        assert dom.input_record("matched") == record


def test_what_is_typed_at_a_terminal_comes_again(hello: Path, tmp_path: Path) -> None:
    """In real time, key by key, with pauses; then without a terminal and without the time."""
    record = tmp_path / "record"
    report = ("--stats", "--format", "json")
    child = pexpect.spawn(COMMAND[0], [*COMMAND[1:], str(hello), "--record", str(record)], timeout=60)
    child.setecho(False)
    for command in ("about", "time", "halt"):
        child.expect_exact(PROMPT)
        for key in command + "\r":
            child.send(key)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
    first = domainbuilder(hello, "--replay", record, *report)
    second = domainbuilder(hello, "--replay", record, "--expect", "tick 1,", "--timeout", "50", *report)
    assert first.returncode == second.returncode == 0, first.stderr
    one, two = (json.loads(run.stderr)["statistics"] for run in (first, second))
    one.pop("host")
    two.pop("host")
    assert one == two
    assert first.stdout == second.stdout
    assert one["guest_ns"] == load_record(record).end_ns


def test_the_same_counts_whatever_is_expected_and_however_input_comes(hello: Path) -> None:
    """Input at once, recorded; then with expectations and limits, in many parts."""
    with launch(hello, timeout=60, record=True) as dom:
        dom.console.send("about\nhalt\n")
        dom.wait()
        stats, record = dom.stats(), dom.input_record()
    with launch(hello, replay=record, max_guest_seconds=50.0, console_output=lambda _data: None) as dom:
        dom.console.expect("Hello from")
        for _ in range(20):
            dom.wait(timeout=0.0001)
        assert dom.wait(timeout=60).reason == "poweroff"
        assert dom.stats() == stats


def test_a_record_of_another_domain_is_refused(hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "record"
    with launch(hello, timeout=60, record=True) as dom:
        save_record(dom.input_record(), path)
    for more in (("--memory", "65"), ("--vcpus", "2"), ("--cmdline", "x"), ("--upper-ptwr",)):
        run = domainbuilder(hello, "--replay", path, *more)
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        assert "another domain" in run.stderr
    assert domainbuilder(hello, "--replay", path, "--send", "x").returncode == 2


def test_nothing_is_overwritten_or_left_half_written(hello: Path, tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("what was there")
    assert domainbuilder(hello, "--record", path, "--replay", path).returncode == 2
    assert domainbuilder("/dev/null", "--record", path).returncode == 2
    assert path.read_text() == "what was there"
    assert domainbuilder(hello, "--record", tmp_path / "no" / "where", stdin="halt\n").returncode == 2
    assert [file.name for file in tmp_path.iterdir()] == ["record"]


def text_of(record: InputRecord, folder: Path) -> list[str]:
    path = folder / "written"
    save_record(record, path)
    return path.read_text().splitlines()


GOOD = InputRecord(DOMAIN, ((5, b"a"), (5, b""), (7, bytes(range(256)))), 9, "poweroff")


@pytest.mark.parametrize(
    ("line", "new"),
    [
        (0, ""), (0, "{"), (0, "[]"), (0, '{"format": "x", "domain": {}}'), (1, "[5]"), (1, '["5", "YQ=="]'),
        (1, '[-1, "YQ=="]'), (1, '[true, "YQ=="]'), (2, '[4, "YQ=="]'), (2, '[5, "Y"]'), (2, "[5, 7]"),
        (2, "[" * 100_000), (2, '[9223372036854775808, "YQ=="]'), (4, '{"end_ns": 3, "reason": "x"}'),
        (4, '{"end_ns": 10, "reason": 3}'), (4, '[9, "YQ=="]'), (3, "\x00"),
    ],
)  # fmt: skip
def test_damaged_records_are_refused(tmp_path: Path, line: int, new: str) -> None:
    lines = text_of(GOOD, tmp_path)
    lines[line] = new
    path = tmp_path / "record"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BuildError) as refused:
        load_record(path)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


@settings(max_examples=100)
@given(st.data())
def test_cut_and_changed_records_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("record")
    raw = bytearray("\n".join([*text_of(GOOD, folder), ""]).encode())
    cut = data.draw(st.integers(0, len(raw)))
    raw = raw[:cut]
    for at in data.draw(st.lists(st.integers(0, max(cut - 1, 0)), max_size=4)):
        if at < len(raw):
            raw[at] = data.draw(st.integers(0, 255))
    path = folder / "record"
    path.write_bytes(raw)
    try:
        record = load_record(path)
    except BuildError:
        return
    times = [at for at, _ in record.typed]
    assert times == sorted(times)


def test_a_record_is_readable(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in text_of(GOOD, tmp_path)]
    assert lines[0] == {"format": "domainbuilder input record 1", "domain": DOMAIN}
    assert [(at, base64.b64decode(data)) for at, data in lines[1:-1]] == list(GOOD.typed)
    assert lines[-1] == {"end_ns": 9, "reason": "poweroff"}


def test_frames_from_outside_are_kept_as_such(tmp_path: Path) -> None:
    typed = ((5, b"a"), (5, OutsideFrame(0, b"\0" * 14)), (7, OutsideFrame(3, b"frame")), (9, b"\n"))
    record = InputRecord({"kernel": "x"}, typed, 11, "poweroff")
    save_record(record, tmp_path / "record")
    assert load_record(tmp_path / "record") == record
    text = (tmp_path / "record").read_text()
    for wrong in ("-1", '"0"', "true", "0, 0"):
        (tmp_path / "record").write_text(text.replace('", 3]', f'", {wrong}]'))
        with pytest.raises(BuildError, match="with the number of an interface"):
            load_record(tmp_path / "record")


def test_keys_and_pointer_are_kept_as_such(tmp_path: Path) -> None:
    typed = ((5, Key(30, pressed=True)), (6, Pointer(3, 700, -1)), (6, b"key"), (7, Key(272, pressed=False)))
    record = InputRecord({"kernel": "x"}, typed, 11, "poweroff")
    save_record(record, tmp_path / "record")
    assert load_record(tmp_path / "record") == record
    text = (tmp_path / "record").read_text()
    key, pointer = '"key", 30, 1', '"pointer", 3, 700, -1'
    for right, *wrong in (
        (key, '"key", 30, 2', '"key", "30", 1', '"touch", 30, 1', '"key", 30, 1, 1'),
        (
            pointer,
            '"pointer", 3.5, 700, -1',
            '"pointer", 3, 700',
            '"pointer", 3, 9999999999, 0',
            "3, 700, -1",
        ),
    ):
        assert right in text
        for one in wrong:
            (tmp_path / "record").write_text(text.replace(right, one))
            with pytest.raises(BuildError, match="not a line of an input record"):
                load_record(tmp_path / "record")
