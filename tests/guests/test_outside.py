"""A guest whose interface leads out of the host, by passt: both ways, and again without anybody there."""

from __future__ import annotations

import hashlib
import os
import socket
import socketserver
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import domainbuilder
from domainbuilder import launch
from domainbuilder.launch import passt
from domainbuilder.launch.record import load_record, save_record
from domainbuilder.launch.running import RunningDomain
from tests.needs import find_tool

PAGE = b"from a server on the loopback, " * 3000


class OnePage(BaseHTTPRequestHandler):
    """Answers with PAGE."""

    def do_GET(self) -> None:
        """See BaseHTTPRequestHandler."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        """Nobody is told."""


@pytest.fixture
def web_port() -> Iterator[int]:
    """The port of a server on the loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), OnePage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


class OneName(socketserver.BaseRequestHandler):
    """Answers every DNS question with 192.0.2.7 (RFC 1035, section 4)."""

    def handle(self) -> None:
        """See BaseRequestHandler."""
        question, ours = self.request
        head = question[:2] + bytes.fromhex("8180 0001 0001 0000 0000")
        answer = bytes.fromhex("c00c 0001 0001 0000003c 0004") + bytes((192, 0, 2, 7))
        ours.sendto(head + question[12:] + answer, self.client_address)


@pytest.fixture
def resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """passt finds a resolver on the loopback, as systemd has it. Only root can have one: else False."""
    if os.geteuid():
        yield False
        return
    conf, wrapper = tmp_path / "resolv.conf", tmp_path / "bin" / "passt"
    conf.write_text("nameserver 127.0.0.53\n")
    wrapper.parent.mkdir()
    inner = f'mount --bind {conf} /etc/resolv.conf && exec {find_tool("passt")} "$@"'
    wrapper.write_text(f"#!/bin/sh\nexec unshare --mount sh -c '{inner}' passt \"$@\"\n")
    wrapper.chmod(0o755)
    if subprocess.run([wrapper, "--version"], capture_output=True, check=False).returncode:
        yield False  # a container without mount namespaces
        return
    monkeypatch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(passt, "RESOLV_CONF", conf)
    with socketserver.UDPServer(("127.0.0.53", 53), OneName) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield True
        server.shutdown()
        thread.join()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def asking(port: int) -> Iterator[list[bytes]]:
    """The guest's server is asked for its page by this machine meanwhile; the answer is there at the end."""
    answers: list[bytes] = []

    def ask() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=120) as answer:
            answers.append(answer.read())

    thread = threading.Thread(target=ask)
    thread.start()
    yield answers
    thread.join()


def test_there_and_back_and_again_without(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], web_port: int, free_port: int,
    resolver: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    find_tool("passt")
    modules = {"xen-netfront.ko": guest_kernel("xen-netfront-bookworm-amd64.ko").read_bytes()}
    kernel, disk = guest_kernel("vmlinuz-bookworm-amd64"), ramdisk("outside.sh", modules)
    cmdline, vifs = f"console=hvc0 quiet port={web_port}", [f"type=user,tcp={free_port}:80"]
    with launch(
        kernel, 256, ramdisk=disk, cmdline=cmdline, vifs=vifs, record=True, max_guest_seconds=120
    ) as dom:
        dom.console.expect("=== serving")
        with asking(free_port) as answers:
            outcome = dom.wait()
        assert outcome.reason == "poweroff", dom.console.transcript[-2000:]
        said, stats = dom.console.transcript, dom.stats()
        save_record(dom.input_record(outcome.reason), tmp_path / "run.record")
    assert "leased 10.0.2.15 via 10.0.2.2, mtu 1500" in said
    assert f"{hashlib.sha256(PAGE).hexdigest()} page" in said
    assert ("Address: 192.0.2.7" in said) == resolver
    assert answers == [b"from the guest\n"]

    monkeypatch.setenv("PATH", "")  # a replay needs nobody
    replay = load_record(tmp_path / "run.record")
    with launch(
        kernel, 256, ramdisk=disk, cmdline=cmdline, vifs=vifs, replay=replay, max_guest_seconds=120
    ) as again:
        assert again.wait().reason == "poweroff"
        assert again.console.transcript == said
        assert again.stats() == stats


def test_a_saved_guest_is_outside_again(
    guest_kernel: Callable[[str], Path], ramdisk: Callable[..., Path], web_port: int, free_port: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    find_tool("passt")
    modules = {"xen-netfront.ko": guest_kernel("xen-netfront-bookworm-amd64.ko").read_bytes()}

    def fetched(dom: RunningDomain) -> bool:
        dom.console.send(f"wget -q -O - http://10.0.2.2:{web_port}/page | sha256sum; echo END''\n")
        said = dom.console.expect(r"(?s)END''\r?\n(.*?)END\r?\n")[1]
        return hashlib.sha256(PAGE).hexdigest() in said

    kernel, disk = guest_kernel("vmlinuz-bookworm-amd64"), ramdisk("shell.sh", modules)
    with launch(kernel, 128, ramdisk=disk, cmdline="console=hvc0 quiet", vifs=["bridge=xenbr0"]) as dom:
        dom.console.expect("guest# ")
        dom.console.send(
            "insmod /bin/xen-netfront.ko; until ifconfig eth0 10.0.2.15; do sleep 1; done; echo UP''\n"
        )
        dom.console.expect(r"UP\r?\n")
        dom.save(tmp_path / "xen", form="xen")
    with domainbuilder.restore(tmp_path / "xen", vifs=["type=user"], max_guest_seconds=200) as dom:
        assert fetched(dom), dom.console.transcript[-2000:]
        dom.save(tmp_path / "frozen")
    with domainbuilder.restore(tmp_path / "frozen", max_guest_seconds=200) as dom:
        assert not fetched(dom)  # nobody is there
    with domainbuilder.restore(
        tmp_path / "frozen", vifs=[f"type=user,tcp={free_port}:80"], max_guest_seconds=200
    ) as dom:
        assert fetched(dom), dom.console.transcript[-2000:]
        dom.console.send("mkdir /www; echo inside >/www/index.html; httpd -h /www; echo UP''\n")
        dom.console.expect(r"UP\r?\n")
        with asking(free_port) as answers:
            dom.console.send(
                "until grep -q ':0050 .* 06 ' /proc/net/tcp*; do usleep 50000; done; echo GIVEN''\n"
            )
            dom.console.expect(r"GIVEN\r?\n")
        assert answers == [b"inside\n"]
