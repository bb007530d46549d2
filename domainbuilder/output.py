"""Writing output files, whole or not at all, and never over an input."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from domainbuilder.errors import BuildError, Where

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT}


def refuse_to_overwrite(
    outputs: Iterable[os.PathLike[str] | str | None], inputs: Iterable[os.PathLike[str] | str | bytes | None]
) -> None:
    """Raise BuildError when an output is one of the inputs, by whatever name, or two outputs are one file."""
    given = [os.fspath(name) for name in inputs if isinstance(name, str | os.PathLike) and os.fspath(name)]
    seen: list[str] = []
    for output in outputs:
        if output is None:
            continue
        path = os.fspath(output)
        if any(_same_file(path, name) for name in given):
            raise BuildError("this is an input and would be overwritten", where=Where(path))
        if any(_same_file(path, name) for name in seen):
            raise BuildError("two outputs are the same file", where=Where(path))
        seen.append(path)


def _same_file(one: str, other: str) -> bool:
    """Whether writing to `one` would change `other`; a terminal or /dev/null may well be both."""
    try:
        found, beside = Path(one).stat(), Path(other).stat()
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)
    device = stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode)
    return not device and os.path.samestat(found, beside)


@contextmanager
def atomic_output(path: str | os.PathLike[str]) -> Iterator[int]:
    """A descriptor, open for writing, that becomes the file at `path` when the block ends without an error.

    Until then it has no name, where the file system can do that, so that nothing is left of it however this
    process ends. A symbolic link is followed; a file that is replaced leaves its mode to the new one. What
    exists and is no regular file (a device, a directory) is refused with OSError, as is whatever the system
    refuses; the error names `path`.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        fd = _nameless(target.parent)
        named = fd is None
        if fd is None:
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield fd
            with suppress(FileNotFoundError):
                os.fchmod(fd, stat.S_IMODE(target.stat().st_mode))
            if not named:
                _give_name(fd, partial)
                named = True
            partial.replace(target)
        except BaseException:
            if named:
                partial.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    except OSError as error:
        if error.filename is None or Path(error.filename) in (partial, target.parent):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def _nameless(folder: Path) -> int | None:
    """A file without a name in `folder`; None where that cannot be had."""
    if not Path("/proc/self/fd").exists():  # through which it gets its name later
        return None
    try:
        return os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return None
        raise


def _give_name(fd: int, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # with a dst_dir_fd Python calls linkat(AT_SYMLINK_FOLLOW), which follows /proc's link to the file
        os.link(f"/proc/self/fd/{fd}", path.name, dst_dir_fd=folder)
    finally:
        os.close(folder)


def write_whole(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Make `data` the contents of the file at `path`: see atomic_output(), as for what is raised."""
    with atomic_output(path) as fd:
        write_at(fd, data, 0)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> int:
    """Write all of it at that offset; how much that was. Raises OSError."""
    view = memoryview(data)
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)
    return done
