"""Debian's own kernels, as shipped, to busybox and back: what a 64-bit domU has to be able to do.

A boot takes seconds, so each is made once and looked at from all sides; what is found wrong is told together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pexpect
import pytest

pytestmark = pytest.mark.guest

KERNELS = ("bookworm", "trixie")
TROUBLE = re.compile(
    r"WARNING|\bBUG\b|\bOops|Call Trace|cut here|\bstall|lockup|hung task|[Bb]ad page|unchecked MSR|"
    r"segfault|general protection|protection fault|\[Firmware Bug\]|nobody cared"
)
COMMAND = (sys.executable, "-m", "domainbuilder", "launch")
PROMPT = "guest# "


def numbers(count: int) -> str:
    """The sum that `sha256sum` prints of `seq 1 count`."""
    return hashlib.sha256("".join(f"{i}\n" for i in range(1, count + 1)).encode()).hexdigest() + "  -"


def values(lines: Iterable[str]) -> dict[str, str]:
    """Lines of a name and a value."""
    return {name: value.strip() for name, _, value in (line.strip().partition(" ") for line in lines) if name}


def storm(boot: Any) -> None:
    assert boot.section("storm") == ["background 120", "foreground 120", "subshells 60"]


def pipes(boot: Any) -> None:
    zeros = hashlib.sha256(bytes(64 * 1024 * 32)).hexdigest() + "  -"
    expected = [f"sum {sum(range(2001))}", "1000000", "5000", numbers(3000), numbers(3000), zeros]
    assert boot.section("pipes") == expected


def proc(boot: Any) -> None:
    lines = boot.section("proc")
    assert re.match(r"Linux version 6\.\d+\.\d+.*-amd64 ", lines[0])
    total, free = (int(line.split()[1]) for line in lines[1:3])
    assert 180_000 < total < 256 * 1024
    assert 100_000 < free < total
    assert int(lines[3]) >= 6  # text, data, heap, stack, vvar, vdso
    assert lines[4] == "4"  # stdin, stdout, stderr, and the directory itself
    assert lines[5].startswith("console=hvc0")
    assert lines[6] == "xen"
    assert lines[7] == "2007"


def signals(boot: Any) -> None:
    lines = [line for line in boot.section("signals") if line not in ("Terminated", "Killed")]
    assert lines == [
        "caught USR1", "after", "TERM 143", "KILL 137", "Segmentation fault", "SEGV 139", "timeout 143",
        "parent heard", "busy 5", "State:\tT (stopped)", "State:\tS (sleeping)", "continued 143", "y",
    ]  # fmt: skip


def sleep(boot: Any) -> None:
    slept, naps = (int(line.split()[1]) for line in boot.section("sleep"))
    assert 2000 <= slept < 2200  # of the guest's own milliseconds
    assert 200 <= naps < 600


def i386(boot: Any) -> None:
    lines = [line for line in boot.section("i386") if line != "Terminated"]
    assert lines == [
        "x86_64", numbers(3000), "subshells 40", "caught USR1", "after", "TERM 143", "100000"
    ]  # fmt: skip


def probed(boot: Any, width: int, least: int, gates: list[str]) -> None:
    lines = boot.section(f"probe{width}")
    assert [line for line in lines if line.startswith("FAIL")] == []
    good = [line for line in lines if line.startswith("ok ")]
    assert lines[-1:] == [f"probes {len(good)}"]
    assert len(good) >= least
    assert [line for line in lines if line.startswith("vdso gate")] == gates


def probes64(boot: Any) -> None:
    probed(boot, 64, 43, [])


def probes32(boot: Any) -> None:
    probed(boot, 32, 40, ["vdso gate syscall"])  # by CALLBACKTYPE_syscall32


def hypervisor(boot: Any) -> None:
    found = values(boot.section("hypervisor"))
    assert found["type"] == "xen"
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found["uuid"])
    assert (found["version/major"], found["version/minor"]) == ("4", "17")
    assert found["version/extra"].startswith(".")
    assert "xen-3.0-x86_64" in found["properties/capabilities"].split()
    assert found["properties/pagesize"] == "1000"
    assert found["properties/virtual_start"] == "ffff800000000000"
    # writable_descriptor_tables, auto_translated_physmap and supervisor_mode_kernel are not PV's
    assert int(found["properties/features"], 16) & 0b1110 == 0


def interrupts(boot: Any) -> None:
    text = "\n".join(boot.section("interrupts"))
    for name in ("timer0", "xenbus", "hvc_console"):
        match = re.search(rf"^ *\d+: +(\d+) .* {name}$", text, re.MULTILINE)
        assert match
        assert int(match[1]) > 0
    assert re.search(r"^ERR:\s+0$", text, re.MULTILINE)
    assert re.search(r"^SPU:(\s+0)+\s", text, re.MULTILINE)


def dmesg(boot: Any) -> None:
    lines = boot.section("dmesg")
    assert len(lines) > 150
    assert [line for line in lines if TROUBLE.search(line) and "This is not a bug" not in line] == []
    text = "\n".join(lines)
    assert "Hypervisor detected: Xen PV" in text
    assert "Checked W+X mappings: passed" in text
    events = "2-level" if "xen.fifo_events=0" in text else "FIFO-based"
    assert f"xen:events: Using {events} ABI" in text


def crash_kexec(boot: Any) -> None:
    assert any("Ignoring crashkernel for a Xen PV domain" in line for line in boot.section("dmesg"))


def consistent(boot: Any) -> None:
    assert boot.audit == []
    assert boot.stats.unknown_hypercalls == {}


USERLAND = (
    storm, pipes, proc, signals, sleep, i386, probes64, probes32, hypervisor, interrupts, dmesg, crash_kexec,
    consistent,
)  # fmt: skip


def problems(boot: Any, checks: Iterable[Callable[[Any], None]]) -> list[str]:
    """What the checks complain of, each with its name."""
    found = []
    for check in checks:
        try:
            check(boot)
        except (AssertionError, LookupError, ValueError) as error:
            found.append(f"{check.__name__}: {error!r}")
    return found


@pytest.fixture(scope="module")
def userland(
    ramdisk: Callable[..., Path], probes: dict[str, bytes], guest_kernel: Callable[[str], Path]
) -> Path:
    return ramdisk("userland.sh", {"busybox32": guest_kernel("busybox-i386").read_bytes(), **probes})


USERLAND_CMDLINE = "crashkernel=64M vsyscall=xonly"


@pytest.mark.parametrize("release", KERNELS)
def test_userland(
    release: str, guest_kernel: Callable[[str], Path], userland: Path, boot: Callable[..., Any]
) -> None:
    kernel = guest_kernel(f"vmlinuz-{release}-amd64")
    again = launch_again(kernel, userland)
    try:
        result = boot(kernel, userland, USERLAND_CMDLINE)
        ended_by(result, "poweroff")
        assert problems(result, USERLAND) == []
        same_as(again, result)
    finally:
        again.kill()
        again.wait()


def ended_by(boot: Any, reason: str) -> None:
    """The outcome comes first: what a boot that was cut short lacks is no news."""
    assert boot.outcome.reason == reason, f"{boot.outcome}; it said last:\n{boot.text[-1500:]}"


def launch_again(kernel: Path, ramdisk: Path) -> subprocess.Popen[bytes]:
    """The same boot in a process of its own, which hashes differently, by the command."""
    options = ("-m", "256", "--ramdisk", ramdisk, "--cmdline", f"console=hvc0 {USERLAND_CMDLINE}")
    return subprocess.Popen(
        [
            *COMMAND,
            kernel,
            *options,
            "--stats",
            "--format",
            "json",
            "--timeout",
            "1500",
            "--max-guest-seconds",
            "60",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )


def same_as(process: subprocess.Popen[bytes], first: Any) -> None:
    output, report = process.communicate(timeout=1500)
    assert process.returncode == 0
    assert output.decode(errors="replace") == first.text
    stats = json.loads(report)["statistics"]
    assert stats["code_bytes"] == first.stats.code_bytes
    assert stats["guest_ns"] == first.stats.guest_ns
    assert stats["tlb_flushes"] == first.stats.tlb_flushes
    assert stats["events_delivered"] == first.stats.events_delivered
    assert stats["hypercalls"] == dict(first.stats.hypercalls)


# -- two vCPUs


def cpus(boot: Any) -> None:
    assert boot.section("cpus") == ["2", "2", "0-1"]
    assert boot.section("pinned") == ["cpu 0 counted 30000", "cpu 1 counted 30000"]


def parallel(boot: Any) -> None:
    lines = boot.section("parallel")
    assert sorted(lines[:2]) == ["a 40", "b 40"]
    for line in lines[2:4]:
        user, _nice, system, _idle, _iowait, _irq, _softirq, steal = (int(n) for n in line.split()[1:9])
        assert user > 50  # hundredths of a second
        assert system > 20
        assert steal > 50  # the two share one processor


def migration(boot: Any) -> None:
    assert [line.split() for line in boot.section("migrate")] == [["10", "01"]]


def hotplug(boot: Any) -> None:
    assert boot.section("hotplug") == ["down 0", "0", "up 0", "0-1", "cpu 1"]


def smp_sleep(boot: Any) -> None:
    (slept,) = (int(line.split()[1]) for line in boot.section("sleep"))
    assert 1000 <= slept < 1200


def ipis(boot: Any) -> None:
    text = "\n".join(boot.section("interrupts"))
    for name, cpu in (("timer0", 0), ("timer1", 1), ("resched0", 0), ("resched1", 1), ("callfuncsingle1", 1)):
        match = re.search(rf"^ *\d+: +(\d+) +(\d+) .* {name}$", text, re.MULTILINE)
        assert match, name
        assert int(match[1 + cpu]) > 0, name
        assert int(match[2 - cpu]) == 0, name


@pytest.mark.parametrize(("release", "ending"), [("bookworm", "reboot"), ("trixie", "crash")])
def test_two_vcpus(
    release: str,
    ending: str,
    guest_kernel: Callable[[str], Path],
    ramdisk: Callable[..., Path],
    boot: Callable[..., Any],
) -> None:
    kernel = guest_kernel(f"vmlinuz-{release}-amd64")
    fifo_events = int(release == "bookworm")  # the other with two levels
    result = boot(kernel, ramdisk("smp.sh"), f"ending={ending} xen.fifo_events={fifo_events}", vcpus=2)
    checks = (cpus, parallel, migration, hotplug, smp_sleep, ipis, dmesg, consistent)
    ended_by(result, ending)
    assert problems(result, checks) == []
    assert int(result.outcome.exit_code) == {"reboot": 0, "crash": 3}[ending]
    if ending == "crash":
        assert "Kernel panic - not syncing: sysrq triggered crash" in result.text


# -- a person


def spawn(kernel: Path, ramdisk: Path) -> pexpect.spawn:
    arguments = [*COMMAND[1:], str(kernel), "-m", "256", "--ramdisk", str(ramdisk)]
    arguments += ["--cmdline", "console=hvc0 quiet", "--timeout", "240"]
    environment = {**os.environ, "TERM": "dumb"}
    return pexpect.spawn(COMMAND[0], arguments, timeout=120, encoding="utf-8", env=environment)


def test_an_interactive_session(guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]) -> None:
    child = spawn(guest_kernel("vmlinuz-bookworm-amd64"), ramdisk("shell.sh"))
    try:
        child.expect_exact(PROMPT)
        child.send("echo $((6 * 7)) answers\r")
        child.expect_exact("\n42 answers\r\n" + PROMPT)
        child.send("echo mistkae\x7f\x7f\x7fake\r")  # backspace is the guest's affair
        child.expect_exact("\nmistake\r\n" + PROMPT)
        child.send("sleep 1000\r")
        child.expect_exact("sleep 1000\r\n")
        child.send("\x03")  # to the guest, too: the console is raw
        child.expect_exact(PROMPT)
        child.send("echo status $?\r")
        child.expect_exact("\nstatus 130\r\n" + PROMPT)
        child.send("echo dear guest >/tmp/letter\r")
        child.expect_exact(PROMPT)
        child.send("cat /tmp/letter | tr a-z A-Z\r")
        child.expect_exact("\nDEAR GUEST\r\n" + PROMPT)
        child.send("poweroff -f\r")
        child.expect_exact("the guest powered off")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
    finally:
        child.close(force=True)


def is_raw(child: pexpect.spawn) -> bool:
    return not termios.tcgetattr(child.child_fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def leave(child: pexpect.spawn) -> None:
    child.send("\x1d")
    child.expect_exact("the console was closed")
    child.expect(pexpect.EOF)
    assert not is_raw(child)
    child.close()
    assert child.exitstatus == 0


def test_the_console_is_closed_while_the_kernel_boots(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]
) -> None:
    child = spawn(guest_kernel("vmlinuz-trixie-amd64"), ramdisk("shell.sh"))
    try:
        child.expect_exact("Ctrl-] closes it")
        leave(child)
    finally:
        child.close(force=True)


@pytest.mark.parametrize(
    ("release", "typed", "echoed"),
    [
        ("bookworm", "echo half a li", "echo half a li"),
        ("trixie", "yes all day\r", "\nall day\r\nall day\r\n"),
    ],
    ids=["idle", "busy"],
)
def test_the_console_is_closed_at_the_prompt(
    release: str, typed: str, echoed: str, guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path]
) -> None:
    """While the guest waits in the middle of a line, and while one of its programs prints without end."""
    child = spawn(guest_kernel(f"vmlinuz-{release}-amd64"), ramdisk("shell.sh"))
    try:
        child.expect_exact(PROMPT)
        child.send(typed)
        child.expect_exact(echoed)
        assert is_raw(child)
        leave(child)
    finally:
        child.close(force=True)
