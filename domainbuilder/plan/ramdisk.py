"""The ramdisk (Xen's "module 0"): opened, measured, and unzipped into guest memory.

After xc_dom_module_file, xc_dom_check_gzip, xc_dom_do_gunzip and xc_dom_build_module of
tools/libs/guest/xg_dom_core.c, Xen 4.17.
"""

from __future__ import annotations

import mmap
import os
import zlib
from dataclasses import dataclass
from typing import Protocol

from domainbuilder.errors import BuildError, LayoutError, Where
from domainbuilder.inputs import LIMITS, open_input
from domainbuilder.kernel.gunzip import Gunzip

XC_DOM_DECOMPRESS_MAX = LIMITS["ramdisk"].size  # xenguest.h; also the default limit on a module
_GUNZIP_SLACK = 16  # xc_dom_check_gzip adds this to the size that gzip states
_CHUNK = 1 << 20


class Frames(Protocol):
    """Guest memory by pseudo-physical frames, as a ramdisk needs it (build/guest_memory.py)."""

    def write(self, pfn: int, data: bytes | memoryview, offset: int = 0) -> None:
        """Write `data` from byte `offset` of frame `pfn` on."""

    def clear(self, pfn: int, offset: int, size: int) -> None:
        """Write zeros."""


@dataclass(frozen=True, slots=True)
class Ramdisk:
    """A ramdisk, not yet unzipped.

    `unzip_size` is 0 when it is not gzip (or states a size beyond Xen's limit: then it is handed over as it
    is); otherwise the size gzip states plus 16, as Xen counts it. `segment_size` is what module0 occupies.
    """

    name: str
    blob: bytes | mmap.mmap | memoryview
    unzip_size: int

    @property
    def segment_size(self) -> int:
        """Bytes of guest memory it takes (xc_dom_build_module's modulelen)."""
        return max(self.unzip_size, len(self.blob))

    def load(self, memory: Frames, pfn: int) -> bool:
        """Write it to `memory` from frame `pfn` on, unzipped if it is gzip; True when it was unzipped.

        A damaged gzip file is handed over raw, as Xen does: the guest may know what to do with it.
        """
        if not self.unzip_size:
            memory.write(pfn, memoryview(self.blob))
            return False
        written = self._gunzip(memory, pfn)
        if written is None:
            return True
        size = len(self.blob)
        memory.write(pfn, memoryview(self.blob))
        if written > size:
            memory.clear(pfn, size, written - size)
        return False

    def _gunzip(self, memory: Frames, pfn: int) -> int | None:
        """Unzip into guest memory; None when that went well, else how many bytes had been written."""
        # One byte more than fits, to notice a stream that is longer than it said.
        member, done = Gunzip(memoryview(self.blob), self.unzip_size + 1, _CHUNK), 0
        try:
            for piece in member:
                if done + len(piece) > self.unzip_size:
                    return done
                memory.write(pfn, piece, done)
                done += len(piece)
        except zlib.error:
            return done
        return None if member.is_whole else done


def check_gzip(blob: bytes | mmap.mmap | memoryview) -> int:
    """xc_dom_check_gzip: the unzipped size that gzip states plus 16, or 0 when this is not to be unzipped."""
    if len(blob) < 6 or bytes(blob[:2]) != b"\x1f\x8b":
        return 0
    size = int.from_bytes(blob[len(blob) - 4 :], "little")
    return 0 if size > XC_DOM_DECOMPRESS_MAX else size + _GUNZIP_SLACK


def open_ramdisk(ramdisk: str | os.PathLike[str] | bytes) -> Ramdisk:
    """A ramdisk from a path ("-" is standard input), which is mapped where it can be, or from bytes.

    Raises BuildError in Xen's words: missing, neither a regular file nor a pipe, empty; LayoutError: larger
    than 1 GB.
    """
    if isinstance(ramdisk, bytes):
        return _ramdisk("<ramdisk>", ramdisk)
    name = os.fspath(ramdisk)
    try:
        blob = open_input(name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BuildError(
            f"xc_dom_malloc_filemap: failed to open file: {reason}", where=Where(name)
        ) from error
    return _ramdisk(name, blob)


def _ramdisk(name: str, blob: bytes | mmap.mmap) -> Ramdisk:
    if not len(blob):
        raise BuildError("xc_dom_malloc_filemap: zero length file", where=Where(name))
    if len(blob) > XC_DOM_DECOMPRESS_MAX:
        raise LayoutError(
            "module 0 image too large",
            where=Where(name),
            found=len(blob),
            expected=f"at most {XC_DOM_DECOMPRESS_MAX:#x} bytes",
        )
    unzip_size = check_gzip(blob)
    if unzip_size > XC_DOM_DECOMPRESS_MAX:
        unzip_size = 0
    return Ramdisk(name, blob, unzip_size)
