"""The machine's RAM: one anonymous mmap that Python sees as memoryviews and the engine as physical memory.

Machine frames [base_mfn, first_mfn) are Xen's heap (the M2P table lowest, on a 2 MB boundary; frames handed
out from the top down), [first_mfn, end_mfn) belong to the guest. Both halves lie in one buffer, so a frame
is `(mfn - base_mfn) << 12` in `view`, whoever owns it. Nothing is touched before it is used.
"""

from __future__ import annotations

import mmap

from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

_SUPERPAGE_FRAMES = 512
_HEAP_FRAMES = 1024


class MachineMemory:
    """RAM of `nr_pages` guest frames from `first_mfn` on, with the heap below it.

    `view` is the whole buffer as bytes, `q` the same as 64-bit and `d` as 32-bit words (entry `i` of frame
    `m` is `q[((m - base_mfn) << 9) + i]`), `ram` the guest's part, in machine order.
    """

    def __init__(self, nr_pages: int, *, first_mfn: int = 0x10000, m2p_entry: int = 8) -> None:
        self.nr_pages = nr_pages
        self.first_mfn = first_mfn
        self.end_mfn = first_mfn + nr_pages
        m2p_frames = -(-self.end_mfn * m2p_entry // PAGE_SIZE)
        m2p_frames = -(-m2p_frames // _SUPERPAGE_FRAMES) * _SUPERPAGE_FRAMES
        self.base_mfn = first_mfn - _HEAP_FRAMES - m2p_frames
        if first_mfn % _SUPERPAGE_FRAMES or self.base_mfn <= 0:
            raise ValueError(f"first_mfn {first_mfn:#x} leaves no aligned room for the heap below it")
        self.m2p_mfn = self.base_mfn
        self.m2p_frames = m2p_frames
        self._heap_floor = self.base_mfn + m2p_frames
        self._heap_top = first_mfn
        size = (self.end_mfn - self.base_mfn) << PAGE_SHIFT
        self.buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(self.buffer)
        self.q = self.view.cast("Q")
        self.d = self.view.cast("I")
        self.ram = self.view[(first_mfn - self.base_mfn) << PAGE_SHIFT :]

    def alloc_xenheap_page(self) -> int:
        """A zeroed frame of Xen's own (its mfn). Raises MemoryError when the heap is used up."""
        if self._heap_top == self._heap_floor:
            raise MemoryError("xen heap exhausted")
        self._heap_top -= 1
        return self._heap_top

    def frame(self, mfn: int) -> memoryview:
        """The 4096 bytes of a frame. Raises IndexError for a frame that the machine does not have."""
        if not self.base_mfn <= mfn < self.end_mfn:
            raise IndexError(f"no machine frame {mfn:#x}")
        start = (mfn - self.base_mfn) << PAGE_SHIFT
        return self.view[start : start + PAGE_SIZE]
