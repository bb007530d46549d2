"""Event channels of the two-level ABI: xen/common/event_2l.c.

A port's pending and mask bits stand in shared_info, where the guest may write anything at any time: they are
tested and set, never trusted as state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvcore.common.schedule import vcpu_mark_events_pending

if TYPE_CHECKING:
    from hvcore.common.event import EvtchnTable
    from hvcore.vcpu import Vcpu


class Evtchn2l:
    """evtchn_port_ops_2l: what is done to a port while its domain uses two levels."""

    __slots__ = ("_mask_off", "_pending_off", "_sel_off", "_sel_shift", "_shared", "_table")

    has_priority = False

    def __init__(self, table: EvtchnTable) -> None:
        abi = table.domain.abi
        self._table = table
        self._shared = table.domain.shared_info
        self._pending_off = abi.evtchn_pending
        self._mask_off = abi.evtchn_mask
        self._sel_off = abi.vcpu_pending_sel
        self._sel_shift = abi.word_bits.bit_length() - 1

    @property
    def nr_channels(self) -> int:
        """EVTCHN_2L_NR_CHANNELS."""
        return self._table.domain.abi.nr_evtchns

    def init(self, port: int) -> None:
        """A port comes into use: nothing to do."""

    def set_pending(self, v: Vcpu, port: int) -> None:
        """Mark `port` pending, and say so in the selector and upcall flag of `v` unless it is masked."""
        shared = self._shared
        at = self._pending_off + (port >> 3)
        bit = 1 << (port & 7)
        pending = shared[at]
        if pending & bit:
            return
        shared[at] = pending | bit
        if not shared[self._mask_off + (port >> 3)] & bit:
            self._select(v, port)
        if self._table.pollers:
            self._table.check_pollers(port)

    def _select(self, v: Vcpu, port: int) -> None:
        word = port >> self._sel_shift
        at = self._sel_off + (word >> 3)
        bit = 1 << (word & 7)
        selector = v.info[at]
        if not selector & bit:
            v.info[at] = selector | bit
            vcpu_mark_events_pending(v)

    def clear_pending(self, port: int) -> None:
        """Forget a pending event of `port`."""
        self._shared[self._pending_off + (port >> 3)] &= ~(1 << (port & 7)) & 0xFF

    def unmask(self, port: int) -> None:
        """Clear the mask bit of `port`; an event that it held back is raised."""
        shared = self._shared
        at = self._mask_off + (port >> 3)
        bit = 1 << (port & 7)
        mask = shared[at]
        if mask & bit:
            shared[at] = mask & ~bit
            if self.is_pending(port):
                table = self._table
                self._select(table.domain.vcpus[table.notify_vcpu_id[port]], port)

    def is_pending(self, port: int) -> bool:
        """The pending bit of `port`."""
        return bool(self._shared[self._pending_off + (port >> 3)] >> (port & 7) & 1)

    def is_masked(self, port: int) -> bool:
        """The mask bit of `port`."""
        return bool(self._shared[self._mask_off + (port >> 3)] >> (port & 7) & 1)

    def is_busy(self, _port: int) -> bool:
        """Two levels have no queue that a closed port may still be on."""
        return False

    def destroy(self) -> None:
        """Nothing is held."""

    def held_frames(self) -> list[int]:
        """No frame is held."""
        return []
