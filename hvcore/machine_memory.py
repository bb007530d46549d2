"""The machine's RAM: one anonymous mmap that Python sees as memoryviews and the engine as physical memory.

Machine frames [base_mfn, first_mfn) are Xen's (the M2P tables lowest, on a 2 MB boundary; then its heap, that
is handed out from the top down), [first_mfn, end_mfn) are for domains. All lie in one buffer, so a frame is
`(mfn - base_mfn) << 12` in `view`, whoever owns it. Nothing is touched before it is used.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from array import array
from contextlib import suppress
from functools import cache
from typing import Any

from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

_SUPERPAGE_FRAMES = 512
_HEAP_FRAMES = 1024  # for each domain
_MAP_FIXED = 0x10  # of Linux; Python does not have it
_ZEROS = bytes(PAGE_SIZE)
_M2P_ENTRIES = (8, 4)  # bytes: the table of 64-bit guests, and the compat table of the others


@cache
def _mmap() -> Any:
    """mmap() of the C library: Python's own maps at no given address."""
    function = ctypes.CDLL(None, use_errno=True).mmap
    function.restype = ctypes.c_void_p
    function.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    return function


class M2p:
    """A machine-to-phys table: `frames` frames from `mfn` on, `words[m]` the pseudo-physical number of m."""

    __slots__ = ("entry", "frames", "in_use", "mfn", "words")

    def __init__(self, mfn: int, frames: int, entry: int, words: memoryview) -> None:
        self.mfn = mfn
        self.frames = frames
        self.entry = entry
        self.words = words
        self.in_use = False

    def fill(self, first: int, values: array[int]) -> None:
        """Set the entries from frame `first` on."""
        self.words[first : first + len(values)] = memoryview(array(self.words.format, values))


