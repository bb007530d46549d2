"""What is told of a guest whose time was up, against what its code does; and that looking changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from domainbuilder.launch.crash_report import HypercallRecord
from domainbuilder.launch.domain import launch
from domainbuilder.launch.session import ExpectError
from domainbuilder.launch.stop_report import Repeated, StopReport, collapsed
from domainbuilder.launch.stop_text import render_stop
from domainbuilder.visible import visible
from tests.domainbuilder.tiny_guest import CODE, STACK_TOP, hypercall, kernel, mov

FUNCTION = 2
EVENT_CHANNEL_OP, SCHED_OP, SET_TIMER_OP = 32, 29, 15
EVTCHNOP_SEND = 4


def stopped(
    tmp_path: Path, code: bytes, symbols: list[tuple[str, int, int, int]], seconds: float = 0.05
) -> StopReport:
    path = tmp_path / "tiny.elf"
    path.write_bytes(kernel(code, symbols))
    with launch(path, memory_mib=8, timeout=60, max_guest_seconds=seconds) as dom:
        assert dom.wait().reason == "timeout"
        return dom.look()


def test_a_loop_of_hypercalls(tmp_path: Path) -> None:
    """It sends to port 2, the console's, for ever: the port lies on its stack."""
    setup = (
        mov("esp", STACK_TOP) + b"\x6a\x02" + b"\xb8" + (5_000_000_000).to_bytes(8, "little")[:4]
    )  # push 2
    setup += hypercall(SET_TIMER_OP, 2_000_000_000, 1)
    send = mov("ebx", EVTCHNOP_SEND) + mov("ecx", STACK_TOP - 4) + mov("eax", EVENT_CHANNEL_OP) + b"\xcd\x82"
    code = setup + send
    code += b"\xeb" + (-len(send) - 2).to_bytes(1, "little", signed=True)
    report = stopped(
        tmp_path, code, [("start", CODE, len(setup), FUNCTION), ("loop", CODE + len(setup), 64, FUNCTION)]
    )
    (vcpu,) = report.vcpus
    assert (vcpu.vcpu, vcpu.state, vcpu.symbol.partition("+")[0]) == (0, "running", "loop")
    assert vcpu.stack[0] == 2
    assert vcpu.stack_address == STACK_TOP - 4
    assert any(line.current for line in vcpu.code)
    assert report.guest_ns == pytest.approx(0.05e9, rel=0.01)
    *_, row = report.hypercalls
    assert row.times >= 15
    assert row.calls[0].command == "EVTCHNOP_send, port 2"
    assert dict(report.recently)["event_channel_op"] > 10_000
    (timer,) = report.timers
    assert timer.what == "VIRQ_TIMER of vcpu 0, once"
    assert timer.in_ns > 0
    text = render_stop(report)
    assert "event_channel_op(EVTCHNOP_send, port 2, " in text
    assert "   16 times\n" in text or "   15 times\n" in text
    assert "VIRQ_TIMER of vcpu 0, once: in " in text
    assert text.endswith("the console's last lines:\n  (no output at all)\n")


def test_a_port_that_is_none_is_not_told(tmp_path: Path) -> None:
    """The argument of a call may have been overwritten since."""
    setup = mov("esp", STACK_TOP) + b"\x6a\x02"  # push 2
    send = mov("ebx", EVTCHNOP_SEND) + mov("ecx", STACK_TOP - 4) + mov("eax", EVENT_CHANNEL_OP) + b"\xcd\x82"
    spoil = b"\x58\x6a\x4d" + b"\xeb\xfe"  # pop, push 77, and for ever
    symbols = [("start", CODE, 64, FUNCTION)]
    report = stopped(tmp_path, setup + send + spoil, symbols)
    *_, row = report.hypercalls
    assert row.calls[-1].command == "EVTCHNOP_send"


def test_an_argument_that_cannot_be_read_is_no_port(tmp_path: Path) -> None:
    """Not port 0 either, which no guest uses."""
    send = mov("ebx", EVTCHNOP_SEND) + mov("ecx", 0x1000) + mov("eax", EVENT_CHANNEL_OP) + b"\xcd\x82"
    report = stopped(tmp_path, send + b"\xeb\xfe", [("start", CODE, 64, FUNCTION)])
    *_, row = report.hypercalls
    assert (row.calls[-1].command, row.calls[-1].result_name) == ("EVTCHNOP_send", "-EFAULT")


