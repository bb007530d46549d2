"""passt as the outside: frames go there and come back, ports lead in, and what goes wrong is one line."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from domainbuilder import BuildError
from domainbuilder.launch.passt import GATEWAY, GUEST, Passt
from domainbuilder.xl.vif import forwards, parse_vif
from hvcore.backends.net_frame import internet_checksum
from tests.needs import find_tool

MAC = bytes.fromhex("00163e010000")
GUEST_IP = socket.inet_aton(GUEST)
DISCOVER, OFFER = 1, 2


@pytest.fixture
def passt() -> Iterator[Passt]:
    find_tool("passt")
    running = Passt(mtu=1400)
    yield running
    running.close()


def discover() -> bytes:
    """DHCPDISCOVER, as RFC 2131 has it."""
    head = struct.pack(">BBBBIHH16x", 1, 1, 6, 0, 0x1234, 0, 0)
    asked = head + MAC.ljust(16, b"\0") + bytes(192) + bytes((0x63, 0x82, 0x53, 0x63, 53, 1, DISCOVER, 255))
    asked = asked.ljust(300, b"\0")
    udp = struct.pack(">HHHH", 68, 67, 8 + len(asked), 0) + asked
    ip = struct.pack(">BBHHHBBH4x4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, b"\xff" * 4)
    ip = ip[:10] + internet_checksum(ip).to_bytes(2, "big") + ip[12:]
    return b"\xff" * 6 + MAC + b"\x08\x00" + ip + udp


def first(passt: Passt, wanted: Callable[[bytes], bool]) -> bytes:
    """The first frame that is wanted."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        select.select([passt], [], [], 1)
        for frame in passt.receive():
            if wanted(frame):
                return frame
    raise AssertionError("no such frame came")


def test_it_offers_the_address_that_is_always_the_same(passt: Passt) -> None:
    passt.send(discover())
    offer = first(passt, lambda frame: frame[23:24] == b"\x11" and frame[36:38] == b"\x00\x44")
    assert offer[:6] == MAC
    assert offer[42 + 16 : 42 + 20] == socket.inet_aton(GUEST)
    options = offer[42 + 240 :]
    assert bytes((53, 1, OFFER)) in options
    assert bytes((3, 4)) + socket.inet_aton(GATEWAY) in options  # RFC 2132: router
    assert bytes((26, 2)) + (1400).to_bytes(2, "big") in options  # and interface MTU


def test_a_port_that_is_taken_is_one_line() -> None:
    find_tool("passt")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        passt = Passt(mtu=1500, tcp=forwards(f"{port}:80"))
        try:
            with pytest.raises(BuildError, match=rf"passt has ended: .*127\.0\.0\.1/{port}:80") as caught:
                first(passt, lambda _frame: False)
        finally:
            passt.close()
    assert "\n" not in str(caught.value)


def test_it_ends_with_its_socket(passt: Passt) -> None:
    passt.send(discover())
    assert select.select([passt], [], [], 60)[0]
    passt.close()
    assert passt.exit_code is not None


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("8080", "127.0.0.1/8080:8080"),
        ("8080:80", "127.0.0.1/8080:80"),
        ("0.0.0.0/2222:22", "0.0.0.0/2222:22"),
    ],
)
def test_ports_that_lead_in(text: str, spec: str) -> None:
    assert forwards(text) == [spec]


@pytest.mark.parametrize(
    "text", ["80+", "x", "0", "65536", "80:0", "1.2.3.256/80", "all", "80-90", "80,81", "80:~81"]
)
def test_ports_that_do_not(text: str) -> None:
    with pytest.raises(BuildError, match="no port that leads into a guest"):
        forwards(text)


class Odd(Passt):
    """A passt that says something else."""

    def __init__(self, said: bytes) -> None:
        super().__init__(mtu=1500)
        self._received += said

    def frames(self) -> list[bytes]:
        """What is made of it."""
        return list(self._frames())


def test_lengths_that_cannot_be() -> None:
    find_tool("passt")
    odd = Odd(struct.pack(">I", 3) + b"abc" + struct.pack(">I", 1 << 20))
    try:
        with pytest.raises(BuildError, match="a frame that cannot be"):
            odd.frames()
    finally:
        odd.close()


def test_an_interface_that_leads_out() -> None:
    vif = parse_vif("type=user, tcp=8080:80+127.0.0.2/2222:22, udp=53")
    assert vif.is_outside
    assert (forwards(vif.tcp), forwards(vif.udp)) == (
        ["127.0.0.1/8080:80", "127.0.0.2/2222:22"],
        ["127.0.0.1/53:53"],
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp=80", "tcp does not go with type=vif"),
        ("type=user,bridge=xenbr0", "bridge does not go with type=user"),
        ("type=user,tcp=http", "invalid tcp"),
        ("type=ioemu", "invalid type"),
    ],
)
def test_interfaces_that_do_not(text: str, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        parse_vif(text)
