"""multicall: a list of hypercalls, each with its result in its own entry (xen/common/multicall.c).

A 32-bit guest's entries are half as wide; nothing else differs.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.common.handles import array_access_ok
from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT, EINVAL
from hvcore.public.xen import Hypercall

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.vcpu import Vcpu

# op; result (skipped); args[6]
_ENTRY = {4: struct.Struct("<I4x6I"), 8: struct.Struct("<Q8x6Q")}
_RESULT = {4: struct.Struct("<I"), 8: struct.Struct("<Q")}
_MULTICALL = int(Hypercall.multicall)
_IRET = int(Hypercall.iret)


def do_multicall(
    v: Vcpu,
    call_list: int,
    nr_calls: int,
    dispatch: Callable[[Vcpu, int, tuple[int, ...]], int],
    preempted: Callable[[int, int], int] | None = None,
) -> int:
    """Make `nr_calls` calls; 0, or -EFAULT at the first entry that cannot be read or written.

    `dispatch` makes one call and answers with its result, an error as a negative number. After an iret the
    rest is dropped. When the vCPU must give up the processor before the list is done (it blocked, or the
    domain shut down), `preempted(call_list, nr_calls)` is asked to have the rest made later and for the
    result until then; without it the list goes on.
    """
    d = v.domain
    word = d.abi.word
    mask = d.abi.word_mask
    entry = _ENTRY[word]
    result_layout = _RESULT[word]
    nr_calls &= 0xFFFFFFFF
    if word == 8 and not array_access_ok(d, call_list, nr_calls, entry.size):
        return -EFAULT
    guest = d.guest
    unpack = guest.unpack
    copy_to = guest.copy_to
    store = result_layout.pack
    size = entry.size
    at = call_list
    for left in range(nr_calls, 0, -1):
        if v.pause_flags and preempted is not None and left < nr_calls:
            return preempted(at & mask, left)
        op, *args = unpack(entry, at)
        result = -EINVAL if op == _MULTICALL else dispatch(v, op, tuple(args))
        if op == _IRET:
            try:
                copy_to(at + word, store(result & mask))
            except GuestError:
                return result
            return result
        copy_to(at + word, store(result & mask))
        at += size
        if d.is_shutting_down and preempted is not None and left > 1:
            return preempted(at & mask, left - 1)
    return 0
