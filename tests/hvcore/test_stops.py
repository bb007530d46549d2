"""No stop is seen: whole guests with random stops end as they do without, bit for bit.

`STOP_EXAMPLES=200 pytest tests/hvcore/test_stops.py` tries more schedules than the few of every day.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from domainbuilder.conform.run import MEMORY_MIB, VCPUS, bundled
from hvcore.machine import BOOT_TIME_NS, Stop
from tests.hvcore.stops import Result, Schedule, Subject, examples, run

SECOND = 10**9
CONFORMANCE = (
    "event_channel", "fifo_vcpus", "grant_map", "iret", "multicall_stops", "ptwr_forms", "runstate",
    "sched_op", "timers", "traps", "vcpus", "wallclock", "watchpoints",
)  # fmt: skip
TYPED = ((3_000_000, b"about\n"), (50_000_000, b"trap\n"), (50_000_001, b"time\n"), (400_000_000, b"halt\n"))


@pytest.fixture(scope="module")
def subject(
    sample_guest: Callable[[str], Path],
    guest_kernel: Callable[[str], Path],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Subject]:
    def conformance(name: str) -> Path:
        copy = tmp_path_factory.mktemp("conformance") / "guest.elf"
        with bundled() as guests:
            copy.write_bytes(next(g for g in guests if g.name == name).kernel.read_bytes())
        return copy

    def find(name: str) -> Subject:
        if name == "hello":
            return Subject(sample_guest("hello"), 2 * SECOND, cmdline="ticks=3", typed=TYPED)
        if name == "pvkernel":
            return Subject(request.getfixturevalue("pvkernel"), 10 * SECOND, memory_mib=64)
        if name.startswith("grub"):
            typed = ((120_000_000, b"c"), (150_000_000, b"ls\n"))
            return Subject(guest_kernel(name), 200_000_000, memory_mib=64, typed=typed)
        if name.startswith("vmlinuz"):
            name, _, vcpus = name.partition("/")
            options = "console=hvc0 earlyprintk=xen"
            return Subject(guest_kernel(name), 2 * SECOND, 256, vcpus=int(vcpus), cmdline=options)
        return Subject(conformance(name), 60 * SECOND, MEMORY_MIB, vcpus=VCPUS)

    return find


def schedules(whole: Result) -> st.SearchStrategy[Schedule]:
    return st.builds(
        Schedule,
        st.integers(0, 1 << 32),
        st.integers(0, whole.stats.system_time_ns - BOOT_TIME_NS),
        st.sampled_from((100, 1_000, 10_000, 100_000)),
        skip_loops=st.booleans(),
        thread=st.booleans(),
        restores=st.integers(0, 2),
        fresh=st.booleans(),
    )


def check(subject: Subject, few: int) -> Result:
    """Compare schedules with the whole run; the latter."""
    whole = run(subject)

    @settings(
        max_examples=examples(few),
        derandomize=examples(few) == few,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules(whole))
    def parts(schedule: Schedule) -> None:
        assert run(subject, schedule) == whole

    parts()
    return whole


@pytest.mark.parametrize("name", ["hello", "pvkernel", *CONFORMANCE])
def test_small_guests(subject: Callable[[str], Subject], name: str) -> None:
    whole = check(subject(name), 2)
    assert whole.stop is Stop.SHUTDOWN
    assert "FAIL" not in whole.console


@pytest.mark.parametrize("name", ["grub-i386-xen.bin", "grub-x86_64-xen.bin"])
def test_grub(subject: Callable[[str], Subject], name: str) -> None:
    whole = check(subject(name), 2)
    assert "grub>" in whole.console


@pytest.mark.guest
@pytest.mark.parametrize("vcpus", [1, 2])
def test_two_seconds_of_debians_boot(subject: Callable[[str], Subject], vcpus: int) -> None:
    whole = check(subject(f"vmlinuz-bookworm-amd64/{vcpus}"), 1)
    assert "Linux version" in whole.console


def test_a_run_goes_on_in_processes_in_which_nothing_has_run(subject: Callable[[str], Subject]) -> None:
    whole = run(subject("hello"))
    parts = run(subject("hello"), Schedule(1, 1_000_000, 300_000, restores=3, fresh=True))
    assert parts == whole
    assert parts.seconds == 0  # which is not counted elsewhere
