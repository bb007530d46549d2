"""Live migration: the guest arrives as it was, by rounds; what goes wrong leaves it where it is."""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from domainbuilder import RunningDomain, SavedError, initramfs, launch, restore
from domainbuilder.saved import migrate as migration
from domainbuilder.saved.stream_read import Source, read_stream
from domainbuilder.saved.stream_restore import Restorer
from domainbuilder.saved.stream_save import saved_stream
from hvcore.pv.audit import audit
from tests.domainbuilder.saved.test_stream import verified

WIDTHS = ("32", "64")


class Other:
    """A listener that takes whatever comes, and answers with `answer`."""

    def __init__(self, path: Path, answer: bytes, most: int = 1 << 40) -> None:
        self.address = f"unix:{path}"
        self.received = bytearray()
        self.last = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._answer, self._most = answer, most
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with self._listener, self._listener.accept()[0] as sock, sock.makefile("rb") as file:

            def taken(size: int) -> bytes:
                data = file.read(min(size, self._most - len(self.received)))
                self.received += data
                return data

            with suppress(SavedError):  # where it is to have no more
                read_stream(Source("socket", taken), Restorer("socket"))
                sock.sendall(self._answer)
                self.last = file.readline()
                if self.last == b"go\n":
                    sock.sendall(b"here\n")

    def join(self) -> None:
        self._thread.join(60)


def read(data: bytes) -> Restorer:
    view, restorer = memoryview(data), Restorer("stream")
    source = Source("stream", lambda size: view[source.at : source.at + size])
    read_stream(source, restorer)
    return restorer


def memory(restorer: Restorer) -> tuple[str, bytes]:
    assert restorer.mem is not None
    return hashlib.sha256(restorer.mem.ram).hexdigest(), bytes(restorer.types)


