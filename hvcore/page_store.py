"""Contents of pages that marks of a memory hold, each once, however many marks have it in common.

A version of a page lies in the file that the memory is mapped from, or, where that has another one by now, in
a pool of such pages. Who holds a version are the tables of marks; when nobody does its place is free.
"""

from __future__ import annotations

import mmap
import os
import weakref

from hvcore.public.xen import PAGE_SIZE

_SEGMENT = 16 << 20
_ZEROS = bytes(PAGE_SIZE)
CHUNK = 512  # pages whose versions a table has in one tuple, which marks share while none of them changes


class Base:
    """A file without a name, of a memory's size, from which it is mapped."""

    def __init__(self, size: int) -> None:
        self.fd = os.memfd_create("domainbuilder", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)
        os.ftruncate(self.fd, size)
        self.view = memoryview(mmap.mmap(self.fd, size))

    def page(self, at: int) -> memoryview:
        """The page at an offset."""
        return self.view[at : at + PAGE_SIZE]

    def free(self, at: int) -> None:
        """Nobody holds what is there: it stays what the memory reads until it is written over."""

    @property
    def size(self) -> int:
        """What it takes, in bytes."""
        return os.fstat(self.fd).st_blocks * 512


class Pool:
    """Pages of their own, in files that grow. What a forked process sees as well is never written again."""

    def __init__(self) -> None:
        self._segments: list[memoryview] = []
        self._free: list[int] = []
        self._end = 0
        self.is_shared = False

    def page(self, at: int) -> memoryview:
        """The page at a place."""
        segment, offset = divmod(at, _SEGMENT)
        return self._segments[segment][offset : offset + PAGE_SIZE]

    def keep(self, content: memoryview) -> int:
        """Put a page somewhere; where."""
        if self._free:
            at = self._free.pop()
        else:
            at, self._end = self._end, self._end + PAGE_SIZE
            if at == len(self._segments) * _SEGMENT:
                fd = os.memfd_create("domainbuilder", os.MFD_CLOEXEC)
                try:
                    os.ftruncate(fd, _SEGMENT)
                    self._segments.append(memoryview(mmap.mmap(fd, _SEGMENT)))
                finally:
                    os.close(fd)
        self.page(at)[:] = content
        return at

    def free(self, at: int) -> None:
        """Nobody holds the page."""
        if not self.is_shared:
            self._free.append(at)

    @property
    def size(self) -> int:
        """What the pages in it take, in bytes."""
        return self._end - len(self._free) * PAGE_SIZE


class Version:
    """What a page held at some marks: where that is now."""

    __slots__ = ("at", "store")

    def __init__(self, store: Base | Pool, at: int) -> None:
        self.store, self.at = store, at

    def __del__(self) -> None:
        self.store.free(self.at)

    @property
    def content(self) -> memoryview:
        """The page."""
        return self.store.page(self.at)

    def move_to(self, store: Base | Pool, at: int) -> None:
        """It lies elsewhere from now on."""
        self.store.free(self.at)
        self.store, self.at = store, at


Table = list[tuple[Version | None, ...]]  # None: zeros


def content_of(table: Table, page: int) -> bytes | memoryview:
    """What a page holds by a table."""
    version = table[page // CHUNK][page % CHUNK]
    return _ZEROS if version is None else version.content


def differing(one: Table, other: Table) -> list[int]:
    """The pages of which two tables have other versions."""
    found = []
    for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        if mine is not theirs:
            first = number * CHUNK
            pairs = enumerate(zip(mine, theirs, strict=True))
            found += [first + i for i, (a, b) in pairs if a is not b]
    return found


def runs_of(pages: list[int]) -> list[tuple[int, int]]:
    """Sorted pages as offsets: from the first byte to behind the last of each run."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        start = page * PAGE_SIZE
        if runs and runs[-1][1] == start:
            runs[-1] = runs[-1][0], start + PAGE_SIZE
        else:
            runs.append((start, start + PAGE_SIZE))
    return runs
