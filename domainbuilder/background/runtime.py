"""The folder of the domains that run in the background: which there are, and what others have left behind.

$XDG_RUNTIME_DIR/domainbuilder, or /tmp/domainbuilder-UID; it has to be the user's alone. Domain N has
N.domain, which says its name and process and which that process holds locked, and N.sock. A lock ends with
who holds it, however that ends: what nobody holds locked is removed by whoever comes by next.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from domainbuilder.errors import BuildError, Where

_OTHERS = 0o077
_LOCK = "lock"  # held by who adds or removes a domain; it has the last number that was given
_DOMAIN = re.compile(r"([1-9][0-9]{0,8})\.domain")
_MOST_BYTES = 1 << 16
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Domain(NamedTuple):
    """A domain that runs in the background: its number, its name and its process."""

    id: int
    name: str
    pid: int


def runtime_folder() -> Path:
    """Where the domains of this user are."""
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    return Path(base, "domainbuilder") if base.startswith("/") else Path(f"/tmp/domainbuilder-{os.getuid()}")


def _open_folder() -> int:
    """The folder, made if need be. Raises BuildError where others may touch it, or it is a link; OSError."""
    path = runtime_folder()
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise BuildError("no directory", where=Where(str(path)), expected="a directory of this user's")
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(folder)
    if found.st_uid != os.getuid() or found.st_mode & _OTHERS:
        os.close(folder)
        raise BuildError(
            "others may get into the directory of this user's domains",
            where=Where(str(path)),
            found=f"user {found.st_uid}, mode {stat.S_IMODE(found.st_mode):04o}",
            expected=f"user {os.getuid()}, mode 0700",
        )
    return folder


@contextmanager
def _locked() -> Iterator[tuple[int, int]]:
    """The folder and its lock, which nobody else has while the block runs."""
    folder = _open_folder()
    try:
        lock = os.open(_LOCK, _OPEN, 0o600, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder, lock
        finally:
            os.close(lock)
    finally:
        os.close(folder)


def domains() -> list[Domain]:
    """The domains that run, by number; what others left is removed. Raises BuildError and OSError."""
    with _locked() as (folder, _lock):
        return _domains(folder)


def _domains(folder: int) -> list[Domain]:
    names = filter(None, map(_DOMAIN.fullmatch, os.listdir(folder)))
    numbers = sorted(int(found[1]) for found in names)
    return [domain for number in numbers if (domain := _domain(folder, number)) is not None]


def _domain(folder: int, number: int) -> Domain | None:
    file = os.open(f"{number}.domain", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        told = json.loads(os.read(file, _MOST_BYTES))
        return Domain(number, told["name"], told["pid"])
    finally:
        os.close(file)
    _remove(folder, number)
    return None


def _remove(folder: int, number: int) -> None:
    for name in (f"{number}.sock", f"{number}.domain"):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def find(text: str) -> Domain:
    """The domain of that number or name. Raises BuildError where there is none."""
    there = domains()
    for domain in there:
        if text == (str(domain.id) if text.isdigit() else domain.name):
            return domain
    names = ", ".join(domain.name for domain in there) or "no domain runs in the background"
    raise BuildError("an invalid domain identifier", found=repr(text), expected=names)


def _socket_path(folder: int, number: int) -> str:
    """The name of a socket, which may be no longer than 107 bytes, whatever that of the folder is."""
    return f"/proc/self/fd/{folder}/{number}.sock"


def connect(domain: Domain) -> socket.socket:
    """A connection to the domain's process. Raises BuildError where it is gone."""
    folder, sock = _open_folder(), socket.socket(socket.AF_UNIX)
    try:
        sock.connect(_socket_path(folder, domain.id))
    except OSError:
        sock.close()
        raise BuildError("the domain has ended", found=repr(domain.name)) from None
    finally:
        os.close(folder)
    return sock


def _check_free(folder: int, name: str, but: int = 0) -> None:
    """Raise BuildError where a domain has that name, but for the one with the number `but`."""
    for domain in _domains(folder):
        if domain.name == name and domain.id != but:
            raise BuildError("a domain of that name runs already", found=f"{name!r}, {domain.id}")


class Place:
    """A domain's place in the folder, for its own process. `listener` is its socket."""

    def __init__(self, name: str) -> None:
        """Take a new number. Raises BuildError where a domain has that name already; OSError."""
        with _locked() as (folder, lock):
            _check_free(folder, name)
            last = os.pread(lock, 16, 0)
            self.id = (int(last) if last.isdigit() else 0) + 1
            os.pwrite(lock, b"%d" % self.id, 0)
            self._file = os.open(f"{self.id}.domain", _OPEN | os.O_EXCL, 0o600, dir_fd=folder)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._tell(name)
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(_socket_path(folder, self.id))
            self.listener.listen(16)
            self.listener.setblocking(False)

    def rename(self, name: str) -> None:
        """Give the domain another name. Raises BuildError where one has it already; OSError."""
        with _locked() as (folder, _lock):
            _check_free(folder, name, but=self.id)
            self._tell(name)

    def _tell(self, name: str) -> None:
        told = json.dumps({"name": name, "pid": os.getpid()}).encode()
        os.pwrite(self._file, told, 0)
        os.ftruncate(self._file, len(told))

    def leave(self) -> None:
        """The domain is gone."""
        self.listener.close()
        with _locked() as (folder, _lock):
            _remove(folder, self.id)
        os.close(self._file)