def moves(
    dom: RunningDomain, path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[migration.Migration, bytes]:
    """Migrate, and hold what arrived to a save of the guest as it had suspended; that stream, too."""
    saved: list[bytes] = []
    hand_over = migration._Sender._hand_over

    def keeping(sender: migration._Sender) -> None:
        saved.append(b"".join(saved_stream(sender.machine)))
        hand_over(sender)

    monkeypatch.setattr(migration._Sender, "_hand_over", keeping)
    other = Other(path, b"ready\n")
    result = dom.migrate(other.address)
    other.join()
    assert other.last == b"go\n"
    assert len(other.received) == result.sent_bytes
    assert memory(read(bytes(other.received))) == memory(read(saved[0]))
    assert dom.closed
    return result, bytes(other.received)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_arrives_is_what_a_save_would_have_had(
    suspend_guests: dict[str, Path], width: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with launch(suspend_guests[width], 8, cmdline="rounds=1", max_guest_seconds=60) as dom:
        dom.console.expect("ready for round 1")
        result, _ = moves(dom, tmp_path / "socket", monkeypatch)
    assert result.rounds[0] == 2048
    assert 0 < result.rounds[-1] < 50
    assert len(result.rounds) == 2


@pytest.mark.guest
def test_debian_under_a_fork_storm(
    guest_kernel: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.1 on two vCPUs: xenbus, console, timers, and programs that were in the middle of something.

    What arrived is a stream in rounds, which Xen's own tool accepts, and the guest of it goes on.
    """
    kernel, path = guest_kernel("vmlinuz-bookworm-amd64"), tmp_path / "stream"
    ramdisk = initramfs(guest_kernel("busybox-amd64").read_bytes())
    options = {"ramdisk": ramdisk, "cmdline": "console=hvc0 quiet", "max_guest_seconds": 200.0, "vcpus": 2}
    with launch(kernel, 96, **options) as dom:  # type: ignore[arg-type]
        dom.console.expect("/ # ")
        dom.console.send(
            "x=42; while :; do sleep 1; echo al''ive; done & while :; do /bin/sh -c true; done &\n"
        )
        dom.console.expect("alive")
        result, stream = moves(dom, tmp_path / "socket", monkeypatch)
    assert result.rounds[0] == 96 << 8
    assert len(result.rounds) == 6  # the storm never writes less than fifty pages
    assert max(result.rounds[1:]) < 4096
    path.write_bytes(stream)
    assert "vcpu1 basic context" in verified(path)
    with restore(path, max_guest_seconds=200) as dom:
        dom.console.expect("alive")
        dom.console.send('date +%Y; echo "x is $x, $(uname -r), $(grep -c ^processor /proc/cpuinfo) cpus"\n')
        dom.console.expect("2007")
        dom.console.expect(r"x is 42, 6\.1\.\S+, 2 cpus")
        dom.console.expect("alive")
        dom.console.send("dmesg | tail -3; poweroff -f\n")
        dom.console.expect("Restarting tasks ... done")
        assert dom.wait().reason == "poweroff"
        assert audit(dom.machine.domain) == []


@contextmanager
def receiver(address: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "domainbuilder", "restore", address, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        path = Path(address.removeprefix("unix:"))
        while not path.exists() and child.poll() is None:
            threading.Event().wait(0.01)
        yield child


def test_from_process_to_process_by_the_command_line(suspend_guests: dict[str, Path], tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    with receiver(address, "--timeout", "60", "--expect", "SUCCESS") as child:
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
        sent = subprocess.run(
            [sys.executable, "-m", "domainbuilder", "launch", suspend_guests["64"], "-m", "8",
             "--save-at", "ready", "-o", address],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        out, err = child.communicate()
    assert "the domain was moved: 2 rounds of 2,048, " in sent.stderr
    assert "downtime" in sent.stderr
    assert child.returncode == 0, err
    assert out.replace("\r", "").startswith("resumed after round 1\n")
    assert not (tmp_path / "socket").exists()


@pytest.mark.parametrize(
    ("answer", "most", "said"),
    [
        (b"no memory for that\n", 1 << 40, "the other side has not taken the domain: no memory for that"),
        (b"", 1 << 40, "the other side"),
        (b"", 1 << 20, "the other side is gone"),
    ],
)
def test_what_goes_wrong_leaves_the_guest_where_it_is(
    suspend_guests: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    most: int,
    said: str,
) -> None:
    monkeypatch.setattr(migration, "_ANSWER_SECONDS", 2.0)
    with launch(suspend_guests["32"], 8, cmdline="rounds=1", max_guest_seconds=60) as dom:
        dom.console.expect("ready for round 1")
        other = Other(tmp_path / "socket", answer, most)
        with pytest.raises(SavedError, match=said):
            dom.migrate(other.address)
        other.join()
        if most > 1 << 30:
            dom.console.expect("cancelled in round 1")
        else:
            dom.machine.xenstore.write("control/shutdown", "suspend")
            assert dom.wait().reason == "suspend"
            return
        assert dom.wait().reason == "poweroff"


def test_nobody_there_and_a_guest_that_does_not_suspend(
    sample_guest: Callable[[str], Path], tmp_path: Path
) -> None:
    with launch(sample_guest("hello")) as dom:
        dom.console.expect("hello> ")
        with pytest.raises(SavedError, match="nobody takes a domain there"):
            dom.migrate(f"unix:{tmp_path / 'nobody'}")
        for address in ("tcp:host", str(tmp_path / "nobody")):
            with pytest.raises(SavedError) as caught:
                dom.migrate(address)
            assert (caught.value.found, caught.value.expected) == (address, "unix:PATH")
        other = Other(tmp_path / "socket", b"ready\n")
        with pytest.raises(SavedError, match="tells nobody where its p2m list is"):
            dom.migrate(other.address)
        dom.console.send("halt\n")
        assert dom.wait().reason == "poweroff"


def test_a_sender_that_is_none(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    with pytest.raises(SavedError, match="no domain has come"):
        restore(address, timeout=0.05)
    with receiver(address, "--timeout", "60") as child:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "socket"))
            sock.sendall(b"x" * 100)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b"no libxl stream\n"
        _, err = child.communicate()
    assert child.returncode == 2
    assert err.startswith(f"domainbuilder: error: {address}+0x0: no libxl stream")
    with receiver(address, "--timeout", "60") as child:
        with pytest.raises(SavedError, match="cannot listen: Address already in use"):
            restore(address, timeout=1)
        child.terminate()
        child.communicate()
