"""Several domains of a host in one gdb, as its processes: the real gdb, and the run that it is without."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest

from domainbuilder import Host
from domainbuilder.errors import BuildError
from domainbuilder.launch.run_stats import Statistics
from domainbuilder.launch.running import RunningDomain
from hvcore.debug.gdb.packets import Packet, PacketReader, packet
from tests.domainbuilder.launch.test_gdb import gdb_command
from tests.domainbuilder.tiny_guest import CODE, UD2, hypercall, kernel, mov

TIMEOUT = 120
LOOP = CODE + 10
DATA = CODE + 0x1800
SHUTDOWN = hypercall(29, 2, CODE + 0x1000)


def counting(number: int, end: bytes = SHUTDOWN) -> bytes:
    """It counts down in ECX, keeps EAX in memory, and ends."""
    loop = (
        b"\x40\xa3" + DATA.to_bytes(4, "little") + b"\x49\x75\xf7"
    )  # inc eax; mov [DATA], eax; dec ecx; jnz
    return kernel(mov("eax", 0) + mov("ecx", number) + loop + end)


@pytest.fixture
def guests(tmp_path: Path) -> list[Path]:
    """One that counts to 10, and one that counts to 20,000."""
    paths = [tmp_path / "first.elf", tmp_path / "second.elf"]
    for path, number in zip(paths, (10, 20_000), strict=True):
        path.write_bytes(counting(number))
    return paths


def same(stats: Statistics) -> tuple[object, ...]:
    return stats.hypercalls, stats.traps, stats.code_bytes, stats.guest_ns, stats.events_delivered


def run(
    guests: Sequence[Path], folder: Path, commands: Sequence[str] = ()
) -> tuple[str, list[RunningDomain]]:
    """What gdb says to the commands, and the domains after their end; without commands there is no gdb."""
    said = ""
    with Host(memory_mib=64) as host:
        doms = [host.launch(path, memory_mib=16, timeout=TIMEOUT, name=path.stem) for path in guests]
        process = None
        with host.gdb(str(folder / "sock")) if commands else nullcontext() as server:
            if server is not None:
                line = gdb_command(*commands, where=server.address, mode="extended-remote")
                process = subprocess.Popen(
                    line,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            for dom in doms:
                dom.wait()
        if process is not None:
            try:
                said, _ = process.communicate(timeout=TIMEOUT)
            finally:
                process.kill()
    return said, doms


class Client:
    """What gdb says, without a gdb."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(path)
        self._reader = PacketReader()

    def ask(self, data: bytes) -> bytes:
        self._socket.sendall(packet(data))
        while True:
            for item in self._reader.feed(self._socket.recv(4096)):
                if isinstance(item, Packet):
                    with suppress(OSError):  # the last answer may be all there is
                        self._socket.sendall(b"+")
                    return item.data

    def close(self) -> None:
        self._socket.close()


ATTACH = ("add-inferior", "inferior 2", "attach 2", "inferior 1")


def test_one_stands_while_the_other_goes_on(tmp_path: Path, guests: list[Path]) -> None:
    _, without = run(guests, tmp_path)
    text, doms = run(
        guests, tmp_path,
        (
            "info os processes", *ATTACH, "info inferiors", "info threads",
            f"hbreak *{LOOP} thread 1.1 if $ecx == 5", "continue", "print $ecx",
            "inferior 2", "print $eip", "continue", "inferior 1", "print $ecx", "delete", "continue",
        ),
    )  # fmt: skip
    assert f"2          second     {guests[1]}" in text
    assert f"process 1         1 (extended-remote {tmp_path / 'sock'}) {guests[0]}" in text
    assert f"process 2         1 (extended-remote {tmp_path / 'sock'}) {guests[1]}" in text
    assert "1.1  Thread 1.1 (vCPU 0" in text
    assert "2.1  Thread 2.1 (vCPU 0" in text
    assert "$1 = 5" in text
    assert f"$2 = (void (*)()) {CODE:#x}" in text  # it has not moved
    assert text.index("[Inferior 2 (process 2) exited normally]") < text.index("$3 = 5")
    assert "[Inferior 1 (process 1) exited normally]" in text.replace("\n", "")
    assert [same(dom.stats()) for dom in doms] == [same(dom.stats()) for dom in without]


def test_both_go_on_and_meet_points_of_their_own(tmp_path: Path, guests: list[Path]) -> None:
    """A breakpoint at an address that both have is met by each; a watchpoint, by the one that it is of."""
    _, without = run(guests, tmp_path)
    text, doms = run(
        guests, tmp_path,
        (
            *ATTACH, "set schedule-multiple on", f"hbreak *{LOOP} if $ecx < 3",
            "inferior 2", f"hbreak *{LOOP} if $ecx == 19000", "inferior 1",
            "continue", "print $_inferior * 100000 + $ecx", "continue", "print $_inferior * 100000 + $ecx",
            "continue", "print $_inferior * 100000 + $ecx", "delete",
            "inferior 2", f"watch *(int *){DATA} if *(int *){DATA} == 1500", "continue",
            "print $ecx", "print $_inferior", "delete", "continue",
        ),
    )  # fmt: skip
    values = {line.split(" = ")[1] for line in text.splitlines() if line.startswith(("$1 =", "$2 =", "$3 ="))}
    assert values == {"100002", "100001", "219000"}, text
    assert "$4 = 18501" in text
    assert "$5 = 2" in text
    assert [same(dom.stats()) for dom in doms] == [same(dom.stats()) for dom in without]


