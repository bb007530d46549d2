"""Where ld starts the data segment: DATA_SEGMENT_ALIGN, DATA_SEGMENT_RELRO_END and DATA_SEGMENT_END."""

from __future__ import annotations

from collections.abc import Iterable

from .evaluate import align_up


class DataSegment:
    """What DATA_SEGMENT_ALIGN and its kin have seen: seg_align_type of binutils 2.40, ld/ldexp.h.

    `doubtful` tells that it is not known what ld does. `phase` is "" while the layout is found, then "relro"
    (the start was moved so that what is made read-only ends on a page) or "done".
    """

    def __init__(self, *, relro: bool, doubtful: bool) -> None:
        self.phase = ""
        self.relro, self.doubtful = relro, doubtful
        self.base = self.end = self.relro_end = self.offset = self.page = self.max_page = 0

    def value(self, function: str, first: int, second: int, dot: int) -> int:
        """Evaluate one of the three functions at the location counter `dot`."""
        if function == "DATA_SEGMENT_END":
            self.end = self.end if self.phase else first
            return first
        if function == "DATA_SEGMENT_RELRO_END":
            return self._relro_end(first, second)
        start = align_up(dot, first)
        if self.phase == "relro":
            return self.base
        if not self.relro:
            start += dot & (first - 1)
        if not self.phase:
            self.base, self.page, self.max_page = start, second, first
        return start

    def _relro_end(self, offset: int, expression: int) -> int:
        self.offset = offset
        if self.phase in {"", "relro"}:
            self.relro_end = offset + expression
        if self.phase == "relro" and self.relro_end % self.page:
            self.relro_end = align_up(self.relro_end, self.page)
            return self.relro_end - offset
        return expression

    def move(self, sections: Iterable[tuple[int, int, int]]) -> None:
        """Move the start so that the relro part ends on a page: lang_size_relro_segment_1.

        `sections` are address, size and alignment of what is allocated, the last first.
        """
        wanted = align_up(self.relro_end, self.page) - self.offset
        for address, size, alignment in sections:
            if self.base <= address < self.relro_end - self.offset:
                wanted = (address + wanted - (address + size)) // alignment * alignment
        self.base, self.phase = wanted, "relro"

    def settle(self) -> None:
        """Decide whether a page can be saved: lang_size_segment."""
        first, last = -self.base % self.page, self.end % self.page
        apart = self.base // self.page != self.end // self.page
        self.phase = "done"
        # Then ld saves the page, in ways that depend on what it has evaluated already.
        self.doubtful = bool(first and last and apart and first + last <= self.page)