class MachineMemory:
    """RAM of `nr_pages` frames from `first_mfn` on, for so many `domains`, with the heap below it.

    `view` is the whole buffer as bytes, `q` the same as 64-bit and `d` as 32-bit words (entry `i` of frame
    `m` is `q[((m - base_mfn) << 9) + i]`), `ram` the domains' part, in machine order; `m2p` are the
    machine-to-phys tables by the size of their entries.
    """

    def __init__(self, nr_pages: int, *, first_mfn: int = 0x10000, domains: int = 1) -> None:
        self.nr_pages = nr_pages
        self.first_mfn = first_mfn
        self.end_mfn = first_mfn + nr_pages
        sizes = [self._m2p_frames(entry) for entry in _M2P_ENTRIES]
        self._heap_floor = first_mfn - domains * _HEAP_FRAMES
        self.base_mfn = self._heap_floor - sum(sizes)
        if first_mfn % _SUPERPAGE_FRAMES or self.base_mfn <= 0:
            raise ValueError(f"first_mfn {first_mfn:#x} leaves no aligned room for the heap below it")
        self._heap_top = first_mfn
        self._freed: list[int] = []
        size = (self.end_mfn - self.base_mfn) << PAGE_SHIFT
        self.buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.is_from_file = False
        self.view = memoryview(self.buffer)
        self.q = self.view.cast("Q")
        self.d = self.view.cast("I")
        self.ram = self.view[(first_mfn - self.base_mfn) << PAGE_SHIFT :]
        self.m2p: dict[int, M2p] = {}
        # Where those in use lie in this process, the 64-bit one first, else 0: for the compiled core.
        self.m2p_addresses = memoryview((ctypes.c_uint64 * len(_M2P_ENTRIES))()).cast("B").cast("Q")
        mfn = self.base_mfn
        for entry, frames in zip(_M2P_ENTRIES, sizes, strict=True):
            at = (mfn - self.base_mfn) << PAGE_SHIFT
            words = self.view[at : at + self.end_mfn * entry].cast("Q" if entry == 8 else "I")
            self.m2p[entry] = M2p(mfn, frames, entry, words)
            mfn += frames

    def _m2p_frames(self, entry: int) -> int:
        return -(-self.end_mfn * entry // (PAGE_SIZE * _SUPERPAGE_FRAMES)) * _SUPERPAGE_FRAMES

    def release(self) -> None:
        """Give the pages back to the host, though views of them may live on; they read as zeros then."""
        with suppress(OSError):
            self.map_from(-1)

    def map_from(self, fd: int) -> None:
        """Have all of it read as the file `fd` does, of that size, or as zeros (-1), where it is.

        What is written stays this process's own. Raises OSError.
        """
        if fd >= 0 and os.fstat(fd).st_size != len(self.view):
            raise OSError(errno.EINVAL, "the file is not of the memory's size")
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))
        flags = _MAP_FIXED | mmap.MAP_PRIVATE | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
        if _mmap()(address, len(self.view), mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0) != address:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.is_from_file = fd >= 0

    def use_m2p(self, entry: int) -> M2p:
        """The table for guests of that width; a frame that is nobody's reads as INVALID_M2P_ENTRY there."""
        table = self.m2p[entry]
        if not table.in_use:
            table.in_use = True
            address = ctypes.addressof(ctypes.c_char.from_buffer(table.words))
            self.m2p_addresses[_M2P_ENTRIES.index(entry)] = address
            other = self.m2p[12 - entry]
            mask = (1 << 8 * entry) - 1
            if other.in_use:
                table.fill(0, array(table.words.format, [pfn & mask for pfn in other.words]))
            else:
                table.fill(0, array(table.words.format, [mask]) * self.end_mfn)
        return table

    def set_gpfn_from_mfn(self, mfn: int, pfn: int) -> None:
        """Set M2P[mfn] for guests of all widths that there are; `pfn` may be any word."""
        for table in self.m2p.values():
            if table.in_use:
                table.words[mfn] = pfn & (1 << 8 * table.entry) - 1

    def alloc_xenheap_page(self) -> int:
        """A zeroed frame of Xen's own (its mfn). Raises MemoryError when the heap is used up."""
        mfn = self.next_xenheap_mfn
        if self._freed:
            self._freed.pop()
        elif self._heap_top == self._heap_floor:
            raise MemoryError("xen heap exhausted")
        else:
            self._heap_top -= 1
        return mfn

    @property
    def next_xenheap_mfn(self) -> int:
        """What alloc_xenheap_page() will hand out next, if anything."""
        return self._freed[-1] if self._freed else self._heap_top - 1

    def free_xenheap_page(self, mfn: int) -> None:
        """Give a frame of Xen's own back."""
        self.frame(mfn)[:] = bytes(PAGE_SIZE)
        self._freed.append(mfn)

    @property
    def heap_top(self) -> int:
        """Below this nothing of the heap was handed out yet."""
        return self._heap_top

    @property
    def heap_floor(self) -> int:
        """The lowest frame of the heap."""
        return self._heap_floor

    def save(self) -> dict[str, Any]:
        """Its shape, and what of the heap is in use; the contents are the frames'."""
        domains = (self.first_mfn - self._heap_floor) // _HEAP_FRAMES
        return {
            "nr_pages": self.nr_pages, "first_mfn": self.first_mfn, "domains": domains,
            "heap_top": self._heap_top, "freed": list(self._freed),
        }  # fmt: skip

    def restore_heap(self, heap_top: int, freed: list[int]) -> None:
        """What is in use, as save() gave it."""
        self._heap_top = heap_top
        self._freed[:] = freed

    def scrub(self, start_mfn: int, nr: int) -> None:
        """Make `nr` frames read as zeroes, and give their memory back to this machine's own host."""
        start = (start_mfn - self.base_mfn) << PAGE_SHIFT
        self.buffer.madvise(mmap.MADV_DONTNEED, start, nr << PAGE_SHIFT)
        if self.is_from_file:
            for at in range(start, start + (nr << PAGE_SHIFT), PAGE_SIZE):
                self.view[at : at + PAGE_SIZE] = _ZEROS

    def frame(self, mfn: int) -> memoryview:
        """The 4096 bytes of a frame. Raises IndexError for a frame that the machine does not have."""
        if not self.base_mfn <= mfn < self.end_mfn:
            raise IndexError(f"no machine frame {mfn:#x}")
        start = (mfn - self.base_mfn) << PAGE_SHIFT
        return self.view[start : start + PAGE_SIZE]
