"""The real gdb with real guests: what it finds, and that the guest is the one that it is without."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.domainbuilder.tiny_guest import CODE, SPIN, hypercall, kernel, mov
from tests.needs import find_tool

TIMEOUT = 120
COUNT = mov("ecx", 10) + b"\x40\x49\x75\xfc"  # inc eax; dec ecx; jnz
DATA = CODE + 0x1800
SHUTDOWN = hypercall(29, 2, CODE + 0x1000)


@contextmanager
def launched(
    folder: Path, kernel_file: Path, *options: str, command: str = "launch"
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A launch that listens for gdb, and where."""
    path = folder / "gdb.sock"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "domainbuilder", command, kernel_file, "--gdb", f"unix:{path}",
            "--timeout", str(TIMEOUT), *options,
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not path.exists():
            if process.poll() is not None:
                pytest.fail(process.communicate()[1])
            time.sleep(0.02)
        yield process, path
    finally:
        process.kill()
        process.communicate()


def gdb_command(
    *commands: str, where: object, mode: str = "remote", program: Path | None = None
) -> list[str]:
    """The command line of a gdb that connects there and does these."""
    line = [find_tool("gdb"), "-nx", "-batch", "-iex", "set sysroot /"]
    for command in ("set pagination off", f"target {mode} {where}", *commands):
        line += ["-ex", command]
    return line if program is None else [*line, str(program)]


