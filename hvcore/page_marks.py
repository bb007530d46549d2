"""A machine's memory as it was at a mark, put back by the pages that were written since.

The memory is written to a file without a name and mapped from it, privately, where it was: neither the
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
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from hvcore.errors import EngineError
from hvcore.page_store import CHUNK, Base, Pool, Table, Version, content_of, differing, runs_of
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

    __slots__ = ("__weakref__", "table")

    def __init__(self, table: Table) -> None:
        self.table = table

    def content(self, at: int) -> bytes | memoryview:
        """The page at an offset, as it was."""
        return content_of(self.table, at >> PAGE_SHIFT)


class MarkedPages:
    """The memory of one machine and its marks, of which it is mapped from the last that it was at.

    A mark copies the pages that were written since the one before, and has the others in common with it.
    """

    def __init__(self, memory: MachineMemory) -> None:
        self._memory = memory
        self._view = memory.view
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(memory.view))
        self._size = len(memory.view)
        self._at: PageMark | None = None
        self._base: Base | None = None  # the file that the memory is mapped from, with what `_at` holds
        self._pool = Pool()
        self._runs: list[Run] = []
        self._faults = -1  # of this process, when `_runs` was found
        self._scanned_by = 0  # the process that found them
        self._forks = _forks  # when only this process saw the file and the pool

    @property
    def size(self) -> int:
        """What all marks take together, in bytes."""
        return self._pool.size + (self._base.size if self._base is not None else 0)

    def set_mark(self) -> PageMark:
        """Keep what the memory holds now. Raises EngineError where this host cannot."""
        try:
            if self._at is not None and self._is_ours():
                mark = self._next_mark(self._at)
            else:
                mark = self._first_mark()
        except (OSError, ValueError) as error:
            raise EngineError(f"this host cannot keep the memory: {error}") from error
        self._at, self._faults = mark, -1
        return mark

    def _first_mark(self) -> PageMark:
        base = Base(self._size)
        count = self._size >> PAGE_SHIFT
        versions: list[Version | None] = [None] * (count + -count % CHUNK)
        for start, end in self._filled():
            base.view[start:end] = self._view[start:end]
            for at in range(start, end, PAGE_SIZE):
                versions[at >> PAGE_SHIFT] = Version(base, at)
        self._map(base)
        return PageMark([tuple(versions[i : i + CHUNK]) for i in range(0, len(versions), CHUNK)])

    def _next_mark(self, last: PageMark) -> PageMark:
        base, view = self._base, self._view
        assert base is not None
        own = _own_pages(self._address, self._size, shared_too=False)
        changed: dict[int, list[Version | None]] = {}
        for start, end in own:
            for at in range(start, end, PAGE_SIZE):
                content = view[at : at + PAGE_SIZE]
                if bytes(content) == bytes(base.page(at)):
                    continue
                chunk, i = divmod(at >> PAGE_SHIFT, CHUNK)
                row = changed.setdefault(chunk, list(last.table[chunk]))
                self._displace(row[i])
                base.page(at)[:] = content
                row[i] = Version(base, at)
        table = list(last.table)
        for chunk, row in changed.items():
            table[chunk] = tuple(row)
        self._give_up(own)
        return PageMark(table)

    def _displace(self, version: Version | None) -> None:
        """The memory's file is to hold another version of that page: this one goes to the pool."""
        if version is not None and version.store is self._base:
            version.move_to(self._pool, self._pool.keep(version.content))

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
        self._at = self._base = None

    def written(self, mark: PageMark) -> list[Run] | None:
        """What may differ from the mark; None where that cannot be told: a fork was in between."""
        at = self._at
        if mark is not at and (at is None or not self._is_ours()):
            return None
        faults, pid = _page_faults(), os.getpid()
        if faults != self._faults or pid != self._scanned_by:
            self._runs = _own_pages(self._address, self._size, shared_too=False)
            self._scanned_by = pid
        if mark is at or at is None:
            return self._runs
        pages = set(differing(at.table, mark.table))
        for start, end in self._runs:
            pages.update(range(start >> PAGE_SHIFT, end >> PAGE_SHIFT))
        return runs_of(sorted(pages))

    def go_back(self, mark: PageMark, runs: list[Run] | None) -> None:
        """Have the memory hold what it held at the mark; `runs` are what `written()` has told."""
        if runs is None:
            self._map_anew(mark)
        elif mark is self._at:
            self._put_back(runs)
        else:
            self._move_to(mark)

    def _put_back(self, runs: list[Run]) -> None:
        base, view = self._base, self._view
        assert base is not None
        for start, end in runs:
            view[start:end] = base.view[start:end]
        if sum(end - start for start, end in runs) > _MANY_PAGES << PAGE_SHIFT:
            self._map(base)
        else:
            self._faults = _page_faults()

    def _move_to(self, mark: PageMark) -> None:
        """Have the memory's file hold what it held at another mark, and give up what is the process's own."""
        base, at = self._base, self._at
        assert base is not None
        assert at is not None
        for page in differing(at.table, mark.table):
            self._displace(at.table[page // CHUNK][page % CHUNK])
            place = base.page(page << PAGE_SHIFT)
            place[:] = content_of(mark.table, page)
            version = mark.table[page // CHUNK][page % CHUNK]
            if version is not None and version.store is self._pool:
                version.move_to(base, page << PAGE_SHIFT)
        self._give_up(_own_pages(self._address, self._size, shared_too=False))
        self._at, self._faults = mark, -1

    def _map_anew(self, mark: PageMark) -> None:
        """A file of its own with what the memory held at a mark, all of it copied."""
        base = Base(self._size)
        for number, row in enumerate(mark.table):
            for i, version in enumerate(row):
                if version is not None:
                    base.page(number * CHUNK + i << PAGE_SHIFT)[:] = version.content
        self._map(base)
        self._at, self._faults = mark, -1

    def _map(self, base: Base) -> None:
        """Map the memory from a file: from a new one, in this process, which then has a pool of its own."""
        self._memory.map_from(base.fd)
        if base is not self._base:
            self._pool.is_shared = self._pool.is_shared or not self._is_ours()
            self._base, self._forks = base, _forks
            if self._pool.is_shared:
                self._pool = Pool()
        self._faults = -1

    def _is_ours(self) -> bool:
        """Whether no other process sees the file and the pool: what one does is not written any more."""
        return self._forks == _forks

    def _give_up(self, runs: list[Run]) -> None:
        """The pages are the file's again."""
        for start, end in runs:
            self._memory.buffer.madvise(mmap.MADV_DONTNEED, start, end - start)

    def _filled(self) -> list[Run]:
        """The memory that may hold something else than zeros."""
        if self._base is not None:
            return _own_pages(self._address, self._size, shared_too=False) + _data(self._base.fd, self._size)
        if self._memory.is_from_file:  # of which this process has looked at a part, perhaps
            return [(0, self._size)]
        return _own_pages(self._address, self._size, shared_too=True)


_forks = 0  # of this process, and of those that it comes from


def _before_fork() -> None:
    global _forks  # noqa: PLW0603 (to look for objects instead copies pages of all clones)
    _forks += 1


os.register_at_fork(before=_before_fork)


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
