"""The network backend on a bench: frames in and out, checksums, segments, and frontends that lie."""

from __future__ import annotations

import os
import struct
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from domainbuilder.errors import BuildError
from domainbuilder.xl.vif import parse_vif
from hvcore import abi as abi_module
from hvcore.backends.libxl_nodes import Rings, add_domain
from hvcore.backends.net import NetBackend
from hvcore.backends.net_frame import Frame, filled, for_offload, segments
from hvcore.backends.net_switch import Switch
from hvcore.backends.vif import Vif
from hvcore.backends.xenstored import Xenstored
from hvcore.common.event_channel import do_event_channel_op, evtchn_send
from hvcore.public.event_channel import EVTCHNOP_alloc_unbound
from hvcore.public.grant_table import GTF_permit_access
from hvcore.pv.audit import audit
from tests.hvcore.conftest import Guest
from tests.hvcore.wire import Wire

TX, RX, DATA, REF = 8, 9, 16, 8
OTHER = bytes.fromhex("00163e000900")
MINE = bytes.fromhex("00163e000100")


class Bench:
    """A guest with an interface, as its frontend."""

    def __init__(self, guest: Guest, vif: Vif | None = None, switch: Switch | None = None) -> None:
        self.guest = guest
        engine: Any = SimpleNamespace(wrote_frame=lambda _mfn: None)
        guest.d.engine = engine
        self.store = Xenstored(guest.d.domain_list.__contains__)
        add_domain(self.store, guest.d, "guest", Rings(0, 1, 0, 2))
        devid = guest.d.domain_id - 1  # of its own: guests of a bench have one clock, and its timers
        self.switch, self.wire = switch or Switch(), Wire()
        if switch is None:
            self.switch.plug(self.wire)
        self.back = NetBackend(guest.d, guest.d.domain_list[0], self.store, vif or Vif(), devid, self.switch)
        self.tx = self.rx = self.port = 0
        for page in range(64):
            table = guest.d.mem.frame(guest.d.grant_table.shared[0])
            flags = GTF_permit_access
            struct.pack_into("<HHI", table, 8 * (REF + page), flags, 0, guest.first_mfn + page)

    def tell(self, **nodes: object) -> None:
        for name, value in nodes.items():
            path = f"{self.back.front}/{name.replace('_', '-')}"
            self.store.tree.write(None, path, str(value).encode(), self.guest.d.domain_id)
        self.store.run()

    def connect(self, **nodes: object) -> None:
        assert self.guest.call(do_event_channel_op, EVTCHNOP_alloc_unbound, "HHI", 0x7FF0, 0, 0) == 0
        self.port = int(self.guest.result("HHI")[2])
        offers = {"feature_sg": 1, "feature_gso_tcpv4": 1, "request_rx_copy": 1}
        refs = {"tx_ring_ref": REF + TX, "rx_ring_ref": REF + RX, "event_channel": self.port}
        self.tell(**refs | offers | nodes)
        self.tell(state=4)

    def put_tx(self, entry: bytes) -> None:
        at = 64 + self.tx % 256 * 12
        self.guest.memory(TX)[at : at + len(entry)] = entry
        self.tx += 1
        struct.pack_into("<I", self.guest.memory(TX), 0, self.tx)

    def offer(self, page: int) -> None:
        struct.pack_into("<HHI", self.guest.memory(RX), 64 + self.rx % 256 * 8, self.rx, 0, REF + page)
        self.rx += 1
        struct.pack_into("<I", self.guest.memory(RX), 0, self.rx)

    def notify(self) -> None:
        evtchn_send(self.guest.d.evtchn, self.port)

    def send(self, data: bytes, flags: int = 0) -> None:
        self.guest.memory(DATA)[: len(data)] = data
        self.put_tx(struct.pack("<IHHHH", REF + DATA, 0, flags, 7, len(data)))
        self.notify()

    def pass_time(self, ns: int = 10_000_000) -> None:
        self.guest.run_to(self.guest.d.clock.now() + ns)

    def status(self, index: int) -> tuple[int, int]:
        id_, status = struct.unpack_from("<Hh", self.guest.memory(TX), 64 + index * 12)
        return id_, status


def tcp(payload: bytes, flags: int = 0x18) -> bytes:
    ip = struct.pack(">BBHHHBBHII", 0x45, 0, 40 + len(payload), 7, 0, 64, 6, 0, 0x0A000001, 0x0A000002)
    head = struct.pack(">HHIIBBHHH", 1000, 2000, 0xFFFFFF00, 5, 0x50, flags, 512, 0, 0)
    return OTHER + MINE + b"\x08\x00" + ip + head + payload


def words_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def is_right(data: bytes) -> bool:
    size = len(data) - 34
    return words_sum(data[26:34] + struct.pack(">IHH", 6, 0, size) + data[34:]) == 0xFFFF


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.integers(2, 1460))
def test_checksums_and_segments(payload: bytes, size: int) -> None:
    frame = for_offload(Frame(tcp(payload, 0x99), gso_type=1, gso_size=size))
    assert frame.is_blank
    assert is_right(filled(frame).data)
    parts = segments(frame)
    assert b"".join(part.data[54:] for part in parts) == payload
    assert all(is_right(p.data) and words_sum(p.data[14:34]) == 0xFFFF for p in parts)
    assert all(len(p.data) <= 54 + size and p.is_validated and not p.is_blank for p in parts)
    assert [p.data[47] & 0x89 for p in parts[:-1]] == [0x80] * (len(parts) > 1) + [0] * (len(parts) - 2)


