"""An initramfs around Debian's busybox-static, byte for byte the same every time.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of Linux): a header of 13
numbers in 8 hex digits each, the name, the data, each padded to 4 bytes; `TRAILER!!!` ends the archive. The
kernel unpacks it as it is, and the files' times are 0.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent / "scripts"
CONSOLE = (5, 1)  # /dev/console, which /init's first three files are

# The programs that the scripts call, each a link to busybox: PATH finds them, and exec() runs them.
APPLETS = (
    "ash", "awk", "cat", "chmod", "cut", "date", "dd", "dmesg", "echo", "env", "expr", "false", "free",
    "grep", "head", "hostname", "id", "kill", "ls", "mkdir", "mknod", "mount", "mv", "nproc",
    "poweroff", "printf", "ps", "reboot", "rm", "sed", "seq", "setsid", "sh", "sha256sum", "sleep",
    "sort", "sync", "tail", "taskset", "tee", "timeout", "touch", "tr", "true", "umount", "uname",
    "uniq", "usleep", "wc", "xargs", "yes",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: `mode` with its type, as in stat(2)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def program(name: str, data: bytes) -> Entry:
    return Entry(name, stat.S_IFREG | 0o755, data)


def link(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _pad(header + name) + _pad(entry.data)


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive of these files, in this order: a directory has to come before what is in it."""
    records = [_record(inode, entry) for inode, entry in enumerate(entries, 1)]
    return b"".join(records) + _record(0, Entry("TRAILER!!!", 0))


def initramfs(init: str, busybox: bytes, more: Mapping[str, bytes] | None = None) -> bytes:
    """The archive whose /init is the script of that name, with busybox and `more` programs in /bin.

    init: a file of scripts/, run after scripts/common.sh. more: file name to contents.
    """
    script = (SCRIPTS / "common.sh").read_text() + (SCRIPTS / init).read_text()
    return cpio(
        [
            *(directory(name) for name in ("bin", "dev", "proc", "sys", "tmp")),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
            program("bin/busybox", busybox),
            *(link(f"bin/{name}", "busybox") for name in APPLETS),
            *(program(f"bin/{name}", data) for name, data in sorted((more or {}).items())),
            program("init", script.encode()),
        ]
    )
