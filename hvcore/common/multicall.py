"""multicall: a list of hypercalls, each with its result in its own entry (xen/common/multicall.c).

A 32-bit guest's entries are half as wide; nothing else differs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.errors import GuestError, HypercallPreempted
from hvcore.public.errno import EFAULT, EINVAL
from hvcore.public.xen import Hypercall

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.domain import Domain
    from hvcore.vcpu import Vcpu

    Dispatch = Callable[[Vcpu, int, tuple[int, ...]], int]

# op; result (skipped); args[6]
_ENTRY = {4: struct.Struct("<I4x6I"), 8: struct.Struct("<Q8x6Q")}
_ENTRY_NS = 50  # what an entry takes of the vCPU's turn, beside what its call does
_MULTICALL = int(Hypercall.multicall)
_IRET = int(Hypercall.iret)


def do_multicall(
    v: Vcpu,
    call_list: int,
    nr_calls: int,
    dispatch: Dispatch,
    preempted: Callable[[int, int], int] | None = None,
    done: int = 0,
) -> int:
    """Make `nr_calls` calls; 0, or -EFAULT at the first entry that cannot be read or written.

    `dispatch` makes one call and answers with its result, an error as a negative number. After an iret the
    rest is dropped. When the vCPU must turn to something else before the list is done (it blocked, its turn
    is over, an event is to be delivered, or the domain shut down), `preempted(call_list, nr_calls)` is asked
    to have the rest made later and for the result until then; without it the list goes on. A call that was
    itself put off stands first in that rest, with the arguments that it is to go on with. The first `done`
    entries were made already.
    """
    d = v.domain
    mask = d.abi.word_mask
    size = _ENTRY[d.abi.word].size
    nr_calls &= 0xFFFFFFFF
    if d.abi.word == 8 and not array_access_ok(d, call_list, nr_calls, size):
        return -EFAULT
    while done < nr_calls:
        at = call_list + done * size
        if done and preempted is not None and hypercall_preempt_check(v):
            return preempted(at & mask, nr_calls - done)
        try:
            iret_result = _one_entry(v, at, dispatch)
        except HypercallPreempted as rest:
            _put_off(v, at, rest)
            if preempted is not None:
                return preempted(at & mask, nr_calls - done)
            continue
        if iret_result is not None:
            return iret_result
        done += 1
        d.clock.spend(_ENTRY_NS)
    return 0


def hypercall_preempt_check(v: Vcpu) -> bool:
    """The vCPU waits, its turn is over, its domain has shut down, or an event is to be delivered."""
    info = v.info
    waits = bool(v.pause_flags or v.domain.is_shutting_down or (info[0] and not info[1]))
    return waits or v.domain.clock.turn_is_over()


def _put_off(v: Vcpu, at: int, rest: HypercallPreempted) -> None:
    """Leave in the entry at `at` what its call is to go on with."""
    word = v.domain.abi.word
    for i, argument in enumerate(rest.arguments, 2):
        v.domain.guest.write_ulong(at + i * word, argument)


def _one_entry(v: Vcpu, at: int, dispatch: Dispatch) -> int | None:
    """Make the call of one entry; the result of an iret, which ends the list."""
    d = v.domain
    call = d.guest.unpack(_ENTRY[d.abi.word], at)
    op = call[0]
    if op == _IRET:
        return _leave(d, at + d.abi.word, dispatch(v, op, call[1:]))
    result = dispatch(v, op, call[1:]) if op != _MULTICALL else -EINVAL
    if result < 0:
        d.trace.failed_entry(at, op, call[1:], result)
    d.guest.write_ulong(at + d.abi.word, result)
    return None


def _leave(d: Domain, at: int, result: int) -> int:
    """The result of an iret goes to its entry if it can, and to whatever the guest returned to."""
    try:
        d.guest.write_ulong(at, result)
    except GuestError:
        return result
    return result
