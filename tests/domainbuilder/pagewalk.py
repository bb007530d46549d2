"""Walk page tables the way a processor does, knowing nothing of the builder's geometry."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Walk:
    """A walk of page tables in machine memory: upper entries (level, index, value), leaves, table counts."""

    entries: list[tuple[int, int, int]]
    leaves: list[tuple[int, int]]  # (virtual address, entry)
    tables: dict[int, int]

    def ranges(self, pfn_of: Callable[[int], int]) -> list[dict[str, int]]:
        """Leaves merged where addresses, frames and flags go on, in the reference's form."""
        merged: list[dict[str, int]] = []
        for va, entry in self.leaves:
            pfn, flags = pfn_of(entry >> 12 & (1 << 40) - 1), entry & 0xFFF
            last = merged[-1] if merged else None
            if (
                last
                and last["va_end"] == va
                and last["flags"] == flags
                and last["pfn"] + (va - last["va_start"] >> 12) == pfn
            ):
                last["va_end"] += 4096
            else:
                merged.append({"va_start": va, "va_end": va + 4096, "pfn": pfn, "flags": flags})
        return merged


def walk_page_tables(ram: memoryview, first_mfn: int, root_mfn: int, levels: int) -> Walk:
    """Walk page tables the way a processor does, independent of the builder's geometry."""
    size, bits = (4, 10) if levels == 2 else (8, 9)
    entries: list[tuple[int, int, int]] = []
    leaves: list[tuple[int, int]] = []
    tables: dict[int, int] = dict.fromkeys(range(1, levels + 1), 0)

    def table(mfn: int) -> Iterator[tuple[int, int]]:
        page = ram[(mfn - first_mfn) << 12 :][:4096]
        for index, (entry,) in enumerate(struct.iter_unpack("<I" if size == 4 else "<Q", page)):
            if entry & 1:
                yield index, entry

    def descend(mfn: int, level: int, va: int) -> None:
        tables[level] += 1
        for index, entry in table(mfn):
            at = va | index << 12 + bits * (level - 1)
            if level == 4 and index >= 256:
                at |= 0xFFFF << 48
            if level == 1:
                leaves.append((at, entry))
            else:
                entries.append((level, index, entry))
                descend(entry >> 12 & (1 << 40) - 1, level - 1, at)

    descend(root_mfn, levels, 0)
    return Walk(entries, leaves, tables)
