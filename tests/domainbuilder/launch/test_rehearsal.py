"""What a clone was asked is done once in its holder and undone, and the holder is what it was."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from domainbuilder.launch import rehearsal
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.host import Host
from domainbuilder.launch.rehearsal import Act
from hvcore.debug.taps import listen

PROMPT = r"^hello> "


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> list[list[Act]]:
    """What was rehearsed in this process."""
    done: list[list[Act]] = []
    real = rehearsal.rehearse

    def noted(host: Host, domains: Sequence[RunningDomain], acts: Sequence[Act]) -> None:
        done.append(list(acts))
        real(host, domains, acts)  # type: ignore[arg-type]

    monkeypatch.setattr(rehearsal, "rehearse", noted)
    return done


@pytest.fixture
def printed() -> list[bytes]:
    return []


@pytest.fixture
def dom(sample_guest: Callable[[str], Path], printed: list[bytes]) -> Iterator[RunningDomain]:
    with launch(sample_guest("hello"), 16, timeout=60, console_output=printed.append) as dom:
        dom.console.expect(PROMPT)
        yield dom


def ask(dom: RunningDomain, text: str = "about\n") -> str:
    with dom.fork() as clone:
        clone.console.send(text)
        return clone.console.expect(PROMPT).string


def test_the_second_clone_has_the_first_ones_acts_rehearsed(
    dom: RunningDomain, rehearsed: list[list[Act]], printed: list[bytes]
) -> None:
    before, told = dom.machine.host.save(), list(printed)
    transcript, used = dom.console.transcript, dom.console.used
    first = ask(dom)
    assert rehearsed == []
    answers = {ask(dom) for _ in range(20)}
    assert answers == {first}
    # Once: at the 16th clone it would have been the same again.
    assert [[what for _, what, _ in acts] for acts in rehearsed] == [["send", "run"]]
    assert dom.machine.host.save() == before
    assert (printed, dom.console.transcript, dom.console.used) == (told, transcript, used)
    ask(dom, "memory\n")
    assert len(rehearsed) == 1
    dom.console.send("about\n")
    assert dom.console.expect(PROMPT).string == first


def test_what_the_guest_ends_by_is_undone_too(dom: RunningDomain, rehearsed: list[list[Act]]) -> None:
    before = dom.machine.host.save()
    for text in ("crash\n", "crash\n", "halt\n"):
        with dom.fork() as clone:
            clone.console.send(text)
            assert clone.wait().ended
    assert len(rehearsed) == 1
    assert dom.outcome is None
    assert dom.machine.host.save() == before


def test_a_place_of_its_own_has_rehearsals_of_its_own(dom: RunningDomain, rehearsed: list[list[Act]]) -> None:
    ask(dom)
    dom.console.send("about\n")
    dom.console.expect(PROMPT)
    ask(dom)
    assert rehearsed == []
    ask(dom)
    assert len(rehearsed) == 1


def test_nothing_is_rehearsed_where_somebody_would_see_it(
    dom: RunningDomain, rehearsed: list[list[Act]]
) -> None:
    with listen(dom.machine, lambda _event: None):
        for _ in range(3):
            ask(dom)
    assert rehearsed == []


def test_a_capture_has_what_happened_once(dom: RunningDomain, rehearsed: list[list[Act]]) -> None:
    dom.machine.host.switch("xenbr0").taps.append(lambda *_: None)
    for _ in range(3):
        ask(dom)
    assert rehearsed == []


def test_what_takes_long_is_not_done_twice(
    dom: RunningDomain, rehearsed: list[list[Act]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_MOST_SECONDS", 0.0)
    for _ in range(3):
        ask(dom)
    assert rehearsed == []


def test_a_clone_that_waited_for_a_processor_is_rehearsed(dom: RunningDomain) -> None:
    """What counts is the processor's time that it used, and not how long its holder waited."""
    with dom.fork() as clone:
        os.kill(clone.pid, signal.SIGSTOP)
        threading.Timer(2 * rehearsal._MOST_SECONDS, os.kill, (clone.pid, signal.SIGCONT)).start()
        clone.console.send("about\n")
        clone.console.expect("command line")
        assert [what for _, what, _ in clone._script.acts] == ["send", "run"]


def test_several_domains_of_a_host(sample_guest: Callable[[str], Path], rehearsed: list[list[Act]]) -> None:
    with Host(memory_mib=16) as host:
        domains = [host.launch(sample_guest("hello"), memory_mib=4) for _ in range(2)]
        for dom in domains:
            dom.console.expect(PROMPT)
        for _ in range(3):
            with host.fork() as copy:
                for clone in copy.domains:
                    clone.console.send("about\n")
                    clone.console.expect(PROMPT)
        assert {domid for domid, _, _ in rehearsed[0]} == {dom.domain_id for dom in domains}
        assert [dom.outcome for dom in domains] == [None, None]
