"""Applies the edits that findings bring to the text they were found in."""

from __future__ import annotations

from collections.abc import Iterable

from .findings import Edit


def compatible(fixes: Iterable[tuple[Edit, ...]]) -> list[Edit]:
    """Return the edits of the fixes that touch none taken before them, equal ones once, in order of the text.

    A fix is taken whole or not at all.
    """
    taken: list[Edit] = []
    for fix in fixes:
        new = [edit for edit in fix if edit not in taken]
        if not any(_touch(edit, other) for edit in new for other in taken):
            taken += new
    return sorted(taken, key=lambda edit: edit.span)


def _touch(one: Edit, other: Edit) -> bool:
    if one.span == other.span:
        return True
    return one.span.start < other.span.end and other.span.start < one.span.end


def apply(text: str, edits: Iterable[Edit]) -> str:
    """Return the text with the edits made; they are in order and do not overlap."""
    out: list[str] = []
    position = 0
    for edit in edits:
        out += (text[position : edit.span.start], edit.text)
        position = edit.span.end
    return "".join((*out, text[position:]))
