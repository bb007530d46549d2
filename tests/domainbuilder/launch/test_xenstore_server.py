"""Debian's xenstore tools and pyxs at a running domain's store, and clients that mean no good."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder.errors import BuildError
from hvcore.public import xs_wire as xs
from hvcore.public.errno import NAMES
from tests.domainbuilder.tiny_guest import IDLE, SPIN, kernel
from tests.needs import find_tool

TIMEOUT = 120
HEADER = struct.Struct("<4I")
DATA = "/local/domain/1/data"
PYXS = """
import sys, pyxs
from pyxs.exceptions import PyXSError
with pyxs.Client(unix_socket_path=sys.argv[1]) as c:
    data = b"/local/domain/1/data"
    print(sorted(c.list(b"/local/domain")), c.get_domain_path(1))
    print(c.is_domain_introduced(1), c.is_domain_introduced(0), c.is_domain_introduced(7))
    c.transaction()
    c[data + b"/a"] = b"1"
    c.mkdir(data + b"/b")
    c.commit()
    print(c[data + b"/a"], c.list(data), c.get_perms(data + b"/a"))
    c.transaction()
    c[data + b"/a"] = b"2"
    c.rollback()
    c.set_perms(data + b"/b", [b"b1", b"r0"])
    print(c[data + b"/a"], c.get_perms(data + b"/b"))
    for refused in (lambda: c[data + b"/none"], lambda: c.introduce_domain(7, 1, 1)):
        try:
            refused()
        except PyXSError as error:
            print(error.args[0])
