"""dom.snapshot() and dom.rewind()."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.launch.domain import launch
from domainbuilder.launch.host import Host
from domainbuilder.launch.transcript import Transcript

PROMPT = r"^hello> "


def test_back_from_whatever_happened(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), 16, timeout=60) as dom:
        dom.console.expect(PROMPT)
        with dom.fork() as clone:  # what happens to one that is not disturbed
            clone.console.send("about\n")
            clone.console.expect("command line")
            expected = clone.stats(), clone.memory_sha256(), clone.look(), clone.console.transcript
        here, stands = dom.snapshot(), (dom.stats(), dom.memory_sha256(), dom.look())
        for command, end in (("trap", ""), ("halt", "poweroff"), ("crash", "crash"), ("reboot", "reboot")):
            dom.console.send(f"{command}\n")
            if end:
                assert dom.wait().reason == end
                assert dom.outcome is not None
            else:
                dom.console.expect(PROMPT)
            dom.rewind(here)
            assert dom.outcome is None
            assert (dom.stats(), dom.memory_sha256(), dom.look()) == stands
            assert dom.console.read() == ""
            dom.console.send("about\n")
            dom.console.expect("command line")
            assert (dom.stats(), dom.memory_sha256(), dom.look(), dom.console.transcript) == expected
        dom.rewind(here)
        with dom.fork() as clone:
            clone.console.send("about\n")
            clone.console.expect("command line")
            assert clone.stats() == expected[0]


def test_snapshots_of_several_moments(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), 16, timeout=60) as dom:
        shots = []
        for moment in ("tick 1,", "tick 2,", PROMPT):
            dom.console.expect(moment)
            shots.append((dom.snapshot(), dom.stats(), dom.memory_sha256(), dom.console.transcript))
        for which in (0, 2, 1, 1, 0):
            shot, *stood = shots[which]
            dom.rewind(shot)
            assert [dom.stats(), dom.memory_sha256(), dom.console.transcript] == stood
            dom.console.expect(PROMPT if which < 2 else r"(?<!.)$")
        dom.rewind(shots[0][0])
        dom.console.expect("tick 2,")
        assert dom.stats() == shots[1][1]


def test_recorded_input_goes_back_too(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), 16, timeout=60, record=True) as dom:
        dom.console.expect(PROMPT)
        dom.console.send("about\n")
        dom.console.expect(PROMPT)
        here = dom.snapshot()
        dom.console.send("trap\n")
        dom.console.expect(PROMPT)
        dom.rewind(here)
        dom.console.send("halt\n")
        dom.wait()
        assert [data for _when, data in dom.input_record().typed] == [b"about\n", b"halt\n"]


def test_a_host_goes_back_as_a_whole(sample_guest: Callable[[str], Path]) -> None:
    with Host(memory_mib=64) as host:
        doms = [host.launch(sample_guest("hello"), 16, cmdline=f"ticks={n}", timeout=60) for n in (1, 2)]
        doms[0].console.expect(PROMPT)
        with pytest.raises(RuntimeError, match=re.escape("Host.snapshot()")):
            doms[0].snapshot()
        here, stood = host.snapshot(), [dom.stats() for dom in doms]
        ends = []
        for _ in range(2):
            for dom in doms:
                dom.console.send("halt\n")
                assert dom.wait().reason == "poweroff"
            ends.append([dom.stats() for dom in doms])
            host.rewind(here)
            assert [dom.stats() for dom in doms] == stood
        assert ends[0] == ends[1]
        doms[1].close()
        with pytest.raises(RuntimeError, match="other domains"):
            host.rewind(here)


def test_what_is_refused(sample_guest: Callable[[str], Path]) -> None:
    hello = sample_guest("hello")
    with launch(hello, 16, timeout=60) as dom, launch(hello, 16, timeout=60) as other:
        here = dom.snapshot()
        with pytest.raises(RuntimeError, match="other domains"):
            other.rewind(here)
        dom.close()
        for act in (dom.snapshot, lambda: dom.rewind(here)):
            with pytest.raises(RuntimeError, match="closed"):
                act()


def test_snapshots_leave_nothing(sample_guest: Callable[[str], Path]) -> None:
    with launch(sample_guest("hello"), 16, timeout=60) as dom:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        dom.console.expect(PROMPT)
        for _ in range(5):
            dom.rewind(dom.snapshot())
        memory = dom.machine.mem.view
        dom.close()
        assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        assert memory == bytes(len(memory))


def test_a_transcript_that_has_dropped_its_beginning_since() -> None:
    text = Transcript(limit=10)
    text.append(b"abcdef\r")
    kept = text.save()
    text.append(b"\n" + b"x" * 1000)
    assert text.dropped
    text.be(kept)
    text.append(b"\nend")
    assert text.since(0) == b"abcdef\nend"
    kept = text.save()
    text.append(b"!")
    text.be(kept)
    assert text.since(0) == b"abcdef\nend"
