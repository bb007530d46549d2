"""Domains that send to the store, and write to its ring, what they like."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
from hypothesis import given, settings

from hvcore import abi as abi_module
from hvcore.common.event_channel import evtchn_send
from tests.hvcore.backends.store_client import REQ_CONS, REQ_PROD, Client
from tests.hvcore.conftest import Guest

PATHS = st.sampled_from(
    [b"data", b"data/a", b"data/a/b", b"name", b"control/shutdown", b"/", b"@x", b"", b"//"]
)
INDICES = st.tuples(st.integers(0, 8), st.integers(0, 2**32 - 1))
PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda p, s: p + b"\0" + s, PATHS, st.one_of(st.binary(max_size=40), st.just(b"t\0"))),
    st.sampled_from([b"T\0", b"F\0", b"\0", b"1\0"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 3), PAYLOADS), max_size=25))
def test_hostile_requests_get_answers(requests: list[tuple[int, int, bytes]]) -> None:
    client = Client(Guest(abi_module.PV32_PAE, 1))
    for kind, tx, payload in requests:
        client.ask(kind, payload, tx)
    assert client.daemon.tree.accounts[1].nbentry >= 0
    owned = sum(node.owner == 1 for node in client.daemon.tree.nodes.values())
    assert owned == client.daemon.tree.accounts[1].nbentry


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.binary(min_size=1, max_size=3000), INDICES)))
def test_a_hostile_ring_is_bounded(acts: list[bytes | tuple[int, int]]) -> None:
    client = Client(Guest(abi_module.PV32_PAE, 1))
    for act in acts:
        if isinstance(act, bytes):
            prod = client.index(REQ_PROD)
            for i, byte in enumerate(act[:1024]):
                client.ring[(prod + i) % 1024] = byte
            struct.pack_into("<I", client.ring, REQ_PROD, prod + len(act[:1024]) & 0xFFFFFFFF)
        else:
            struct.pack_into("<I", client.ring, REQ_CONS + 4 * act[0], act[1])
        evtchn_send(client.guest.d.evtchn, client.port)
        assert len(client.store._in) < 1 << 16
        assert len(client.store.out) < 1 << 17
