"""A machine's memory as it was at a mark, put back by the pages that were written since.

The memory is written once to a file without a name and mapped from it, privately, where it was: neither the
engine nor any view of it notices. From then on a page that is the process's own is one that was written, and
the kernel says which those are: PAGEMAP_SCAN (Linux 6.7), else /proc/self/pagemap. Pages are put back by
copying and stay the process's own, so that writing to them again costs no fault; and where the process has
had no page fault since the last time, there is no other such page, and nobody is asked.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import struct
import weakref
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from hvcore.errors import EngineError
from hvcore.public.xen import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from hvcore.machine_memory import MachineMemory

Run = tuple[int, int]  # offsets: from the first byte to behind the last

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg), include/uapi/linux/fs.h
_PAGE_IS_FILE, _PAGE_IS_PRESENT, _PAGE_IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_MOST_REGIONS = 4096  # a call
_PM_PRESENT, _PM_SWAP, _PM_FILE = 1 << 63, 1 << 62, 1 << 61  # Documentation/admin-guide/mm/pagemap.rst
_MANY_PAGES_TO_FORK = 1024
_MANY_PAGES = 4096  # a process that owns more gives them back, and begins anew


class PageMark:
    """What a machine's memory held at the mark, for as long as somebody keeps this. Made by `set_mark()`."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("domainbuilder", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size)
        self._mapped = mmap.mmap(self.fd, size)
        self.content = memoryview(self._mapped)


class MarkedPages:
    """The memory of one machine and its marks, of which it is mapped from the last that it was at."""

    def __init__(self, memory: MachineMemory) -> None:
        self._memory = memory
        self._view = memory.view
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory.view))
        self._size = len(memory.view)
        self._at: PageMark | None = None
        self._runs: list[Run] = []
        self._faults = -1  # of this process, when `_runs` was found
        self._pid = 0

    def set_mark(self) -> PageMark:
        """Keep what the memory holds now. Raises EngineError where this host cannot."""
        try:
            mark = PageMark(self._size)
            for start, end in self._filled():
                mark.content[start:end] = self._view[start:end]
            self._map(mark)
        except OSError as error:
            raise EngineError(f"this host cannot keep the memory: {error.strerror}") from error
        return mark

    def settle(self) -> None:
        """Have the memory mapped from a file where much of it is the process's own: a fork has less to copy.

        fork(2) copies the page tables of what a process owns. Of a file's pages the child finds those that it
        looks at, when it looks. Where this host cannot, everything stays as it is.
        """
        own = _own_pages(self._address, self._size, shared_too=False)
        if sum(end - start for start, end in own) > _MANY_PAGES_TO_FORK << PAGE_SHIFT:
            with suppress(EngineError):
                self.set_mark()

    def close(self) -> None:
        """Hold no mark any more."""
        self._at = None

    def written(self, mark: PageMark) -> list[Run] | None:
        """What may differ from the mark; None where that cannot be told, since another was the last."""
        if mark is not self._at:
            return None
        faults = _page_faults()
        if faults != self._faults or os.getpid() != self._pid:
            self._runs = _own_pages(self._address, self._size, shared_too=False)
            self._pid = os.getpid()
        return self._runs

    def go_back(self, mark: PageMark, runs: list[Run] | None) -> None:
        """Have the memory hold what it held at the mark; `runs` are what `written()` has told."""
        if runs is None:
            self._map(mark)
            return
        view, content = self._view, mark.content
        for start, end in runs:
            view[start:end] = content[start:end]
        if sum(end - start for start, end in runs) > _MANY_PAGES << PAGE_SHIFT:
            self._map(mark)
            return
        self._faults = _page_faults()

    def _map(self, mark: PageMark) -> None:
        self._memory.map_from(mark.fd)
        self._at, self._faults = mark, -1

    def _filled(self) -> list[Run]:
        """The memory that may hold something else than zeros."""
        if self._at is not None:
            return _own_pages(self._address, self._size, shared_too=False) + _data(self._at.fd, self._size)
        if self._memory.is_from_file:  # of which this process has looked at a part, perhaps
            return [(0, self._size)]
        return _own_pages(self._address, self._size, shared_too=True)


def _page_faults() -> int:
    """How many this process has had: no page becomes its own without one."""
    use = resource.getrusage(resource.RUSAGE_SELF)
    return use.ru_minflt + use.ru_majflt


def _data(fd: int, size: int) -> list[Run]:
    """Where a file has something."""
    runs, at = [], 0
    with suppress(OSError):  # ENXIO: nothing more
        while at < size:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = os.lseek(fd, start, os.SEEK_HOLE)
            runs.append((start, at))
    return runs


def _own_pages(address: int, size: int, *, shared_too: bool) -> list[Run]:
    """The pages of a mapping that are the process's own; with those of the file that it looked at, too."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # an older kernel
            return _scan(pagemap, address, size, shared_too=shared_too)
        return _read(pagemap, address, size, shared_too=shared_too)
    finally:
        os.close(pagemap)


def _scan(pagemap: int, address: int, size: int, *, shared_too: bool) -> list[Run]:
    regions = (ctypes.c_uint64 * (3 * _MOST_REGIONS))()
    not_file = 0 if shared_too else _PAGE_IS_FILE
    runs: list[Run] = []
    at, end = address, address + size
    while at < end:
        argument = bytearray(
            struct.pack(
                "<12Q", 96, 0, at, end, 0, ctypes.addressof(regions), _MOST_REGIONS, 0,
                not_file, not_file, _PAGE_IS_PRESENT | _PAGE_IS_SWAPPED, _PAGE_IS_PRESENT,
            )
        )  # fmt: skip
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, argument)
        words = regions[: 3 * count]
        starts, ends = words[0::3], words[1::3]
        runs += [(first - address, last - address) for first, last in zip(starts, ends, strict=True)]
        at = struct.unpack_from("<Q", argument, 32)[0]  # walk_end
    return runs


def _read(pagemap: int, address: int, size: int, *, shared_too: bool) -> list[Run]:
    entries = array("Q", os.pread(pagemap, size // PAGE_SIZE * 8, address // PAGE_SIZE * 8))
    there, file = _PM_PRESENT | _PM_SWAP, 0 if shared_too else _PM_FILE
    pages = [page for page, entry in enumerate(entries) if entry & there and not entry & file]
    runs: list[Run] = []
    for page in pages:
        start = page << PAGE_SHIFT
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], start + PAGE_SIZE)
        else:
            runs.append((start, start + PAGE_SIZE))
    return runs
