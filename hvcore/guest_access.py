"""copy_from_guest() and copy_to_guest(): the running vCPU's virtual memory, by a software page walk.

Each access walks the tables anew: nothing is kept that could be stale, or differ from what the compiled core
finds there. All functions raise `GuestError(EFAULT)` for memory that the guest kernel itself could not touch,
including any address in Xen's own range (access_ok()).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvcore.errors import GuestError
from hvcore.public.errno import EFAULT
from hvcore.public.xen import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from hvcore.abi import Abi
    from hvcore.machine_memory import MachineMemory

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GuestAccess:
    """Guest virtual memory. `walk(va, write)` gives the byte offset in `mem.view` of va's page, or -1."""

    __slots__ = ("_limit_hi", "_limit_lo", "_mask", "_ulong", "_view", "_walk")

    def __init__(self, abi: Abi, mem: MachineMemory, walk: Callable[[int, bool], int]) -> None:
        self._view = mem.view
        self._walk = walk
        self._mask = abi.word_mask
        # The addresses that access_ok() refuses. For 64-bit guests they begin where addresses cease to be
        # canonical. For 32-bit guests of a 64-bit Xen there are none: their part of the M2P is readable.
        self._limit_lo = 1 << 47
        self._limit_hi = abi.hypervisor_virt_end
        if abi.is_32bit:
            self._limit_lo = abi.hypervisor_virt_start if abi.pt_levels == 2 else abi.hypervisor_virt_end
        self._ulong = struct.Struct("<" + abi.word_format)

    def _readable(self, va: int) -> int:
        if self._limit_lo <= va < self._limit_hi:
            raise GuestError(EFAULT)
        page = self._walk(va, False)
        if page < 0:
            raise GuestError(EFAULT)
        return page | (va & 0xFFF)

    def _writable(self, va: int) -> int:
        if self._limit_lo <= va < self._limit_hi:
            raise GuestError(EFAULT)
        page = self._walk(va, True)
        if page < 0:
            raise GuestError(EFAULT)
        return page | (va & 0xFFF)

    def copy_from(self, va: int, size: int) -> bytes:
        """`size` bytes at guest virtual address `va`."""
        va &= self._mask
        if (va & 0xFFF) + size <= PAGE_SIZE:
            at = self._readable(va) if size else 0
            return bytes(self._view[at : at + size])
        parts = []
        while size:
            n = min(size, PAGE_SIZE - (va & 0xFFF))
            at = self._readable(va)
            parts.append(bytes(self._view[at : at + n]))
            va = (va + n) & self._mask
            size -= n
        return b"".join(parts)

    def copy_to(self, va: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` at guest virtual address `va`; pages before a faulting one are written, as in Xen."""
        va &= self._mask
        size = len(data)
        if (va & 0xFFF) + size <= PAGE_SIZE:
            if size:
                at = self._writable(va)
                self._view[at : at + size] = data
            return
        done = 0
        while done < size:
            n = min(size - done, PAGE_SIZE - (va & 0xFFF))
            at = self._writable(va)
            self._view[at : at + n] = data[done : done + n]
            va = (va + n) & self._mask
            done += n

    def unpack(self, layout: struct.Struct, va: int) -> tuple[int, ...]:
        """The fields of the struct at `va`."""
        va &= self._mask
        if (va & 0xFFF) + layout.size <= PAGE_SIZE:
            return layout.unpack_from(self._view, self._readable(va))
        return layout.unpack(self.copy_from(va, layout.size))

    def pack(self, layout: struct.Struct, va: int, *values: int) -> None:
        """Store `values` as the struct at `va`."""
        self.copy_to(va, layout.pack(*values))

    def read_u32(self, va: int) -> int:
        """The 32-bit word at `va`."""
        return self.unpack(_U32, va)[0]

    def write_u32(self, va: int, value: int) -> None:
        """Store a 32-bit word at `va`."""
        self.copy_to(va, _U32.pack(value & 0xFFFFFFFF))

    def write_u64(self, va: int, value: int) -> None:
        """Store a 64-bit word at `va`."""
        self.copy_to(va, _U64.pack(value & 0xFFFFFFFFFFFFFFFF))

    def read_ulong(self, va: int) -> int:
        """The xen_ulong_t at `va`."""
        return self.unpack(self._ulong, va)[0]

    def write_ulong(self, va: int, value: int) -> None:
        """Store a xen_ulong_t at `va`."""
        self.copy_to(va, self._ulong.pack(value & self._mask))

    def okay(self, va: int, size: int) -> bool:
        """guest_handle_okay(): whether [va, va + size) lies outside Xen's range; nothing of mappings."""
        last = va + (size - 1 if size else 0)
        return last < self._limit_lo or (va >= self._limit_hi and last <= self._mask)

    def probe_write(self, va: int, size: int) -> None:
        """Raise unless [va, va + size) can be written (guest_handle_okay() with teeth)."""
        end = va + size
        while va < end:
            self._writable(va & self._mask)
            va = (va | 0xFFF) + 1
