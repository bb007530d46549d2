"""An initramfs around a busybox, byte for byte the same every time: `domainbuilder initramfs`.

The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of Linux): a header of 13
numbers in 8 hex digits each, the name, the data, each padded to 4 bytes; `TRAILER!!!` ends the archive. The
kernel unpacks it as it is, and the files' times are 0.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from domainbuilder.errors import BuildError, Where
from domainbuilder.inputs import open_input

_LARGEST = 0xFFFFFFFF  # a size is 8 hex digits
CONSOLE = (5, 1)  # /dev/console, which /init's first three files are

# The programs that scripts call, each a link to busybox; the default /init has busybox make all the others.
APPLETS = (
    "ash", "awk", "cat", "chmod", "cut", "date", "dd", "dmesg", "echo", "env", "expr", "false", "free",
    "grep", "head", "hostname", "id", "kill", "ls", "mkdir", "mknod", "mount", "mv", "nproc",
    "poweroff", "printf", "ps", "reboot", "rm", "sed", "seq", "setsid", "sh", "sha256sum", "sleep",
    "sort", "sync", "tail", "taskset", "tee", "timeout", "touch", "tr", "true", "umount", "uname",
    "uniq", "usleep", "wc", "xargs", "yes",
)  # fmt: skip

# A shell on the console; its end is the guest's.
INIT = """\
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
echo "This is $(uname -sr). The end of this shell powers the guest off."
setsid cttyhack sh
poweroff -f
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the archive: `mode` with its type, as in stat(2)."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    """A directory for all to enter."""
    return Entry(name, stat.S_IFDIR | 0o755)


def program(name: str, data: bytes) -> Entry:
    """A file for all to run."""
    return Entry(name, stat.S_IFREG | 0o755, data)


def link(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _record(inode: int, entry: Entry) -> bytes:
    name = os.fsencode(entry.name) + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return _pad(header + name) + _pad(entry.data)


def cpio(entries: Iterable[Entry]) -> bytes:
    """The archive of these files, in this order: a directory has to come before what is in it."""
    records = [_record(inode, entry) for inode, entry in enumerate(entries, 1)]
    return b"".join(records) + _record(0, Entry("TRAILER!!!", 0))


def initramfs(busybox: bytes, init: bytes | str = INIT, files: Mapping[str, bytes] | None = None) -> bytes:
    """The archive with `busybox` in /bin, links to it for what scripts call, /dev/console, `init` as /init.

    `files` are others: path in the guest -> contents, for all to run; directories on the way are made.
    Raises BuildError for a path that leads nowhere.
    """
    more = {_inside(name): data for name, data in sorted((files or {}).items())}
    made = ["bin", "dev", "proc", "sys", "tmp"]
    for name in more:
        made += [str(parent) for parent in reversed(PurePosixPath(name).parents) if str(parent) != "."]
    links = [link(f"bin/{name}", "busybox") for name in APPLETS if f"bin/{name}" not in more]
    return cpio(
        [
            *(directory(name) for name in dict.fromkeys(made)),
            Entry("dev/console", stat.S_IFCHR | 0o600, device=CONSOLE),
            program("bin/busybox", busybox),
            *links,
            *(program(name, data) for name, data in more.items()),
            program("init", init.encode() if isinstance(init, str) else init),
        ]
    )


def _inside(name: str) -> str:
    path = PurePosixPath("/", name)
    if ".." in path.parts or path == PurePosixPath("/"):
        raise BuildError("no path of a file in the guest", found=name, expected="such as /bin/program")
    return str(path.relative_to("/"))


def read_file(name: str) -> bytes:
    """A file that is to be put into the archive. Raises BuildError."""
    try:
        data = open_input(name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BuildError(reason, where=Where(name)) from error
    if len(data) > _LARGEST:
        raise BuildError(
            "too large for an initramfs", where=Where(name), expected=f"at most {_LARGEST:#x} bytes"
        )
    return bytes(data)
