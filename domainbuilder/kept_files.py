"""Folders under the user's cache folder: bounded, the user's own, for any number of processes at a time.

What was not used for longest goes first. A file there is whole, or has no name: who writes gives it its name
last, and whatever ends a writer leaves at most what `tidy()` removes.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KERNELS_FOLDER = "kernels"  # unpacked ones
DOMAINS_FOLDER = "domains"  # of `launch --resume-at`
NAMED_FOLDER = "named"  # domains that were kept by a name; nobody but the user removes them
_OTHERS = 0o077  # permissions of anybody but the user
_ABANDONED = 600.0  # seconds after which nobody writes any more


def cache_folder(name: str) -> Path:
    """$XDG_CACHE_HOME/domainbuilder/NAME, or the same under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "domainbuilder" / name


def private_folder(folder: Path) -> None:
    """Make a folder that is the user's alone. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def find_named(file: str) -> str:
    """The file that `launch --keep` made by that name; `file` where it is there, or nothing is kept."""
    path = cache_folder(NAMED_FOLDER) / f"{file}.domain"
    return file if "/" in file or os.path.lexists(file) or not path.exists() else os.fspath(path)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept by a name, in files that go on with a dot: its bytes, and when it was used last."""

    name: str
    size: int
    used: float
    paths: tuple[Path, ...]

    def remove(self) -> None:
        """Have it no more; whoever reads it goes on."""
        for path in self.paths:
            with contextlib.suppress(OSError):
                path.unlink()


def is_ours(fd: int) -> bool:
    """Whether an open file is a regular one, of this user, and nobody else may touch it."""
    state = os.fstat(fd)
    return stat.S_ISREG(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & _OTHERS


def kept_files(folder: Path) -> list[Kept]:
    """What is kept in a folder, the last used first; nothing where there is no such folder."""
    by_name: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path, state in _files(folder):
        if not path.name.startswith("."):
            by_name.setdefault(path.name.partition(".")[0], []).append((path, state))
    found = [
        Kept(
            name,
            sum(state.st_blocks * 512 for _path, state in files),
            max(state.st_mtime for _path, state in files),
            tuple(path for path, _state in files),
        )
        for name, files in by_name.items()
    ]
    return sorted(found, key=lambda kept: (-kept.used, kept.name))


def tidy(folder: Path, *, most_bytes: int, most_files: int) -> None:
    """Remove what was not used for longest, until the rest is within bounds, and what writers have left."""
    total = 0
    for place, kept in enumerate(kept_files(folder)):
        total += kept.size
        if total > most_bytes or place >= most_files:
            kept.remove()
    for path, state in _files(folder):
        if path.name.startswith(".") and state.st_mtime < time.time() - _ABANDONED:
            with contextlib.suppress(OSError):
                path.unlink()


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                state = path.lstat()
                if stat.S_ISREG(state.st_mode):
                    yield path, state