def test_events_that_nobody_takes(sample_guest: Callable[[str], Path]) -> None:
    """hello at its prompt: blocked, nothing pending; what is typed is an event of the console's port."""
    with launch(sample_guest("hello"), timeout=60) as dom:
        dom.console.expect("hello> ")
        dom.wait()
        report = dom.look()
        (vcpu,) = report.vcpus
        assert (vcpu.state, vcpu.event_mask, vcpu.upcall_pending, report.ports) == (
            "blocked",
            False,
            False,
            (),
        )
        assert report.console.endswith("hello> ")
        dom.machine.console.input(b"x")
        (port,) = dom.look().ports
        assert (port.port, port.vcpu, port.masked) == (2, 0, False)
        assert port.binding.endswith("of domain 0")
        assert dom.look().vcpus[0].upcall_pending


def test_looking_changes_nothing(sample_guest: Callable[[str], Path]) -> None:
    def run(*, looks: bool) -> tuple[str, object]:
        with launch(sample_guest("hello"), timeout=60, cmdline="ticks=4") as dom:
            for pattern in ("tick 1", "tick 2", "tick 4", "hello> "):
                dom.console.expect(pattern)
                if looks:
                    for _ in range(3):
                        dom.look()
            dom.console.send("trap\ntime\nhalt\n")
            assert dom.wait().reason == "poweroff"
            return dom.console.transcript, dom.stats()

    assert run(looks=True) == run(looks=False)


def record(name: str) -> HypercallRecord:
    return HypercallRecord(0, name, "", (), 0, "0", (), ())


@pytest.mark.parametrize(
    ("calls", "told"),
    [
        ("", []),
        ("abc", [("a", 1), ("b", 1), ("c", 1)]),
        ("aaab", [("a", 3), ("b", 1)]),
        ("xababab", [("x", 1), ("ab", 3)]),
        ("abcabcabcab", [("abc", 3), ("a", 1), ("b", 1)]),
        ("aabaabaab", [("aab", 3)]),
    ],
)
def test_repeats_are_collapsed(calls: str, told: list[tuple[str, int]]) -> None:
    rows = list(collapsed([record(name) for name in calls]))
    flat = [("".join(call.name for call in row.calls), row.times) for row in rows]
    assert [(name, times) for name, times in flat if times > 1] == [(n, t) for n, t in told if t > 1]
    assert "".join(name * times for name, times in flat) == calls
    assert all(isinstance(row, Repeated) for row in rows)


def test_control_characters_are_visible() -> None:
    assert visible("plain \u00e9") == "plain \u00e9"
    assert visible("\x1b[2J\x07red\tend\x00") == "\\x1b[2J\\x07red\tend\\x00"


def test_the_command_and_the_exception_quote_the_same_lines(sample_guest: Callable[[str], Path]) -> None:
    guest = str(sample_guest("hello"))
    with launch(guest, timeout=60) as dom:
        dom.console.send("\x1b[31mred")
        with pytest.raises(ExpectError) as caught:
            dom.console.expect("never seen")
    quoted = caught.value.last_lines
    assert "  | hello> " in quoted
    assert "\x1b" not in str(caught.value)
    command = [
        sys.executable,
        "-m",
        "domainbuilder",
        "launch",
        guest,
        "--timeout",
        "60",
    ]
    script = ["--send", r"\x1b[31mred", "--expect", "never seen"]
    done = subprocess.run([*command, *script], capture_output=True, text=True, check=False)
    assert done.returncode == 1  # it can never be met
    assert quoted in done.stderr
    assert "vcpu#0 (blocked): no upcall is pending" in done.stderr
    done = subprocess.run(
        [*command, *script, "--format", "json"], capture_output=True, text=True, check=False
    )
    stop = json.loads(done.stderr)["stop"]
    assert [f"  | {line}" for line in stop["console"]] == quoted.splitlines()[1:]
    assert stop["vcpus"][0]["state"] == "blocked"


@pytest.mark.guest
def test_debians_kernel_with_two_vcpus(guest_kernel: Callable[[str], Path]) -> None:
    """Stopped in the middle of its boot: both vCPUs stand in functions."""
    kernel_file = guest_kernel("vmlinuz-bookworm-amd64")
    with launch(kernel_file, 256, vcpus=2, cmdline="console=hvc0", timeout=200) as dom:
        dom.console.expect("Brought up 1 node, 2 CPUs")
        report = dom.look()
    assert [vcpu.vcpu for vcpu in report.vcpus] == [0, 1]
    for vcpu in report.vcpus:
        names = [frame.symbol.partition("+")[0] for frame in vcpu.backtrace]
        assert vcpu.registers.kernel_mode
        assert all(names)
        assert {"cpu_startup_entry", "ret_from_fork", "start_kernel"} & set(names)
    assert report.symbols == "kallsyms tables"
    assert any("VIRQ_TIMER of vcpu" in timer.what for timer in report.timers)
    assert "Brought up" in report.console