def gdb(where: Path | str, *commands: str, program: Path | None = None) -> str:
    """What gdb says to these commands."""
    done = subprocess.run(
        gdb_command(*commands, where=where, program=program),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def counts(stderr: str) -> str:
    """What --stats has that is the same in each run."""
    text = stderr[stderr.index("hypercalls ") :] if "hypercalls " in stderr else ""
    text = re.sub(r"^  answered by the compiled core.*\n(    .*\n)*", "", text, flags=re.MULTILINE)
    return re.sub(r"^ *(wall time|peak memory).*\n", "", text, flags=re.MULTILINE)


def without_gdb(kernel_file: Path, *options: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", kernel_file, "--stats", *options],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return done.stdout, counts(done.stderr)


def test_a_session_with_a_kernel_that_has_symbols(tmp_path: Path, debug_pvkernel: Path) -> None:
    """Breakpoint by name, backtrace with lines, steps, finish, a watched variable; the run is the same."""
    with launched(tmp_path, debug_pvkernel, "--stats") as (process, path):
        text = gdb(
            path,
            "break spawn", "continue", "backtrace", "next", "stepi", "finish",
            "delete", "watch need_resched", "continue", "continue", "delete",
            "break shutdown if reason == 0", "continue", "print reason", "delete", "continue",
            program=debug_pvkernel,
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert re.search(r"Breakpoint 1, spawn .*sched\.c:\d+", text)
    assert re.search(r"#1 .* run_processes \(.*main\.c:16\n#2 .* start_kernel \(.*main\.c:\d+", text)
    assert re.search(r"^0x[0-9a-f]+ in run_processes .*main\.c:16$", text, re.MULTILINE)
    assert len(re.findall(r"watchpoint 2: need_resched\s+Old value = \d\s+New value = \d", text)) == 2, text
    assert "$1 = 0" in text
    assert "exited normally" in text
    assert (stdout, counts(stderr)) == without_gdb(debug_pvkernel)
    assert process.returncode == 0


def test_back_in_time(tmp_path: Path, debug_pvkernel: Path) -> None:
    """Back to who wrote a variable, over a hypercall, to the start; then on, to the same end."""
    with launched(tmp_path, debug_pvkernel, "--stats") as (process, path):
        text = gdb(
            path,
            "break shutdown", "continue", "watch need_resched", "reverse-continue", "reverse-continue",
            "delete", "reverse-stepi", "reverse-stepi", "print $eip", "stepi", "stepi", "reverse-finish",
            "reverse-continue", "print $eip", "continue",
            program=debug_pvkernel,
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    changes = re.findall(r"Old value = (\d)\s+New value = (\d)\s+(\w+)", text)
    assert changes == [("0", "1", "schedule"), ("1", "0", "on_timer")]
    assert "No more reverse-execution history" in text
    assert "startup_xen" in text.rsplit("No more", 1)[1]
    assert (stdout, counts(stderr)) == without_gdb(debug_pvkernel)


def test_back_from_a_crash(tmp_path: Path) -> None:
    guest = tmp_path / "crash.elf"
    guest.write_bytes(kernel(mov("eax", 0x1234) + mov("eax", 0x5678) + b"\x0f\x0b"))
    with launched(tmp_path, guest, "-m", "16") as (process, path):
        text = gdb(
            path,
            "monitor trace on",
            "continue",
            "monitor trace",
            "reverse-stepi",
            "reverse-stepi",
            "print/x $eax",
            "continue",
            "print/x $eax",
            "continue",
        )
        assert process.wait(TIMEOUT) == 3
    assert re.search(r"vcpu 0 0xc[0-9a-f]+ (Trap|Exception|Schedule)", text)
    assert "$1 = 0x1234" in text
    assert "$2 = 0x5678" in text


def test_two_vcpus_are_threads(tmp_path: Path, conformance_guest: Callable[[str], Path]) -> None:
    guest = conformance_guest("vcpus-64")
    options = ("--vcpus", "2", "-m", "32")
    with launched(tmp_path, guest, *options, "--stats") as (process, path):
        text = gdb(
            path, "info threads", "hbreak *0", "delete", "monitor trace on",
            "python\nimport gdb\nfor _ in range(30):\n    gdb.execute('stepi', to_string=True)\nend",
            "info registers rip cr3 kernel_mode vcpu_id", "continue",
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert "vCPU 0, runnable, kernel mode" in text
    assert re.search(r"^vcpu_id +0x0", text, re.MULTILINE)
    assert (stdout, counts(stderr)) == without_gdb(guest, *options)


def test_ctrl_c_in_a_busy_loop_then_detach_and_attach(tmp_path: Path) -> None:
    guest = tmp_path / "spin.elf"
    guest.write_bytes(kernel(SPIN))
    with launched(tmp_path, guest, "-m", "16") as (process, path):
        line = [find_tool("gdb"), "-nx", "-q", "-iex", "set sysroot /", "-ex", f"target remote {path}"]
        session = subprocess.Popen(
            [*line, "-ex", "echo go\\n", "-ex", "continue"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert session.stdout is not None
        seen = ""
        while "Continuing" not in seen:
            seen += session.stdout.read(1)
        time.sleep(0.5)
        os.kill(session.pid, signal.SIGINT)
        rest, _ = session.communicate("print $eip\ndetach\nquit\n", timeout=TIMEOUT)
        assert "SIGINT" in rest
        assert f"{CODE:#x}" in rest
        again = gdb(path, "print $eip", "monitor map $eip", "kill")
        assert f"{CODE:#x}" in again
        assert process.wait(TIMEOUT) == 0


def test_conditions_are_evaluated_here(tmp_path: Path) -> None:
    guest = tmp_path / "count.elf"
    guest.write_bytes(kernel(COUNT + SHUTDOWN))
    with launched(tmp_path, guest, "-m", "16") as (_, path):
        text = gdb(
            path, "set breakpoint condition-evaluation target", f"hbreak *{CODE + 5} if $ecx == 3",
            "continue", "print $ecx", "info breakpoints", "p $eax = 77", "p $eax",
            f"set {{int}}{DATA} = 5", f"p *(int *){DATA}", "delete", "continue",
        )  # fmt: skip
    assert "$1 = 3" in text
    assert "(target evals)" in text
    assert "$3 = 77" in text
    assert "$4 = 5" in text or "$5 = 5" in text
    assert "exited normally" in text


def test_a_crash_is_looked_at(tmp_path: Path) -> None:
    guest = tmp_path / "crash.elf"
    guest.write_bytes(kernel(mov("eax", 0x1234) + b"\x0f\x0b"))
    with launched(tmp_path, guest, "-m", "16") as (process, path):
        text = gdb(path, "continue", "print/x $eax", "continue")
        assert process.wait(TIMEOUT) == 3
    assert "SIGSEGV" in text
    assert "$1 = 0x1234" in text


def test_grub_by_address(tmp_path: Path, guest_kernel: Callable[[str], Path]) -> None:
    grub = guest_kernel("grub-x86_64-xen.bin")
    options = ("-m", "64", "--max-guest-seconds", "0.05")
    with launched(tmp_path, grub, *options, "--stats") as (process, path):
        text = gdb(
            path,
            "p $entry = $rip",
            "stepi 20",
            "tbreak *$rip",
            "stepi",
            "x/2i $rip",
            "info threads",
            "detach",
        )
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert "vCPU 0" in text
    assert "=> 0x" in text
    assert (stdout, counts(stderr)) == without_gdb(grub, *options)


@pytest.mark.guest
def test_debian_by_address(tmp_path: Path, guest_kernel: Callable[[str], Path]) -> None:
    """A stock kernel, whose symbols are in its own tables: `monitor` names nothing, addresses do."""
    linux = guest_kernel("vmlinuz-bookworm-amd64")
    options = ("-m", "256", "--max-guest-seconds", "0.2", "--cmdline", "earlyprintk=xen")
    with launched(tmp_path, linux, *options, "--stats") as (process, path):
        text = gdb(
            path, "stepi 5", "watch -l *(long *)($rsp - 8)", "continue", "delete", "hbreak *$rip", "stepi 3",
            "info registers rip cr3", "monitor hypercalls", "detach",
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert "Hardware watchpoint" in text
    assert (stdout, counts(stderr)) == without_gdb(linux, *options)


@pytest.mark.guest
def test_a_stock_kernel_by_name(guest_kernel: Callable[[str], Path], tmp_path: Path) -> None:
    """Names out of the kernel's own kallsyms tables."""
    find_tool("gdb")
    line = [
        sys.executable,
        "-m",
        "domainbuilder",
        "gdb",
        str(guest_kernel("vmlinuz-bookworm-amd64")),
        "-m",
        "256",
    ]
    for command in (
        "break start_kernel", "continue", "break setup_arch", "continue", "reverse-continue", "print $rip",
    ):  # fmt: skip
        line += ["--ex", command]
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(
        [*line, "--batch"], capture_output=True, text=True, timeout=TIMEOUT, check=False, env=home
    )
    assert re.search(r"Breakpoint 1, 0x[0-9a-f]+ in start_kernel \(\)", done.stdout), done.stdout
    assert re.search(r"Breakpoint 2, 0x[0-9a-f]+ in setup_arch \(\)", done.stdout)
    assert done.stdout.count("in start_kernel ()") == 2
    assert "<start_kernel" in done.stdout.rsplit("$1", 1)[1]


def test_the_command_starts_both(tmp_path: Path) -> None:
    find_tool("gdb")
    guest = tmp_path / "count.elf"
    guest.write_bytes(kernel(COUNT + SHUTDOWN))
    done = subprocess.run(
        [
            sys.executable, "-m", "domainbuilder", "gdb", guest, "-m", "16", "--batch",
            "--ex", "stepi 3", "--ex", "print $ecx", "--ex", "continue",
        ],
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert "$1 = 9" in done.stdout
    assert "exited normally" in done.stdout
    assert "target remote" not in done.stdout + done.stderr  # gdb is there already
    assert done.returncode == 0


def test_a_port_is_this_machines_unless_said_otherwise(tmp_path: Path) -> None:
    guest = tmp_path / "count.elf"
    guest.write_bytes(kernel(COUNT + SHUTDOWN))

    def said(where: str) -> tuple[str, int]:
        process = subprocess.Popen(
            [sys.executable, "-m", "domainbuilder", "launch", guest, "-m", "16", "--gdb", where,
            "--timeout", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        text = ""
        while "target remote" not in text:
            line = process.stderr.readline()
            assert line, text
            text += line
        port = int(text.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"$k#6b")
        assert process.wait(TIMEOUT) == 0
        process.stderr.close()
        return text, port

    assert "anybody" not in said("0")[0]
    assert "anybody who reaches" in said("0.0.0.0:0")[0]


def test_a_socket_is_its_owners_alone_and_no_file_is_replaced(tmp_path: Path) -> None:
    guest = tmp_path / "count.elf"
    guest.write_bytes(kernel(COUNT + SHUTDOWN))
    with launched(tmp_path, guest, "-m", "16") as (_, path):
        assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").write_text("kept")
    for where, code in ((str(tmp_path / "file"), 2), ("99999", 2), ("unix:", 2)):
        done = subprocess.run(
            [sys.executable, "-m", "domainbuilder", "launch", guest, "-m", "16", "--gdb", where],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error") == 1
    assert (tmp_path / "file").read_text() == "kept"


def test_bookmarks(tmp_path: Path, debug_pvkernel: Path) -> None:
    """To a checkpoint and back to a later one; then what was written makes another run of it."""
    refresh = "maintenance flush register-cache"
    with launched(tmp_path, debug_pvkernel, "--stats") as (process, path):
        text = gdb(
            path,
            "monitor checkpoint", "break spawn", "continue", "monitor checkpoint", "delete",
            "break shutdown", "continue", "print $eip", "monitor checkpoint",
            "monitor restart 2", refresh, "info symbol $eip",
            "monitor restart 1", refresh, "info symbol $eip",
            "continue", "print $eip",  # the breakpoint in shutdown() is met as it was
            "monitor restart 2", refresh, "set var need_resched = 1", "monitor checkpoints",
            "stepi", "monitor checkpoints", "monitor restart 3", refresh, "print $eip", "monitor forget 2",
            "monitor restart 2", "monitor restart x", "delete", "continue",
            program=debug_pvkernel,
        )  # fmt: skip
        stdout, stderr = process.communicate(timeout=TIMEOUT)
    assert (
        len(re.findall(r"^checkpoint [123]: \d\.\d{9} s, vCPU 0, 0x[0-9a-f]+ \w+", text, re.MULTILINE)) == 3
    ), text
    assert re.findall(r"^(\w+)(?: \+ \d+)? in section", text, re.MULTILINE) == ["spawn", "startup_xen"], text
    stops = re.findall(r"^\$\d+ = .* (0x[0-9a-f]+ <\w+\+\d+>)", text, re.MULTILINE)
    assert len(stops) == 3, text
    assert len(set(stops)) == 1
    lists = text.split("1: 0.000000000 s")
    assert "of another run" not in lists[1]
    assert lists[-1].count("of another run") == 1
    assert "checkpoint 2 is forgotten" in text
    assert text.count("no such checkpoint") == 2
    assert (stdout, counts(stderr)) == without_gdb(debug_pvkernel)


def test_a_restored_domain_in_gdb(tmp_path: Path, debug_pvkernel: Path) -> None:
    saved = tmp_path / "saved"
    command = [sys.executable, "-m", "domainbuilder"]
    subprocess.run(
        [*command, "launch", debug_pvkernel, "--save-at", "0.001", "-o", saved],
        stdin=subprocess.DEVNULL, check=True, capture_output=True, timeout=TIMEOUT,
    )  # fmt: skip
    with launched(tmp_path, saved, "--stats", command="restore") as (process, path):
        text = gdb(
            path,
            "break shutdown", "continue", "watch need_resched", "reverse-continue", "delete", "continue",
            program=debug_pvkernel,
        )  # fmt: skip
        _, stderr = process.communicate(timeout=TIMEOUT)
    assert re.search(r"Old value = 0\s+New value = 1\s+schedule", text), text
    assert "exited normally" in text
    assert counts(stderr) == without_gdb(debug_pvkernel)[1]


def test_gdbs_own_commands_are_ours(debug_pvkernel: Path) -> None:
    """`checkpoint` and `restart` of a gdb that domainbuilder has started."""
    find_tool("gdb")
    commands = "checkpoint", "break spawn", "continue", "restart 1", "info checkpoints", "kill"
    line = [sys.executable, "-m", "domainbuilder", "gdb", str(debug_pvkernel), "--batch"]
    for command in commands:
        line += ["--ex", command]
    done = subprocess.run(
        line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert re.search(r"^Breakpoint 1, spawn .*\n#0 .*startup_xen", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^1: 0\.0", done.stderr, re.MULTILINE), done.stderr
