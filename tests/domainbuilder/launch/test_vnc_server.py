"""Who comes to the socket of a framebuffer: viewers and others, by TCP and a Unix socket."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from domainbuilder.errors import BuildError
from domainbuilder.launch.domain import RunningDomain, launch
from domainbuilder.launch.host import Host
from hvcore.backends.vfb import Vfb

HELLO = b"RFB 003.008\n"


@pytest.fixture
def hello(sample_guest: Callable[[str], Path]) -> Path:
    return sample_guest("hello")


@pytest.fixture
def dom(hello: Path, tmp_path: Path) -> Iterator[RunningDomain]:
    with launch(hello, 16, vfb=f"vnclisten=unix:{tmp_path}/vnc", timeout=60) as dom:
        dom.console.expect("hello> ")
        yield dom


def server_of(dom: RunningDomain) -> Any:
    assert dom._viewers is not None
    return dom._viewers


def connect(dom: RunningDomain) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(dom.vnc_address.removeprefix("unix:"))
    sock.settimeout(5)
    server_of(dom).poll()
    return sock


def talk(dom: RunningDomain, sock: socket.socket, data: bytes, size: int) -> bytes:
    """Say that, and read so much."""
    sock.sendall(data)
    got = b""
    while len(got) < size:
        server_of(dom).poll()
        got += sock.recv(size - len(got))
    return got


def shake_hands(dom: RunningDomain, sock: socket.socket) -> bytes:
    """The name of the guest."""
    assert talk(dom, sock, b"", 12) == HELLO
    assert talk(dom, sock, HELLO, 2) == b"\1\1"
    assert talk(dom, sock, b"\1", 4) == bytes(4)
    head = talk(dom, sock, b"\1", 24)
    assert struct.unpack_from(">HH", head) == (640, 480)
    return talk(dom, sock, b"", struct.unpack_from(">I", head, 20)[0])


def test_a_viewer_sees_black_before_anything_is_drawn(dom: RunningDomain) -> None:
    path = dom.vnc_address.removeprefix("unix:")
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    before = dom.stats()
    with connect(dom) as sock:
        assert server_of(dom).has_viewers
        assert shake_hands(dom, sock) == b"guest"
        update = talk(dom, sock, struct.pack(">BBHHHH", 3, 0, 0, 0, 640, 480), 4 + 30 * 12 + 640 * 480 * 4)
        assert struct.unpack_from(">BxHHHHHi", update) == (0, 30, 0, 0, 640, 16, 0)
        assert not any(update[16 : 16 + 640 * 16 * 4])
        sock.sendall(struct.pack(">BBxxI", 4, 1, ord("a")) * 100)  # the guest has no driver for it
        server_of(dom).poll()
    server_of(dom).poll()
    server_of(dom).poll()
    assert not server_of(dom).has_viewers
    assert dom.stats() == before
    with pytest.raises(BuildError, match="has drawn nothing yet"):
        dom.screenshot()
    dom.console.send("halt\n")
    assert dom.wait().reason == "poweroff"
    dom.close()
    assert not Path(path).exists()


def test_what_is_no_viewer_is_dropped(dom: RunningDomain) -> None:
    with connect(dom) as sock:
        sock.sendall(os.urandom(3) + b"x" * 5000)
        for _ in range(3):
            server_of(dom).poll()
        assert not server_of(dom).has_viewers
        assert sock.recv(100) in (HELLO, b"")


def test_one_that_does_not_read_gets_no_more(dom: RunningDomain) -> None:
    with connect(dom) as sock:
        shake_hands(dom, sock)
        for _ in range(200):
            sock.sendall(struct.pack(">BBHHHH", 3, 0, 0, 0, 640, 480))
            server_of(dom).poll()
            (viewer,) = server_of(dom)._viewers
            assert len(viewer.session.out) <= 640 * 16 * 4 + 12
        assert server_of(dom).has_viewers


def test_there_are_only_so_many(dom: RunningDomain) -> None:
    socks = [connect(dom) for _ in range(9)]
    assert len(server_of(dom)._viewers) == 8
    assert socks[8].recv(10) == b""
    for sock in socks:
        sock.close()
    server_of(dom).poll()
    server_of(dom).poll()
    assert not server_of(dom).has_viewers


def test_an_idle_domain_waits_for_who_looks(dom: RunningDomain) -> None:
    """Nobody there: the guest is idle for good. With a viewer it waits, until he is gone."""
    assert dom.wait().reason == "idle"
    with connect(dom) as sock:
        shake_hands(dom, sock)
        start = time.monotonic()
        assert dom.wait(timeout=0.3).reason == "timeout"
        assert time.monotonic() - start >= 0.3
    assert dom.wait().reason == "idle"


def test_displays_are_searched_for(hello: Path) -> None:
    with launch(hello, 16, vfb="vncdisplay=40") as one, launch(hello, 16, vfb="vncdisplay=40") as two:
        first, second = (int(dom.vnc_address.rpartition(":")[2]) for dom in (one, two))
        assert 40 <= first < second
        with pytest.raises(
            BuildError, match=rf"cannot be listened for at 127.0.0.1:{first}: Address already in use"
        ):
            launch(hello, 16, vfb=f"vnclisten=127.0.0.1:{first},vncunused=0")
    with launch(hello, 16, vfb="vnc=0") as dom:
        assert dom.vnc_address == ""
    with pytest.raises(BuildError, match=r"cannot be listened for at 192\.0\.2\.1:0"):
        launch(hello, 16, vfb="vnclisten=192.0.2.1")
    with pytest.raises(BuildError, match="cannot be listened for at ::1: no address"):
        launch(hello, 16, vfb=Vfb(vnclisten="::1"))
    with pytest.raises(BuildError, match="cannot be listened for at /nowhere/at/all"):
        launch(hello, 16, vfb="vnclisten=unix:/nowhere/at/all")


def test_domains_of_a_shared_host_are_not_seen(hello: Path) -> None:
    with Host(64) as host:
        with pytest.raises(BuildError, match="share a host are not seen by VNC: vnc=0"):
            host.launch(hello, 16, vfb="")
        assert host.launch(hello, 16, vfb="vnc=0").vnc_address == ""


def test_a_file_opens_no_port_and_a_clone_has_none(hello: Path, tmp_path: Path) -> None:
    from domainbuilder import restore

    with launch(hello, 16, vfb=f"vnclisten=unix:{tmp_path}/vnc", timeout=60) as dom:
        dom.console.expect("hello> ")
        dom.save(tmp_path / "saved")
        with dom.fork() as clone:
            clone.console.send("about\n")
            clone.console.expect("hello> ")
            with pytest.raises(BuildError, match="has drawn nothing yet"):
                clone.screenshot()
        assert Path(tmp_path / "vnc").exists()
    with restore(tmp_path / "saved", timeout=60) as dom:
        assert dom.vnc_address == ""
        assert dom.machine.devices.vfb is not None


@pytest.mark.parametrize(("password", "is_right"), [("s3cret!", True), ("wrong", False)])
def test_who_looks_knows_the_password(hello: Path, tmp_path: Path, password: str, is_right: bool) -> None:
    vncdo = Path(sys.executable).with_name("vncdo")
    with launch(hello, 16, vfb="vncdisplay=60,vncpasswd=s3cret!", timeout=60) as dom:
        command = [vncdo, "-s", dom.vnc_address, "-p", password, "-t", "20", "capture", tmp_path / "seen.png"]
        with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE) as viewer:
            while viewer.poll() is None:
                server_of(dom).poll()
                time.sleep(0.01)
        assert (viewer.returncode == 0, (tmp_path / "seen.png").exists()) == (is_right, is_right)