def test_a_frame_goes_out_and_another_comes_in(guest: Guest) -> None:
    bench = Bench(guest)
    bench.connect()
    assert bench.store.read(f"{bench.back.back}/state") == "4"
    assert bench.store.read(f"{bench.back.front}/mac") == "00:16:3e:00:01:00"
    bench.send(tcp(b"hello"), flags=3)
    assert [f.is_blank for f in bench.wire.frames] == [True]
    assert bench.status(0) != (7, 0) or not struct.unpack_from("<I", guest.memory(TX), 8)[0]  # not at once
    bench.pass_time()
    assert bench.status(0) == (7, 0)
    answer = MINE + OTHER + tcp(b"back" * 2000)[12:]
    bench.wire.frame_in(guest.d.clock.now(), Frame(answer, is_validated=True))
    bench.pass_time()
    assert bench.back.rx.waiting  # no room yet
    for page in (20, 21):
        bench.offer(page)
    bench.notify()
    assert struct.unpack_from("<HHHhHHHh", guest.memory(RX), 64) == (
        0, 0, 1 | 4, 4096, 1, 0, 0, len(answer) - 4096,
    )  # fmt: skip
    assert bytes(guest.memory(20)) + bytes(guest.memory(21)[: len(answer) - 4096]) == answer
    bench.tell(state=6)
    assert audit(guest.d) == []
    assert not guest.d.grant_table.active


def test_who_looks_for_answers_is_not_told_of_them(guest64: Guest) -> None:
    """Answers are in the ring when the guest sends more; it is told of those that it has not seen."""
    bench = Bench(guest64)
    bench.connect()
    told: list[int] = []
    bench.back.notify = lambda: told.append(guest64.d.clock.now())  # type: ignore[method-assign]
    ring = guest64.memory(TX)
    for sent in range(1, 6):
        bench.send(tcp(b"hello"), flags=3)
        assert struct.unpack_from("<I", ring, 8) == (sent - 1,)  # the one before was through
        struct.pack_into("<I", ring, 12, sent)  # rsp_event, as RING_FINAL_CHECK_FOR_RESPONSES() has it
        bench.pass_time(200_000)
    assert told == []
    last = guest64.d.clock.now() - 200_000
    for _ in range(100):
        bench.pass_time(10_000)
    assert struct.unpack_from("<I", ring, 8) == (5,)
    assert len(told) == 1
    assert 500_000 < told[0] - last < 520_000
    bench.pass_time()
    assert len(told) == 1


def test_who_connects_again_is_not_told_the_sooner_for_it(guest64: Guest) -> None:
    """What nobody saw of the connection before says nothing of this one's answers."""
    bench = Bench(guest64)
    told: list[int] = []
    bench.back.notify = lambda: told.append(guest64.d.clock.now())  # type: ignore[method-assign]
    for _ in range(2):
        guest64.memory(TX)[:64] = bytes(64)
        bench.tx = 0
        bench.tell(state=1)
        bench.connect()
        struct.pack_into("<I", guest64.memory(TX), 12, 1)  # rsp_event
        told.clear()
        sent = guest64.d.clock.now()
        bench.send(tcp(b"hello"), flags=3)
        bench.pass_time(200_000)
        bench.notify()
        assert struct.unpack_from("<I", guest64.memory(TX), 8) == (1,)
        assert bench.back.tx.untold == 1
        for _ in range(100):
            bench.pass_time(10_000)
        assert [500_000 < when - sent < 520_000 for when in told] == [True]
        bench.send(tcp(b"unseen"), flags=3)
        struct.pack_into("<I", guest64.memory(TX), 12, 2)
        bench.pass_time(200_000)
        bench.notify()
        bench.tell(state=6)


def test_what_netback_drops_and_what_ends_the_interface(guest64: Guest) -> None:
    bench = Bench(guest64)
    bench.connect()
    bench.send(bytes(13))  # no whole header
    bench.pass_time()
    assert bench.status(0) == (7, -1)
    bench.put_tx(struct.pack("<IHHHH", 500, 0, 0, 8, 60))  # no such grant
    bench.notify()
    bench.pass_time()
    assert bench.status(1) == (8, -1)
    bench.send(MINE + OTHER + bytes(60), flags=1)  # a blank checksum of nothing
    assert bench.wire.frames == []
    assert not bench.back.is_disabled
    bench.put_tx(struct.pack("<IHHHH", REF + DATA, 4000, 0, 9, 100))  # across the page
    bench.notify()
    assert bench.back.is_disabled
    bench.send(tcp(b""))
    assert bench.wire.frames == []


