"""The thread that looks at the clock for runs whose guests keep everybody from it."""

from __future__ import annotations

import os
import threading
import time

import pytest

from domainbuilder.launch import watchdog
from domainbuilder.launch.watchdog import Watchdog


@pytest.fixture
def dog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    monkeypatch.setattr(watchdog, "GRACE", 0.0)
    monkeypatch.setattr(watchdog, "_LOOK", 0.001)
    monkeypatch.setattr(watchdog, "_IDLE", 0.02)
    return Watchdog()


def threads() -> set[str]:
    """All that there are, Python's own or not."""
    return set(os.listdir("/proc/self/task"))  # noqa: PTH208


def comes_to(count: int, before: set[str]) -> bool:
    """Whether there are so many threads besides those before, before long: of those some may be ending."""
    for _ in range(2000):
        if len(threads() - before) == count:
            return True
        time.sleep(0.005)
    return False


def test_it_nudges_from_the_deadline_on_and_no_longer_than_the_run(dog: Watchdog) -> None:
    nudged = threading.Event()
    with dog.over(time.monotonic(), nudged.set):
        assert nudged.wait(30)
    with dog.over(time.monotonic() + 1000, pytest.fail):
        time.sleep(0.02)
    with dog.over(None, pytest.fail):
        pass


def test_a_run_that_ends_sooner_than_the_others_is_not_late(
    dog: Watchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_IDLE", 3600.0)
    nudged = threading.Event()
    with dog.over(time.monotonic() + 1000, pytest.fail):
        time.sleep(0.02)  # it sleeps
        with dog.over(time.monotonic(), nudged.set):
            assert nudged.wait(30)
    dog.end()


def test_one_thread_for_many_runs_and_none_when_there_are_none(dog: Watchdog) -> None:
    before = threads()
    for _ in range(50):
        with dog.over(time.monotonic() + 1000, pytest.fail), dog.over(time.monotonic() + 1000, pytest.fail):
            assert dog.is_there
            assert comes_to(1, before)
    assert comes_to(0, before)
    assert not dog.is_there
    with dog.over(time.monotonic() + 1000, pytest.fail):
        assert comes_to(1, before)
        time.sleep(0.1)
        assert dog.is_there
    assert comes_to(0, before)


def test_it_ends_for_a_fork_and_begins_again(dog: Watchdog) -> None:
    before = threads()
    for _ in range(20):
        with dog.over(time.monotonic() + 1000, pytest.fail):
            pass
        dog.end()
        assert not dog.is_there
        assert comes_to(0, before)
    dog.end()
    with dog.over(time.monotonic() + 1000, pytest.fail):
        pid = os.fork()
        if not pid:
            dog.forget()
            nudged = threading.Event()
            with dog.over(time.monotonic(), nudged.set):
                os._exit(not nudged.wait(30))
        assert os.waitpid(pid, 0)[1] == 0
    dog.end()
