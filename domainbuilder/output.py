"""Writing output files, whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor, open for writing, that becomes the file at `path` when the block ends without an error.

    A symbolic link is followed; what exists and is no regular file (a device, a directory) is refused with
    OSError, as is whatever the system refuses.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        partial.replace(target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
