"""When a domain begins by its own wall clock: what is asked for, and what a saved one goes on with."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from domainbuilder import BuildError, Host, RunningDomain, launch, restore
from domainbuilder.launch.options import Chosen

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
DEFAULT = datetime(2007, 7, 17, 23, 47, 43, tzinfo=UTC)  # a second after that of hvcore/boot_image.py


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


def wall_clock(dom: RunningDomain) -> datetime:
    """What the guest finds: wc_sec, wc_nsec and its system time."""
    d = dom.machine.domain
    seconds, nanoseconds = struct.unpack_from("<II", d.shared_info, d.abi.wallclock + 4)
    (high,) = struct.unpack_from("<I", d.shared_info, d.abi.wc_sec_hi)
    since = timedelta(microseconds=(nanoseconds + d.clock.now()) // 1000)
    return datetime.fromtimestamp(high << 32 | seconds, UTC) + since


@pytest.mark.parametrize(
    "date",
    [
        NOON, "2026-11-30T12:00:00Z", "2026-11-30 12:00", "20261130T130000+01:00",
        NOON.astimezone(timezone(timedelta(hours=-5))), NOON.replace(tzinfo=None),
    ],
)  # fmt: skip
def test_a_domain_begins_at_its_date(hello: Path, date: datetime | str) -> None:
    with launch(hello, date=date, timeout=60) as dom:
        assert wall_clock(dom) == NOON


def test_every_domain_of_a_host_begins_at_its_own(hello: Path) -> None:
    with Host(memory_mib=64) as host:
        first = host.launch(hello, 16, timeout=60)
        assert wall_clock(first) == DEFAULT
        first.console.expect("hello> ")
        second = host.launch(hello, 16, date=NOON, timeout=60)
        assert wall_clock(second) == NOON
        store = second.machine.host.xenstored
        vm = store.read(f"/local/domain/{second.domain_id}/vm")
        assert float(store.read(f"{vm}/start_time") or "") == NOON.timestamp()


@pytest.mark.parametrize("offset", [3600, -7200])
def test_its_clock_is_off_by_the_offset(hello: Path, offset: int) -> None:
    with launch(hello, date=NOON, time_offset=offset, timeout=60) as dom:
        assert wall_clock(dom) == NOON + timedelta(seconds=offset)
    with launch(hello, time_offset=offset, timeout=60) as dom:
        assert wall_clock(dom) == DEFAULT + timedelta(seconds=offset)


@pytest.mark.parametrize(
    "date", ["noon", "", "1969-12-31T23:59:59Z", "1970-01-01", "2262-01-01", "2026-02-30", "-1"]
)
def test_what_is_no_date_is_refused(date: str) -> None:
    with pytest.raises(BuildError, match="no date that a guest can begin at"):
        Chosen(date=date)


def test_an_offset_has_32_bits() -> None:
    for offset in (-(1 << 31), (1 << 31) - 1):
        assert Chosen(time_offset=offset).build_info.time_offset == offset
    for offset in (-(1 << 31) - 1, 1 << 31):
        with pytest.raises(BuildError, match="no offset of a clock"):
            Chosen(time_offset=offset)


def test_a_record_is_of_one_date(hello: Path) -> None:
    with launch(hello, date=NOON, time_offset=60, timeout=60, record=True) as dom:
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        dom.wait()
        record = dom.input_record()
    assert (record.domain["date_ns"], record.domain["time_offset"]) == (int(NOON.timestamp()) * 10**9, 60)
    with launch(hello, date="2026-11-30T13:00:00+01:00", time_offset=60, timeout=60, replay=record) as dom:
        assert dom.wait().reason == "poweroff"
    with pytest.raises(BuildError, match=r"of another domain: the date that it begins at \(--date\)"):
        launch(hello, time_offset=60, replay=record)
    with pytest.raises(BuildError, match="of another domain: how many seconds its clock is off"):
        launch(hello, date=NOON, replay=record)


def test_a_saved_domain_goes_on_with_its_date(hello: Path, tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    with launch(hello, date=NOON, time_offset=-60, timeout=60) as dom:
        dom.console.expect("hello> ")
        dom.save(saved)
        then = wall_clock(dom)
    with restore(saved, timeout=60) as again:
        assert wall_clock(again) == then
        assert again.machine.domain.time_offset == -60


@pytest.mark.parametrize(("date", "offset"), [(NOON, -60), (None, 60), (NOON, 0), (None, 0)])
def test_as_xen_saves_too(
    suspend_guests: dict[str, Path], tmp_path: Path, date: datetime | None, offset: int
) -> None:
    saved = tmp_path / "saved"
    with launch(
        suspend_guests["64"], 8, cmdline="rounds=1", date=date, time_offset=offset, timeout=60
    ) as dom:
        dom.console.expect("ready for round 1")
        dom.save(saved, "xen")
        then = wall_clock(dom)
    with restore(saved, timeout=60) as again:
        assert timedelta(0) <= wall_clock(again) - then < timedelta(seconds=1)
        assert again.machine.domain.time_offset == offset


def test_the_command_takes_a_date(hello: Path, tmp_path: Path) -> None:
    from domainbuilder.launch.record import load_record

    command = [
        sys.executable,
        "-m",
        "domainbuilder",
        "launch",
        str(hello),
        "--until-match",
        "--expect",
        "hello> ",
    ]
    record = tmp_path / "record"
    subprocess.run([*command, "--date", "2026-11-30T12:00Z", "--record", str(record)], check=True)
    assert load_record(record).domain["date_ns"] == int(NOON.timestamp()) * 10**9
    refused = subprocess.run([*command, "--date", "never"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("domainbuilder: error: no date that a guest can begin at; found never")
    assert refused.stderr.count("\n") == 1
