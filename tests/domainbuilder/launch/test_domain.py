"""launch(): a domain in the hand of a Python program."""

from __future__ import annotations

import gc
import lzma
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import BuildError, ExitCode
from domainbuilder.kernel.unpacked import LEAST_BYTES
from domainbuilder.launch.domain import ExpectEOF, ExpectError, ExpectTimeout, launch
from domainbuilder.launch.terminal import FileInput
from hvcore.clock import NS_PER_EXIT
from tests.domainbuilder.bzimage import bzimage
from tests.domainbuilder.tiny_guest import ASLEEP, IDLE, SPIN, UD2, hypercall, kernel

PROMPT = r"^hello> "


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[bytes], Path]:
    """A kernel file of a few instructions."""

    def write(code: bytes) -> Path:
        path = tmp_path / "tiny.elf"
        path.write_bytes(kernel(code))
        return path

    return write


def test_a_conversation(hello: Path) -> None:
    with domainbuilder.launch(hello, memory_mib=32, cmdline="ticks=1", timeout=60) as dom:
        pages = dom.console.expect(r"memory +(\d+) MiB, (\d+) pages")
        assert pages.groups() == ("32", "8192")
        dom.console.expect(PROMPT)
        dom.console.send("about\n")
        assert dom.console.expect(r'command line +"(.*)"')[1] == "ticks=1"
        dom.console.expect(PROMPT)
        dom.console.send(b"halt\n")
        outcome = dom.wait()
        assert (outcome.reason, outcome.exit_code, outcome.report) == ("poweroff", ExitCode.FINE, None)
        assert outcome.ended
        assert dom.outcome == outcome == dom.wait()
        assert dom.console.read().splitlines() == ["halt", "bye"]
        assert dom.console.read() == ""
        assert "Hello from a paravirtual guest." in dom.console.transcript


def test_output_is_handed_on_as_it_comes(hello: Path) -> None:
    pieces: list[bytes] = []
    with launch(hello, console_output=pieces.append, timeout=60) as dom:
        dom.console.expect("tick 1,")
        assert b"tick 1," in b"".join(pieces)
        assert b"tick 2," not in b"".join(pieces)  # the guest stands right behind the match
        dom.console.expect(PROMPT)
        assert b"".join(pieces).decode().replace("\r\n", "\n") == dom.console.transcript
        assert dom.stats().console_bytes == len(b"".join(pieces))


def test_expect_takes_compiled_patterns_as_they_are(hello: Path) -> None:
    with launch(hello, timeout=60) as dom:
        match = dom.console.expect(re.compile(r"HELLO from (.*?)\.$", re.IGNORECASE | re.MULTILINE))
        assert match[1] == "a paravirtual guest"


def test_reboot_is_no_failure(hello: Path) -> None:
    with launch(hello, timeout=60) as dom:
        dom.console.expect(PROMPT)
        dom.console.send("reboot\n")
        outcome = dom.wait()
    assert (outcome.reason, outcome.exit_code) == ("reboot", ExitCode.FINE)


def test_idle_for_good_can_be_woken_by_input(hello: Path) -> None:
    with launch(hello, timeout=60) as dom:
        outcome = dom.wait()
        assert (outcome.reason, outcome.exit_code, outcome.ended) == ("idle", ExitCode.TIMED_OUT, False)
        assert dom.outcome is None
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"


def test_who_never_reads_is_idle_whatever_is_typed(tmp_path: Path) -> None:
    guest, typed = tmp_path / "idle", tmp_path / "typed"
    guest.write_bytes(kernel(ASLEEP))
    typed.write_bytes(bytes(1 << 20))
    with typed.open("rb") as file, launch(guest, timeout=60) as dom:
        dom.attach(FileInput(file.fileno()))
        assert dom.wait().reason == "idle"
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) < 16384  # and the rest stays where it is