def test_a_link_that_is_down_and_a_neighbour_that_is_gone() -> None:
    """What is for a domain that is gone goes to nobody, and who sends it does not notice."""
    one = Guest(abi_module.PV64, 1, domains=2)
    bench = Bench(one)
    other = Bench(Guest(abi_module.PV32_PAE, 1, beside=one), switch=bench.switch)
    for each in (bench, other):
        each.connect()
        each.offer(20)
        each.offer(21)
        each.notify()
    to_other = bytes.fromhex("00163e000201") + tcp(b"hello")[6:]
    bench.send(to_other)
    bench.pass_time()
    assert bytes(other.guest.memory(20)[: len(to_other)]) == to_other
    other.back.set_link(up=False)
    bench.send(to_other)
    bench.pass_time()
    assert not other.back.rx.waiting
    assert struct.unpack_from("<I", other.guest.memory(RX), 8) == (1,)
    other.back.set_link(up=True)
    other.send(MINE + to_other[:6] + bytes(60))  # who is heard is known from then on
    heard = len(bench.wire.frames)
    bench.send(to_other)
    assert len(bench.wire.frames) == heard
    assert other.back.rx.waiting
    other.back.remove()
    bench.send(to_other)
    bench.pass_time()
    assert len(bench.wire.frames) == heard + 1  # nobody is known there now
    assert [bench.status(i) for i in range(4)] == [(7, 0)] * 4
    assert audit(one.d) == audit(other.guest.d) == []


def test_a_rate_is_kept(guest64: Guest) -> None:
    bench = Bench(guest64, Vif(rate=1000, rate_usecs=20000))
    bench.connect()
    for _ in range(40):
        bench.send(tcp(bytes(946)))
    sent = len(bench.wire.frames)
    assert sent == 1
    for _ in range(5):
        bench.pass_time(20_000_000)
    assert 4 <= len(bench.wire.frames) - sent <= 6


def test_requests_that_are_taken_back_are_a_lie() -> None:
    """req_prod behind what was consumed, while nothing is answered yet: 2^32 requests but one would wait."""
    bench = Bench(Guest(abi_module.PV64, 1))
    bench.connect()
    bench.send(tcp(b"x"))
    assert len(bench.back.tx.answers) == 1
    struct.pack_into("<I", bench.guest.memory(TX), 0, 0)
    bench.notify()
    assert bench.back.is_disabled
    assert len(bench.back.tx.answers) == 1


ACTS = st.one_of(
    st.tuples(
        st.just("ring"), st.sampled_from([TX, RX]), st.tuples(st.integers(0, 3), st.integers(0, 2**32 - 1))
    ),
    st.tuples(
        st.just("tx"),
        st.integers(0, 15),
        st.tuples(st.integers(0, 90), st.integers(0, 5000), st.integers(0, 4096)),
    ),
    st.tuples(st.just("extra"), st.integers(0, 5), st.binary(min_size=7, max_size=7)),
    st.tuples(st.just("offer"), st.integers(0, 90), st.just(0)),
    st.tuples(st.just("frame"), st.integers(14, 9000), st.integers(0, 2)),
    st.tuples(st.just("state"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("time"), st.just(0), st.just(0)),
)


@settings(max_examples=int(os.environ.get("NET_EXAMPLES", "60")), deadline=None)
@given(st.lists(ACTS, max_size=40))
def test_a_hostile_frontend_harms_nobody(acts: list[tuple[str, int, Any]]) -> None:
    guest = Guest(abi_module.PV64, 1)
    bench = Bench(guest)
    bench.connect()
    for what, a, b in acts:
        if what == "ring":
            struct.pack_into("<I", guest.memory(a), 4 * b[0], b[1])
        elif what == "tx":
            bench.put_tx(struct.pack("<IHHHH", b[0], b[1], a, 1, b[2]))
        elif what == "extra":
            bench.put_tx(bytes((a,)) + b + bytes(4))
        elif what == "offer":
            bench.offer(a % 60)
        elif what == "frame":
            bench.wire.frame_in(
                guest.d.clock.now(), Frame(MINE + OTHER + bytes(a), gso_type=b, gso_size=b * 500)
            )
        elif what == "state":
            bench.tell(state=a)
        else:
            bench.pass_time(50_000)
        bench.notify()
        assert len(bench.back.tx.answers) <= 256
        assert bench.back.rx.waiting_bytes <= 4 << 20
    assert audit(guest.d) == []
    bench.back.remove()
    assert audit(guest.d) == []
    assert not guest.d.domain_list[0].grant_table.maptrack


def test_interfaces_as_xl_writes_them() -> None:
    assert parse_vif("") == Vif()
    assert parse_vif("mac=00:16:3E:01:02:03, bridge=br1,rate=10Mb/s") == Vif(
        mac="00:16:3e:01:02:03", bridge="br1", rate=62500
    )
    assert parse_vif("rate=1MB/s@20ms") == Vif(rate=20000, rate_usecs=20000)
    for text in (
        "mac=01:16:3e:01:02:03",
        "script=mine",
        "type=ioemu",
        "colour=red",
        "rate=1",
        "bridge",
        "mtu=9",
    ):
        with pytest.raises(BuildError):
            parse_vif(text)
