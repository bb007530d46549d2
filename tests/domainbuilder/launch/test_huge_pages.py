"""Moving a process's memory to huge pages: what is in it stays, and the kernel says that it was moved."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import mmap, os
from domainbuilder.launch.huge_pages import use_huge_pages

def huge():
    lines = open("/proc/self/smaps").read().split("\\n")
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

full = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
full.madvise(mmap.MADV_NOHUGEPAGE) if {refused} else None
full[:] = bytes(range(256)) * (1 << 16)
hole = mmap.mmap(-1, 512 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
hole.madvise(mmap.MADV_DONTDUMP)  # which keeps the two apart
hole[100 << 20] = 1
before = huge()
moved = use_huge_pages()
assert full[:] == bytes(range(256)) * (1 << 16)
assert hole[100 << 20] == 1 and hole[101 << 20] == 0
print(moved, huge() - before, os.uname().release)
"""


def run(*, refused: bool) -> tuple[int, int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(refused=refused)], capture_output=True, text=True, check=True
    )
    moved, kib, release = done.stdout.split()
    return int(moved), int(kib) << 10, release


def test_what_is_full_is_moved_and_what_is_not_stays() -> None:
    moved, huge, release = run(refused=False)
    if not moved:
        pytest.skip(f"Linux {release} moves nothing to huge pages")
    assert 12 << 20 <= huge <= moved < 64 << 20


def test_where_the_kernel_refuses_nothing_happens() -> None:
    _, huge, _ = run(refused=True)
    assert huge < 12 << 20