def test_an_expectation_of_an_idle_guest_fails_at_once(hello: Path) -> None:
    with launch(hello, timeout=60) as dom:
        with pytest.raises(ExpectEOF, match="idle") as caught:
            dom.console.expect("never said")
        assert caught.value.pattern == "never said"
        assert caught.value.outcome.reason == "idle"
        assert caught.value.tail.splitlines()[-1] == "hello> "
        assert "| Type help" in str(caught.value)
        dom.console.expect("Hello from")  # nothing was used up


def test_an_expectation_that_the_guest_does_not_live_to_meet(hello: Path) -> None:
    with launch(hello, timeout=60) as dom:
        dom.console.send("halt\n")
        with pytest.raises(ExpectEOF, match="powered off"):
            dom.console.expect("never said")
        with pytest.raises(ExpectEOF):
            dom.console.expect("never said either")
        dom.console.expect("bye")


def test_wall_time_ends_a_run_and_nothing_else(tiny: Callable[[bytes], Path]) -> None:
    with launch(tiny(SPIN)) as dom:
        with pytest.raises(ExpectTimeout, match="wall time ran out"):
            dom.console.expect("never", timeout=0.05)
        before = dom.stats().code_bytes
        outcome = dom.wait(timeout=0.05)
        assert (outcome.reason, outcome.exit_code) == ("timeout", ExitCode.TIMED_OUT)
        assert dom.stats().code_bytes > before


def test_the_guard_of_a_launch_holds_for_all_of_it(tiny: Callable[[bytes], Path]) -> None:
    started = time.monotonic()
    with launch(tiny(SPIN), timeout=0.2) as dom:
        assert dom.wait(timeout=600).reason == "timeout"
        with pytest.raises(ExpectTimeout):
            dom.console.expect("never", timeout=600)
    assert time.monotonic() - started < 300


def test_guest_time_is_a_limit_that_is_the_same_every_time(tiny: Callable[[bytes], Path]) -> None:
    def counts() -> tuple[str, int, int]:
        with launch(tiny(SPIN), max_guest_seconds=0.01) as dom:
            outcome = dom.wait()
            stats = dom.stats()
            return outcome.reason, stats.guest_ns, stats.code_bytes

    reason, guest_ns, _ = first = counts()
    assert reason == "timeout"
    assert 10_000_000 <= guest_ns < 10_100_000
    assert counts() == first


def test_guest_time_that_passes_idle_counts(tiny: Callable[[bytes], Path]) -> None:
    # set_timer_op for an hour from now, then block: nothing but the timer can wake it
    hour = 3600 * 10**9
    code = hypercall(15, hour & 0xFFFFFFFF, hour >> 32) + IDLE
    with launch(tiny(code), max_guest_seconds=5) as dom:
        assert dom.wait().reason == "timeout"
        assert dom.stats().guest_ns == 5 * 10**9
    with launch(tiny(code), max_guest_seconds=7200) as dom:
        assert dom.wait().reason == "idle"  # the timer fires once, and after that there is nothing
        assert dom.stats().guest_ns >= hour - 10**9


def test_crash_is_an_outcome_with_a_report(tiny: Callable[[bytes], Path]) -> None:
    with launch(tiny(UD2)) as dom:
        outcome = dom.wait()
        assert (outcome.reason, outcome.exit_code) == ("crashed", ExitCode.DOMAIN_CRASHED)
        assert "Unhandled: vec 6, #UD" in outcome.detail
        assert outcome.report is not None
        with pytest.raises(ExpectError, match="Unhandled: vec 6"):
            dom.console.expect("x")