def test_one_crashes_and_the_other_is_let_go(tmp_path: Path, guests: list[Path]) -> None:
    guests[0].write_bytes(counting(3, UD2))
    _, without = run(guests, tmp_path)
    text, doms = run(
        guests, tmp_path,
        (
            *ATTACH, "set schedule-multiple on", "continue", "print $eip", "set schedule-multiple off",
            "inferior 2", "stepi", "print $eip", "inferior 1", "continue", "inferior 2", "detach",
        ),
    )  # fmt: skip
    assert "SIGSEGV" in text
    assert re.search(r"\$2 = \(void \(\*\)\(\)\) 0xc01000\w\w", text), text
    assert "Program terminated with signal SIGSEGV" in text
    assert "[Inferior 2 (process 2) detached]" in text
    assert [str(dom.outcome and dom.outcome.reason) for dom in doms] == ["crashed", "poweroff"]
    assert [same(dom.stats()) for dom in doms] == [same(dom.stats()) for dom in without]


def test_what_is_there_to_attach_to(tmp_path: Path, guests: list[Path]) -> None:
    """By the protocol itself: a domain that is launched later, and none twice, or that there is none of."""
    with Host(memory_mib=64) as host:
        with pytest.raises(RuntimeError, match="no domain"):
            host.gdb(str(tmp_path / "sock"))
        first = host.launch(guests[0], memory_mib=16, timeout=TIMEOUT)
        with host.gdb(str(tmp_path / "sock")) as server:
            with pytest.raises(RuntimeError, match="already"):
                host.gdb(str(tmp_path / "other"))
            second = host.launch(guests[1], memory_mib=16, timeout=TIMEOUT)
            client = Client(str(server.address))
            answers: list[bytes] = []

            def talk() -> None:
                asked = (
                    b"qSupported:multiprocess+", b"!", b"?", b"vAttach;7", b"vAttach;1", b"vAttach;2", b"qC",
                    b"Hgp1.1", b"qC", b"Hgp2.0", b"qC", b"Tp2.2", b"Hgp3.1", b"D;2", b"Hgp2.1", b"D;1",
                )  # fmt: skip
                answers.extend(client.ask(text) for text in asked)
                client.close()

            talking = threading.Thread(target=talk)
            talking.start()
            assert [first.wait().reason, second.wait().reason] == ["poweroff", "poweroff"]
            talking.join(TIMEOUT)
        with host.gdb(str(tmp_path / "sock"), waits=False):
            pass
        with pytest.raises(BuildError):
            host.gdb("unix:")
    assert b"multiprocess+" in answers.pop(0)
    assert answers == [
        b"OK", b"T02thread:p1.1;", b"E01", b"E01", b"T05thread:p2.1;", b"QCp2.1", b"OK", b"QCp1.1", b"OK",
        b"QCp2.1", b"E01", b"E01", b"OK", b"E01", b"OK",
    ]  # fmt: skip


def test_a_gdb_that_knows_of_no_processes_has_the_first(tmp_path: Path, guests: list[Path]) -> None:
    """The other domain goes on beside it."""
    with Host(memory_mib=64) as host:
        first, second = (host.launch(path, memory_mib=16, timeout=TIMEOUT) for path in guests)
        with host.gdb(str(tmp_path / "sock")) as server:
            client = Client(str(server.address))
            answers: list[bytes] = []

            def talk() -> None:
                answers.extend(
                    client.ask(text) for text in (b"qSupported:", b"qC", b"qfThreadInfo", b"vCont;c")
                )
                client.close()

            talking = threading.Thread(target=talk)
            talking.start()
            assert [second.wait().reason, first.wait().reason] == ["poweroff", "poweroff"]
            talking.join(TIMEOUT)
    assert answers[1:] == [b"QC1", b"m1", b"W00"]


def test_several_configurations(tmp_path: Path, guests: list[Path]) -> None:
    """`create A B --gdb`: break in the second, see the first end, and each is followed as ever."""
    configs = []
    for path in guests:
        configs.append(path.with_suffix(".cfg"))
        configs[-1].write_text(f'name = "{path.stem}"\nkernel = "{path}"\nmemory = 16\n')
    where = tmp_path / "sock"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "domainbuilder", "create", *configs, "--gdb", f"unix:{where}",
            "--timeout", "100",
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "target extended-remote" not in (line := process.stderr.readline()):
            assert line
        commands = (
            *ATTACH, "set schedule-multiple on", "inferior 2", f"hbreak *{LOOP} if $ecx == 15000",
            "inferior 1", "continue", "print $_inferior * 100000 + $ecx", "delete", "continue",
            "inferior 2", "continue",
        )  # fmt: skip
        said = subprocess.run(
            gdb_command(*commands, where=where, mode="extended-remote"),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
        _, stderr = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    text = said.stdout + said.stderr
    assert "[Inferior 1 (process 1) exited normally]" in text
    assert "$1 = 215000" in text
    assert process.returncode == 0
    assert "[Inferior 2 (process 2) exited normally]" in text
    assert "first: the guest powered off" in stderr
    assert "second: the guest powered off" in stderr
