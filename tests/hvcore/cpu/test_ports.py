"""Port I/O: what the engine answers by itself, and what is #GP; by the compiled core, and without it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from hvcore.cpu.processor import RAX, RBX, RCX, RDI, RDX, RIP, RSI
from tests.hvcore.rig import RING3_CS, RING3_DS, Rig

GP, BP = 13, 3
READ, WRITE = "ec", "ee"  # in al, dx; out dx, al
WAYS = {"core": {}, "python": {"use_core": False}, "plain": {"use_core": False, "live_window": False}}


@pytest.fixture(params=WAYS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(**WAYS[request.param])
    yield rig
    rig.engine.close()


def port(rig: Rig, code: str, number: int, *, ring3: bool = False) -> int | None:
    """RAX after the access, or None if it was a #GP."""
    if ring3:
        rig.enter(RING3_CS, RING3_DS)
    start = 0x2000 if ring3 else 0
    rig.code(start, code + "cc")
    rig.engine.flush_code()
    rig.engine.q[RDX], rig.engine.q[RAX], rig.engine.q[RIP] = number, 0, start
    rig.exits.clear()
    rig.engine.run()
    return None if rig.exits[0][0] == GP else rig.engine.q[RAX]  # else it was the int3


@pytest.mark.parametrize("code", [READ, WRITE, "ed", "ef", "66ed", "6c", "6e"])
def test_ports_are_closed_until_they_are_opened_and_then_again(rig: Rig, code: str) -> None:
    assert port(rig, code, 0x61) is None
    rig.engine.open_ports(1)
    assert port(rig, code, 0x61) is not None
    rig.engine.close_ports()
    assert port(rig, code, 0x61) is None


def test_an_open_port_reads_ones_of_its_width_and_is_counted_and_paid_for(rig: Rig) -> None:
    rig.engine.open_ports(1000)
    spent = rig.engine.cell[1]
    assert [port(rig, code, 0x3F8) for code in ("ec", "66ed", "ed")] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    assert port(rig, WRITE, 0x3F8) == 0
    assert rig.engine.port_accesses == (3, 1)
    assert rig.engine.cell[1] - spent == 4000


@pytest.mark.parametrize("number", [0x6D, 0x6E, 0x6F, 0x70, 0xCF8])
def test_ports_that_xen_keeps_are_never_opened(rig: Rig, number: int) -> None:
    rig.engine.open_ports(1)
    assert port(rig, READ, number) is None
    assert port(rig, READ, number ^ 0x100) is not None


def test_another_ring_is_not_meant(rig: Rig) -> None:
    rig.engine.open_ports(1)
    assert port(rig, READ, 0x61) is not None
    assert port(rig, READ, 0x61, ring3=True) is None


def test_time_that_ports_take_ends_the_turn(rig: Rig) -> None:
    rig.code(0, "ec ebfd")  # in al, dx; jmp to it
    rig.engine.open_ports(100)
    rig.engine.cell[0] = 10_000
    rig.engine.run()
    assert rig.engine.cell[0] < 0
    assert 90 <= rig.engine.port_accesses[0] <= 100


# -- what follows a refused access in its block of code


def refused(rig: Rig, code: str, number: int = 0x61) -> tuple[int, int, int, int]:
    """The exit, where the code begins with an access to a closed port that something follows."""
    rig.code(0, code + "cc")
    rig.code(0x1000, "2a000000" + "00" * 12)
    rig.engine.flush_code()
    q = rig.engine.q
    q[RAX], q[RBX], q[RCX], q[RDX] = 0x11111111, 0x1000, 3, number
    q[RSI], q[RDI] = 0x1004, 0x1008
    rig.engine.write_eflags(0x8D7 & ~0x40 | 0x200)  # all of the arithmetic flags but ZF
    rig.exits.clear()
    return rig.run(0)


