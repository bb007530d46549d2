from __future__ import annotations

import struct

import hypothesis.strategies as st
from hypothesis import given, settings

from hvcore.abi import PV32_PAE
from hvcore.backends.console import ConsoleBackend
from hvcore.common.event_channel import evtchn_send
from tests.hvcore.conftest import Guest

IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 3072, 3076, 3080, 3084


def indices(ring: memoryview) -> tuple[int, ...]:
    return struct.unpack_from("<4I", ring, IN_CONS)


def write_out(ring: memoryview, data: bytes) -> None:
    prod = indices(ring)[3]
    for i, byte in enumerate(data):
        ring[1024 + (prod + i) % 2048] = byte
    struct.pack_into("<I", ring, OUT_PROD, (prod + len(data)) & 0xFFFFFFFF)


def read_in(ring: memoryview) -> bytes:
    cons, prod = indices(ring)[:2]
    data = bytes(ring[(cons + i) % 1024] for i in range((prod - cons) & 0xFFFFFFFF))
    struct.pack_into("<I", ring, IN_CONS, prod)
    return data


def test_output_comes_out_across_the_wrap(guest32: Guest) -> None:
    ring = memoryview(bytearray(4096))
    struct.pack_into("<II", ring, OUT_CONS, 0xFFFFFFF0, 0xFFFFFFF0)
    out: list[bytes] = []
    con = ConsoleBackend(ring, guest32.d, out.append)
    write_out(ring, b"hello, " * 10)
    con.handle_event()
    write_out(ring, bytes(range(256)) * 8)
    con.handle_event()
    con.handle_event()
    assert b"".join(out) == b"hello, " * 10 + bytes(range(256)) * 8
    assert indices(ring)[2] == indices(ring)[3]


def test_input_waits_for_room(guest: Guest) -> None:
    ring = guest.memory(5)
    con = ConsoleBackend(ring, guest.d, lambda _: None)
    port = con.connect(guest.d.domain_list[0])
    typed = bytes(i % 251 for i in range(3000))
    con.input(typed)
    assert guest.d.evtchn.port_poll(port) == 1
    got = b""
    while len(got) < len(typed):
        chunk = read_in(ring)
        assert 0 < len(chunk) <= 1024
        got += chunk
        assert evtchn_send(guest.d.evtchn, port) == 0
    assert got == typed
    assert con.pending_input == 0


def test_the_guest_is_notified_of_room(guest: Guest) -> None:
    con = ConsoleBackend(guest.memory(5), guest.d, lambda _: None)
    port = con.connect(guest.d.domain_list[0])
    evtchn_send(guest.d.evtchn, port)
    assert guest.d.evtchn.port_poll(port) == 0
    write_out(guest.memory(5), b"x")
    evtchn_send(guest.d.evtchn, port)
    assert guest.d.evtchn.port_poll(port) == 1


NOBODY = Guest(PV32_PAE, 1)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 0xFFFFFFFF)), max_size=12))
def test_hostile_indices_are_bounded(acts: list[tuple[int, int]]) -> None:
    ring = memoryview(bytearray(4096))
    out: list[bytes] = []
    con = ConsoleBackend(ring, NOBODY.d, out.append)
    for what, value in acts:
        if what < 4:
            struct.pack_into("<I", ring, IN_CONS + 4 * what, value)
        else:
            con.input(bytes(value % 2000))
        before = len(out)
        con.handle_event()
        assert sum(map(len, out[before:])) <= 2048
