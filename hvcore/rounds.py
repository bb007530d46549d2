"""Loops that only count or wait: their rounds are skipped, and the state after them is worked out.

cpu/loops.py says what a loop does to the registers; here is how far that may go.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from hvcore.clock import CELL_SPENT, TURN_NS
from hvcore.common.time import next_update_of_system_time
from hvcore.cpu.loops import counting_loop
from hvcore.cpu.processor import RIP
from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.machine import Machine
    from hvcore.vcpu import Vcpu

_WORTH_BYTES = 500_000  # a shorter loop is faster executed


def _execute_round(m: Machine, size: int) -> None:
    """Execute `size` bytes of code, whoever wants the engine out."""
    clock = m.clock
    end = clock.now() + size
    while clock.now() < end and not clock.turn_is_over():
        clock.set_horizon(end)
        m.engine.run()


def leave_out_rounds(m: Machine) -> bool:
    """Where the guest is in a loop that only counts or waits, go ahead to its end or to the next event.

    The engine executes the first of those rounds, which has to come out as was worked out, and one after
    the last, which leaves the flags as they are then.
    """
    engine, clock, q = m.engine, m.clock, m.engine.q
    v = m.domain.current
    if m.ro_page_fault.pending or not engine.is_flat:
        return False
    loop = counting_loop(q[:16].tolist(), q[RIP], engine.code_is_64bit, partial(_look, m))
    if loop is None or loop.rounds * loop.size < _WORTH_BYTES:
        return False
    others = max(m.host.others_due(m), clock.turn_end)  # nobody is left behind by more than a turn
    end = min(_next_event(m, v), m.host.timers.next_deadline(), others)
    if (end - clock.now()) // loop.size < 4:
        return False
    rip, spent = q[RIP], clock.cell[CELL_SPENT]
    _execute_round(m, loop.size)
    if q[RIP] != rip or tuple(q[:16]) != loop.after or clock.cell[CELL_SPENT] != spent:
        return False
    rounds = min(loop.rounds - 2, (end - clock.now()) // loop.size - 1)
    if rounds > 0:
        for i, step in enumerate(loop.step):
            q[i] += rounds * step
        clock.leave_out(rounds * loop.size)
        m.set_turn_end()  # those that would have ended by now would have changed nothing
        _execute_round(m, loop.size)
    return True


def _look(m: Machine, va: int, size: int) -> bytes:
    """Memory of the running vCPU, with no trace of having been read. Raises GuestError."""
    d, data = m.domain, b""
    while size:
        va &= d.abi.word_mask
        page, fitting = d.mm.look(d.current_root(), va), min(size, PAGE_SIZE - va % PAGE_SIZE)
        if page < 0:
            raise GuestError(EFAULT)
        start = page + va % PAGE_SIZE
        data += bytes(m.mem.view[start : start + fitting])
        va, size = va + fitting, size - fitting
    return data


def _next_event(m: Machine, v: Vcpu) -> int:
    """When something may happen to `v` where it only executes code: the end of a turn that matters."""
    clock = m.clock
    others = any(w.is_initialised and not w.pause_flags for w in m.domain.vcpus if w is not v)
    due = next_update_of_system_time(v)
    if others or m.cap or v.nmi_pending or v.event_needs_delivery() or due <= clock.turn_end:
        return clock.turn_end
    return min(clock.next_deadline(), -(-due // TURN_NS) * TURN_NS)
