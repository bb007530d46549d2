from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from hvcore.common.multicall import do_multicall
from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT, EINVAL
from hvcore.vcpu import VPF_blocked

if TYPE_CHECKING:
    from hvcore.vcpu import Vcpu
    from tests.hvcore.conftest import Guest

LIST = 0x3000


class Dispatch:
    """Records the calls and answers with their first argument."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...]]] = []

    def __call__(self, v: Vcpu, nr: int, args: tuple[int, ...]) -> int:
        self.calls.append((nr, tuple(args)))
        if nr == 29:
            v.pause_flags |= VPF_blocked
        if nr == 28:
            v.domain.is_shutting_down = True
        return -args[0] if nr == 5 else args[0]


def put(guest: Guest, entries: list[tuple[int, ...]], at: int = LIST) -> None:
    code = guest.d.abi.word_format
    data = b"".join(struct.pack(f"<8{code}", op, 0xAA, *args) for op, *args in entries)
    guest.d.guest.copy_to(at, data)


def results(guest: Guest, nr: int, at: int = LIST) -> list[int]:
    word = guest.d.abi.word
    size = 8 * word
    code = guest.d.abi.word_format.lower()
    raw = guest.d.guest.copy_from(at, nr * size)
    return [struct.unpack_from(f"<{code}", raw, i * size + word)[0] for i in range(nr)]


def entry(op: int, first: int = 0) -> tuple[int, ...]:
    return (op, first, 2, 3, 4, 5, 6)


def test_each_entry_gets_its_result(guest: Guest) -> None:
    put(guest, [entry(17, 7), entry(5, 22), entry(40, 0)])
    dispatch = Dispatch()
    assert do_multicall(guest.v, LIST, 3, dispatch) == 0
    assert results(guest, 3) == [7, -22, 0]
    assert dispatch.calls == [(17, (7, 2, 3, 4, 5, 6)), (5, (22, 2, 3, 4, 5, 6)), (40, (0, 2, 3, 4, 5, 6))]


def test_entries_across_pages(guest: Guest) -> None:
    at = LIST + 0x1000 - 3 * guest.d.abi.word
    put(guest, [entry(17, i) for i in range(200)], at)
    assert do_multicall(guest.v, at, 200, Dispatch()) == 0
    assert results(guest, 200, at) == list(range(200))


def test_a_multicall_in_a_multicall_fails_alone(guest: Guest) -> None:
    put(guest, [entry(13), entry(17, 5)])
    dispatch = Dispatch()
    assert do_multicall(guest.v, LIST, 2, dispatch) == 0
    assert results(guest, 2) == [-EINVAL, 5]
    assert len(dispatch.calls) == 1


def test_a_bad_entry_ends_the_list_and_keeps_what_was_done(guest: Guest) -> None:
    size = 8 * guest.d.abi.word
    at = (64 << 12) - 2 * size  # the third would lie beyond memory
    put(guest, [entry(17, 1), entry(17, 2)], at)
    with pytest.raises(GuestError) as e:
        do_multicall(guest.v, at, 3, Dispatch())
    assert e.value.errno == EFAULT
    assert results(guest, 2, at) == [1, 2]


def test_a_result_that_cannot_be_written_ends_the_list(guest: Guest) -> None:
    put(guest, [entry(17, 1), entry(17, 2)])
    guest.read_only.add(LIST >> 12)
    dispatch = Dispatch()
    with pytest.raises(GuestError):
        do_multicall(guest.v, LIST, 2, dispatch)
    assert len(dispatch.calls) == 1


def test_iret_ends_the_list(guest: Guest) -> None:
    put(guest, [entry(17, 1), entry(23, 99), entry(17, 2)])
    dispatch = Dispatch()
    assert do_multicall(guest.v, LIST, 3, dispatch) == 99
    assert results(guest, 3)[1] == 99
    assert len(dispatch.calls) == 2


def test_a_vcpu_that_sleeps_makes_the_rest_later(guest: Guest) -> None:
    put(guest, [entry(17, 1), entry(29, 0), entry(17, 2), entry(17, 3)])
    asked: list[tuple[int, int]] = []

    def preempted(call_list: int, nr_calls: int) -> int:
        asked.append((call_list, nr_calls))
        return 13

    dispatch = Dispatch()
    assert do_multicall(guest.v, LIST, 4, dispatch, preempted) == 13
    assert asked == [(LIST + 2 * 8 * guest.d.abi.word, 2)]
    assert len(dispatch.calls) == 2
    guest.v.pause_flags = 0
    put(guest, [entry(28), entry(17, 2)])
    assert do_multicall(guest.v, LIST, 2, dispatch, preempted) == 13
    assert asked[1:] == [(LIST + 8 * guest.d.abi.word, 1)]


def test_nothing_to_do(guest: Guest) -> None:
    assert do_multicall(guest.v, 0x7FFF0000, 0, Dispatch()) == 0


def test_the_list_must_not_be_xens(guest64: Guest) -> None:
    assert do_multicall(guest64.v, 0xFFFF800000000000, 0, Dispatch()) == -EFAULT