@pytest.mark.parametrize(
    ("number", "reason", "code"),
    [
        (0, "poweroff", 0),
        (1, "reboot", 0),
        (2, "suspend", 0),
        (3, "crash", 3),
        (4, "watchdog", 3),
        (5, "soft_reset", 0),
        (77, "reason 77", 3),
    ],
)
def test_every_way_to_shut_down(tiny: Callable[[bytes], Path], number: int, reason: str, code: int) -> None:
    argument = 0xC0100100
    program = hypercall(29, 2, argument) + SPIN  # SCHEDOP_shutdown
    path = tiny(program.ljust(0x100, b"\xcc") + number.to_bytes(4, "little"))
    with launch(path, timeout=60) as dom:
        outcome = dom.wait()
    assert (outcome.reason, int(outcome.exit_code)) == (reason, code)
    assert (outcome.report is not None) == (code == 3)


def test_the_same_inputs_are_the_same_run(hello: Path) -> None:
    """Host time must not matter: the second run is slowed down wherever it can be."""

    def run(pause: float) -> tuple[object, str]:
        with launch(hello, console_output=lambda _data: time.sleep(pause), timeout=60) as dom:
            for command in ("about\n", "trap\n", "time\n", "halt\n"):
                dom.console.expect(PROMPT)
                time.sleep(20 * pause)
                dom.console.send(command)
            assert dom.wait().reason == "poweroff"
            return dom.stats(), dom.console.transcript

    first, second = run(0.0), run(0.001)
    assert first == second


def test_counts_are_what_the_guest_did(tiny: Callable[[bytes], Path]) -> None:
    calls = hypercall(17, 0, 0) * 3 + hypercall(55) * 2 + b"\x0f\xa2"  # xen_version, unknown, cpuid
    program = calls + hypercall(29, 2, 0xC0100200)
    path = tiny(program.ljust(0x200, b"\xcc") + bytes(4))
    with launch(path, timeout=60) as dom:
        assert dom.wait().reason == "poweroff"
        stats = dom.stats()
    assert stats.hypercalls == {"xen_version": 3, "sched_op": 1}
    assert stats.unknown_hypercalls == {55: 2}
    assert stats.traps == {}
    assert stats.code_bytes == len(program)
    assert stats.host.peak_rss > 1 << 20
    assert stats.host.wall_seconds > 0


def test_a_built_domain_runs_like_its_kernel(hello: Path, tmp_path: Path) -> None:
    from domainbuilder.build.image import save_image

    def run(what: object, **options: object) -> tuple[object, str]:
        with launch(what, timeout=60, **options) as dom:  # type: ignore[arg-type]
            dom.console.expect(PROMPT)
            dom.console.send("halt\n")
            assert dom.wait().reason == "poweroff"
            return dom.stats(), dom.console.transcript

    image = domainbuilder.build(hello, memory_mib=16, cmdline="ticks=2")
    save_image(image, tmp_path / "hello.core")
    from_kernel = run(hello, memory_mib=16, cmdline="ticks=2")
    assert from_kernel == run(image)
    assert from_kernel == run(tmp_path / "hello.core")


