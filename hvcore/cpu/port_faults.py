"""Port I/O where no hook can raise #GP: what may not be done is undone, and the run is left at it.

Unicorn lets every ring do port I/O, and asks its hook for no more than the answer. Accesses that
`Engine.open_ports()` allows are answered, as by core/ports.c. Any other goes back: its hook keeps the
state of the processor, and has page tables lead nowhere. Whatever follows in the block of code can read and
write nothing, no other hook does anything, and at the block's end at the latest the run is over. Then the
state is put back, and the hypervisor is told of the #GP.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable

from hvcore.clock import CELL_LEFT, CELL_SPENT
from hvcore.cpu import state_window as sw
from hvcore.cpu.library import CTL_TLB_FLUSH, UC_PROT_READ, Library
from hvcore.cpu.processor import Processor
from hvcore.x86 import TRAP_gp_fault

_PAGE_SIZE = 4096
_CR3 = sw.CR // 8 + 3
_OLD_EXCEPTION = sw.OLD_EXCEPTION // 4
_ERROR_CODE = sw.ERROR_CODE // 4
_RTC_PORT_0, _PCI_CONFIG_ADDRESS = 0x70, 0xCF8
# A wide access to one of the three before 0x70 reaches it.
_XENS_PORTS = {*range(_RTC_PORT_0 - 3, _RTC_PORT_0 + 1), _PCI_CONFIG_ADDRESS}
# What guest_io_write() keeps, by port and size: in which word, and what of the value.
_KEPT = {(_RTC_PORT_0, 1): (0, 0xFF), (_PCI_CONFIG_ADDRESS, 4): (1, 0xFFFFFFFF)}


class PortFaults:
    """The hooks `read` and `write`; `is_left` from a refused access until `deliver()`.

    `cell` is the clock's; `nowhere` a physical address that nobody uses, for a page of nothing; `stop` ends
    a run.
    """

    def __init__(
        self,
        processor: Processor,
        library: Library,
        cell: memoryview[int],
        nowhere: int,
        stop: Callable[[], None],
    ) -> None:
        self.is_left = False
        self.interrupt: Callable[[int], object]  # the hook of exceptions
        self._processor = processor
        self._library = library
        self._cell = cell
        self._nowhere = nowhere
        self._stop = stop
        self._state, self._eflags = b"", 0
        self._empty = mmap.mmap(-1, _PAGE_SIZE)  # the tables that lead nowhere
        page = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._empty)))
        size = ctypes.c_size_t(_PAGE_SIZE)
        library.call("uc_mem_map_ptr", ctypes.c_uint64(nowhere), size, UC_PROT_READ, page)

    def read(self, _uc: int, port: int, _size: int, _data: int) -> int:
        """The hook of `in` and `ins`: there is nothing behind a port."""
        if self._may(is_here=port not in _XENS_PORTS):
            self._processor.words.port_reads += 1
            self._take_time()
        return 0xFFFFFFFF

    def write(self, _uc: int, port: int, size: int, value: int, _data: int) -> None:
        """The hook of `out` and `outs`: what is written to the ports of _KEPT is kept."""
        words = self._processor.words
        kept = _KEPT.get((port, size)) if words.port_keeps else None
        if self._may(is_here=kept is not None or port not in _XENS_PORTS):
            words.port_writes += 1
            self._take_time()
            if kept is not None:
                index, mask = kept
                ctypes.c_uint64.from_address(words.port_keeps + 8 * index).value = value & mask

    def inert_interrupt(self, call: Callable[[int], None]) -> Callable[[int], None]:
        """The hook of exceptions, but for what follows a refused access."""

        def unless_left(vector: int) -> None:
            if not self._is_passed_over():
                call(vector)

        return unless_left

    def inert(self, call: Callable[[], int]) -> Callable[[], int]:
        """Another hook, but for what follows a refused access."""
        return lambda: 1 if self._is_passed_over() else call()

    def _is_passed_over(self) -> bool:
        if self.is_left:
            self._processor.d[_OLD_EXCEPTION] = 0xFFFFFFFF
            self._stop()
        return self.is_left

    def deliver(self) -> None:
        """After the run: put the state back as it was at the access, and have the #GP handled."""
        p = self._processor
        self.is_left = False
        p.window.bytes[:] = self._state
        p.write_eflags(self._eflags)
        p.d[_ERROR_CODE] = p.d[_ERROR_CODE + 1] = 0  # which is not by `int`
        p.d[_OLD_EXCEPTION] = 0xFFFFFFFF
        self._forget_translations()
        self.interrupt(TRAP_gp_fault)

    def _may(self, *, is_here: bool) -> bool:
        """Whether the access is done; if not, it is left now. `is_here`: Xen need not look at the port."""
        if self.is_left:
            return False
        p = self._processor
        if not p.window.live:
            p.window.load()
        if is_here and p.cpl == p.words.port_ring:
            return True
        self._leave()
        return False

    def _leave(self) -> None:
        p = self._processor
        self._eflags = p.read_eflags()
        self._state = bytes(p.window.bytes)
        self.is_left = True
        p.q[_CR3] = self._nowhere
        if not p.window.live:
            p.window.store()
        self._forget_translations()
        self._stop()

    def _forget_translations(self) -> None:
        self._library.call("uc_ctl", CTL_TLB_FLUSH)  # which the guest did not ask for: it is not counted

    def _take_time(self) -> None:
        cost = self._processor.words.port_cost
        self._cell[CELL_LEFT] -= cost
        self._cell[CELL_SPENT] += cost
