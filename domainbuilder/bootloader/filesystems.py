"""File systems to read a kernel from: ext4 (by ext2py), ISO 9660 (by pycdlib), FAT; others by name.

The libraries come with the extra `disks`. They get a MeteredFile, and what they raise over a damaged image
becomes a DiskError.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol, cast

from domainbuilder.bootloader.disk import Budget, Disk, DiskError, MeteredFile
from domainbuilder.bootloader.fat import Fat
from domainbuilder.errors import Where
from domainbuilder.inputs import LIMITS

_EXT_SUPER, _EXT_MAGIC = 1024, 0xEF53
_MOST_LOG_BLOCK = 6  # 64 KiB, EXT4_MAX_BLOCK_LOG_SIZE
_MOST_DIRECTORY = 8 << 20
_ISO_MAGIC_AT = 0x8001
# What cannot be read here, by its magic: what it is called, where the magic is.
_OTHERS = (
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("xfs", 0, b"XFSB"),
    ("a physical volume of LVM", 0x218, b"LVM2 001"),
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("squashfs", 0, b"hsqs"),
    ("f2fs", 0x400, b"\x10\x20\xf5\xf2"),
    ("ZFS", 0x3FD8, b"NVPAIR"),
    ("NTFS", 3, b"NTFS    "),
    ("swap", 4086, b"SWAPSPACE2"),
)
_BY_GRUB = frozenset(("btrfs", "xfs", "a physical volume of LVM", "LUKS"))
_DAMAGE = (struct.error, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError)


class FileSystem(Protocol):
    """Files by absolute path; symbolic links are followed."""

    def read(self, path: str, limit: int) -> bytes:
        """A whole file. Raises OSError where there is none, DiskError above `limit` bytes."""

    def listdir(self, path: str) -> list[str]:
        """The names in a directory. Raises OSError where there is none."""


def file_system(disk: Disk, budget: Budget) -> FileSystem | None:
    """What is on a disk or partition, or None where nothing is known to be.

    Raises DiskError for what is damaged, cannot be read here, or needs a library that is not installed.
    """

    def at(offset: int, length: int) -> bytes:
        return disk.read(offset, length) if offset + length <= disk.size else b""

    if at(_EXT_SUPER + 56, 2) == _EXT_MAGIC.to_bytes(2, "little"):
        return _Ext(disk, budget)
    if at(_ISO_MAGIC_AT, 5) == b"CD001":
        return _Iso(disk, budget)
    for name, offset, magic in _OTHERS:
        if at(offset, len(magic)) == magic:
            by_grub = ", but PV-GRUB reads it inside the domain" if name in _BY_GRUB else ""
            raise DiskError(
                f"{name} cannot be read here{by_grub}",
                where=_where(disk),
                expected="ext2 to ext4, FAT or ISO 9660",
            )
    if at(510, 2) == b"\x55\xaa" and b"FAT" in at(54, 5) + at(82, 5):
        return Fat(disk, budget)
    return None


def read_text(fs: FileSystem, path: str) -> str:
    """A configuration file. Raises OSError where there is none, DiskError where it is too large."""
    return fs.read(path, LIMITS["boot configuration"].size).decode("utf-8", "surrogateescape")


def _where(disk: Disk) -> Where:
    return Where(disk.name, getattr(disk, "start", 0))


@contextmanager
def _as_disk_errors(disk: Disk, kind: type[Exception], what: str) -> Iterator[None]:
    """What a library raises over a damaged image, in one kind."""
    try:
        yield
    except kind as error:
        raise DiskError(f"{what}: {error}", where=_where(disk)) from error
    except _DAMAGE as error:
        raise DiskError(f"the {what} is damaged: {error}", where=_where(disk)) from error


def _missing(library: str, what: str, disk: Disk) -> DiskError:
    return DiskError(
        f"{what} is read by {library}, which is not installed; pip install 'domainbuilder[disks]'",
        where=_where(disk),
    )


def _joined(pieces: Iterator[bytes], limit: int, too_large: Callable[[], DiskError]) -> bytes:
    data = bytearray()
    for piece in pieces:
        data += piece
        if len(data) > limit:
            raise too_large()
    return bytes(data)


class _Ext:
    """ext2, ext3, ext4."""

    def __init__(self, disk: Disk, budget: Budget) -> None:
        try:
            from ext2py import ExtError, ExtFS
        except ImportError as error:
            raise _missing("ext2py", "ext4", disk) from error
        self._disk = disk
        self._error = ExtError
        log_block, inode_size = struct.unpack("<24xI60xH", disk.read(_EXT_SUPER, 90))
        if log_block > _MOST_LOG_BLOCK or inode_size > 1024 << log_block:
            raise DiskError("the ext4 file system is damaged", where=_where(disk))

        def too_large() -> DiskError:
            return DiskError("a directory is too large", where=_where(disk), expected=_MOST_DIRECTORY)

        class Bounded(ExtFS):  # type: ignore[misc, unused-ignore]
            """Directories and links are read whole: never more than any real one has."""

            def read_inode_data(self, inode: Any) -> bytes:
                return _joined(self.iter_inode_data(inode), _MOST_DIRECTORY, too_large)

        with self._guarded():
            self._fs = Bounded(cast(BinaryIO, MeteredFile(disk, budget)))

    def _guarded(self) -> Any:
        return _as_disk_errors(self._disk, self._error, "ext4 file system")

    def read(self, path: str, limit: int) -> bytes:
        def too_large() -> DiskError:
            return DiskError(f"{self._disk.name}: {path} is too large", expected=limit)

        with self._guarded():
            inode = self._fs.stat(path)
            if not stat.S_ISREG(inode.mode):
                raise IsADirectoryError(path)
            if inode.size > limit:
                raise too_large()
            data = _joined(self._fs.iter_read(path), limit, too_large)
            return data + bytes(inode.size - len(data))  # data inside the inode may have a hole at its end

    def listdir(self, path: str) -> list[str]:
        with self._guarded():
            return list(self._fs.listdir(path))


class _Iso:
    """ISO 9660, with Rock Ridge's names where it has them, then Joliet's."""

    def __init__(self, disk: Disk, budget: Budget) -> None:
        try:
            from pycdlib import PyCdlib
            from pycdlib.pycdlibexception import PyCdlibException
        except ImportError as error:
            raise _missing("pycdlib", "ISO 9660", disk) from error
        self._disk = disk
        self._error = PyCdlibException
        self._iso: Any = PyCdlib()
        with self._guarded():
            self._iso.open_fp(cast(BinaryIO, MeteredFile(disk, budget)))
            self._names = (
                "rr_path"
                if self._iso.has_rock_ridge()
                else "joliet_path"
                if self._iso.has_joliet()
                else "iso_path"
            )

    def _guarded(self) -> Any:
        return _as_disk_errors(self._disk, self._error, "ISO 9660 file system")

    def _record(self, path: str, links: int = 8) -> tuple[str, Any]:
        """The path with links followed and its record. Raises FileNotFoundError where there is none."""
        from pycdlib.pycdlibexception import PyCdlibInvalidInput

        done = ""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        record = None
        while parts:
            part = parts.pop(0)
            if part == "..":
                done = done.rpartition("/")[0]
                continue
            try:
                record = self._iso.get_record(**{self._names: f"{done}/{self._spelt(done, part)}"})
            except PyCdlibInvalidInput as error:
                raise FileNotFoundError(path) from error
            if self._names == "rr_path" and record.rock_ridge and record.rock_ridge.is_symlink():
                if not links:
                    raise FileNotFoundError(path)
                links -= 1
                target = record.rock_ridge.symlink_path().decode("utf-8", "replace")
                done = "" if target.startswith("/") else done
                parts[:0] = [one for one in target.split("/") if one not in ("", ".")]
                continue
            done = f"{done}/{part}"
        if record is None:
            raise FileNotFoundError(path)
        return done, record

    def _spelt(self, folder: str, name: str) -> str:
        """A plain ISO 9660 name is in capitals and has a version."""
        if self._names != "iso_path":
            return name
        wanted = name.upper()
        for one in self._iso.list_children(iso_path=folder or "/"):
            found = one.file_identifier().decode("ascii", "replace")
            if found == wanted or found.split(";")[0].rstrip(".") == wanted:
                return str(found)
        raise FileNotFoundError(name)

    def read(self, path: str, limit: int) -> bytes:
        with self._guarded():
            done, record = self._record(path)
            if record.is_dir():
                raise IsADirectoryError(path)
            length = record.get_data_length()
            if length > limit:
                raise DiskError(f"{self._disk.name}: {path} is too large", found=length, expected=limit)
            folder, _, name = done.rpartition("/")
            name = self._spelt(folder, name)
            with self._iso.open_file_from_iso(**{self._names: f"{folder}/{name}"}) as file:
                return bytes(file.read())

    def listdir(self, path: str) -> list[str]:
        with self._guarded():
            found = []
            for one in self._iso.list_children(**{self._names: path.rstrip("/") or "/"}):
                if one is None or one.is_dot() or one.is_dotdot():
                    continue
                ridge = one.rock_ridge.name() if self._names == "rr_path" and one.rock_ridge else b""
                code = "utf-16-be" if self._names == "joliet_path" else "utf-8"
                found.append((ridge or one.file_identifier()).decode(code, "replace"))
            return found
