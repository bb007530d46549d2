from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from hvcore import abi as abi_module
from hvcore.common.event import EvtchnTable
from hvcore.common.event_channel import do_event_channel_op
from hvcore.public import event_channel as ec
from hvcore.public.errno import EACCES, EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP
from hvcore.public.xen import DOMID_SELF, VIRQ_TIMER
from hvcore.vcpu import VPF_blocked
from tests.hvcore.conftest import Guest

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK, ARRAY = 8, 9  # pages of the guest: the control blocks of both vCPUs, and the first event words
PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LINK = 0x1FFFF
DEFAULT = 7


def evtchn(guest: Guest, cmd: int, fmt: str, *fields: int) -> int:
    return guest.call(do_event_channel_op, cmd, fmt, *fields)


def mfn(guest: Guest, page: int) -> int:
    return guest.d.mem.first_mfn + page


def init_control(guest: Guest, page: int = BLOCK, offset: int = 0, vcpu: int = 0) -> int:
    return evtchn(guest, ec.EVTCHNOP_init_control, "QII8x", mfn(guest, page), offset, vcpu)


def expand_array(guest: Guest, page: int = ARRAY) -> int:
    return evtchn(guest, ec.EVTCHNOP_expand_array, "Q", mfn(guest, page))


def set_priority(guest: Guest, port: int, priority: int) -> int:
    return evtchn(guest, ec.EVTCHNOP_set_priority, "II", port, priority)


def send(guest: Guest, port: int) -> int:
    return evtchn(guest, ec.EVTCHNOP_send, "I", port)


def bind_ipi(guest: Guest, vcpu: int = 0) -> int:
    assert evtchn(guest, ec.EVTCHNOP_bind_ipi, "II", vcpu, 0) == 0
    return guest.result("II")[1]


def block_offset(vcpu: int) -> int:
    return 2048 * vcpu


def started(guest: Guest) -> Guest:
    """The guest with a control block for each vCPU, and its first 1024 event words zero."""
    for v in guest.d.vcpus:
        assert init_control(guest, BLOCK, block_offset(v.vcpu_id), v.vcpu_id) == 0
    assert expand_array(guest) == 0
    return guest


