"""Event channels of the FIFO ABI: xen/common/event_fifo.c.

Each vCPU has a control block with the heads of 16 queues, one for each priority; each port has an event word
in an array of pages. Both are the guest's memory. A word has the bits PENDING, MASKED, LINKED and BUSY, and
names the port that comes next in the queue. Xen links an event that is neither masked nor linked; the guest
unlinks it, and may write anything at any time. Xen trusts only what it keeps itself: the port that it put
last on each queue, and the queue that it put each port on last.

No vCPU runs while Xen works here, so no store of the guest's comes between a look at a word and the change of
it, and the retries that Xen makes for that case never begin.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from hvcore.common.schedule import vcpu_mark_events_pending
from hvcore.public.errno import EINVAL, ENOSPC, EOPNOTSUPP
from hvcore.public.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_HEAD,
    EVTCHN_FIFO_LINK_MASK,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_DEFAULT,
    EVTCHN_FIFO_READY,
    evtchn_fifo_control_block,
)
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.common.event import EvtchnTable
    from hvcore.vcpu import Vcpu

WORD_SIZE = 4  # event_word_t
EVENT_WORDS_PER_PAGE = PAGE_SIZE // WORD_SIZE
MAX_EVENT_ARRAY_PAGES = EVTCHN_FIFO_NR_CHANNELS // EVENT_WORDS_PER_PAGE
LAST_OFFSET = PAGE_SIZE - evtchn_fifo_control_block.size

_PENDING = 1 << EVTCHN_FIFO_PENDING
_MASKED = 1 << EVTCHN_FIFO_MASKED
_LINKED = 1 << EVTCHN_FIFO_LINKED
_KEPT_BY_LINK = ~(1 << EVTCHN_FIFO_BUSY | EVTCHN_FIFO_LINK_MASK) & 0xFFFFFFFF
_HEAD_WORD = EVTCHN_FIFO_HEAD // WORD_SIZE
_READY_WORD = EVTCHN_FIFO_READY // WORD_SIZE
_NO_BLOCK = (0, 0)


class EvtchnFifo:
    """evtchn_port_ops_fifo with its state: `struct evtchn_fifo_domain` and each `struct evtchn_fifo_vcpu`.

    A queue's number is `vcpu_id * 16 + priority`.
    """

    __slots__ = ("_base_mfn", "_table", "_words", "control_blocks", "event_array", "tails")

    has_priority = True
    nr_channels = EVTCHN_FIFO_NR_CHANNELS

    WIRING = frozenset(("_base_mfn", "_table", "_words"))

    def __init__(self, table: EvtchnTable) -> None:
        d = table.domain
        self._table = table
        self._words = d.mem.d
        self._base_mfn = d.mem.base_mfn
        self.control_blocks: list[tuple[int, int]] = [_NO_BLOCK] * d.max_vcpus  # (mfn, offset in it)
        self.event_array: list[int] = []  # mfns
        self.tails = array("I", bytes(4 * EVTCHN_FIFO_MAX_QUEUES * d.max_vcpus))  # 0: the queue is empty

    @property
    def num_evtchns(self) -> int:
        """Ports below this have an event word."""
        return len(self.event_array) * EVENT_WORDS_PER_PAGE

    def _word_from_port(self, port: int) -> int:
        """Index of the port's event word in the machine's memory, or -1."""
        page = port // EVENT_WORDS_PER_PAGE
        if page >= len(self.event_array):
            return -1
        return (self.event_array[page] - self._base_mfn) * EVENT_WORDS_PER_PAGE + port % EVENT_WORDS_PER_PAGE

    def _index(self, mfn: int, offset: int) -> int:
        return ((mfn - self._base_mfn) * PAGE_SIZE + offset) // WORD_SIZE

    # --- evtchn_port_ops ----------------------------------------------------------------------------------

    def init(self, port: int) -> None:
        """A port comes into use, with the default priority."""
        self._table.priority[port] = EVTCHN_FIFO_PRIORITY_DEFAULT

    def set_pending(self, v: Vcpu, port: int) -> None:
        """Mark `port` pending; link it to a queue of `v` and say so, if it is neither masked nor linked."""
        table, words = self._table, self._words
        at = self._word_from_port(port)
        if at < 0:
            table.pending[port] = 1  # until its page of the array is there
            return
        mfn, offset = self.control_blocks[v.vcpu_id]
        if not mfn:
            return  # a guest must not unmask an event before it has a control block
        word = words[at]
        if word & (_MASKED | _LINKED):
            words[at] = word | _PENDING
        else:
            words[at] = word | _PENDING | _LINKED
            block = self._index(mfn, offset)
            priority = table.priority[port]
            if not self._append(v.vcpu_id * EVTCHN_FIFO_MAX_QUEUES + priority, port):
                words[block + _HEAD_WORD + priority] = port
                ready = words[block + _READY_WORD]
                if not ready >> priority & 1:
                    words[block + _READY_WORD] = ready | 1 << priority
                    vcpu_mark_events_pending(v)
        if not word & _PENDING and table.pollers:
            table.check_pollers(port)

    def _append(self, queue: int, port: int) -> bool:
        """Make `port`, which is marked as linked, the last of `queue`; whether another links to it."""
        last_queue, tails = self._table.fifo_lastq, self.tails
        old = last_queue[port]
        if tails[old] == port:
            tails[old] = 0  # what comes after it there must not be linked to its word
        last_queue[port] = queue
        tail = tails[queue]
        tails[queue] = port
        return bool(tail) and self._set_link(tail, port)

    def _set_link(self, tail: int, port: int) -> bool:
        """Let `tail` link to `port`, unless the guest has unlinked it: then the queue was empty."""
        at = self._word_from_port(tail)
        word = self._words[at]
        if not word & _LINKED:
            return False
        self._words[at] = word & _KEPT_BY_LINK | port
        return True

    def clear_pending(self, port: int) -> None:
        """Forget a pending event of `port`; the guest unlinks it when it comes to it."""
        at = self._word_from_port(port)
        if at >= 0:
            self._words[at] &= ~_PENDING

    def unmask(self, port: int) -> None:
        """Clear MASKED; an event that it held back is linked."""
        at = self._word_from_port(port)
        if at < 0:
            return
        self._words[at] &= ~_MASKED
        if self._words[at] & _PENDING:
            table = self._table
            self.set_pending(table.domain.vcpus[table.notify_vcpu_id[port]], port)

    def is_pending(self, port: int) -> bool:
        """PENDING of `port`."""
        return self._has(port, _PENDING)

    def is_masked(self, port: int) -> bool:
        """MASKED of `port`, which a port without an event word counts as."""
        return self._word_from_port(port) < 0 or self._has(port, _MASKED)

    def is_busy(self, port: int) -> bool:
        """LINKED of `port`: it was closed while on a queue, and the guest has not come to it yet."""
        return self._has(port, _LINKED)

    def _has(self, port: int, flag: int) -> bool:
        at = self._word_from_port(port)
        return at >= 0 and bool(self._words[at] & flag)

    # --- control blocks and the event array ---------------------------------------------------------------

    def map_control_block(self, v: Vcpu, gfn: int, offset: int) -> int:
        """Take a frame for the control block of `v`: 0, or -EINVAL where it has one or cannot have this."""
        if self.control_blocks[v.vcpu_id][0] or not self._table.domain.mm.get_page_writable(gfn):
            return -EINVAL
        self.control_blocks[v.vcpu_id] = gfn, offset
        return 0

    def add_page_to_event_array(self, gfn: int) -> int:
        """The next page of event words: 0, -ENOSPC or -EINVAL. Events that waited for it are raised."""
        table = self._table
        first = self.num_evtchns
        if len(self.event_array) == MAX_EVENT_ARRAY_PAGES:
            return -ENOSPC
        if not table.domain.mm.get_page_writable(gfn):
            return -EINVAL
        self.event_array.append(gfn)
        vcpus = table.domain.vcpus
        for port in range(first, min(self.num_evtchns, table.valid_evtchns)):
            if table.pending[port]:
                self.set_pending(vcpus[table.notify_vcpu_id[port]], port)
        return 0

    def destroy(self) -> None:
        """Give all frames back."""
        for mfn in self.held_frames():
            self._table.domain.mm.put_page_and_type(mfn)
        self.control_blocks = [_NO_BLOCK] * len(self.control_blocks)
        self.event_array.clear()

    def held_frames(self) -> list[int]:
        """The frames that are held as writable ones, each as often as it is."""
        return [mfn for mfn, _ in self.control_blocks if mfn] + self.event_array


def evtchn_fifo_init_control(table: EvtchnTable, v: Vcpu, gfn: int, offset: int) -> int:
    """Give `v` a control block; the first one of a domain changes its ABI: 0 or -EINVAL."""
    if offset > LAST_OFFSET or offset % 8:
        return -EINVAL
    ops = table.port_ops
    if isinstance(ops, EvtchnFifo):
        return ops.map_control_block(v, gfn, offset)
    fifo = EvtchnFifo(table)
    rc = fifo.map_control_block(v, gfn, offset)
    if not rc:
        _setup_ports(table)
        table.port_ops = fifo
    return rc


def _setup_ports(table: EvtchnTable) -> None:
    """What is pending in two levels is raised again when the ports have event words."""
    two_levels = table.port_ops
    for port in range(1, min(two_levels.nr_channels, table.valid_evtchns)):
        if two_levels.is_pending(port):
            table.pending[port] = 1
        table.priority[port] = EVTCHN_FIFO_PRIORITY_DEFAULT


def evtchn_fifo_expand_array(table: EvtchnTable, gfn: int) -> int:
    """Add a page of event words: 0, -EINVAL, -ENOSPC, or -EOPNOTSUPP before there is a control block."""
    ops = table.port_ops
    return ops.add_page_to_event_array(gfn) if isinstance(ops, EvtchnFifo) else -EOPNOTSUPP
