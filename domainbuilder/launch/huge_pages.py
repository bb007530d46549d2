"""What a process has written, moved to huge pages: a fork copies one entry for each, and not five hundred.

fork(2) takes 0.1 us for every page that is a process's own. Most of those of a process with a domain are
Python's objects, the heap and translated code. The kernel moves them where it is asked to (MADV_COLLAPSE,
Linux 6.1), whether or not it uses huge pages by itself; whoever looks there notices nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MADV_COLLAPSE = 25  # include/uapi/asm-generic/mman-common.h
_HUGE_PAGE = 2 << 20
_MOST_BYTES = 128 << 20  # of which each takes half a nanosecond
_FULL = 0.9  # of a mapping is there: the rest will have to be


class _Mapping(NamedTuple):
    """One of /proc/self/smaps. Sizes in bytes."""

    start: int
    end: int
    mode: str
    name: str
    resident: int
    huge: int


def use_huge_pages() -> int:
    """Move what this process wrote to huge pages where it fills such; how many bytes are in them behind it.

    It takes some ten milliseconds. Nothing is moved where the host does not do that.
    """
    libc = ctypes.CDLL(None)
    moved = 0
    for start, end in map(_filled, _mappings()):
        if end > start and moved + end - start <= _MOST_BYTES:
            failed = libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)
            moved += 0 if failed else end - start
    return moved


def _filled(mapping: _Mapping) -> tuple[int, int]:
    """What of a mapping huge pages can take the place of: nothing, if it is not the process's own memory."""
    start, end = mapping.start, mapping.end
    if not mapping.mode.startswith("rw") or mapping.name not in ("", "[heap]"):
        return 0, 0
    if "x" in mapping.mode:  # the translator's buffer, which fills from its start
        end = min(end, start + mapping.resident)
    elif mapping.resident < _FULL * (end - start):
        return 0, 0
    start, end = -(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE
    return (start, end) if mapping.huge < end - start else (0, 0)


def _mappings() -> Iterator[_Mapping]:
    try:
        lines = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    head: list[str] = []
    sizes: dict[str, int] = {}
    for line in lines:
        key, *values = line.split(None, 5)
        if not key.endswith(":"):
            head, sizes = [key, *values], {}
        elif values[-1:] == ["kB"]:
            sizes[key] = int(values[0]) << 10
        elif key == "VmFlags:" and head:
            start, end = (int(address, 16) for address in head[0].split("-"))
            name = head[5] if len(head) > 5 else ""
            yield _Mapping(start, end, head[1], name, sizes.get("Rss:", 0), sizes.get("AnonHugePages:", 0))