def word(guest: Guest, port: int) -> int:
    return int(struct.unpack_from("<I", guest.memory(ARRAY + port // 1024), port % 1024 * 4)[0])


def store(guest: Guest, port: int, value: int) -> None:
    struct.pack_into("<I", guest.memory(ARRAY + port // 1024), port % 1024 * 4, value)


def ready(guest: Guest, vcpu: int = 0) -> int:
    return int(struct.unpack_from("<I", guest.memory(BLOCK), block_offset(vcpu))[0])


def head(guest: Guest, priority: int = DEFAULT, vcpu: int = 0) -> int:
    return int(struct.unpack_from("<I", guest.memory(BLOCK), block_offset(vcpu) + 8 + 4 * priority)[0])


def take(guest: Guest, vcpu: int = 0) -> int:
    """consume_one_event() of Linux: the first port of the best queue, 0 where nothing is ready."""
    bits = ready(guest, vcpu)
    if not bits:
        return 0
    priority = (bits & -bits).bit_length() - 1
    block, at = guest.memory(BLOCK), block_offset(vcpu)
    port = head(guest, priority, vcpu)
    if not port:  # ready, though empty
        struct.pack_into("<I", block, at, bits & ~(1 << priority))
        return take(guest, vcpu)
    w = word(guest, port)
    store(guest, port, w & ~(PENDING | LINKED | LINK))
    struct.pack_into("<I", block, at + 8 + 4 * priority, w & LINK)
    if not w & LINK:
        struct.pack_into("<I", block, at, bits & ~(1 << priority))
    return port if w & PENDING and not w & MASKED else take(guest, vcpu)


def held(guest: Guest, page: int) -> int:
    return guest.d.frames.tcount[mfn(guest, page) - guest.d.mem.base_mfn]


def test_arguments_are_checked_in_xens_order(guest: Guest) -> None:
    assert init_control(guest, offset=4, vcpu=9) == -ENOENT
    assert init_control(guest, offset=4) == -EINVAL
    assert init_control(guest, offset=4096 - 64) == -EINVAL
    assert init_control(guest, page=1 << 20) == -EINVAL
    guest.mm.make_table(mfn(guest, BLOCK))  # a page table
    assert init_control(guest) == -EINVAL
    guest.mm.end_table(mfn(guest, BLOCK))
    assert expand_array(guest) == -EOPNOTSUPP
    assert set_priority(guest, bind_ipi(guest), 1) == -ENOSYS
    assert set_priority(guest, 99999, 1) == -EINVAL
    assert (held(guest, BLOCK), held(guest, ARRAY)) == (0, 0)
    assert init_control(guest, offset=4096 - 72) == 0
    assert guest.result("QIIB") == (mfn(guest, BLOCK), 4096 - 72, 0, ec.EVTCHN_FIFO_LINK_BITS)
    assert init_control(guest) == -EINVAL
    assert set_priority(guest, 0, 1) == -EACCES
    assert set_priority(guest, 1, 16) == -EINVAL
    assert expand_array(guest, 1 << 20) == -EINVAL
    assert (held(guest, BLOCK), held(guest, ARRAY)) == (1, 0)
    assert list(guest.d.evtchn.held_frames()) == [mfn(guest, BLOCK)]


def test_the_array_has_room_for_131072_ports(guest: Guest) -> None:
    assert init_control(guest) == 0
    assert [expand_array(guest) for _ in range(129)] == [0] * 128 + [-ENOSPC]
    assert held(guest, ARRAY) == 128


def test_a_domain_may_have_more_ports_than_two_levels_can(guest: Guest) -> None:
    guest.d.evtchn = EvtchnTable(guest.d, max_evtchn_port=5000)
    two_levels = guest.d.abi.nr_evtchns
    assert [bind_ipi(guest) for _ in range(two_levels - 1)] == list(range(1, two_levels))
    assert evtchn(guest, ec.EVTCHNOP_bind_ipi, "II", 0, 0) == -ENOSPC
    assert init_control(guest) == 0
    assert [bind_ipi(guest) for _ in range(two_levels, 5001)] == list(range(two_levels, 5001))
    assert evtchn(guest, ec.EVTCHNOP_bind_ipi, "II", 0, 0) == -ENOSPC
    assert [expand_array(guest, ARRAY + page) for page in range(5)] == [0] * 5
    assert [send(guest, port) for port in (4999, 3, 5000)] == [0, 0, 0]
    assert [take(guest) for _ in range(4)] == [4999, 3, 5000, 0]


def test_events_are_taken_in_order_of_priority_then_of_time(guest: Guest) -> None:
    started(guest)
    ports = [bind_ipi(guest) for _ in range(6)]
    for port, priority in zip(ports, (7, 3, 15, 3, 0, 7), strict=True):
        assert set_priority(guest, port, priority) == 0
        assert send(guest, port) == 0
    assert ready(guest) == 1 << 7 | 1 << 3 | 1 << 15 | 1
    assert guest.v.info[0] == 1
    assert [take(guest) for _ in range(7)] == [5, 2, 4, 1, 6, 3, 0]


def test_a_masked_event_waits_for_unmask(guest: Guest) -> None:
    started(guest)
    port = bind_ipi(guest)
    store(guest, port, MASKED)
    assert send(guest, port) == 0
    assert (word(guest, port), ready(guest), guest.v.info[0]) == (PENDING | MASKED, 0, 0)
    assert guest.d.evtchn.is_masked(port)
    assert guest.d.evtchn.port_poll(port) == 1
    assert evtchn(guest, ec.EVTCHNOP_unmask, "I", port) == 0
    assert (word(guest, port), head(guest), guest.v.info[0]) == (PENDING | LINKED, port, 1)


def test_a_link_takes_busy_away_and_is_not_made_to_an_unlinked_tail(guest: Guest) -> None:
    started(guest)
    first, second = bind_ipi(guest), bind_ipi(guest)
    send(guest, first)
    store(guest, first, PENDING | LINKED | BUSY | MASKED | 0x1234)
    send(guest, second)
    assert word(guest, first) == PENDING | LINKED | MASKED | second
    store(guest, first, 0)
    store(guest, second, 0)  # the guest has unlinked the tail
    send(guest, first)
    assert (word(guest, second), head(guest)) == (0, first)


def test_a_closed_port_on_a_queue_is_not_given_out(guest: Guest) -> None:
    started(guest)
    ports = [bind_ipi(guest) for _ in range(3)]
    send(guest, ports[0])
    for port in ports[:2]:
        assert evtchn(guest, ec.EVTCHNOP_close, "I", port) == 0
    assert word(guest, ports[0]) == LINKED
    assert [bind_ipi(guest), bind_ipi(guest)] == [2, 4]
    assert take(guest) == 0  # the guest drops what is not pending
    assert bind_ipi(guest) == 1


def test_what_is_pending_comes_along_from_two_levels(guest: Guest) -> None:
    before, closed = bind_ipi(guest), bind_ipi(guest)
    send(guest, before)
    send(guest, closed)
    assert init_control(guest) == 0
    between = bind_ipi(guest)
    send(guest, between)  # there is no event word yet
    assert evtchn(guest, ec.EVTCHNOP_close, "I", closed) == 0
    assert expand_array(guest) == 0
    # Xen does not ask whether the port is still in use.
    assert [take(guest) for _ in range(4)] == [before, closed, between, 0]


def test_an_event_for_a_vcpu_without_control_block_is_lost(guest: Guest) -> None:
    assert init_control(guest) == 0
    assert expand_array(guest) == 0
    port = bind_ipi(guest, vcpu=1)
    assert send(guest, port) == 0
    assert word(guest, port) == 0


def test_reset_gives_all_frames_back_and_two_levels_again(guest: Guest) -> None:
    started(guest)
    port = bind_ipi(guest)
    send(guest, port)
    assert (held(guest, BLOCK), held(guest, ARRAY)) == (2, 1)
    assert evtchn(guest, ec.EVTCHNOP_reset, "H", DOMID_SELF) == 0
    assert (held(guest, BLOCK), held(guest, ARRAY)) == (0, 0)
    assert word(guest, port) == LINKED
    assert expand_array(guest) == -EOPNOTSUPP
    assert set_priority(guest, bind_ipi(guest), 1) == -ENOSYS
    assert send(guest, 1) == 0
    assert guest.d.shared_info[guest.d.abi.evtchn_pending] == 1 << 1
    started(guest)


def test_events_wake_blocked_and_polling_vcpus(guest: Guest) -> None:
    started(guest)
    other = guest.d.vcpus[1]
    port, timer = bind_ipi(guest, 1), 0
    other.pause_flags = VPF_blocked
    send(guest, port)
    assert other.pause_flags == 0
    assert evtchn(guest, ec.EVTCHNOP_bind_virq, "III", VIRQ_TIMER, 1, 0) == 0
    timer = guest.result("III")[2]
    store(guest, timer, MASKED)
    other.pause_flags, other.poll_evtchn, guest.d.evtchn.pollers = VPF_blocked, timer, 1
    guest.d.evtchn.send_guest_vcpu_virq(other, VIRQ_TIMER)
    left: tuple[int, int | None] = other.pause_flags, other.poll_evtchn
    assert left == (0, None)


PORTS, PRIORITIES = 6, (0, 7, 15)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("send", "send", "take", "mask", "unmask", "priority")),
        st.integers(1, PORTS),
        st.sampled_from(PRIORITIES),
    ),
    max_size=60,
)


class Model:
    """What the FIFO ABI promises: queues of ports in order of time, a port on one of them at most."""

    def __init__(self) -> None:
        self.queues: dict[int, deque[int]] = {priority: deque() for priority in PRIORITIES}
        self.pending: set[int] = set()
        self.masked: set[int] = set()
        self.priority = dict.fromkeys(range(1, PORTS + 1), DEFAULT)

    def raise_event(self, port: int) -> None:
        self.pending.add(port)
        if port not in self.masked and not any(port in queue for queue in self.queues.values()):
            self.queues[self.priority[port]].append(port)

    def unmask(self, port: int) -> None:
        self.masked.discard(port)
        if port in self.pending:
            self.raise_event(port)

    def take(self) -> int:
        for queue in self.queues.values():
            while queue:
                port = queue.popleft()
                was_pending = port in self.pending
                self.pending.discard(port)
                if was_pending and port not in self.masked:
                    return port
        return 0


@pytest.mark.parametrize("abi", [abi_module.PV32_PAE, abi_module.PV64], ids=["pv32", "pv64"])
@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_nothing_is_lost_or_comes_twice(abi: abi_module.Abi, steps: list[tuple[str, int, int]]) -> None:
    guest, model = started(Guest(abi, 2)), Model()
    assert [bind_ipi(guest) for _ in range(PORTS)] == list(range(1, PORTS + 1))

    def mask(port: int) -> None:
        store(guest, port, word(guest, port) | MASKED)
        model.masked.add(port)

    def unmask(port: int) -> None:
        assert evtchn(guest, ec.EVTCHNOP_unmask, "I", port) == 0
        model.unmask(port)

    def sent(port: int) -> None:
        assert send(guest, port) == 0
        model.raise_event(port)

    actions: dict[str, Callable[[int], None]] = {"send": sent, "mask": mask, "unmask": unmask}
    for what, port, priority in steps:
        if what == "take":
            assert take(guest) == model.take()
        elif what == "priority":
            assert set_priority(guest, port, priority) == 0
            model.priority[port] = priority
        else:
            actions[what](port)
    for port in range(1, PORTS + 1):
        unmask(port)
    while port := model.take():
        assert take(guest) == port
    assert take(guest) == 0
