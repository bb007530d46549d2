"""Where ld starts the data segment: DATA_SEGMENT_ALIGN, DATA_SEGMENT_RELRO_END and DATA_SEGMENT_END."""

from __future__ import annotations

from collections.abc import Iterable

from .evaluate import align_up

# enum phase_enum of seg_align_type (binutils 2.40, ld/ldexp.h), without the prefix exp_seg_.
NONE, ALIGN_SEEN, RELRO_SEEN, END_SEEN, RELRO_ADJUST, ADJUST, DONE = (
    "none", "align_seen", "relro_seen", "end_seen", "relro_adjust", "adjust", "done",
)  # fmt: skip


class DataSegment:
    """What DATA_SEGMENT_ALIGN and its kin have seen: seg_align_type of binutils 2.40, ld/ldexp.h.

    `relro` tells whether ld makes a part of the segment read-only after relocation, `doubtful` that what lies
    in the segment is not known, and so neither where it starts.
    """

    def __init__(self, *, relro: bool) -> None:
        self.phase = NONE
        self.relro = relro
        self.doubtful = False
        self.base = self.end = self.relro_end = self.offset = self.page = self.common_page = 0

    def value(self, function: str, first: int, second: int, dot: int) -> int | None:
        """Evaluate one of the three functions at the location counter `dot`; None when it has no meaning."""
        if function == "DATA_SEGMENT_END":
            return self._end(first)
        if function == "DATA_SEGMENT_RELRO_END":
            return self._relro_end(first, second)
        return self._align(first, second, dot)

    def _align(self, max_page: int, common_page: int, dot: int) -> int | None:
        start = align_up(dot, max_page)
        if self.phase == RELRO_ADJUST:
            return self.base
        if self.phase == ADJUST:
            return start + ((dot + common_page - 1) & (max_page - common_page))
        if not self.relro:
            start += dot & (max_page - 1)
        if self.phase == NONE:
            self.phase, self.base, self.relro_end = ALIGN_SEEN, start, 0
            self.page, self.common_page = max_page, common_page
            return start
        return start if self.phase == DONE else None

    def _relro_end(self, offset: int, expression: int) -> int | None:
        self.offset = offset
        if self.phase not in {ALIGN_SEEN, ADJUST, RELRO_ADJUST, DONE}:
            return None
        if self.phase in {ALIGN_SEEN, RELRO_ADJUST}:
            self.relro_end = offset + expression
        if self.phase == RELRO_ADJUST and self.relro_end % self.page:
            self.relro_end = align_up(self.relro_end, self.page)
            return self.relro_end - offset
        if self.phase == ALIGN_SEEN:
            self.phase = RELRO_SEEN
        return expression

    def _end(self, expression: int) -> int | None:
        if self.phase in {ALIGN_SEEN, RELRO_SEEN}:
            self.phase, self.end = END_SEEN, expression
            return expression
        return expression if self.phase in {DONE, ADJUST, RELRO_ADJUST} else None

    def move(self, sections: Iterable[tuple[int, int, int]]) -> int:
        """Move the start so that the relro part ends on a page: lang_size_relro_segment_1.

        `sections` are address, size and alignment of what is allocated, the last first. Returns where the
        relro part is to end.
        """
        relro_end = align_up(self.relro_end, self.page)
        wanted = relro_end - self.offset
        for address, size, alignment in sections:
            if self.base <= address < self.relro_end - self.offset:
                wanted = (address + wanted - (address + size)) // alignment * alignment
        self.base, self.phase = wanted, RELRO_ADJUST
        return relro_end

    def saves_a_page(self) -> bool:
        """Decide whether a page can be saved: lang_size_segment."""
        page = self.common_page
        first, last = -self.base % page, self.end % page
        apart = self.base // page != self.end // page
        saves = bool(first and last and apart and first + last <= page)
        self.phase = ADJUST if saves else DONE
        return saves