FOLLOWERS = {
    "nothing": "",
    "a store": "ff03",  # inc dword [ebx]
    "a store of what was read": "0103",  # add [ebx], eax
    "a push": "50",
    "registers": "ffc0 01c3 31c9",
    "flags": "31c0",
    "the direction flag": "fd",
    "a division by zero": "31c9 f7f1",
    "a trap": "cd80",
    "another access": "ec",
    "an access to an open port": "b280 ec",
    "cpuid": "0fa2",
    "rdtsc": "0f31",
    "an invalid instruction": "0f0b",
    "a system call": "0f05",
    "a branch": "eb00 ff03",
    "a far branch": "e9ff0f0000",
    "a string store": "f3aa",
    "a loop": "e2fe",
    "a segment": "8ed8",
    "sse": "0f57c0 0f1103",
    "the fpu": "d9eb dd13",
}


@pytest.mark.parametrize("access", ["ec", "e661", "66ef"])
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_nothing_of_what_follows_is_done(rig: Rig, access: str, follower: str) -> None:
    before = refused(rig, access + "cc")  # which has nothing behind it to be done
    state = bytes(rig.engine.save_state())
    left = rig.engine.cell[0]
    assert before == (GP, 0, 0, 1)
    assert refused(rig, access + FOLLOWERS[follower]) == before
    assert bytes(rig.engine.save_state()) == state
    assert rig.mem.frame(rig.mem.first_mfn + 17)[:4].tolist() == [0x2A, 0, 0, 0]
    assert rig.engine.cell[0] < left  # its block is paid for
    assert rig.engine.port_accesses == (0, 0)


@pytest.mark.parametrize("access", ["6c", "6e", "f36c", "f36e"])
def test_string_accesses_have_not_begun(rig: Rig, access: str) -> None:
    assert refused(rig, access) == (GP, 0, 0, 1)
    assert [rig.engine.q[n] for n in (RCX, RSI, RDI)] == [3, 0x1004, 0x1008]


def test_the_handler_decides_where_it_goes_on(rig: Rig) -> None:
    """As it does for any other exception: here as Xen does what a guest may, in the middle of a block."""

    def answer(vector: int) -> None:
        if vector == GP:
            rig.engine.q[RAX], rig.engine.q[RIP] = 7, rig.engine.q[RIP] + 1
        else:
            rig.exits.append((vector, rig.engine.q[RIP], 0, 0))
            rig.engine.stop()

    rig.on_interrupt = answer
    rig.code(0, "01c0 ec 0103 01c0 ec 0103 cc")
    rig.code(0x1000, "01000000")
    rig.engine.q[RBX], rig.engine.q[RIP] = 0x1000, 0
    while not rig.exits:
        rig.engine.run()
    assert rig.exits == [(BP, 11, 0, 0)]
    assert rig.mem.frame(rig.mem.first_mfn + 17)[0] == 1 + 7 + 7


def test_who_wants_out_is_heard_after_it(rig: Rig) -> None:
    rig.on_interrupt = lambda _vector: rig.engine.want_out()
    rig.code(0, "ec ebfe")
    rig.engine.q[RIP] = 0
    rig.engine.run()
    assert rig.engine.q[RIP] == 0


@pytest.mark.parametrize(
    ("number", "code", "value", "word"),
    [(0x70, "ee", 0x8F, 0), (0xCF8, "ef", 0x80001068, 1)],
)
def test_what_xen_would_keep_is_kept(rig: Rig, number: int, code: str, value: int, word: int) -> None:
    kept = (ctypes.c_uint64 * 2)()
    rig.engine.words.port_keeps = ctypes.addressof(kept)
    rig.engine.open_ports(1)
    rig.code(0, code + "cc")
    rig.engine.q[RDX], rig.engine.q[RAX] = number, value
    assert rig.run(0)[0] == BP
    assert kept[word] == value
    assert kept[1 - word] == 0
    assert rig.engine.port_accesses == (0, 1)
