"""Unpacked kernels, kept under the user's cache folder, so that the same kernel is decompressed once.

A kernel is known by the digest of its compressed stream; what is kept is mapped, and so costs no memory until
it is used. The folder is the user's alone and bounded: what was not used for longest goes first. Whatever is
amiss with it (no folder, no room, another's file) is no error: the kernel is then decompressed as ever.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

from domainbuilder import kept_files

MOST_BYTES = 1 << 30
MOST_KERNELS = 16
LEAST_BYTES = 1 << 20  # what is smaller is decompressed as fast as it is found


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/domainbuilder/kernels, or the same under ~/.cache."""
    return kept_files.cache_folder(kept_files.KERNELS_FOLDER)


class UnpackedKernels:
    """The kept kernels of one folder. Several processes may use it at a time."""

    def __init__(
        self, folder: Path, *, most_bytes: int = MOST_BYTES, most_kernels: int = MOST_KERNELS
    ) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._most_kernels = most_kernels

    def find(self, packed: memoryview, size: int) -> mmap.mmap | None:
        """The image of `size` bytes that the stream `packed` unpacks to, if it is kept."""
        path = self._path(packed)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != size or not kept_files.is_ours(file.fileno()):
                    return None
                os.utime(file.fileno())  # used now
                return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except (OSError, ValueError):
            return None

    def keep(self, packed: memoryview, image: bytes | mmap.mmap) -> None:
        """Keep what `packed` was unpacked to; whoever reads meanwhile finds all of it or nothing."""
        import tempfile  # as hashlib below: a kernel that is not packed, or found here, need not pay for it

        if not LEAST_BYTES <= len(image) <= self._most_bytes:
            return
        with contextlib.suppress(OSError):
            kept_files.private_folder(self._folder)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".", delete=False) as file:
                try:
                    file.write(image)
                    file.flush()
                    Path(file.name).replace(self._path(packed))
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise
            kept_files.tidy(self._folder, most_bytes=self._most_bytes, most_files=self._most_kernels)

    def _path(self, packed: memoryview) -> Path:
        import hashlib

        return self._folder / hashlib.sha256(packed).hexdigest()


def users_kernels(*, cache: bool = True) -> UnpackedKernels | None:
    """Those under the user's cache folder, for load_kernel(); None where that is to be left alone."""
    return UnpackedKernels(cache_folder()) if cache else None
