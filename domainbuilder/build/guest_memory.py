"""Guest memory: which machine frame backs which pseudo-physical frame, and writing by pseudo-physical frame.

RAM lies in machine order: the page of machine frame `m` is at byte `(m - first_mfn) << 12`.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from domainbuilder.errors import LayoutError
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

SUPERPAGE_2MB_SHIFT = 9  # xg_dom_x86.c
SUPERPAGE_2MB_NR_PFNS = 1 << SUPERPAGE_2MB_SHIFT

# Private: reading a page that was never written costs no memory.
_MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)

Frames = Literal["xen", "linear"]


def linear_frames(nr_pages: int, first_mfn: int) -> array[int]:
    """The p2m list with mfn = first_mfn + pfn."""
    return array("Q", range(first_mfn, first_mfn + nr_pages))


def xen_frames(nr_pages: int, first_mfn: int) -> array[int]:
    """The p2m list as meminit_pv gets it from a heap that hands out descending 2 MB extents.

    mfn = first_mfn + max(nr_pages - (pfn // 512 + 1) * 512, 0) + pfn % 512: the pages that do not fill the
    last extent come out lowest, so every frame of [first_mfn, first_mfn + nr_pages) is used exactly once.
    """
    p2m = array("Q")
    for pfn in range(0, nr_pages, SUPERPAGE_2MB_NR_PFNS):
        start = first_mfn + max(nr_pages - pfn - SUPERPAGE_2MB_NR_PFNS, 0)
        p2m.extend(range(start, start + min(SUPERPAGE_2MB_NR_PFNS, nr_pages - pfn)))
    return p2m


_FRAMES: dict[str, Callable[[int, int], array[int]]] = {"xen": xen_frames, "linear": linear_frames}


def machine_frames(kind: Frames, nr_pages: int, first_mfn: int) -> array[int]:
    """The p2m list of a domain of `nr_pages`; `kind` is "xen" (descending 2 MB extents) or "linear"."""
    return _FRAMES[kind](nr_pages, first_mfn)


def allocate_ram(nr_pages: int) -> memoryview:
    """`nr_pages` of zeroed memory, one anonymous mapping; LayoutError when the host has not got it."""
    try:
        return memoryview(mmap.mmap(-1, nr_pages << PAGE_SHIFT, flags=_MAP_FLAGS))
    except (OSError, ValueError, OverflowError) as error:
        raise LayoutError(f"meminit_pv: failed to allocate {nr_pages:#x} pages: {error}") from error


class GuestMemory(NamedTuple):
    """RAM in machine order, addressed by pseudo-physical frame."""

    ram: memoryview
    p2m: array[int]
    first_mfn: int

    def runs(self, pfn: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Machine-contiguous pieces of [pfn, pfn + count): (pfn, byte offset in `ram`, pages)."""
        end = pfn + count
        while pfn < end:
            first = self.p2m[pfn]
            limit = min(end, (pfn | (SUPERPAGE_2MB_NR_PFNS - 1)) + 1)
            length = limit - pfn
            if self.p2m[pfn:limit] != array("Q", range(first, first + length)):
                length = 1
                while pfn + length < limit and self.p2m[pfn + length] == first + length:
                    length += 1
            yield pfn, (first - self.first_mfn) << PAGE_SHIFT, length
            pfn += length

    def write(self, pfn: int, data: bytes | memoryview, offset: int = 0) -> None:
        """Store bytes at `offset` from the start of frame `pfn`, across consecutive frames."""
        for at, start, size in self._pieces(pfn, offset, len(data)):
            self.ram[start : start + size] = data[at : at + size]

    def clear(self, pfn: int, offset: int, size: int) -> None:
        """Store zeros."""
        for _, start, length in self._pieces(pfn, offset, size):
            self.ram[start : start + length] = bytes(length)

    def read(self, pfn: int, size: int, offset: int = 0) -> bytes:
        """A copy of `size` bytes at `offset` from the start of frame `pfn`, across consecutive frames."""
        pieces = self._pieces(pfn, offset, size)
        return b"".join(self.ram[start : start + length] for _, start, length in pieces)

    def _pieces(self, pfn: int, offset: int, size: int) -> Iterator[tuple[int, int, int]]:
        """(offset in the data, byte offset in `ram`, bytes) of the contiguous pieces of a range."""
        pfn, skip, at = pfn + (offset >> PAGE_SHIFT), offset & (PAGE_SIZE - 1), 0
        for _, start, pages in self.runs(pfn, (skip + size + PAGE_SIZE - 1) >> PAGE_SHIFT):
            length = min((pages << PAGE_SHIFT) - skip, size - at)
            yield at, start + skip, length
            at, skip = at + length, 0
