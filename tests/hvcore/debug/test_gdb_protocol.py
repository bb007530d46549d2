"""The remote protocol without a gdb: packets, bytecode, and a client that means no good.

`GDB_PACKETS=100000 pytest tests/hvcore/debug/test_gdb_protocol.py` sends so many.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainbuilder import Host
from hvcore.debug.condition import ConditionError, parse_condition
from hvcore.debug.debugger import Debugger
from hvcore.debug.gdb.agent_expression import AgentExpression
from hvcore.debug.gdb.packets import (
    PACKET_SIZE,
    Acknowledged,
    Damaged,
    Interrupted,
    Item,
    Packet,
    PacketReader,
    escape,
    packet,
    unescape,
)
from hvcore.debug.gdb.process import Process
from hvcore.debug.gdb.stub import Attach, Leave, Listed, Resume, Stub
from hvcore.debug.gdb.target import target
from tests.domainbuilder.tiny_guest import SPIN, kernel

# Pieces of packets as gdb sends them, to be put together in any order.
PIECES = (
    b"qSupported:swbreak+", b"qXfer:features:read:target.xml:", b"qXfer:threads:read::",
    b"qXfer:exec-file:read::", b"vCont;", b"vCont?", b"vFile:open:", b"vFile:pread:3,", b"vFile:setfs:0",
    b"qRcmd,", b"Hg", b"Hc", b"T", b"?", b"g", b"G", b"p", b"P", b"m", b"M", b"X", b"Z0,", b"Z1,", b"Z2,",
    b"Z3,", b"Z4,", b"z0,", b"z2,", b"qThreadExtraInfo,", b"c", b"s", b"r", b"0", b"1",
    b"ffffffffffffffff", b"c0100000", b",", b";", b":", b"-1", b"=", b"00", b"4", b"1000", b";X4,",
    b"220022", b"27", b"6d6170203078", b"7472616365206f6e", b"\x00", b"}", b"\xff", b"k", b"D",
    b"vKill;1", b"vAttach;", b"qXfer:osdata:read:", b"processes:0,", b"p1.", b"p2", b"p-1.-1", b"D;2", b"!",
    b"qSupported:multiprocess+",
)  # fmt: skip


def items(data: bytes) -> list[Item]:
    return list(PacketReader().feed(data))


def test_packets_are_cut_out_of_a_stream() -> None:
    assert items(b"+$OK#9a-\x03$#00") == [
        Acknowledged(True), Packet(b"OK"), Acknowledged(False), Interrupted(), Packet(b"")
    ]  # fmt: skip
    assert items(b"$OK#9b") == [Damaged()]
    assert items(b"$lost$OK#9a") == [Packet(b"OK")]
    assert items(b"$" + b"a" * (PACKET_SIZE + 1) + b"#00$OK#9a") == [Damaged(), Packet(b"OK")]
    assert items(b"$}\x03#80") == [Packet(b"#")]


@given(st.binary(max_size=64))
def test_what_is_escaped_comes_back(data: bytes) -> None:
    assert unescape(escape(data)) == data
    assert items(packet(escape(data))) == [Packet(data)]


@given(st.lists(st.binary(max_size=12)))
def test_a_stream_may_be_cut_anywhere(parts: list[bytes]) -> None:
    reader = PacketReader()
    assert [item for part in parts for item in reader.feed(part)] == items(b"".join(parts))


@pytest.mark.parametrize("is_64bit", [False, True])
def test_the_description_is_xml_and_counts_right(is_64bit: bool) -> None:
    described = target(is_64bit=is_64bit)
    registers = list(ElementTree.fromstring(described.xml).iter("reg"))
    assert [int(reg.attrib["regnum"]) for reg in registers] == list(range(len(described.registers)))
    assert [reg.attrib["name"] for reg in registers] == list(described.names)


class Nothing:
    """Register 0 is 40; eight bytes of memory at 16."""

    def name(self, name: str) -> int | None:
        return {"rax": 40}.get(name)

    def read(self, address: int, size: int) -> bytes:
        return bytes(range(1, 9))[:size] if address == 16 else b""


def test_agent_expressions() -> None:
    """As gdb's manual has the operations; the code is put together by hand."""
    cases = {
        "2600001327": None,  # one value too few
        "260000222a0227": 82,  # reg 0 + 42
        "22101927": 0x04030201,  # *(u32 *)16
        "22ff160822001427": 1,  # sign-extended 0xff < 0
        "2205220305" + "27": 1,  # 5 / 3
        "22002000062201272200" + "27": 1,
        "22050e27": 0,
        "21000027": None,  # for ever
        "2200220005" + "27": None,  # by zero
        "2600ff27": None,
        "ff": None,
        "": None,
        "28" * 200: None,
    }
    for code, value in cases.items():
        expression = AgentExpression(bytes.fromhex(code), ("rax",))
        if value is None:
            with pytest.raises(ConditionError):
                expression.evaluate(Nothing())
        else:
            assert expression.evaluate(Nothing()) == value, code


@given(st.binary(max_size=40))
@settings(max_examples=50, deadline=None)
def test_any_bytecode_ends(code: bytes) -> None:
    with suppress(ConditionError):
        assert 0 <= AgentExpression(code, ("rax",)).evaluate(Nothing()) < 1 << 64