"""


@pytest.fixture
def spinning(tmp_path: Path) -> Iterator[Path]:
    """The socket of a launch whose guest runs for ever."""
    guest, path = tmp_path / "spin", tmp_path / "store.sock"
    guest.write_bytes(kernel(SPIN))
    process = subprocess.Popen(
        [
            sys.executable, "-m", "domainbuilder", "launch", guest, "--xenstore", f"unix:{path}",
            "--timeout", str(TIMEOUT),
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not path.exists():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        yield path
    finally:
        process.terminate()
        assert "Traceback" not in process.communicate()[1]
    assert not path.exists()


def tool(path: Path, name: str, *arguments: str) -> str:
    done = subprocess.run(
        [find_tool(f"xenstore-{name}"), *arguments], env={**os.environ, "XENSTORED_PATH": str(path)},
        capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_tools_of_xen(spinning: Path) -> None:
    """Each does what it says; a watch is told; a transaction is one (xenstore-rm and -chmod use them)."""
    assert spinning.stat().st_mode & 0o777 == 0o600
    assert '   feature-suspend = ""\n' in tool(spinning, "ls")
    assert tool(spinning, "read", "/local/domain/1/name", "/libxl/1/type") == "guest\npv\n"
    assert tool(spinning, "list", "/local/domain") == "0\n1\n"
    assert tool(spinning, "write", f"{DATA}/x", "hello") == ""
    assert tool(spinning, "read", f"{DATA}/x") == "hello\n"
    watch = subprocess.Popen(
        [find_tool("xenstore-watch"), "-n", "2", DATA], env={**os.environ, "XENSTORED_PATH": str(spinning)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout
    assert watch.stdout.readline() == f"{DATA}\n"  # once up front
    tool(spinning, "write", f"{DATA}/y", "more")
    assert watch.communicate(timeout=TIMEOUT)[0] == f"{DATA}/y\n"
    tool(spinning, "chmod", "-r", DATA, "b1", "r0")
    assert tool(spinning, "ls", "-p", DATA).replace(" .", "").split() == [
        "x", "=", '"hello"', "(b1,r0)", "y", "=", '"more"', "(b1,r0)",
    ]  # fmt: skip
    tool(spinning, "rm", f"{DATA}/x")
    assert "couldn't read path" in tool(spinning, "read", f"{DATA}/x")
    children = {f"a-long-name-of-a-child-that-fills-the-answer-{i:03}" for i in range(120)}
    tool(spinning, "write", *(word for child in children for word in (f"{DATA}/{child}", "")))
    assert set(tool(spinning, "list", DATA).split()) == {*children, "y"}  # by XS_DIRECTORY_PART


def test_pyxs(spinning: Path) -> None:
    """A client of another make, in a process of its own; what is refused has xenstored's errno."""
    pytest.importorskip("pyxs")
    done = subprocess.run(
        [sys.executable, "-c", PYXS, spinning], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert done.stdout.splitlines() == [
        "[b'0', b'1'] b'/local/domain/1'",
        "True True False",
        "b'1' [b'a', b'b'] [b'n1']",
        "b'1' [b'b1', b'r0']",
        "2",  # ENOENT
        "22",  # EINVAL
    ], done.stderr


ODD = (  # a request, its transaction, and the answer
    (99, ("x",), 0, "ENOSYS"),
    (xs.XS_READ, ("//",), 0, "EINVAL"),
    (xs.XS_READ, ("/",), 5, "ENOENT"),
    (xs.XS_INTRODUCE, ("1", "5"), 0, "EINVAL"),
    (xs.XS_INTRODUCE, ("1", "5", "0"), 0, "EINVAL"),
    (xs.XS_INTRODUCE, ("7", "5", "1"), 0, "EINVAL"),
    (xs.XS_INTRODUCE, ("1", "5", "1"), 0, "OK"),
    (xs.XS_RELEASE, ("0",), 0, "EINVAL"),
    (xs.XS_RELEASE, ("7",), 0, "ENOENT"),
    (xs.XS_RELEASE, ("1",), 0, "OK"),
    (xs.XS_SET_TARGET, ("1", "0"), 0, "ENOENT"),
    (xs.XS_INTRODUCE, ("1", "5", "1"), 0, "OK"),
    (xs.XS_SET_TARGET, ("1",), 0, "EINVAL"),
    (xs.XS_SET_TARGET, ("1", "7"), 0, "ENOENT"),
    (xs.XS_SET_TARGET, ("1", "0"), 0, "OK"),
    (xs.XS_RESUME, ("7",), 0, "ENOENT"),
    (xs.XS_RESUME, ("1",), 0, "OK"),
    (xs.XS_CONTROL, ("check",), 0, "OK"),
    (xs.XS_CONTROL, ("live-update",), 0, "EINVAL"),
    (xs.XS_CONTROL, ("live-update", "-s"), 0, "Not in live-update session."),
    (xs.XS_CONTROL, ("live-update", "-a"), 0, "No live-update session active."),
    (xs.XS_CONTROL, ("live-update", "-f", "/sbin/xenstored"), 0, "File not accessible."),
    (xs.XS_CONTROL, ("live-update", "-f"), 0, "EINVAL"),
    (xs.XS_CONTROL, ("logfile",), 0, "EINVAL"),
    (xs.XS_CONTROL, ("logfile", "/tmp/log"), 0, "OK"),
    (xs.XS_CONTROL, ("memreport",), 0, "EINVAL"),
    (xs.XS_SET_PERMS, ("@nowhere", "n0"), 0, "EINVAL"),
    (xs.XS_SET_PERMS, ("@releaseDomain", "n0", "r1"), 0, "OK"),
    (xs.XS_CONTROL, ("log", "on"), 0, "OK"),
    (xs.XS_CONTROL, ("log",), 0, "EINVAL"),
    (xs.XS_CONTROL, ("print", "hello"), 0, "OK"),
    (xs.XS_CONTROL, ("quota", "set", "nodes", "900"), 0, "OK"),
    (xs.XS_CONTROL, ("quota", "set", "nodes", "0"), 0, "EINVAL"),
    (xs.XS_CONTROL, ("quota", "set", "bogus", "1"), 0, "EINVAL"),
    (xs.XS_CONTROL, ("quota", "7"), 0, "ENOENT"),
    (xs.XS_CONTROL, ("quota-soft", "set", "memory", "5"), 0, "OK"),
    (xs.XS_CONTROL, ("quota-soft", "set", "nodes", "5"), 0, "EINVAL"),
)


def asked(kind: int, *words: str, tx: int = 0) -> bytes:
    payload = "".join(f"{word}\0" for word in words).encode()
    return HEADER.pack(kind, 7, tx, len(payload)) + payload


def connected(path: Path, data: bytes) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.settimeout(TIMEOUT)
    client.sendall(data)
    return client


def taken(client: socket.socket) -> list[tuple[int, bytes]]:
    """All that the other end has sent until it closed."""
    data, found = b"", []
    while piece := client.recv(65536):
        data += piece
    while data:
        kind, _, _, length = HEADER.unpack_from(data)
        found.append((kind, data[HEADER.size : HEADER.size + length]))
        data = data[HEADER.size + length :]
    return found


def end_of(guest: Path, path: Path | None, clients: Callable[[Path], list[socket.socket]]) -> list[object]:
    """How the guest's run ends, and where, with these clients at its store."""
    with domainbuilder.launch(guest, timeout=30) as dom:
        held: list[socket.socket] = []
        if path is not None:
            dom.serve_xenstore(path)
            held = clients(path)
        dom.console.expect("hello> ")
        dom.console.send("halt\n")
        outcome, stats = dom.wait(), dom.stats()
        end: list[object] = [outcome.reason, stats.guest_ns, stats.hypercalls, dom.memory_sha256()]
        dom.close()
        end += [taken(client) for client in held]
    for client in held:
        client.close()
    return end


def test_who_reads_is_not_noticed(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    """The guest's time, calls and memory are those of a run without tools."""
    guest = sample_guest("hello")
    alone = end_of(guest, None, lambda _path: [])
    requests = asked(xs.XS_READ, "/local/domain/1/name") + asked(xs.XS_WATCH, DATA, "token")
    *end, answers = end_of(guest, tmp_path / "s", lambda path: [connected(path, requests)])
    assert end == alone
    assert answers == [
        (xs.XS_READ, b"guest"),
        (xs.XS_WATCH, b"OK\0"),
        (xs.XS_WATCH_EVENT, f"{DATA}\0token\0".encode()),
    ]
    assert not (tmp_path / "s").exists()


def test_clients_that_mean_no_good(sample_guest: Callable[[str], Path], tmp_path: Path) -> None:
    """Lengths that lie, halves of requests, floods: each is its own loss."""
    flood = asked(xs.XS_READ, "/local/domain/1/name") * 3000

    def clients(path: Path) -> list[socket.socket]:
        lies = [connected(path, HEADER.pack(xs.XS_READ, 1, 0, length)) for length in (4097, 0xFFFFFFFF)]
        odd = connected(path, b"".join(asked(kind, *words, tx=tx) for kind, words, tx, _ in ODD))
        half = connected(path, HEADER.pack(xs.XS_READ, 1, 0, 40) + b"/lo")
        many = connected(path, flood)
        return [*lies, odd, half, many]

    guest = sample_guest("hello")
    alone = end_of(guest, None, lambda _path: [])
    ended = end_of(guest, tmp_path / "s", clients)
    assert ended[0] == alone[0]
    assert ended[4:6] == [[], []]
    assert ended[6] == [
        (xs.XS_ERROR if answer in NAMES.values() else kind, f"{answer}\0".encode())
        for kind, _, _, answer in ODD
    ]
    assert ended[7] == []
    assert isinstance(ended[8], list)
    assert set(ended[8]) <= {(xs.XS_READ, b"guest")}


def test_only_so_many_clients(tmp_path: Path) -> None:
    """The 33rd is sent away, whether it says something or not."""
    guest = tmp_path / "spin"
    guest.write_bytes(kernel(SPIN))
    with domainbuilder.launch(guest) as dom, dom.serve_xenstore(tmp_path / "s"):
        held = []
        for _ in range(5):  # as many as may wait to be accepted
            held += [connected(tmp_path / "s", b"") for _ in range(7)]
            dom.run_for(0.02)
        assert held[34].recv(1) == b""
        held[0].sendall(asked(xs.XS_READ, "/local/domain/1/domid"))
        dom.run_for(0.02)
        assert held[0].recv(100)[16:] == b"1"
        for client in held:
            client.close()


def test_an_idle_domain_waits_for_who_is_connected(tmp_path: Path) -> None:
    """Nothing but a tool can wake it: it is served, and when it has gone the domain is idle for good."""
    guest, path = tmp_path / "idle", tmp_path / "s"
    guest.write_bytes(kernel(IDLE))
    with domainbuilder.launch(guest, timeout=30) as dom, dom.serve_xenstore(path):
        client = connected(path, asked(xs.XS_WRITE, f"{DATA}/x")[:-1] + b"\0")
        answers: list[bytes] = []

        def leave() -> None:
            answers.append(client.recv(100))
            client.close()

        thread = threading.Thread(target=leave)
        thread.start()
        assert dom.wait().reason == "idle"
        thread.join()
        assert answers[0][16:] == b"OK\0"
        assert dom.machine.xenstore.read("data/x") == ""


def test_where_nobody_can_listen(tmp_path: Path) -> None:
    """A file of the user's stays; a recorded run has no tools; what a guest is told has to be something."""
    guest, file = tmp_path / "spin", tmp_path / "file"
    guest.write_bytes(kernel(SPIN))
    file.write_text("mine")
    with domainbuilder.launch(guest, vcpus=2, memory_mib=16) as dom:
        with pytest.raises(BuildError, match="no socket"):
            dom.serve_xenstore(file)
        for reason, key, vcpus, mib in (("x", "tt", 3, 17), ("", "", 0, 0)):
            with pytest.raises(ValueError, match="poweroff, reboot, halt"):
                dom.shutdown(reason)
            with pytest.raises(ValueError, match="SysRq"):
                dom.sysrq(key)
            with pytest.raises(ValueError, match="within 1 and 2"):
                dom.set_vcpus(vcpus)
            with pytest.raises(ValueError, match="within 1 and 16"):
                dom.set_memory_target(mib)
        dom.set_memory_target(8)
        dom.set_vcpus(1)
        store = dom.machine.xenstore
        assert store.read("memory/target") == "8192"
        assert [store.read(f"cpu/{n}/availability") for n in (0, 1)] == ["online", "offline"]
    assert file.read_text() == "mine"
    with domainbuilder.launch(guest, record=True) as dom:
        with pytest.raises(BuildError, match="no part of a record"):
            dom.serve_xenstore(tmp_path / "s")
        with pytest.raises(BuildError, match="no part of a record"):
            dom.shutdown()
    done = subprocess.run(
        [sys.executable, "-m", "domainbuilder", "launch", guest, "--xenstore", "unix:x", "--record", "y"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2, "domainbuilder: error: --xenstore: what tools write is no part of a record\n",
    )  # fmt: skip
