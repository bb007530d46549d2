"""Sizes of memory as xl's commands take them: parse_mem_size_kb() of tools/xl/xl_utils.c of Xen 4.17."""

from __future__ import annotations

import re

from domainbuilder.errors import BuildError

_SHIFTS = {"": 10, "b": -10, "k": 0, "m": 10, "g": 20, "t": 30}  # from KiB on
_MOST_KIB = 1 << 40


def parse_mem_size_kb(text: str) -> int:
    """A number of KiB out of a number with a unit, or of MB. Raises BuildError."""
    found = re.fullmatch(r"([0-9]{1,18})([bkmgt]?)", text.lower())
    if found is None:
        raise BuildError(
            "invalid memory size",
            found=repr(text),
            expected="a number of MB, or with a unit: b, k, m, g, t",
        )
    shift = _SHIFTS[found[2]]
    size = int(found[1]) << shift if shift >= 0 else int(found[1]) >> -shift
    return min(size, _MOST_KIB)