@given(st.text("raxu16()48+-*/%<>=!~&|^ 0x", max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_condition_is_read_or_refused(text: str) -> None:
    with suppress(ConditionError):
        assert 0 <= parse_condition(text).evaluate(Nothing()) < 1 << 64


def test_conditions_have_cs_precedence() -> None:
    for text, value in {
        "1 + 2 * 3 == 7 && !(2 > 3)": 1,
        "1 | 6 & 4 ^ 4": 1,
        "1 << 2 + 1": 8,
        "u16(16) == 0x201": 1,
        "rax / 7 * 7 + rax % 7": 40,
        "-1": (1 << 64) - 1,
        "0 && 1 / 0": 0,
        "1 || nothing": 1,
    }.items():
        assert parse_condition(text).evaluate(Nothing()) == value, text


@pytest.fixture
def stub(sample_guest: Callable[[str], Path]) -> Iterator[Stub]:
    hello = sample_guest("hello")
    with Host(memory_mib=64) as host, ExitStack() as stack:
        machines = [host.launch(hello, memory_mib=16).machine for _ in range(2)]
        debuggers = [stack.enter_context(Debugger(machine)) for machine in machines]
        yield Stub(
            [Process(debugger, exec_file=str(hello), monitor=lambda text: text) for debugger in debuggers],
            listed=lambda: [Listed(1, (("name", "<&>"),)), Listed(2)],
        )


def test_a_hostile_client_gets_answers(stub: Stub) -> None:
    """Whatever is asked in whatever order: an answer of a bounded size, and the guests do not go by it."""
    chance = random.Random(7)
    debuggers = [process.debugger for process in stub.processes.values()]
    for _ in range(int(os.environ.get("GDB_PACKETS", "4000"))):
        data = b"".join(chance.choices(PIECES, k=chance.randrange(1, 7)))
        if chance.random() < 0.2:
            at = chance.randrange(len(data))
            data = data[:at] + chance.randbytes(2) + data[at:]
        answer = stub.handle(data)
        assert isinstance(answer, bytes | Resume | Leave | Attach)
        assert not isinstance(answer, bytes) or len(answer) <= PACKET_SIZE
        assert not isinstance(answer, Resume) or answer.pid in answer.goes_on <= {1, 2}
    stub.close()
    assert not any(debugger.points for debugger in debuggers)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (b"c", Resume(1, goes_on=frozenset((1, 2)))),
        (b"c:p1.-1", Resume(1, goes_on=frozenset((1,)))),
        (b"c:p2.-1", Resume(2, goes_on=frozenset((2,)))),
        (b"s:p2.1;c", Resume(2, 0, goes_on=frozenset((1, 2)))),
        (b"s:p2.1;c:p2.-1", Resume(2, 0, goes_on=frozenset((2,)))),
        (b"r10,20:p1.1", Resume(1, 0, 0x10, 0x20, goes_on=frozenset((1,)))),
        (b"c:p-1.-1", Resume(1, goes_on=frozenset((1, 2)))),
        (b"s:1;c", Resume(1, 0, goes_on=frozenset((1, 2)))),
        (b"c:p3.-1", b"E01"),
        (b"x:p1.1", b"E01"),
        (b"c:p1.1.1", b"E01"),
    ],
)
def test_who_goes_on(stub: Stub, actions: bytes, expected: object) -> None:
    stub.handle(b"qSupported:multiprocess+")
    assert stub.handle(b"vCont;" + actions) == expected


def test_the_domains_are_listed_as_xml(stub: Stub) -> None:
    answer = stub.handle(b"qXfer:osdata:read:processes:0,1000")
    assert isinstance(answer, bytes)
    columns = [column.text for column in ElementTree.fromstring(answer[1:].decode()).iter("column")]
    assert columns == ["1", "<&>", "2"]
    assert b"processes" in bytes(stub.handle(b"qXfer:osdata:read::0,1000"))  # type: ignore[arg-type]
    assert stub.handle(b"qXfer:osdata:read:files:0,1000") == b"E01"


def test_a_hostile_client_at_the_socket(tmp_path: Path) -> None:
    """Noise, then a packet: the launch has lost nothing, and says nothing of it."""
    where, guest = tmp_path / "gdb.sock", tmp_path / "spin.elf"
    guest.write_bytes(kernel(SPIN))
    process = subprocess.Popen(
        [sys.executable, "-m", "domainbuilder", "launch", guest, "-m", "16", "--gdb", f"unix:{where}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not where.exists():
        assert process.poll() is None
        time.sleep(0.02)
    chance = random.Random(1)
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(where))
            noise = chance.randbytes(40_000).replace(b"\x03", b"").replace(b"$k", b"")
            client.sendall(noise + b"$$?#3f")
            seen = b""
            while b"$T02thread:1;#" not in seen:
                seen += client.recv(4096)
            client.sendall(b"$vCont;s:1#23")
            while b"$T05thread:1;#" not in seen:
                seen += client.recv(4096)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(where))
        client.sendall(b"$k#6b")
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in stderr
