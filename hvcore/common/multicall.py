"""multicall: a list of hypercalls, each with its result in its own entry (xen/common/multicall.c).

A 32-bit guest's entries are half as wide; nothing else differs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.public.errno import EFAULT, EINVAL
from hvcore.public.xen import PAGE_SIZE, Hypercall

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

    Dispatch = Callable[[Vcpu, int, tuple[int, ...]], int]

# op; result (skipped); args[6]
_ENTRY = {4: struct.Struct("<I4x6I"), 8: struct.Struct("<Q8x6Q")}
_RESULT = {4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_ENTRY_NS = 50  # what an entry takes of the vCPU's turn, beside what its call does
_MULTICALL = int(Hypercall.multicall)
_IRET = int(Hypercall.iret)


def do_multicall(
    v: Vcpu,
    call_list: int,
    nr_calls: int,
    dispatch: Dispatch,
    preempted: Callable[[int, int], int] | None = None,
) -> int:
    """Make `nr_calls` calls; 0, or -EFAULT at the first entry that cannot be read or written.

    `dispatch` makes one call and answers with its result, an error as a negative number. After an iret the
    rest is dropped. When the vCPU must turn to something else before the list is done (it blocked, its turn
    is over, an event is to be delivered, or the domain shut down), `preempted(call_list, nr_calls)` is asked
    to have the rest made later and for the result until then; without it the list goes on. A call that was
    itself put off stands first in that rest, with the arguments that it is to go on with.
    """
    d = v.domain
    word = d.abi.word
    mask = d.abi.word_mask
    size = _ENTRY[word].size
    nr_calls &= 0xFFFFFFFF
    if word == 8 and not array_access_ok(d, call_list, nr_calls, size):
        return -EFAULT
    left = nr_calls
    at = call_list
    clock = d.clock
    while left:
        must_stop = _must_stop(v) or clock.turn_is_over()
        if must_stop and preempted is not None and left < nr_calls:
            return preempted(at & mask, left)
        try:
            done, iret_result = _entries_of_page(v, at, left, dispatch, preempted is not None)
        except HypercallPreempted as rest:
            if preempted is not None:
                return preempted(at + rest.done * size & mask, left - rest.done)
            done, iret_result = rest.done, None
        if iret_result is not None:
            return iret_result
        at += done * size
        left -= done
        clock.spend(done * _ENTRY_NS)
    return 0


def _must_stop(v: Vcpu) -> bool:
    """hypercall_preempt_check(): the vCPU waits, its domain has shut down, or an event is to be delivered."""
    info = v.info
    return bool(v.pause_flags or v.domain.is_shutting_down or (info[0] and not info[1]))


def _put_off(v: Vcpu, at: int, done: int, rest: HypercallPreempted) -> None:
    """Leave in the entry at `at` what its call is to go on with."""
    rest.done = done
    word = v.domain.abi.word
    for i, argument in enumerate(rest.arguments, 2):
        v.domain.guest.write_ulong(at + i * word, argument)


def _entries_of_page(
    v: Vcpu, at: int, left: int, dispatch: Dispatch, can_wait: bool
) -> tuple[int, int | None]:
    """Make the calls of the entries from `at` to the end of its page, or until one makes the vCPU wait.

    The number made, and the result of an iret if one ended the list. The page is translated once; whether it
    may still be stored to is asked after each call, which can have changed the page tables.
    """
    d = v.domain
    word = d.abi.word
    mask = d.abi.word_mask
    layout = _ENTRY[word]
    size = layout.size
    pages = d.guest.writable_pages
    number = at >> 12
    page = pages.get(number)
    fitting = (PAGE_SIZE - (at & 0xFFF)) // size
    if page is None or not fitting:
        return _one_entry(v, at, dispatch)
    view = d.mem.view
    unpack = layout.unpack_from
    store = _RESULT[word].pack_into
    first = page | (at & 0xFFF)
    for place in range(first, first + min(left, fitting) * size, size):
        call = unpack(view, place)
        op = call[0]
        if op == _IRET:
            return 0, _leave(d, at + place - first + word, dispatch(v, op, call[1:]))
        try:
            result = dispatch(v, op, call[1:]) if op != _MULTICALL else -EINVAL
        except HypercallPreempted as rest:
            _put_off(v, at + place - first, (place - first) // size, rest)
            raise
        if result < 0:
            d.trace.failed_entry(at + place - first, op, call[1:], result)
        if pages.get(number) != page:
            d.guest.write_ulong(at + place - first + word, result)
            return (place - first) // size + 1, None
        store(view, place + word, result & mask)
        info = v.info
        if can_wait and (v.pause_flags or d.is_shutting_down or (info[0] and not info[1])):  # _must_stop()
            return (place - first) // size + 1, None
    return min(left, fitting), None


def _one_entry(v: Vcpu, at: int, dispatch: Dispatch) -> tuple[int, int | None]:
    """The call of an entry that lies across pages, or in a page not seen yet."""
    d = v.domain
    word = d.abi.word
    call = d.guest.unpack(_ENTRY[word], at)
    op = call[0]
    if op == _IRET:
        return 0, _leave(d, at + word, dispatch(v, op, call[1:]))
    try:
        result = dispatch(v, op, call[1:]) if op != _MULTICALL else -EINVAL
    except HypercallPreempted as rest:
        _put_off(v, at, 0, rest)
        raise
    if result < 0:
        d.trace.failed_entry(at, op, call[1:], result)
    d.guest.write_ulong(at + word, result)
    return 1, None


def _leave(d: Domain, at: int, result: int) -> int:
    """The result of an iret goes to its entry if it can, and to whatever the guest returned to."""
    try:
        d.guest.write_ulong(at, result)
    except GuestError:
        return result
    return result