@pytest.mark.parametrize("cache", [True, False])
def test_a_packed_kernel_is_kept_unpacked_unless_it_is_not_to_be(
    hello: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image = hello.read_bytes() + bytes(LEAST_BYTES)
    packed = tmp_path / "vmlinuz"
    packed.write_bytes(bzimage(lzma.compress(image) + struct.pack("<I", len(image))))
    for _ in range(2):
        with domainbuilder.launch(packed, cache=cache) as dom:
            dom.console.expect(PROMPT)
    kept = [path.read_bytes() for path in tmp_path.glob("cache/domainbuilder/kernels/*")]
    assert kept == ([image] if cache else [])


def test_a_built_domain_has_its_memory_already(hello: Path) -> None:
    image = domainbuilder.build(hello, memory_mib=16)
    with pytest.raises(BuildError, match="already"):
        launch(image, memory_mib=32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpus": 0}, "vCPUs"),
        ({"vcpus": 33}, "vCPUs"),
        ({"timeout": 0.0}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"max_guest_seconds": -1.0}, "above 0"),
        ({"max_guest_seconds": float("inf")}, "finite"),
        ({"memory_mib": 0}, "memory|pages"),
        ({"memory_mib": 1}, "memory|pages"),
    ],
)
def test_options_that_cannot_be(hello: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        launch(hello, **options)  # type: ignore[arg-type]


def test_a_closed_domain_keeps_what_it_was(hello: Path) -> None:
    with launch(hello, memory_mib=8) as dom:
        dom.console.expect("Hello")
    dom.close()
    assert "Hello" in dom.console.transcript
    assert dom.stats().code_bytes > 0
    with pytest.raises(RuntimeError, match="closed"):
        dom.wait()
    with pytest.raises(RuntimeError, match="closed"):
        dom.console.send("x")


def test_domains_leave_nothing_open(hello: Path) -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().count("/dev/zero")
        return len(os.listdir("/proc/self/fd")), maps  # noqa: PTH208

    def once() -> None:
        with launch(hello, memory_mib=8) as dom:
            dom.console.expect("Hello")

    once()
    before = left()
    for _ in range(3):
        once()
    assert left() == before


def test_wall_time_holds_for_guests_that_make_ticks_last(
    tiny: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks of 50 ms of guest time, and a guest that spends this host's time in hypercalls."""
    module = import_module("domainbuilder.launch.runner")
    monkeypatch.setattr(module, "_TICK_NS", 50_000_000)
    monkeypatch.setattr(import_module("domainbuilder.launch.watchdog"), "GRACE", 0.05)
    many = hypercall(35, 0, 0)
    with launch(tiny(many + b"\xeb" + bytes([254 - len(many)]))) as dom:
        assert dom.wait(timeout=0.1).reason == "timeout"
        stats = dom.stats()
    assert stats.guest_ns < 50_000_000
    assert stats.guest_ns == stats.code_bytes + NS_PER_EXIT * stats.hypercalls["sysctl"]


INTERRUPTED = """
import os, signal, sys, threading
from domainbuilder.launch.domain import launch

with launch(sys.argv[1], timeout=60) as dom:
    for _ in range(20):
        timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            print(dom.wait())
        except KeyboardInterrupt:
            print("interrupted")
        timer.join()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
CALL = hypercall(17, 0, 0)


@pytest.mark.parametrize("code", [SPIN, CALL + b"\xeb" + bytes([254 - len(CALL)])])
def test_ctrl_c_is_never_lost(tiny: Callable[[bytes], Path], code: bytes) -> None:
    """In the emulator, or in one of its callbacks, where Python would swallow an exception."""
    line = [sys.executable, "-c", INTERRUPTED, str(tiny(code))]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["interrupted"] * 20, "")


def test_an_interrupt_outside_of_a_run_is_raised_at_once(hello: Path) -> None:
    with launch(hello) as dom, pytest.raises(SystemExit):
        dom.interrupt(SystemExit(143))


def test_an_interrupt_while_output_is_written(hello: Path) -> None:
    def sink(_data: bytes) -> None:
        dom.interrupt(SystemExit(143))
        raise AssertionError("went on")

    with launch(hello, console_output=sink, timeout=60) as dom, pytest.raises(SystemExit):
        dom.wait()


def test_the_digest_has_memory_that_a_domain_grew_into(hello: Path) -> None:
    """By a frame and what is in it, as XENMEM_populate_physmap gives one."""
    with launch(hello, 4, maxmem_mib=8, timeout=60) as dom:
        dom.console.expect("^hello> ")
        frames, seen = dom.machine.host.frames, [dom.memory_sha256()]
        pages = [frames.alloc_domheap_page(dom.domain_id) for _ in range(2)]
        assert -1 not in pages
        seen.append(dom.memory_sha256())
        dom.machine.mem.view[pages[1] * 4096] ^= 1
        seen.append(dom.memory_sha256())
        frames.free_domheap_page(pages[0])
        seen.append(dom.memory_sha256())
        assert len(set(seen)) == 4
        frames.free_domheap_page(pages[1])
        assert dom.memory_sha256() == seen[0]
